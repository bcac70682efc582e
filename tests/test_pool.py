"""Several requests at once: each gets what it would get alone, and none is disturbed by another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pyfastv import ClosedError, ContextLengthError, FastV, ImageError, OptionError, Runner, Sampling, Turbo
from pyfastv import Pool as Pooling
from pyfastv.commands.demo import same_answer
from pyfastv.engine.job_pool import Job, JobPool, PoolBusy
from pyfastv.inputs.chat import assistant_message, user_message
from pyfastv.models import bundled_examples

import random_mmproj

CLOCK, ANALOG, *_ = bundled_examples()
SLICE = Path(__file__).parent / "bench_slice"
QUESTIONS = [json.loads(line) for line in (SLICE / "questions.jsonl").read_text().splitlines()]
# a grammar that never ends by itself, for answers that are cut off
ENDLESS = Sampling(grammar="root ::= [a-z ] root")
GREEDY = Sampling()
FEW_WORDS: dict[str, Any] = {"grammar": ENDLESS.grammar, "max_tokens": 10}
WORDS = Sampling(**FEW_WORDS)
EXACT: dict[str, Any] = {"flash_attn": False, "type_k": "f32", "type_v": "f32"}
HALF = "k=2,drop=0.5,score=question-max"
NOISE = [np.random.default_rng(i).integers(0, 256, (112, 112, 3), dtype=np.uint8) for i in range(8)]


def ask(pool: JobPool, picture: Any, question: str, sampling: Sampling = GREEDY, **options: Any) -> Job:
    return pool.submit([user_message(question, picture)], sampling, **options)


def endless(pool: JobPool, question: str = "Describe.", **options: Any) -> Job:
    """A job that has a slot and generates until it is cancelled."""
    job = ask(pool, None, question, ENDLESS, **options)
    next(iter(job))
    return job


def still_answers(pool: JobPool) -> bool:
    return same_answer(ask(pool, CLOCK.picture, CLOCK.question).read(), CLOCK.answer)


def idle(pool: JobPool) -> bool:
    return pool.stats()["active"] == pool.stats()["waiting"] == 0 and pool._slots.idle


@pytest.fixture(scope="module")
def shared() -> Iterator[JobPool]:
    with JobPool(slots=4, queue=100, n_ctx=1024) as pool:
        yield pool


@pytest.fixture
def pool(shared: JobPool) -> Iterator[JobPool]:
    """Four slots that hold nothing; all are idle again at the end."""
    shared._slots.reset()
    yield shared
    assert idle(shared)


@pytest.fixture
def one_slot() -> Iterator[JobPool]:
    with JobPool(slots=1, queue=1, n_ctx=1024) as pool:
        yield pool


# answers


def test_each_of_more_clients_than_slots_gets_the_answer_that_it_gets_alone() -> None:
    """Other row counts round differently: without flash attention and with f32 caches by too little to matter."""
    asked = QUESTIONS[:18:6]
    with JobPool(slots=2, n_ctx=1024, **EXACT) as pool, Runner(n_ctx=1024, **EXACT) as runner:
        jobs = [ask(pool, SLICE / q["image"], q["question"]) for q in asked]
        texts = [job.read() for job in jobs]
        assert texts == [runner.ask(SLICE / q["image"], q["question"]).text for q in asked]
    assert [job.finish_reason for job in jobs] == ["stop"] * 3
    reports = [job.report for job in jobs]
    assert all(r is not None and (r.visual_tokens, r.visual_tokens_kept) == (576, 288) for r in reports)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random weights: an answer hangs on every token that is seen."""
    return random_mmproj.write_pair(tmp_path_factory.mktemp("tiny"), "LLaVA")


@pytest.mark.parametrize(
    ("turbo", "reduce", "n_visual"),
    [
        ("share=0.5", None, 32),
        (None, "pool,keep=16", 16),
        (None, "cdpruner,keep=16", 16),
        ("share=0.25", "merge,keep=20", 20),
    ],
)
def test_each_of_eight_clients_gets_the_answer_that_it_gets_alone(
    tiny: tuple[Path, Path], turbo: str | None, reduce: str | None, n_visual: int
) -> None:
    options: dict[str, Any] = {"n_ctx": 256, "fastv": HALF, "turbo": turbo, "reduce": reduce, **EXACT}
    asked = [(pixels, f"What is {i}?") for i, pixels in enumerate(NOISE)]
    with JobPool(*tiny, slots=4, **options) as pool, Runner(*tiny, **options) as runner:
        jobs = [ask(pool, *question, WORDS) for question in asked]
        texts = [job.read() for job in jobs]
        assert texts == [runner.ask(*question, **FEW_WORDS).text for question in asked]
    assert len(set(texts)) > 1
    reports = [job.report for job in jobs]
    assert all(
        r is not None and (r.visual_tokens, r.visual_tokens_kept) == (n_visual, n_visual // 2)
        for r in reports
    )


def test_each_request_has_its_own_turbo_and_reducer(tiny: tuple[Path, Path]) -> None:
    """All at once: unlike a schedule, neither waits for the others, and nobody gets what another one asked for."""
    settings: list[dict[str, Any]] = [
        {},
        {"turbo": "share=0.5"},
        {"reduce": "pool,keep=16"},
        {"turbo": Turbo(share=0.25), "reduce": Pooling(keep=32)},
        {"turbo": "share=0.5,renumber"},
        {"reduce": "stride,keep=32,renumber"},
        {"turbo": None, "reduce": "off"},
        {"turbo": "share=0.5", "reduce": "cdpruner,keep=20"},
    ]
    options: dict[str, Any] = {"n_ctx": 1024, "fastv": HALF, **EXACT}
    with JobPool(*tiny, slots=8, **options) as pool, Runner(*tiny, **options) as runner:
        running = [endless(pool, f"{i}") for i in range(2)]
        jobs = [ask(pool, NOISE[0], "What?", WORDS, **setting) for setting in settings]
        texts = [job.read() for job in jobs]
        assert not any(job.done for job in running)
        assert texts == [runner.ask(NOISE[0], "What?", **FEW_WORDS, **setting).text for setting in settings]
    assert len(set(texts)) > 4
    counts = [job.report.visual_tokens for job in jobs if job.report is not None]
    assert counts == [64, 32, 16, 32, 32, 32, 64, 20]
    assert [job.report.patches for job in jobs if job.report is not None] == 8 * [64]


def test_a_picture_is_reused_only_if_it_was_made_cheaper_in_the_same_way(pool: JobPool) -> None:
    def cached(question: str = CLOCK.question, **setting: Any) -> int:
        job = ask(pool, CLOCK.picture, question, **setting)
        job.read()
        assert job.report is not None
        return job.report.cached_tokens

    for setting in ({"turbo": "share=0.5"}, {"reduce": "stride,keep=288"}, {"reduce": "cdpruner,keep=288"}):
        assert cached(**setting) < 50
        assert cached(**setting) > 288
    assert cached("What is this?", reduce="stride,keep=288") > 288
    assert cached("What is this?", reduce="cdpruner,keep=288") < 50  # other tokens
    assert cached("What is this?", turbo="share=0.4") < 50


def test_a_picture_reduced_for_its_first_question_stays_in_its_conversation(pool: JobPool) -> None:
    messages = [user_message(CLOCK.question, CLOCK.picture)]
    first = pool.submit(messages, GREEDY, reduce="cdpruner,keep=288").read()
    messages += [assistant_message(first), user_message("Is the clock digital or analog?", [])]
    second = pool.submit(messages, GREEDY, reduce="cdpruner,keep=288")
    second.read()
    assert second.report is not None
    assert second.report.cached_tokens > 288
    assert (second.report.pictures_encoded, second.report.visual_tokens) == (0, 288)


def test_what_turbo_and_reducers_left_is_told_in_places(pool: JobPool) -> None:
    told = {}
    for name, setting in {
        "none": {},
        "turbo": {"turbo": "share=0.5"},
        "pool": {"reduce": "pool,window=2"},
        "stride": {"reduce": "stride,keep=144", "fastv": None},
    }.items():
        job = ask(pool, [CLOCK.picture, ANALOG.picture][:1], "What?", details=True, **setting)
        job.read()
        assert job.details is not None
        ((slice_,),) = job.details["pictures"]
        assert slice_["patches"] == [[24, 24]]
        told[name] = slice_["places"]
    assert told["none"] == list(range(576))
    assert len(told["turbo"]) == 288
    assert told["turbo"] == sorted(set(told["turbo"]))
    assert told["pool"] == [24 * y + x for y in range(0, 24, 2) for x in range(0, 24, 2)]
    assert told["stride"] == list(range(2, 576, 4))


def test_generation_goes_on_while_another_s_picture_is_evaluated(pool: JobPool) -> None:
    job = endless(pool)
    other = ask(pool, CLOCK.picture, CLOCK.question)
    assert other.read()
    assert not job.done
    # the encoder, the first layers, the question: a token of the first between any two
    assert len(job._pieces) >= 3
    job.cancel()
    assert job.wait(10)


def test_pieces_are_whole_characters_without_the_stop_string(pool: JobPool) -> None:
    whole = ask(pool, CLOCK.picture, CLOCK.question).read()
    job = ask(pool, CLOCK.picture, CLOCK.question, Sampling(stop=":"))
    assert job.read() == whole[: whole.index(":")]
    assert job.finish_reason == "stop"
    assert job.report is not None
    assert [piece.text for piece in job] == [piece.text for piece in job]  # from the beginning each time


def test_max_tokens_ends_an_answer(pool: JobPool) -> None:
    job = ask(pool, None, "Hello", Sampling(max_tokens=3, grammar=ENDLESS.grammar))
    job.read()
    assert job.finish_reason == "length"
    assert job.report is not None
    assert job.report.generated_tokens == 3


def test_an_answer_ends_where_its_part_of_the_context_does() -> None:
    with JobPool(slots=2, n_ctx=64) as pool:
        jobs = [ask(pool, None, "Hello", ENDLESS), ask(pool, None, "Goodbye", ENDLESS)]
        for job in jobs:
            job.read()
            assert job.finish_reason == "length"
            assert job.report is not None
            assert (
                job.report.prompt_tokens + job.report.generated_tokens == 64 + 1
            )  # the last is not evaluated


def test_jobs_can_be_read_by_an_event_loop(pool: JobPool) -> None:
    async def read(job: Job) -> str:
        return "".join([piece.text async for piece in job])

    async def main() -> list[str]:
        jobs = [ask(pool, e.picture, e.question) for e in (CLOCK, ANALOG)]
        return await asyncio.gather(*map(read, jobs))

    texts = asyncio.run(main())
    assert [same_answer(text, e.answer) for text, e in zip(texts, (CLOCK, ANALOG), strict=True)] == [
        True,
        True,
    ]


def test_text_without_a_template(pool: JobPool) -> None:
    job = pool.submit_text("USER: Hello ASSISTANT:", Sampling(max_tokens=4))
    job.read()
    assert job.report is not None
    assert job.report.visual_tokens == 0


# what is not computed again


def test_a_second_question_on_a_picture_costs_its_own_tokens(pool: JobPool, runner: Runner) -> None:
    first = ask(pool, CLOCK.picture, CLOCK.question)
    first.read()
    second = ask(pool, CLOCK.picture, ANALOG.question)
    assert second.read() == runner.ask(CLOCK.picture, ANALOG.question).text
    assert first.report is not None
    assert second.report is not None
    # the slots hold nothing in the beginning, the encoder's cache may
    assert first.report.pictures_encoded + first.report.pictures_from_cache == 1
    assert first.report.cached_tokens == 0
    assert (second.report.pictures_encoded, second.report.pictures_from_cache) == (0, 0)
    assert second.report.prompt_tokens - second.report.cached_tokens < 40


def test_a_picture_that_another_client_asks_about_is_evaluated_once(pool: JobPool, runner: Runner) -> None:
    """All three at the same time, the first still being computed."""
    questions = [CLOCK.question, ANALOG.question, "Describe the image."]
    jobs = [ask(pool, CLOCK.picture, question) for question in questions]
    assert [job.read() for job in jobs] == [
        runner.ask(CLOCK.picture, question).text for question in questions
    ]
    reports = [job.report for job in jobs if job.report is not None]
    assert [report.pictures_encoded + report.pictures_from_cache for report in reports] == [1, 0, 0]
    assert [report.cached_tokens >= 576 for report in reports] == [False, True, True]


def test_conversations_do_not_cost_each_other_what_they_hold(pool: JobPool) -> None:
    talks = []
    for example in bundled_examples()[::3][:2]:
        message = user_message(example.question, example.picture)
        talks.append([message, assistant_message(pool.submit([message], GREEDY).read())])
    for talk in talks:
        job = pool.submit([*talk, user_message("Describe the image.")], GREEDY)
        assert job.read()
        assert job.report is not None
        assert job.report.cached_tokens > 576
        assert job.report.recalled_tokens > 0
        assert job.report.pictures_encoded == 0


def test_a_question_beside_a_conversation_leaves_it_its_answer(pool: JobPool) -> None:
    """It is asked on a copy of the picture, in an empty slot."""
    message = user_message(CLOCK.question, CLOCK.picture)
    answer = pool.submit([message], Sampling(max_tokens=40, grammar=ENDLESS.grammar)).read()
    assert ask(pool, CLOCK.picture, ANALOG.question).read()
    job = pool.submit([message, assistant_message(answer), user_message(ANALOG.question)], GREEDY)
    job.read()
    assert job.report is not None
    assert job.report.cached_tokens > 576 + 30


def test_the_slot_that_was_not_used_for_longest_is_given_away() -> None:
    few = Sampling(max_tokens=2)
    pictures = [SLICE / q["image"] for q in QUESTIONS[:20:8]]
    with JobPool(slots=2, n_ctx=1024) as pool:
        for picture in pictures[:2]:
            ask(pool, picture, "Describe the image.", few).read()
        ask(pool, pictures[0], CLOCK.question, few).read()
        ask(pool, pictures[2], "Describe the image.", few).read()
        again = ask(pool, pictures[0], "Describe the image.", few)
        again.read()
        assert again.report is not None
        assert again.report.cached_tokens >= 576


# ends


def test_a_cancelled_job_leaves_its_slot_within_a_token(one_slot: JobPool) -> None:
    job = endless(one_slot)
    pieces = len(job._pieces)
    job.cancel()
    assert job.wait(10)
    assert job.finish_reason == "cancelled"
    assert len(job._pieces) <= pieces + 3
    assert job.report is not None
    assert still_answers(one_slot)
    assert one_slot.stats()["cancelled"] == 1
    job.cancel()  # too late, and no error


def test_a_job_is_cancelled_while_its_picture_is_encoded(one_slot: JobPool, runner: Runner) -> None:
    """Half an encoder output is not kept for the next one."""
    for delay in (0.0, 0.02, 0.05, 0.1):
        job = ask(one_slot, CLOCK.picture, CLOCK.question)
        time.sleep(delay)
        job.cancel()
        assert job.wait(10)
        assert job.finish_reason in ("cancelled", "stop")
    assert still_answers(one_slot)


def test_the_queue_is_bounded(one_slot: JobPool) -> None:
    running = endless(one_slot)
    waiting = ask(one_slot, None, "Hello")
    with pytest.raises(PoolBusy, match="queue of 1 is full") as caught:
        ask(one_slot, None, "Hello")
    assert caught.value.retry_after >= 1
    assert (one_slot.stats()["active"], one_slot.stats()["waiting"]) == (1, 1)
    waiting.cancel()
    assert waiting.read() == ""
    assert (waiting.finish_reason, waiting.report) == ("cancelled", None)
    last = ask(one_slot, CLOCK.picture, CLOCK.question)
    running.cancel()
    assert same_answer(last.read(), CLOCK.answer)
    assert last.report is not None
    assert last.report.queue_ms > 0


def test_closing_lets_jobs_finish_and_cancels_what_takes_longer() -> None:
    pool = JobPool(slots=2, n_ctx=1024)
    few = Sampling(max_tokens=8, grammar=ENDLESS.grammar)
    long, short = endless(pool), ask(pool, None, "Hello", few)
    begin = time.monotonic()
    pool.close(timeout=1.5)
    assert time.monotonic() - begin < 10
    assert len(short.read()) > 0
    assert short.finish_reason == "length"
    assert long.finish_reason in ("cancelled", "length")
    pool.close()
    with pytest.raises(ClosedError, match="closed"):
        ask(pool, None, "Hello")


def test_closing_at_once_cancels_all_and_waits_for_nobody() -> None:
    pool = JobPool(slots=1, n_ctx=1024)
    jobs = [endless(pool), ask(pool, CLOCK.picture, CLOCK.question)]
    pool.close(timeout=0)
    assert [job.finish_reason for job in jobs] == ["cancelled", "cancelled"]


# errors


def test_what_is_wrong_with_a_request_is_raised_when_it_is_made(pool: JobPool) -> None:
    job = endless(pool)
    with pytest.raises(OptionError, match="GBNF"):
        ask(pool, None, "Hello", Sampling(grammar="root ::= ("))
    with pytest.raises(ContextLengthError, match="n_ctx is 1024"):
        ask(pool, [CLOCK.picture, CLOCK.picture], "Hello")
    with pytest.raises(ImageError):
        ask(pool, b"no picture", "Hello")
    with pytest.raises(OptionError, match="n_probs"):
        ask(pool, None, "Hello", n_probs=-1)
    with pytest.raises(OptionError, match="layer"):
        ask(pool, None, "Hello", fastv=FastV(40, 0.5))
    with pytest.raises(OptionError, match="layers"):
        ask(pool, CLOCK.picture, "Hello", turbo="layers=3-90")
    with pytest.raises(OptionError, match="share"):
        ask(pool, None, "Hello", turbo="share=2")
    with pytest.raises(OptionError, match="no reducer"):
        ask(pool, None, "Hello", reduce="none,keep=144")
    with pytest.raises(OptionError, match="a string"):
        pool.submit_text(3, GREEDY)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="slots = 100000"):
        JobPool(slots=100000)
    assert still_answers(pool)
    assert not job.done
    job.cancel()
    assert job.wait(10)


class Failing:
    """Native slots of which one request fails, or all of a step."""

    def __init__(self, slots: Any) -> None:
        self._slots = slots
        self.fail_id = 0
        self.fail_step = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slots, name)

    def step(self) -> list[dict[str, Any]]:
        if self.fail_step:
            self.fail_step = False
            raise MemoryError("all")
        events = self._slots.step()
        for event in events:
            if event["id"] == self.fail_id and event["finish"]:
                event["finish"], event["error"] = None, OptionError("one")
        return events


def test_an_error_of_one_job_is_raised_to_its_reader_alone(
    pool: JobPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(pool._slots)
    monkeypatch.setattr(pool._batcher, "_slots", failing)
    other = endless(pool)
    failing.fail_id = next(iter(pool._batcher._active)) + 1
    job = ask(pool, CLOCK.picture, CLOCK.question)
    with pytest.raises(OptionError, match="one"):
        job.read()
    assert job.finish_reason is None
    assert not other.done
    failing.fail_step = True
    with pytest.raises(MemoryError, match="all"):
        other.read()
    assert still_answers(pool)


def test_a_request_without_room_in_the_later_layers_takes_that_of_idle_slots_or_waits() -> None:
    text = "USER: " + "Describe the image. " * 90 + "ASSISTANT:"  # about 500 tokens
    with JobPool(slots=3, n_ctx=1024, fastv="fastv,k=2,drop=0.75,cells=1024") as pool:
        for i in range(4):
            job = pool.submit_text(f"{i} {text}", Sampling(max_tokens=2))
            job.read()
            assert job.finish_reason == "length"
        running = pool.submit_text(f"5 {text}", ENDLESS)
        next(iter(running))
        picture = ask(pool, CLOCK.picture, CLOCK.question)
        assert same_answer(picture.read(), CLOCK.answer)  # 576 cells of the first layers, 144 of the later
        waiting = pool.submit_text(f"6 {text} {text}"[:4000], Sampling(max_tokens=2))
        while not pool._batcher._active.keys() > {5}:
            time.sleep(0.01)
        assert not waiting.wait(0.3)
        running.cancel()
        waiting.read()
        assert waiting.finish_reason == "length"


# schedules


def test_every_request_has_its_own_schedule(pool: JobPool) -> None:
    """All at once."""
    settings: list[Any] = [{}, {"fastv": FastV(2, 0.75)}, {"fastv": None}, {}]
    jobs = [ask(pool, CLOCK.picture, CLOCK.question, details=True, **setting) for setting in settings]
    for job in jobs:
        job.read()
    reports = [job.report for job in jobs if job.report is not None]
    assert [report.visual_tokens_kept for report in reports] == [288, 144, 576, 288]
    assert [report.fastv for report in reports] == [pool.fastv, FastV(2, 0.75), None, pool.fastv]
    for job, kept in zip(jobs, ([288], [144], [], [288]), strict=True):
        assert job.details is not None
        assert [len(of_cut) for of_cut in job.details["kept"]] == kept
        assert job.details["grids"] == [[[24, 24]]]
        assert job.details["first_layers"] == ([0, 2] if kept else [0])
        assert json.loads(json.dumps(job.details)) == job.details


# probabilities


def test_probabilities_are_those_of_the_model_s_logits(pool: JobPool) -> None:
    job = ask(pool, CLOCK.picture, CLOCK.question, n_probs=5)
    pieces = list(job)
    probs = [prob for piece in pieces for prob in piece.probs]
    assert job.report is not None
    assert len(probs) == job.report.generated_tokens
    assert "".join(piece.text for piece in pieces) == "".join(prob.token for prob in probs).strip()

    with Runner(n_ctx=1024) as runner:
        engine = runner._engine
        rendered = runner._model.render([user_message(CLOCK.question, CLOCK.picture)])
        images = runner._model.load_images(rendered.pictures)
        engine.prefill(rendered.text, images, ["a"], None, rendered.add_bos, len(probs))
        for prob in probs:
            logits = engine.logits().astype(np.float64)
            logprobs = logits - logits.max()
            logprobs -= np.log(np.exp(logprobs).sum())
            assert prob.logprob == pytest.approx(logprobs[prob.id], abs=0.05)
            assert prob.top[0].id == logprobs.argmax() == prob.id
            assert [top.logprob for top in prob.top] == sorted(
                (top.logprob for top in prob.top), reverse=True
            )
            assert [top.logprob for top in prob.top] == pytest.approx(np.sort(logprobs)[:-6:-1], abs=0.2)
            engine.feed(prob.id)


# for long


def test_sixty_requests_leave_memory_and_slots_as_they_were(pool: JobPool) -> None:
    process, jobs = psutil.Process(), []

    def batch(begin: int, end: int) -> int:
        for i in range(begin, end):
            example = bundled_examples()[i % 2]
            picture = example.picture if i % 4 == 0 else None
            jobs.append(ask(pool, picture, f"{i}? {example.question}", Sampling(max_tokens=4)))
            if i % 5 == 4:
                jobs[-1].cancel()
        assert all(job.wait(30) for job in jobs)
        return process.memory_info().rss

    before = batch(0, 24)
    assert batch(24, 60) - before < 18e6
    assert {job.finish_reason for job in jobs} <= {"stop", "length", "cancelled"}
    assert pool._slots.n_idle == 4

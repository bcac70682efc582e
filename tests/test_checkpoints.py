"""Models with recurrent layers: a later prompt goes on from a state that was kept, and comes to what it would anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pyfastv import Runner, _native

import random_mmproj
from masked_reference import relative_rms

FAMILY = {"qwen35": "Qwen3.5", "lfm2": "LLaVA", "granitehybrid": "LLaVA", "llama": "LLaVA"}
ONE_CUT = {"qwen35": 4, "lfm2": 3, "granitehybrid": 3, "llama": 2}
SECOND_CUT = {"qwen35": "k=8", "lfm2": "k=9", "granitehybrid": "k=5,score=random7"}  # there no layer ranks

PICTURE = np.random.default_rng(3).integers(0, 256, (168, 224, 3), dtype=np.uint8)
OTHER = np.random.default_rng(4).integers(0, 256, (168, 224, 3), dtype=np.uint8)
FIRST, SECOND, THIRD = "what is it?", "how many are there?", "where?"
GREEDY: dict[str, Any] = {"max_tokens": 5, "temperature": 0.0, "seed": 1}
ROOM = 2**26


def n_tokens(text: str) -> int:
    """Of random_gguf's vocabulary: bytes, where a space is U+2581."""
    return len(text.replace(" ", "\u2581").encode())


class Said(NamedTuple):
    logits: np.ndarray  # behind the question, and behind two tokens
    kept: list[list[int]]
    report: _native.RunReport


class Talk:
    """An engine of a random model."""

    def __init__(self, files: tuple[Path, Path], arch: str, **options: Any) -> None:
        self.arch = arch
        self.engine = _native.Engine(
            model_path=str(files[0]), mmproj_path=str(files[1]), n_ctx=512, n_threads=1, n_gpu_layers=0,
            flash_attn="off", type_k="f32", type_v="f32", encoder_cache_bytes=2**24,
            **{"checkpoint_bytes": ROOM, **options},
        )  # fmt: skip

    def text(self, asked: str) -> str:
        return f"Look: {self.engine.media_marker}\n{asked}"

    def say(self, text: str, picture: np.ndarray | None = PICTURE, **options: Any) -> Said:
        pictures = [] if picture is None else [picture]
        ids = [str(hash(each.tobytes())) for each in pictures]
        self.engine.prefill(text, pictures, ids, None, True, 8, **options)
        logits = [self.engine.logits()]
        report = self.engine.report()
        for _ in range(2):
            self.engine.feed(int(logits[-1].argmax()))
            logits.append(self.engine.logits())
        kept = [self.engine.kept(cut).tolist() for cut in range(len(report.first_layers) - 1)]
        return Said(np.array(logits), kept, report)

    def ask(self, question: str, picture: np.ndarray = PICTURE, **options: Any) -> Said:
        return self.say(self.text(question), picture, **options)

    def answered(self, question: str) -> dict[str, Any]:
        """A conversation: a question that was answered, and another."""
        before = self.text(FIRST)
        answer = " some words."
        begin = len(before.encode())
        return {
            "text": f"{before}{answer}\nUSER: {question}",
            "answers": [(begin, begin + len(answer.encode()))],
        }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {arch: random_mmproj.write_pair(folder, family, arch) for arch, family in FAMILY.items()}


@pytest.fixture(scope="module", params=["qwen35", "lfm2", "granitehybrid"])
def talk(request: pytest.FixtureRequest, files: dict[str, tuple[Path, Path]]) -> Iterator[Talk]:
    talk = Talk(files[request.param], request.param)
    yield talk
    talk.engine.close()


def spec(arch: str, rule: str) -> str:
    return {
        "off": "",
        "drop=0": f"k={ONE_CUT[arch]},drop=0",
        "drop=0.5": f"k={ONE_CUT[arch]},drop=0.5",
        "two cuts": f"k={ONE_CUT[arch]},drop=0.5;{SECOND_CUT[arch]},drop=0.75",
    }[rule]


RULES = ["off", "drop=0", "drop=0.5", "two cuts"]


def assert_the_same(a: Said, b: Said) -> None:
    np.testing.assert_array_equal(a.logits, b.logits)
    assert a.kept == b.kept
    assert a.report.visual_tokens_in_stage == b.report.visual_tokens_in_stage


@pytest.mark.parametrize("rule", RULES)
def test_a_second_question_about_a_picture_costs_its_own_tokens(talk: Talk, rule: str) -> None:
    talk.engine.set_fastv(spec(talk.arch, rule))
    anew = {}
    for question in (SECOND, FIRST):
        talk.engine.reset()
        anew[question] = talk.ask(question)
        assert anew[question].report.cached_tokens == 0
    assert relative_rms(anew[FIRST].logits, anew[SECOND].logits) > 1e-3
    for question in (SECOND, FIRST, FIRST, SECOND):
        again = talk.ask(question)
        assert_the_same(again, anew[question])
        own = again.report.prompt_tokens - again.report.cached_tokens
        assert own == n_tokens(f"\n{question}") + (talk.arch == "qwen35")  # <|vision_end|>
        assert again.report.pictures_encoded == again.report.pictures_from_cache == 0
        assert 0 < again.report.checkpoint_bytes <= ROOM


@pytest.mark.parametrize("rule", RULES)
def test_another_question_in_place_of_the_last_goes_on_behind_the_answer(talk: Talk, rule: str) -> None:
    talk.engine.set_fastv(spec(talk.arch, rule))
    talk.engine.reset()
    anew = talk.say(**talk.answered(SECOND))
    talk.engine.reset()
    talk.ask(FIRST)  # how it begins
    first = talk.say(**talk.answered(THIRD))
    again = talk.say(**talk.answered(SECOND))
    assert_the_same(again, anew)
    assert again.report.prompt_tokens - again.report.cached_tokens == n_tokens(f"\nUSER: {SECOND}")
    assert relative_rms(first.logits, again.logits) > 1e-3


def test_an_answer_that_is_told_otherwise_is_read_from_the_picture_on(talk: Talk) -> None:
    """As templates do that leave thoughts out of earlier answers."""
    talk.engine.set_fastv(spec(talk.arch, "drop=0.5"))
    talk.engine.reset()
    anew = talk.say(**talk.answered(SECOND))
    talk.engine.reset()
    talk.ask(FIRST)
    again = talk.say(**talk.answered(SECOND))
    assert_the_same(again, anew)
    assert again.report.cached_tokens > again.report.visual_tokens


def test_a_picture_that_another_schedule_has_chosen_from_is_read_again(talk: Talk) -> None:
    talk.engine.set_fastv(spec(talk.arch, "drop=0.5"))
    talk.engine.reset()
    other = f"k={ONE_CUT[talk.arch]},drop=0.75"
    anew = talk.ask(SECOND, fastv=other)
    talk.engine.reset()
    assert talk.ask(FIRST).report.checkpoint_bytes > 0
    again = talk.ask(SECOND, fastv=other)
    assert_the_same(again, anew)
    assert again.report.cached_tokens == 0
    assert talk.ask(THIRD, fastv=other).report.cached_tokens > again.report.visual_tokens


def test_other_layers_and_an_empty_context_have_no_states(talk: Talk) -> None:
    for change in (lambda: talk.engine.set_fastv(spec(talk.arch, "two cuts")), talk.engine.reset):
        talk.engine.set_fastv(spec(talk.arch, "drop=0.5"))
        assert talk.ask(FIRST).report.checkpoint_bytes > 0
        change()
        assert talk.say("no picture", None).report.checkpoint_bytes == 0
        talk.engine.set_fastv(spec(talk.arch, "drop=0.5"))
        assert talk.ask(SECOND).report.cached_tokens == 0


def test_texts_that_begin_alike_go_on_where_they_part(talk: Talk) -> None:
    """From the third on: the second has shown where that is."""
    talk.engine.set_fastv("")
    talk.engine.reset()
    system = "You are asked about what is nowhere to be seen, and answer in a few short words. "
    anew = talk.say(system + "Who?", None)
    talk.engine.reset()
    cached = []
    for question in ("One?", "Two?", "Why?", "Who?"):
        last = talk.say(system + question, None)
        cached.append(last.report.cached_tokens)
    n = last.report.prompt_tokens - len("Who?")
    assert cached == [0, 0, n, n]
    assert relative_rms(last.logits, anew.logits) < 1e-5  # batches are cut elsewhere


@pytest.mark.parametrize("arch", ["qwen35", "lfm2"])
def test_states_leave_when_they_are_more_than_there_may_be(
    files: dict[str, tuple[Path, Path]], arch: str
) -> None:
    """First those that were used least recently; none is kept where there is room for none."""
    talk = Talk(files[arch], arch)
    size = talk.ask(FIRST).report.checkpoint_bytes
    talk.engine.close()
    for room, found in ((0, False), (size - 1, False), (size + size // 2, True)):
        talk = Talk(files[arch], arch, checkpoint_bytes=room, n_slots=2)
        talk.ask(FIRST)
        assert talk.ask(SECOND).report.checkpoint_bytes <= room
        of_first = talk.ask(THIRD).report
        assert (of_first.cached_tokens > of_first.visual_tokens) == found
        talk.ask(FIRST, OTHER)  # in the other slot
        assert talk.ask(SECOND, OTHER).report.checkpoint_bytes == (size if found else 0)
        assert talk.ask(FIRST).report.cached_tokens == 0
        talk.engine.close()


def test_where_nothing_is_recurrent_nothing_is_kept(files: dict[str, tuple[Path, Path]]) -> None:
    talk = Talk(files["llama"], "llama")
    talk.engine.set_fastv("k=2,drop=0.5")
    talk.ask(FIRST)
    report = talk.ask(SECOND).report
    assert report.cached_tokens > report.visual_tokens
    assert report.checkpoint_bytes == 0
    talk.engine.close()


#
# slots
#


def finish(engine: _native.Engine, number: int) -> tuple[list[int], list[float], dict[str, Any]]:
    """Tokens and their logarithms, and the end, of a request."""
    tokens, logs = [], []
    while True:
        for event in engine.step():
            if event["id"] != number:
                continue
            assert event["error"] is None
            if event["token"] is not None:
                tokens.append(event["token"])
                logs.append(event["logprob"])
            if event["finish"]:
                return tokens, logs, event


@pytest.mark.parametrize("rule", ["off", "drop=0.5", "two cuts"])
@pytest.mark.parametrize("arch", ["qwen35", "lfm2"])
def test_another_slot_has_the_picture_too(files: dict[str, tuple[Path, Path]], arch: str, rule: str) -> None:
    """While the first is asked about it: a copy of its keys and values, and its state. Neither disturbs the other."""
    talk = Talk(files[arch], arch, n_slots=2)
    engine = talk.engine
    engine.set_fastv(spec(arch, rule))

    def start(question: str, n: int) -> int:
        sampling = {**GREEDY, "max_tokens": n}
        return engine.start(
            engine.prepare(talk.text(question), [PICTURE], ["p"], True, n_probs=1, **sampling)
        )

    alone = {}
    for question, n in ((FIRST, 12), (SECOND, 5)):
        alone[question] = finish(engine, start(question, n))
        engine.reset()

    first = start(FIRST, 12)
    tokens: list[int] = []
    logs: list[float] = []
    while not tokens:
        for event in engine.step():
            tokens += [event["token"]]
            logs += [event["logprob"]]
    second = start(SECOND, 5)
    ends: dict[int, dict[str, Any]] = {}
    said: dict[int, list[tuple[int, float]]] = {first: list(zip(tokens, logs, strict=True)), second: []}
    while not engine.idle:
        for event in engine.step():
            if event["token"] is not None:
                said[event["id"]].append((event["token"], event["logprob"]))
            if event["finish"]:
                ends[event["id"]] = event
    for number, question in ((first, FIRST), (second, SECOND)):
        assert [token for token, _ in said[number]] == alone[question][0]
        np.testing.assert_allclose([log for _, log in said[number]], alone[question][1], atol=1e-4)
        assert [kept.tolist() for kept in ends[number]["kept"]] == [
            kept.tolist() for kept in alone[question][2]["kept"]
        ]
    report = ends[second]["report"]
    assert report.cached_tokens > report.visual_tokens
    assert report.pictures_encoded == report.pictures_from_cache == 0
    assert report.checkpoint_bytes > 0
    engine.close()


#
# runner and sessions
#


@pytest.mark.parametrize("fastv", [None, "drop=0.5"])
def test_sessions_about_one_picture_take_turns(
    files: dict[str, tuple[Path, Path]], fastv: str | None
) -> None:
    answers = []
    cached = []
    for checkpoint_mb in (0, 64):
        rule = None if fastv is None else spec("qwen35", fastv)
        with Runner(
            *files["qwen35"],
            n_ctx=512,
            n_threads=1,
            fastv=rule,
            flash_attn=False,
            checkpoint_mb=checkpoint_mb,
        ) as runner:
            one, two = runner.session(), runner.session()
            said = [one.ask(PICTURE, FIRST, max_tokens=4), two.ask(PICTURE, SECOND, max_tokens=4)]
            said += [one.ask(THIRD, max_tokens=4), runner.ask(PICTURE, "why?", max_tokens=4)]
            answers.append([answer.text for answer in said])
            cached.append([answer.report.cached_tokens for answer in said])
            assert (said[-1].report.checkpoint_bytes > 0) == (checkpoint_mb > 0)
    assert answers[0] == answers[1]
    assert cached[0] == [0, 0, 0, 0]
    assert cached[1][0] == 0
    assert len({*cached[1][1:]}) == 1  # all from behind the picture
    assert cached[1][1] > 48

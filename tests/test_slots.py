"""The native slots: what a step does, and that what a request finds of its prompt is what it would have computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import ClosedError, OptionError, _native
from pyfastv.models import bundled_mmproj, bundled_model

import random_mmproj

# random weights: every other picture or question is another answer
CLOCK, CHART = (np.random.default_rng(i).integers(0, 256, (112, 112, 3), dtype=np.uint8) for i in range(2))
N_VISUAL = 64
EXACT = {"flash_attn": "off", "type_k": "f32", "type_v": "f32"}
GREEDY: dict[str, Any] = {
    "max_tokens": 6, "temperature": 0.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1.0,
    "repeat_penalty": 1.0, "repeat_last_n": 64, "frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": 1,
    "grammar": "root ::= [a-z ] root",
}  # fmt: skip
ENDLESS = {**GREEDY, "max_tokens": -1}
FASTV = "k=1,drop=0.75,score=question-max,pick=cover,weigh;k=3,drop=0.875,score=question-max,recall=0.1"

Files = tuple[Path, Path]


def loaded(files: Files, **options: Any) -> _native.Engine:
    return _native.Engine(
        model_path=str(files[0]), mmproj_path=str(files[1]), n_ctx=1024, n_batch=2048, n_ubatch=512, n_threads=2,
        n_gpu_layers=0, encoder_cache_bytes=2**24, verbose=False, progress=None, **EXACT, **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return random_mmproj.write_pair(tmp_path_factory.mktemp("slots"), "LLaVA")


@pytest.fixture(scope="module")
def shared(files: Files) -> Iterator[_native.Engine]:
    slots = loaded(files, n_slots=3)
    yield slots
    slots.close()


@pytest.fixture
def slots(shared: _native.Engine) -> _native.Engine:
    shared.reset()
    shared.set_fastv("")
    return shared


@pytest.fixture(scope="module")
def engine(files: Files) -> Iterator[_native.Engine]:
    engine = loaded(files)
    yield engine
    engine.close()


Start = Callable[..., int]


@pytest.fixture
def start(slots: _native.Engine) -> Start:
    """A request of this text, with * for each picture."""

    def start(text: str, *images: Any, sampling: dict[str, Any] = GREEDY, n_probs: int = 0) -> int:
        ids = [str(image.sum()) for image in images]
        text = text.replace("*", slots.media_marker)
        return slots.start(slots.prepare(text, images, ids, True, n_probs=n_probs, **sampling))

    return start


def finish(slots: _native.Engine) -> dict[int, dict[str, Any]]:
    """Step until all have ended; the last event of each, with its whole ``text``."""
    text: dict[int, bytes] = {}
    ends = {}
    while not slots.idle:
        for event in slots.step():
            text[event["id"]] = text.get(event["id"], b"") + event["bytes"]
            if event["finish"] or event["error"]:
                ends[event["id"]] = {**event, "text": text[event["id"]]}
    return ends


def alone(
    engine: _native.Engine, text: str, *images: Any
) -> tuple[bytes, list[np.ndarray], _native.RunReport]:
    """Answer, kept sets and report of an engine, which goes on from what it holds."""
    ids = [str(image.sum()) for image in images]
    engine.prefill(text.replace("*", engine.media_marker), images, ids, None, True, 1)
    engine.start(**GREEDY)
    answer = b""
    while (token := engine.next()) is not None:
        answer += token[1]
    report = engine.report()
    return answer, [engine.kept(cut) for cut in range(len(report.first_layers) - 1)], report


FIRST = "USER: *\nRead the clock. ASSISTANT:"
OTHER = "USER: *\nWhich bar has the highest value? ASSISTANT:"


@pytest.mark.parametrize("spec", [None, FASTV])
def test_requests_are_as_an_engine_computes_them(
    slots: _native.Engine, engine: _native.Engine, start: Start, spec: str | None
) -> None:
    """At the same time, with another picture each; and the question after, on what the slot has kept."""
    engine.set_fastv("")
    if spec is not None:
        engine.set_fastv(spec)
        slots.set_fastv(spec)
    talks = [(FIRST, CLOCK), (OTHER, CHART), ("USER: Hello ASSISTANT:",)]
    numbers = [start(*talk) for talk in talks]
    ends = finish(slots)
    longer = []
    for number, talk in zip(numbers, talks, strict=True):
        engine.reset()
        answer, kept, report = alone(engine, *talk)
        end = ends[number]
        assert end["text"] == answer
        assert [a.tolist() for a in end["kept"]] == [b.tolist() for b in kept]
        for name in (
            "prompt_tokens",
            "visual_tokens",
            "visual_tokens_in_stage",
            "recalled_tokens",
            "generated_tokens",
        ):
            assert getattr(end["report"], name) == getattr(report, name), name
        longer.append((talk[0] + answer.decode() + "</s>USER: Describe the image. ASSISTANT:", *talk[1:]))

        again = start(*longer[-1])
        end = finish(slots)[again]
        answer, kept, report = alone(engine, *longer[-1])
        assert end["text"] == answer
        assert [a.tolist() for a in end["kept"]] == [b.tolist() for b in kept]
        for name in ("cached_tokens", "recalled_tokens", "visual_tokens_in_stage"):
            assert getattr(end["report"], name) == getattr(report, name), name
    assert spec is None or end["report"].recalled_tokens == 0  # the last has no picture


def test_questions_in_one_batch_recall_each_what_it_would_alone(
    slots: _native.Engine, engine: _native.Engine, start: Start
) -> None:
    slots.set_fastv(FASTV)
    engine.set_fastv("")
    engine.set_fastv(FASTV)
    expected = []
    for first, picture, second in ((FIRST, CLOCK, "Is it analog?"), (OTHER, CHART, "Describe the image.")):
        start(first, picture)
        finish(slots)
        engine.reset()
        text, _, _ = alone(engine, first, picture)
        prompt = f"{first}{text.decode()}</s>USER: {second} ASSISTANT:"
        expected.append((prompt, picture, *alone(engine, prompt, picture)))
    numbers = [start(prompt, picture) for prompt, picture, *_ in expected]
    ends = finish(slots)
    for number, (_, _, text, kept, report) in zip(numbers, expected, strict=True):
        assert ends[number]["text"] == text
        assert [a.tolist() for a in ends[number]["kept"]] == [b.tolist() for b in kept]
        assert ends[number]["report"].recalled_tokens == report.recalled_tokens > 0


def test_a_copy_of_a_picture_that_was_asked_about_chooses_anew(
    slots: _native.Engine, engine: _native.Engine, start: Start
) -> None:
    slots.set_fastv(FASTV)
    engine.set_fastv("")
    engine.set_fastv(FASTV)
    busy = start(FIRST, CLOCK, sampling=ENDLESS)
    while not any(event["token"] is not None for event in slots.step()):
        pass
    number = start("USER: *\nBackground color? ASSISTANT:", CLOCK)
    events = []
    while not any(event["id"] == number and event["finish"] for event in events):
        events += slots.step()
    end = next(event for event in events if event["id"] == number and event["finish"])
    engine.reset()
    _, kept, _ = alone(engine, "USER: *\nBackground color? ASSISTANT:", CLOCK)
    assert [a.tolist() for a in end["kept"]] == [b.tolist() for b in kept]
    assert end["report"].cached_tokens > N_VISUAL
    assert end["report"].pictures_encoded == end["report"].pictures_from_cache == 0
    slots.cancel(busy)
    assert [event["finish"] for event in slots.step()] == ["cancelled"]


def test_a_step_is_one_token_of_each_and_a_piece_of_a_prompt(slots: _native.Engine, start: Start) -> None:
    talking = start("USER: Hello ASSISTANT:", sampling=ENDLESS)
    slots.step()
    start(FIRST, CLOCK)
    start(OTHER, CHART)
    steps = 0
    while slots.n_idle == 0:
        events = slots.step()
        assert [event["id"] for event in events].count(talking) == 1
        assert len(events) == len({event["id"] for event in events})
        steps += 1
    assert steps >= 6  # an encoder and the layers for each picture, the texts before and behind them


def test_what_is_out_of_turn_is_refused(slots: _native.Engine, start: Start) -> None:
    request = slots.prepare("Hello", [], [], True, n_probs=0, **ENDLESS)
    slots.start(request)
    with pytest.raises(OptionError, match="already"):
        slots.start(request)
    for change in ("", "fastv,k=2,drop=0.5"):
        with pytest.raises(OptionError, match="when no request runs; 1 do"):
            slots.set_fastv(change)
    start("Two", sampling=ENDLESS)
    start("Three", sampling=ENDLESS)
    with pytest.raises(OptionError, match="all 3 slots are busy"):
        start("Four")
    with pytest.raises(OptionError, match="n_probs = 100000"):
        slots.prepare("Hello", [], [], True, n_probs=100000, **GREEDY)
    with pytest.raises(OptionError, match="ends with a picture"):
        start("*", CLOCK)
    with pytest.raises(OptionError, match="places for 0 pictures, but 1"):
        start("Hello", CLOCK)
    with pytest.raises(OptionError, match="empty"):
        slots.prepare("", [], [], False, n_probs=0, **GREEDY)
    slots.cancel(12345)
    assert all(event["error"] is None for event in slots.step())
    slots.reset()
    assert slots.idle
    assert slots.step() == []


def test_a_grammar_that_leaves_no_token_ends_its_answer() -> None:
    """No token of the vocabulary is allowed, or the grammar has come to its end. A trained vocabulary."""
    slots = loaded((bundled_model(), bundled_mmproj()), n_slots=3)
    numbers = [
        slots.start(slots.prepare("Hello", [], [], True, n_probs=0, **{**ENDLESS, "grammar": grammar}))
        for grammar in ('root ::= "a"', 'root ::= [\U0001f600-\U0001f601] "b"', 'root ::= ""')
    ]
    ends = finish(slots)
    slots.close()
    assert [ends[number]["finish"] for number in numbers] == ["stop"] * 3
    assert ends[numbers[0]]["text"].strip() == b"a"


def test_closed_slots_say_so(files: Files) -> None:
    slots = loaded(files, n_slots=1)
    slots.close()
    slots.close()
    assert slots.closed
    with pytest.raises(ClosedError):
        slots.step()

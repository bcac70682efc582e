"""The bundled model answers, and goes on answering after whatever went wrong."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyfastv import (
    VTW,
    ClosedError,
    ContextLengthError,
    FastV,
    Feather,
    ImageError,
    ModelError,
    OptionError,
    PyramidDrop,
    Recommended,
    Runner,
    Schedule,
    ZipVL,
)
from pyfastv.commands.demo import same_answer
from pyfastv.models import Example, bundled_examples, bundled_mmproj, bundled_model

CLOCK = bundled_examples()[0]
# a grammar that never ends by itself, for answers that are cut off
ENDLESS = "root ::= [a-z ] root"


def still_answers(runner: Runner) -> bool:
    return same_answer(runner.ask(CLOCK.picture, CLOCK.question).text, CLOCK.answer)


# answers


@pytest.mark.parametrize("example", bundled_examples(), ids=lambda example: example.question)
def test_answers_are_right_with_half_of_the_visual_tokens(runner: Runner, example: Example) -> None:
    answer = runner.ask(example.picture, example.question)
    assert same_answer(answer.text, example.answer)
    assert (answer.report.visual_tokens, answer.report.visual_tokens_kept) == (576, 288)
    assert answer.finish_reason == "stop"


def test_the_report_adds_up() -> None:
    with Runner() as runner:
        report = runner.ask(CLOCK.picture, CLOCK.question).report
        assert report.fastv == Recommended() == runner.fastv
    assert report.prompt_tokens > report.visual_tokens
    assert 0 <= report.cached_tokens < report.prompt_tokens
    assert report.generated_tokens > 3
    assert min(report.encode_ms, report.stage0_ms, report.later_ms, report.generate_ms) > 0
    assert report.first_token_ms > report.stage0_ms + report.later_ms
    assert (report.pictures_encoded, report.pictures_from_cache, report.recalled_tokens) == (1, 0, 0)
    assert (report.first_layers, report.visual_tokens_in_stage) == ((0, 2), (576, 288))
    assert report.retained_share == pytest.approx((2 + 10 * 0.5) / 12)
    assert len(report.kv_bytes_used) == len(report.kv_bytes_allocated) == 2
    used, allocated = report.kv_bytes_used, report.kv_bytes_allocated
    assert all(0 < some <= most for some, most in zip(used, allocated, strict=True))
    assert report.archive_bytes > 0


def test_kv_bytes_are_those_of_the_tokens_that_each_layer_sees() -> None:
    # one layer of this model: 512 values a token, for K and for V, 2 bytes each
    with Runner(n_ctx=1024, fastv=FastV(2, 0.75, cells="auto")) as runner:
        report = runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1).report
    tokens, layer = report.prompt_tokens, 2 * 512 * 2
    assert report.kv_bytes_used == (2 * layer * tokens, 10 * layer * (tokens - 432))
    assert report.kv_bytes_used_stock == 12 * layer * tokens
    assert report.kv_bytes_allocated == (2 * layer * 1024, 10 * layer * 512)
    assert report.kv_bytes_allocated_stock == 12 * layer * 1024
    assert report.kv_bytes_saved == (10 * layer * 432, 10 * layer * 512)


def test_the_rule_changes_without_loading_again() -> None:
    with Runner(fastv=None) as runner:
        report = runner.ask(CLOCK.picture, CLOCK.question).report
        assert (report.visual_tokens, report.visual_tokens_kept, report.fastv) == (576, 576, None)
        assert (len(report.kv_bytes_used), report.retained_share, report.kv_bytes_saved) == (1, 1.0, (0, 0))
        runner.set_fastv(FastV(4, 0.75))
        report = runner.ask(CLOCK.picture, CLOCK.question).report
        assert (report.visual_tokens, report.visual_tokens_kept, report.fastv) == (576, 144, FastV(4, 0.75))
        runner.set_fastv(None)
        assert runner.ask(CLOCK.picture, CLOCK.question).report.visual_tokens_kept == 576
        assert still_answers(runner)


@pytest.mark.parametrize(
    ("schedule", "layers", "in_stage"),
    [
        (PyramidDrop(), (0, 3, 6, 9), (576, 288, 144, 72)),
        (Feather(), (0, 3, 6), (576, 288, 144)),
        (VTW(), (0, 6), (576, 0)),
        (
            Schedule.parse("k=2,score=last;k=6,drop=0.75,score=question-max,pick=window4,merge"),
            (0, 2, 6),
            (576, 288, 144),
        ),
    ],
    ids=["pyramiddrop", "feather", "vtw", "two-cuts"],
)
def test_every_stage_sees_its_share(
    runner: Runner, schedule: Schedule, layers: tuple[int, ...], in_stage: tuple[int, ...]
) -> None:
    report = runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1, fastv=schedule).report
    assert (report.first_layers, report.visual_tokens_in_stage) == (layers, in_stage)
    assert report.visual_tokens_kept == in_stage[-1]


def test_zipvl_keeps_as_many_as_hold_the_share(runner: Runner) -> None:
    kept = [
        runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1, fastv=ZipVL(tau)).report.visual_tokens_kept
        for tau in (0.5, 0.9, 0.99)
    ]
    assert 58 <= kept[0] < kept[1] < kept[2] < 576


def test_a_rule_of_one_request(runner: Runner) -> None:
    report = runner.ask(CLOCK.picture, CLOCK.question, fastv="off").report
    assert (report.visual_tokens_kept, report.fastv) == (576, None)
    report = runner.ask(CLOCK.picture, CLOCK.question).report
    assert (report.visual_tokens_kept, report.fastv) == (288, Recommended())


def test_every_kind_of_picture_source_gives_the_same_answer(runner: Runner) -> None:
    data = CLOCK.picture.read_bytes()
    image = Image.open(CLOCK.picture)
    sources: list[Any] = [
        data,
        image,
        np.asarray(image),
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
    ]
    for source in sources:
        assert same_answer(runner.ask(source, CLOCK.question).text, CLOCK.answer)


def test_several_pictures_and_none(runner: Runner, picture: dict[str, Path]) -> None:
    report = runner.ask([picture["clock"], picture["dice"]], "What color are the dice?").report
    assert (report.visual_tokens, report.visual_tokens_kept) == (1152, 576)
    report = runner.ask(None, "Hello", max_tokens=4).report
    assert (report.visual_tokens, report.visual_tokens_kept) == (0, 0)


def test_a_conversation_goes_on(runner: Runner) -> None:
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": str(CLOCK.picture)}},
                {"type": "text", "text": CLOCK.question},
            ],
        }
    ]
    first = runner.create_chat_completion(messages)
    assert same_answer(first["choices"][0]["message"]["content"], CLOCK.answer)
    messages += [
        first["choices"][0]["message"],
        {"role": "user", "content": "Is the clock digital or analog?"},
    ]
    chunks = list(runner.create_chat_completion(messages, stream=True))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert same_answer(text, "Analog")
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert first["usage"]["total_tokens"] == sum(
        first["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )


def test_a_stream_joins_to_the_same_text(runner: Runner) -> None:
    stream = runner.stream(CLOCK.picture, CLOCK.question)
    pieces = list(stream)
    assert len(pieces) > 2
    assert "".join(pieces) == stream.answer.text == runner.ask(CLOCK.picture, CLOCK.question).text


def test_a_stop_string_ends_the_answer(runner: Runner) -> None:
    answer = runner.ask(CLOCK.picture, CLOCK.question, stop=":1")
    assert (answer.text, answer.finish_reason) == ("It is 9", "stop")


def test_max_tokens_ends_the_answer(runner: Runner) -> None:
    answer = runner.ask(CLOCK.picture, CLOCK.question, max_tokens=2)
    assert (answer.report.generated_tokens, answer.finish_reason) == (2, "length")


def test_no_tokens_are_an_empty_answer_with_its_report(runner: Runner) -> None:
    answer = runner.ask(CLOCK.picture, CLOCK.question, max_tokens=0)
    assert (answer.text, answer.finish_reason) == ("", "length")
    assert answer.report.prompt_tokens > answer.report.visual_tokens == 576
    assert (answer.report.generated_tokens, answer.report.tokens_per_second) == (0, 0.0)
    assert "".join(runner.stream(CLOCK.picture, CLOCK.question, max_tokens=0)) == ""


def test_more_tokens_than_there_can_be_are_as_many_as_there_is_room_for(runner: Runner) -> None:
    assert runner.ask(CLOCK.picture, CLOCK.question, max_tokens=2**40).text == CLOCK.answer


def test_an_answer_that_may_not_end_ends_at_its_length(runner: Runner) -> None:
    answer = runner.ask(CLOCK.picture, CLOCK.question, ignore_eos=True, max_tokens=30)
    assert (answer.report.generated_tokens, answer.finish_reason) == (30, "length")
    # a grammar that is at its end allows nothing else
    ended = runner.ask(CLOCK.picture, CLOCK.question, ignore_eos=True, grammar='root ::= "It"', max_tokens=30)
    assert (ended.text, ended.finish_reason) == ("It", "stop")


def test_a_bias_makes_a_token_come(runner: Runner) -> None:
    seven = runner._engine.tokenize("7", False, False)[-1]
    sevens = (3 * runner._engine.detokenize([seven])).decode().lstrip()
    assert runner.ask(None, "Hello", logit_bias={seven: 100}, max_tokens=3).text == sevens


def test_the_context_ends_the_answer() -> None:
    with Runner(n_ctx=640) as runner:
        answer = runner.ask(CLOCK.picture, CLOCK.question, grammar=ENDLESS)
        assert answer.finish_reason == "length"
        assert 640 - 2 <= answer.report.prompt_tokens + answer.report.generated_tokens <= 640 + 1
        assert still_answers(runner)


def test_a_seed_repeats_an_answer(runner: Runner, picture: dict[str, Path]) -> None:
    def describe(seed: int) -> str:
        options: Any = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 12}
        return runner.ask(picture["scene"], "Describe the image.", seed=seed, **options).text

    describe(0)  # at this temperature rounding decides, and it depends on what is in the context already
    first = describe(1)
    assert describe(1) == first
    assert describe(2) != first


def test_a_grammar_binds_the_answer(runner: Runner) -> None:
    answer = runner.ask(CLOCK.picture, "Is the clock digital?", grammar='root ::= "yes" | "no"')
    assert answer.text in ("yes", "no")


def test_two_runners_at_once(runner: Runner) -> None:
    with Runner(fastv=FastV(4, 0.25), n_ctx=1024) as other:
        stream = runner.stream(CLOCK.picture, CLOCK.question)
        first = next(stream)
        assert same_answer(other.ask(CLOCK.picture, CLOCK.question).text, CLOCK.answer)
        assert same_answer(first + "".join(stream), CLOCK.answer)


def test_other_options_answer_too() -> None:
    with Runner(
        flash_attn=False,
        type_k="f32",
        type_v="f32",
        n_ctx=1024,
        n_batch=256,
        n_ubatch=128,
        n_threads=1,
        seed=3,
    ) as runner:
        assert still_answers(runner)
        assert runner.info["n_ctx"] == 1024


def test_info(runner: Runner) -> None:
    assert runner.info == {
        "model": "tiny-llava-Q4_K_M.gguf",
        "mmproj": "mmproj-tiny-llava-q8_0.gguf",
        "encoder": "q8_0 (the file as it is)",
        "description": runner.info["description"],
        "n_layer": 12,
        "n_ctx": 4096,
        "fastv": Recommended(),
        "turbo": None,
        "reduce": None,
        "skip": None,
    }


# progress, threads, Ctrl-C


def test_progress_of_loading_and_of_prefill() -> None:
    loaded: list[float] = []
    read: list[tuple[int, int]] = []
    with Runner(progress=loaded.append) as runner:
        assert loaded == sorted(loaded)
        assert loaded[-1] == 1.0
        answer = runner.ask(CLOCK.picture, CLOCK.question, progress=lambda *counts: read.append(counts))
    total = answer.report.prompt_tokens
    assert {counts[1] for counts in read} == {total}
    done = [counts[0] for counts in read]
    assert done == sorted(done)
    assert done[-1] == total


def test_an_exception_in_a_callback_comes_through(runner: Runner) -> None:
    def cancel(*counts: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Runner(progress=cancel)
    with pytest.raises(ZeroDivisionError):
        runner.ask(CLOCK.picture, CLOCK.question, progress=cancel)
    assert still_answers(runner)


def test_other_threads_run_meanwhile(runner: Runner) -> None:
    done = threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.005):
            ticks += 1

    thread = threading.Thread(target=tick)
    start = time.perf_counter()
    thread.start()
    still_answers(runner)
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    assert ticks > seconds / 0.005 / 10


@pytest.mark.parametrize("delay", [0.05, 0.4, 0.8])
def test_ctrl_c_ends_a_request_and_not_the_runner(runner: Runner, delay: float) -> None:
    def ask_on_and_on() -> None:
        for _ in range(100):
            runner.ask(CLOCK.picture, CLOCK.question, grammar=ENDLESS)

    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ask_on_and_on()
    timer.join()
    assert still_answers(runner)


def test_an_encoder_output_that_ctrl_c_cut_off_is_not_kept() -> None:
    with Runner() as runner:
        for example, delay in zip(bundled_examples()[::2], (0.02, 0.06, 0.12), strict=False):
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                runner.ask(example.picture, example.question, grammar=ENDLESS)
            timer.join()
            assert same_answer(runner.ask(example.picture, example.question).text, example.answer)


# errors


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Path]:
    """Files that are no model."""
    model, mmproj = bundled_model().read_bytes(), bundled_mmproj().read_bytes()
    contents = {
        "empty": b"",
        "text": b"no model at all " * 100,
        "header": model[:1000],
        "half": model[: len(model) // 2],
        "last-byte": model[:-1],
        "mmproj-header": mmproj[:1000],
        "mmproj-half": mmproj[: len(mmproj) // 2],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    return {name: tmp_path / f"{name}.gguf" for name in (*contents, "missing")}


def test_files_that_are_no_model_are_refused_by_name(broken: dict[str, Path], tmp_path: Path) -> None:
    for path in (*broken.values(), bundled_mmproj(), tmp_path):
        with pytest.raises(ModelError) as caught:
            Runner(path, bundled_mmproj())
        assert str(path) in str(caught.value)
        with pytest.raises(ModelError) as caught:
            Runner(bundled_model(), path if path != bundled_mmproj() else bundled_model())
        assert path == bundled_mmproj() or str(path) in str(caught.value)


def test_without_an_mmproj_there_is_text_only() -> None:
    with Runner(bundled_model()) as runner:
        with pytest.raises(ModelError, match="mmproj_path"):
            runner.ask(CLOCK.picture, CLOCK.question)
        assert runner.ask(None, "Hello", max_tokens=4).report.generated_tokens > 0


def test_a_file_that_is_no_picture(runner: Runner, broken: dict[str, Path]) -> None:
    for path in (broken["text"], broken["half"], broken["missing"]):
        with pytest.raises(ImageError, match=path.name):
            runner.ask(path, CLOCK.question)
    assert still_answers(runner)


def test_a_prompt_that_does_not_fit_tells_the_numbers() -> None:
    with Runner(n_ctx=768) as runner:
        with pytest.raises(ContextLengthError, match=r"11[67]\d tokens .*n_ctx is 768") as caught:
            runner.ask([CLOCK.picture, CLOCK.picture], CLOCK.question)
        assert caught.value.n_ctx == 768
        assert caught.value.n_tokens is not None
        assert 1160 <= caught.value.n_tokens < 1180
        assert still_answers(runner)
        with pytest.raises(ContextLengthError, match=r"\d{4} tokens .*n_ctx is 768"):
            runner.ask(None, "word " * 2000)
        assert still_answers(runner)


def test_a_rule_that_the_model_has_no_layers_for(runner: Runner) -> None:
    with pytest.raises(OptionError, match="12 layers"):
        runner.set_fastv(FastV(12))
    with pytest.raises(OptionError, match="12 layers"):
        Runner(fastv=FastV(100))
    report = runner.ask(CLOCK.picture, CLOCK.question).report
    assert (report.visual_tokens_kept, report.fastv) == (288, Recommended())


def test_a_grammar_that_is_none(runner: Runner) -> None:
    with pytest.raises(OptionError, match="grammar"):
        runner.ask(CLOCK.picture, CLOCK.question, grammar="root ::= (")
    assert still_answers(runner)


def test_options_that_make_no_context() -> None:
    with pytest.raises(OptionError, match="f99"):
        Runner(type_k="f99")
    with pytest.raises(OptionError, match="flash"):
        Runner(type_v="q8_0", flash_attn=False)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20_000, 3), (20_000, 1, 3), (2, 3, 3)])
def test_pictures_of_odd_shapes(runner: Runner, shape: tuple[int, int, int]) -> None:
    report = runner.ask(np.full(shape, 200, np.uint8), "Background color?").report
    assert report.visual_tokens == 576


def test_a_closed_runner_says_so() -> None:
    runner = Runner()
    stream = runner.stream(CLOCK.picture, CLOCK.question)
    next(stream)
    runner.close()
    runner.close()
    with pytest.raises(ClosedError):
        next(stream)
    with pytest.raises(ClosedError):
        runner.ask(CLOCK.picture, CLOCK.question)

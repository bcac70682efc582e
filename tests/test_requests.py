"""One request at a time: what goes to the engine, what ends a stream, what an error leaves behind."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import FakeEngine

import pyfastv
from pyfastv import (
    ClosedError,
    ContextLengthError,
    Cut,
    DecodeError,
    Error,
    FastV,
    ImageError,
    ModelError,
    OptionError,
    OutOfMemoryError,
    PyramidDrop,
    Recommended,
    Runner,
    Schedule,
    UnsupportedModelError,
    _native,
)

PICTURE = np.zeros((4, 6, 3), np.uint8)


def engine_of(runner: Runner) -> Any:
    return runner._engine


def called(runner: Runner, name: str) -> list[Any]:
    return [arguments for call, arguments in engine_of(runner).calls if call == name]


# what goes to the engine


def test_loading_options(fake_runner: Runner) -> None:
    options = engine_of(fake_runner).options
    assert options.pop("model_path").endswith("tiny-llava-Q4_K_M.gguf")
    assert options.pop("mmproj_path").endswith("mmproj-tiny-llava-q8_0.gguf")
    assert options == {
        "n_slots": 1,
        "n_ctx": 0,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": 0,
        "n_threads_batch": 0,
        "n_gpu_layers": -1,
        "flash_attn": "auto",
        "type_k": "f16",
        "type_v": "f16",
        "encoder_cache_bytes": 256 * 2**20,
        "checkpoint_bytes": 512 * 2**20,
        "verbose": False,
        "progress": None,
    }
    assert called(fake_runner, "set_fastv") == [Recommended().spec()]


@pytest.mark.parametrize(("given", "passed"), [(True, "on"), (False, "off"), ("auto", "auto"), ("on", "on")])
def test_flash_attention_takes_booleans(monkeypatch: pytest.MonkeyPatch, given: Any, passed: str) -> None:
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    with Runner("model.gguf", flash_attn=given, fastv=None) as runner:
        assert engine_of(runner).options["flash_attn"] == passed
        assert engine_of(runner).options["mmproj_path"] is None
        assert called(runner, "set_fastv") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", -1),
        ("n_batch", 0),
        ("n_ubatch", 1.5),
        ("n_threads", 0),
        ("n_gpu_layers", -2),
        ("flash_attn", "maybe"),
        ("seed", -1),
        ("max_pixels", 0),
        ("image_tokens", 0),
        ("image_tokens", (2, 1)),
        ("image_tokens", 5000),  # more than the context
        ("enlarge", 1),
        ("encoder_cache_mb", -1),
        ("checkpoint_mb", -1),
        ("fastv", (2, 0.5)),
        ("fastv", "fast"),
    ],
)
def test_bad_options_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    with pytest.raises(OptionError, match=value if value == "fast" else name):
        Runner(**{name: value})


def test_a_refused_rule_frees_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FakeEngine] = []

    class Refusing(FakeEngine):
        def set_fastv(self, spec: str) -> None:
            made.append(self)
            raise UnsupportedModelError("recurrent")

    monkeypatch.setattr(_native, "Engine", Refusing)
    with pytest.raises(UnsupportedModelError, match="recurrent"):
        Runner()
    assert made[0].closed


def test_prompt_pictures_and_sampling(fake_runner: Runner) -> None:
    answer = fake_runner.ask(PICTURE, "Q?", system="S", temperature=0.5, max_tokens=2, seed=7)
    (prefill,) = called(fake_runner, "prefill")
    marker = engine_of(fake_runner).media_marker
    assert prefill["prompt"] == f"S USER: {marker}\nQ? ASSISTANT:"
    assert prefill["add_bos"] is True
    assert prefill["reserve"] == 1
    assert [image.shape for image in prefill["images"]] == [(4, 6, 3)]
    (sampling,) = called(fake_runner, "start")
    assert sampling == {
        "max_tokens": 2,
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 64,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "seed": 7,
        "grammar": None,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "logit_bias": [],
    }
    assert answer.text == "It is 9:10"
    assert answer.report.fastv == Recommended()


def test_the_same_picture_has_the_same_id(fake_runner: Runner) -> None:
    wide = np.zeros((6, 4, 3), np.uint8)
    other = PICTURE.copy()
    other[3, 5, 2] = 1
    for pictures in ([PICTURE, PICTURE.copy(), wide, other], [other]):
        fake_runner.ask(pictures, "Q")
    first, second = (prefill["image_ids"] for prefill in called(fake_runner, "prefill"))
    assert first[0] == first[1]
    assert len(set(first)) == 3
    assert second == [first[3]]


def test_no_limit_and_no_seed(fake_runner: Runner) -> None:
    fake_runner.ask(None, "Q")
    (sampling,) = called(fake_runner, "start")
    assert (sampling["max_tokens"], sampling["seed"]) == (-1, 2**32 - 1)


def test_the_runners_seed_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    with Runner(seed=0) as runner:
        runner.ask(None, "Q")
        runner.ask(None, "Q", seed=5)
        assert [sampling["seed"] for sampling in called(runner, "start")] == [0, 5]


@pytest.mark.parametrize(
    ("pictures", "count"), [(None, 0), ([], 0), (PICTURE, 1), ([PICTURE], 1), ((PICTURE, PICTURE), 2)]
)
def test_one_picture_several_or_none(fake_runner: Runner, pictures: Any, count: int) -> None:
    fake_runner.ask(pictures, "Q")
    assert len(called(fake_runner, "prefill")[0]["images"]) == count


def test_a_picture_without_a_vision_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    with Runner("model.gguf") as runner:
        with pytest.raises(ModelError, match=r"model\.gguf was loaded without a vision encoder.*mmproj_path"):
            runner.ask(PICTURE, "Q")
        assert runner.ask(None, "Q").text == "It is 9:10. Yes."


def test_unknown_keywords_are_type_errors(fake_runner: Runner) -> None:
    messages = [{"role": "user", "content": "Q"}]
    for keyword in ("function", "format", "top_q"):
        with pytest.raises(TypeError, match=keyword):
            fake_runner.create_chat_completion(messages, **{keyword: []})  # type: ignore[call-overload]


def test_bad_requests_touch_no_engine(fake_runner: Runner) -> None:
    before = list(engine_of(fake_runner).calls)
    with pytest.raises(ImageError):
        fake_runner.ask(b"no picture", "Q")
    with pytest.raises(OptionError, match="question"):
        fake_runner.ask(None, 5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="top_k"):
        fake_runner.ask(None, "Q", top_k=-1)
    assert engine_of(fake_runner).calls == before


def test_the_pixel_cap_is_the_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    with Runner(max_pixels=23) as runner, pytest.raises(ImageError, match="limit is 23"):
        runner.ask(PICTURE, "Q")


# answers and streams


def test_stop_strings_end_the_answer(fake_runner: Runner) -> None:
    answer = fake_runner.ask(None, "Q", stop=["9:1", "Yes"])
    assert (answer.text, answer.finish_reason) == ("It is ", "stop")


def test_a_stream_joins_to_the_answer(fake_runner: Runner) -> None:
    stream = fake_runner.stream(PICTURE, "Q")
    with pytest.raises(Error, match="not finished"):
        _ = stream.answer
    with pytest.raises(Error, match="not finished"):
        _ = stream.report
    assert list(stream) == ["It is ", "9:10", ".", " Yes."]
    assert stream.answer.text == "It is 9:10. Yes."
    assert stream.report is stream.answer.report
    assert list(stream) == []


def test_a_stream_can_be_stopped(fake_runner: Runner) -> None:
    stream = fake_runner.stream(PICTURE, "Q")
    next(stream)
    answer = stream.stop()
    assert (answer.text, answer.finish_reason) == ("It is ", "stop")
    assert list(stream) == []
    assert stream.stop() is answer is stream.answer


def test_an_empty_answer(fake_runner: Runner) -> None:
    engine_of(fake_runner).tokens = []
    assert fake_runner.ask(None, "Q").text == ""
    assert list(fake_runner.stream(None, "Q")) == []


def test_a_new_request_ends_an_open_stream(fake_runner: Runner) -> None:
    first = fake_runner.stream(None, "Q")
    next(first)
    second = fake_runner.stream(None, "Q")
    with pytest.raises(ClosedError, match="later request"):
        next(first)
    assert "".join(second) == "It is 9:10. Yes."


def test_a_stream_that_has_ended_keeps_its_answer(fake_runner: Runner) -> None:
    stream = fake_runner.stream(None, "Q")
    list(stream)
    fake_runner.ask(None, "Q")
    assert stream.answer.text == "It is 9:10. Yes."


def test_changing_the_rule_ends_an_open_stream(fake_runner: Runner) -> None:
    stream = fake_runner.stream(None, "Q")
    fake_runner.set_fastv(None)
    with pytest.raises(ClosedError, match="later request"):
        next(stream)


def test_an_abandoned_stream_does_no_harm(fake_runner: Runner) -> None:
    next(fake_runner.stream(None, "Q"))
    assert fake_runner.ask(None, "Q").text == "It is 9:10. Yes."


def test_an_abandoned_stream_does_not_keep_the_runner_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    gc.disable()
    try:
        runner = Runner()
        next(runner.stream(None, "Q"))
        alive = weakref.ref(runner)
        del runner
        assert alive() is None
    finally:
        gc.enable()


# the rule


def test_changing_the_rule(fake_runner: Runner) -> None:
    fake_runner.set_fastv(FastV(4, 0.75))
    assert fake_runner.fastv == FastV(4, 0.75)
    assert called(fake_runner, "set_fastv")[-1] == "fastv,k=4,drop=0.75"
    fake_runner.set_fastv("k=2;k=6,drop=0.75,score=last")
    assert fake_runner.fastv == Schedule([Cut(2, 0.5), Cut(6, 0.75, "last")])
    fake_runner.set_fastv("pyramiddrop")
    assert called(fake_runner, "set_fastv")[-1] == PyramidDrop().spec()
    fake_runner.set_fastv(None)
    assert fake_runner.fastv is None
    assert called(fake_runner, "set_fastv")[-1] == ""
    assert fake_runner.ask(None, "Q").report.fastv is None


def test_a_refused_rule_leaves_the_old_one(fake_runner: Runner) -> None:
    engine = engine_of(fake_runner)
    engine.failing, engine.failure = "set_fastv", OptionError("k is 12, the model has 12 layers")
    with pytest.raises(OptionError, match="12 layers"):
        fake_runner.set_fastv(FastV(12))
    assert fake_runner.fastv == Recommended()
    engine.failing = ""
    assert fake_runner.ask(None, "Q").report.fastv == Recommended()
    assert called(fake_runner, "prefill")[-1]["fastv"] == Recommended().spec()
    assert called(fake_runner, "fit") == []


def test_a_rule_that_cost_the_context_its_stages_is_followed_by_the_old_one(fake_runner: Runner) -> None:
    engine = engine_of(fake_runner)
    engine.failing, engine.failure = "set_fastv", OutOfMemoryError("stages")
    with pytest.raises(OutOfMemoryError):
        fake_runner.set_fastv(FastV(4))
    engine.failing, engine.attached = "", ""
    assert fake_runner.ask(None, "Q").report.fastv == Recommended()
    assert called(fake_runner, "fit") == [Recommended().spec()]


def test_a_requests_own_rule_is_for_that_request(fake_runner: Runner) -> None:
    messages = [{"role": "user", "content": "Q"}]
    rules = [
        fake_runner.ask(None, "Q", fastv=FastV(4)).report.fastv,
        fake_runner.ask(None, "Q").report.fastv,
        fake_runner.stream(None, "Q", fastv="fastv,k=3").read().report.fastv,
        fake_runner.ask(None, "Q", fastv=FastV(3)).report.fastv,
        fake_runner.create_chat_completion(messages, fastv=None)["pyfastv"]["fastv"],
        fake_runner.ask(None, "Q").report.fastv,
    ]
    assert rules == [FastV(4), Recommended(), FastV(3), FastV(3), None, Recommended()]
    assert fake_runner.fastv == Recommended()
    default, four, three = (rule.spec() for rule in (Recommended(), FastV(4), FastV(3)))
    asked = [four, default, three, three, "", default]
    assert [prefill["fastv"] for prefill in called(fake_runner, "prefill")] == asked
    assert called(fake_runner, "fit") == [four, default, three, default]  # other layers


@pytest.mark.parametrize("fastv", [(2, 0.5), "fast", "k=0"])
def test_a_requests_bad_rule_touches_no_engine(fake_runner: Runner, fastv: Any) -> None:
    before = list(engine_of(fake_runner).calls)
    with pytest.raises(OptionError):
        fake_runner.ask(None, "Q", fastv=fastv)
    assert engine_of(fake_runner).calls == before


# errors


@pytest.mark.parametrize("failing", ["prefill", "start", "next"])
@pytest.mark.parametrize(
    "failure", [ContextLengthError("long"), DecodeError("failed"), KeyboardInterrupt(), MemoryError()]
)
def test_an_error_leaves_a_usable_runner(fake_runner: Runner, failing: str, failure: BaseException) -> None:
    engine = engine_of(fake_runner)
    engine.failing, engine.failure = failing, failure
    with pytest.raises(type(failure)):
        fake_runner.ask(PICTURE, "Q")
    assert engine.calls[-1] == ("reset", None)
    engine.failing = ""
    assert fake_runner.ask(PICTURE, "Q").text == "It is 9:10. Yes."


def test_an_error_in_the_progress_callback_comes_through(fake_runner: Runner) -> None:
    def cancel(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fake_runner.ask(PICTURE, "Q", progress=cancel)
    assert fake_runner.ask(PICTURE, "Q").text == "It is 9:10. Yes."


def test_the_first_error_is_the_one_told(fake_runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(fake_runner)
    engine.failing, engine.failure = "prefill", DecodeError("the first")

    def reset() -> None:
        raise DecodeError("the second")

    monkeypatch.setattr(engine, "reset", reset)
    with pytest.raises(DecodeError, match="the first"):
        fake_runner.ask(PICTURE, "Q")


def test_progress_tells_the_tokens(fake_runner: Runner) -> None:
    seen: list[tuple[int, int]] = []
    fake_runner.ask(PICTURE, "Q", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_a_runner_cannot_be_used_from_its_own_callback(fake_runner: Runner) -> None:
    uses = [
        lambda: fake_runner.ask(None, "Q"),
        lambda: fake_runner.set_fastv(None),
        lambda: fake_runner.close(),
    ]
    for use in uses:
        with pytest.raises(Error, match="progress callback"):
            fake_runner.ask(PICTURE, "Q", progress=lambda done, total, use=use: use())
    assert fake_runner.ask(PICTURE, "Q").text == "It is 9:10. Yes."


def test_closing(fake_runner: Runner) -> None:
    stream = fake_runner.stream(None, "Q")
    fake_runner.close()
    fake_runner.close()
    assert fake_runner.closed
    assert engine_of(fake_runner).closed
    uses = [
        lambda: fake_runner.ask(None, "Q"),
        lambda: fake_runner.stream(None, "Q"),
        lambda: fake_runner.create_chat_completion([{"role": "user", "content": "Q"}]),
        lambda: fake_runner.set_fastv(None),
        lambda: fake_runner.info,
        lambda: next(stream),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="closed"):
            use()


# threads


def test_threads_wait_for_each_other(fake_runner: Runner) -> None:
    inside = threading.Lock()
    engine = engine_of(fake_runner)
    prefill = engine.prefill

    def alone(*arguments: Any, **options: Any) -> None:
        assert inside.acquire(blocking=False)
        threading.Event().wait(0.002)
        prefill(*arguments, **options)
        inside.release()

    engine.prefill = alone
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: fake_runner.ask(PICTURE, f"Q{i}").text, range(32)))
    assert answers == ["It is 9:10. Yes."] * 32


# OpenAI's shapes


def test_a_completion(fake_runner: Runner) -> None:
    made = fake_runner.create_chat_completion(messages=[{"role": "user", "content": "Q"}], stop=".")
    assert made["id"].startswith("chatcmpl-")
    assert made["object"] == "chat.completion"
    assert made["model"] == "tiny-llava-Q4_K_M.gguf"
    assert isinstance(made["created"], int)
    assert made["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "It is 9:10"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert made["usage"] == {"prompt_tokens": 600, "completion_tokens": 4, "total_tokens": 604}
    assert made["pyfastv"]["visual_tokens_kept"] == 288


def test_completion_chunks(fake_runner: Runner) -> None:
    made = list(fake_runner.create_chat_completion([{"role": "user", "content": "Q"}], stream=True))
    assert {chunk["object"] for chunk in made} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in made}) == 1
    choices = [chunk["choices"][0] for chunk in made]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant"},
        *({"content": piece} for piece in ["It is ", "9:10", ".", " Yes."]),
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
    assert made[-1]["pyfastv"]["visual_tokens"] == 576
    assert all("pyfastv" not in chunk for chunk in made[:-1])


def test_errors_of_a_streamed_completion_come_before_the_first_chunk(fake_runner: Runner) -> None:
    with pytest.raises(OptionError, match="messages"):
        fake_runner.create_chat_completion([], stream=True)


def test_public_names_exist() -> None:
    assert all(hasattr(pyfastv, name) for name in pyfastv.__all__)

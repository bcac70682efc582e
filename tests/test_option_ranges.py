"""Numbers that no machine can take are refused at every door, with the value and the limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyfastv import ContextLengthError, OptionError, Runner, _native
from pyfastv.commands.main import main
from pyfastv.engine.job_pool import JobPool
from pyfastv.models import bundled_examples, bundled_model

import random_gguf

ENGINE: dict[str, Any] = {
    "model_path": str(bundled_model()),
    "mmproj_path": None,
    "n_ctx": 64,
    "n_batch": 64,
    "n_ubatch": 64,
    "n_threads": 1,
    "n_gpu_layers": 0,
    "flash_attn": "auto",
    "type_k": "f16",
    "type_v": "f16",
    "encoder_cache_bytes": 0,
    "verbose": False,
    "progress": None,
}
SAMPLING: dict[str, Any] = {
    "max_tokens": 4,
    "temperature": 1.0,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "seed": 1,
    "grammar": None,
}
WRONG = [
    *(("n_threads", value) for value in (-1, 513, 100_000, 2**31, 2**62)),
    *(("n_ctx", value) for value in (-1, 2**31 - 1, 2**31, 2**32, 2**62)),
    *((name, value) for name in ("n_batch", "n_ubatch") for value in (-1, 0, 2**31, 2**32 + 64)),
    *(("n_gpu_layers", value) for value in (-2, 2**31)),
]
NUMBERS = (math.nan, math.inf, -math.inf, -1.0)
WRONG_SAMPLING = [
    *(
        (name, value)
        for name in ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty")
        for value in NUMBERS
    ),
    *((name, value) for name in ("frequency_penalty", "presence_penalty") for value in NUMBERS[:3]),
    *((name, 1.5) for name in ("top_p", "min_p", "typical_p")),
    ("repeat_penalty", 0.0),
    *((name, value) for name in ("max_tokens", "top_k", "repeat_last_n") for value in (-2, 2**31, 2**40)),
    *(("seed", value) for value in (-1, 2**32)),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[_native.Engine]:
    made = _native.Engine(**ENGINE)
    made.prefill("x", [], [], None, True, 1)
    yield made
    made.close()


@pytest.mark.parametrize("door", [_native.Engine, Runner, JobPool])
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_model_is_not_loaded_with_such_a_number(door: Any, name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    if door is _native.Engine:
        options = ENGINE | options
    with pytest.raises(OptionError, match=f"{name}.*{value}|{name}.*got {value}"):
        door(**options)


@pytest.mark.parametrize("value", [-1, 0, 65, 2**31, 2**40])
def test_there_are_as_many_slots_as_there_can_be(value: int) -> None:
    with pytest.raises(OptionError, match=f"slots = {value}: there can be 1 to 64"):
        _native.Engine(**ENGINE, n_slots=value)


@pytest.mark.parametrize("flash_attn", ["off", "auto", "on"])
def test_keys_in_blocks_that_the_heads_are_no_multiple_of_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flash_attn: str
) -> None:
    """Without flash attention llama.cpp takes them, and counts what is less than a block as nothing."""
    kind = replace(random_gguf.KINDS["llama"], head=48, rope_factors="")
    monkeypatch.setitem(random_gguf.KINDS, "llama", kind)
    random_gguf.write(tmp_path / "model.gguf", "llama")
    options = {"model_path": str(tmp_path / "model.gguf"), "flash_attn": flash_attn, "type_k": "q8_0"}
    with pytest.raises(OptionError, match=r"q8_0.* 32.*48"):
        _native.Engine(**ENGINE | options)


@pytest.mark.parametrize(("name", "value"), WRONG_SAMPLING)
def test_nothing_is_sampled_by_such_a_number(engine: _native.Engine, name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"^{name} = "):
        engine.start(**SAMPLING | {name: value})
    with pytest.raises(OptionError, match=f"^{name} = "):
        engine.prepare("x", [], [], True, n_probs=0, **SAMPLING | {name: value})


@pytest.mark.parametrize("value", [-1, 2**31, 2**40])
def test_counts_of_a_request_are_checked_by_the_native_module(engine: _native.Engine, value: int) -> None:
    with pytest.raises(OptionError, match=f"^reserve = {value}: it can be 0 to 2147483647"):
        engine.prefill("x", [], [], None, True, value)
    with pytest.raises(OptionError, match=f"^n_probs = {value}: it can be 0 to"):
        engine.prepare("x", [], [], True, n_probs=value, **SAMPLING)


@pytest.mark.parametrize("bias", [(-1, 1.0), (10**6, 1.0), (5, math.nan), (5, -math.inf), (5, 1e10)])
def test_biases_out_of_range_are_refused_by_the_native_module(
    engine: _native.Engine, bias: tuple[int, float]
) -> None:
    with pytest.raises(OptionError, match=r"^logit_bias: "):
        engine.start(**SAMPLING | {"logit_bias": [bias]})


@pytest.mark.parametrize("tokens", [[-1], [1, 10**6], [2**31 - 1]])
def test_numbers_that_are_no_tokens_are_refused(engine: _native.Engine, tokens: list[int]) -> None:
    with pytest.raises(OptionError, match=r"^token .* is out of range: the vocabulary has "):
        engine.prepare_tokens(tokens, **SAMPLING)
    with pytest.raises(OptionError, match=r"^token .* is out of range"):
        engine.detokenize(tokens)


def test_no_tokens_are_no_prompt(engine: _native.Engine) -> None:
    with pytest.raises(OptionError, match="the prompt is empty"):
        engine.prepare_tokens([], **SAMPLING)
    with pytest.raises(ContextLengthError):
        engine.prepare_tokens([1] * 64, **SAMPLING)


def test_penalties_look_at_no_more_than_the_context(engine: _native.Engine) -> None:
    # llama.cpp takes 4 bytes for each, 8 GB here, and takes -1 for none
    engine.start(**SAMPLING | {"repeat_last_n": 2**31 - 1, "repeat_penalty": 1.1})


def test_penalties_look_at_the_whole_context_by_minus_one(engine: _native.Engine) -> None:
    def tokens(last_n: int) -> list[int]:
        engine.prefill("x", [], [], None, True, 1)
        engine.start(
            **SAMPLING
            | {"temperature": 0.0, "max_tokens": 20, "repeat_penalty": 10.0, "repeat_last_n": last_n}
        )
        return [made[0] for made in iter(engine.next, None)]

    assert tokens(-1) == tokens(64)
    assert tokens(-1) != tokens(0)


PICTURE = str(bundled_examples()[0].picture)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", PICTURE, "x", "-t", "100000"],
        ["ask", PICTURE, "x", "-c", "2147483648"],
        ["ask", PICTURE, "x", "-c", "-1"],
        ["ask", PICTURE, "x", "-ngl", "-2"],
        ["ask", PICTURE, "x", "--temp", "nan"],
        ["ask", PICTURE, "x", "-n", "-5"],
        ["chat", PICTURE, "-t", "513"],
        ["serve", "--port", "0", "-t", "100000"],
        ["serve", "--port", "0", "-c", "2147483648"],
        ["serve", "--port", "0", "-c", "-1"],
        ["serve", "--port", "0", "--temp", "nan"],
        ["plan", "-t", "100000"],
        ["bench", "-t", "100000"],
        ["bench", "-c", "2147483648"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(PICTURE, "PICTURE"),
)
def test_the_command_line_says_so_in_a_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) in (1, 2)
    *usage, said = capfd.readouterr().err.splitlines()
    assert arguments[-1] in said
    assert not any("Traceback" in line for line in usage)

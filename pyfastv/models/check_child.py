"""The process of :mod:`pyfastv.models.check`: says what it is about to try, and tries it."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..commands.demo import same_answer
from ..engine.runner import Runner
from ..errors import Error
from .bundled import bundled_examples, bundled_mmproj, bundled_model

__all__ = ["STEPS", "main", "relative_error", "tolerance"]

_COLUMNS = 512  # two blocks of the types with the largest ones


class Step(NamedTuple):
    """A product: rows of inputs [rows, _COLUMNS] with weights [outputs, _COLUMNS]."""

    rows: int
    outputs: int
    threads: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.outputs} products, n_threads = {self.threads}"


# Kernels change with the number of rows: one is a vector, a few are not worth tiles, tiles are full or cut off. 160 and
# 128 outputs are cut off at different widths.
STEPS = (
    *(Step(1, 160, 1), Step(2, 128, 1), Step(3, 160, 1), Step(8, 128, 1), Step(18, 160, 1), Step(64, 128, 1)),
    Step(64, 160, 2),
)


class _Case(NamedTuple):
    what: str
    where: str
    device: str = ""
    buffer: str = ""
    files: tuple[str, str | None] | None = None  # of a model


def main(arguments: Sequence[str]) -> None:
    """``arguments``: the number of the first case, a model, its mmproj."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # to die is a result
    # only messages go to the parent, whatever a library prints
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        start, model, mmproj = int(arguments[0]), *(*arguments[1:], None, None)[:2]
        if start == 0:
            # of a build for another CPU even this dies
            _tell(channel, case=["start", "CPU", "CPU"])
            _tell(channel, step="llama.cpp looks for devices")
            _native.kernel_places()
            _tell(channel, skip=True)
        for case in list(_cases(model, mmproj))[max(start - 1, 0) :]:
            _tell(channel, case=[case.what, case.where, case.device])
            for message in _try_model(*case.files) if case.files else _try_kernel(case):
                _tell(channel, **message)
        _tell(channel, end=True)


def _tell(channel: Any, **message: Any) -> None:
    print(json.dumps(message), file=channel, flush=True)


def _cases(model: str | None, mmproj: str | None) -> Iterator[_Case]:
    for device, buffer in _native.kernel_places():
        for kind in _native.weight_types():
            yield _Case(kind, buffer if device == "CPU" else device, device, buffer)
    yield _Case("picture", bundled_model().name, files=(str(bundled_model()), str(bundled_mmproj())))
    if model is not None:
        yield _Case("text" if mmproj is None else "picture", Path(model).name, files=(model, mmproj))


# kernels


def _try_kernel(case: _Case) -> Iterator[dict[str, Any]]:
    weights, values = _weights(case.what)
    for step in STEPS:
        inputs = _inputs(step.rows)
        # not "@", which is a BLAS: with kernels of its own for each CPU, and threads that spin
        expected = np.einsum("rk,ok->ro", inputs, values[: step.outputs], dtype=np.float64)
        yield {"step": str(step)}
        product = _native.multiply(
            case.device, case.buffer, case.what, weights[: step.outputs], inputs, step.threads
        )
        if product is None:
            yield {"skip": True}
            return
        error = relative_error(product, expected)
        if not error <= tolerance(case.device, case.what):
            yield _differs(error, tolerance(case.device, case.what))
            return


def _differs(error: float, allowed: float) -> dict[str, Any]:
    return {
        "fault": "differs",
        "problem": f"differs from the plain product by {error:.2g}, {allowed:.2g} is rounding",
    }


def relative_error(product: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    """Root mean square of the differences, by that of ``expected``; inf where a number is not finite."""
    if not np.isfinite(product).all():
        return np.inf
    return float(np.sqrt(np.square(product - expected).mean() / np.square(expected).mean()))


def tolerance(device: str, kind: str) -> float:
    """The largest :func:`relative_error` that rounding explains, some three times what is usual.

    Beside quantized weights the inputs are rounded to 8 bits, beside f16 and bf16 to that type. GPUs may round f32, too.
    """
    floats = {"f32": 1e-5 if device == "CPU" else 5e-3, "f16": 5e-3, "bf16": 1e-2}
    return floats.get(kind, 2e-2)


@lru_cache
def _weights(kind: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blocks [160, bytes], and their values [160, _COLUMNS] by ggml's plain code."""
    return _native.random_weights(kind, max(step.outputs for step in STEPS), _COLUMNS, seed=1)


@lru_cache
def _inputs(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).normal(size=(rows, _COLUMNS)).astype(np.float32)


# models


def _try_model(model: str, mmproj: str | None) -> Iterator[dict[str, Any]]:
    bundled = (model, mmproj) == (str(bundled_model()), str(bundled_mmproj()))
    example = bundled_examples()[0]
    yield {"step": "loading"}
    try:
        # a model that cannot be run in stages can be tried, too
        options: dict[str, Any] = {"fastv": None, "encoder_type": "stock"}  # nothing is written
        with Runner(model, mmproj, n_threads=1 if bundled else None, n_ctx=4096, **options) as runner:
            yield {"step": "a question"}
            answer = runner.ask(None if mmproj is None else example.picture, example.question, max_tokens=16)
            with runner._engine_at_work() as engine:
                finite = bool(np.isfinite(engine.logits()).all())
    except Error as error:
        yield {"fault": "failed", "problem": str(error)}
        return
    if not finite:
        yield {"fault": "differs", "problem": "the logits are not finite"}
    elif bundled and not same_answer(answer.text, example.answer):
        yield {"fault": "differs", "problem": f'the answer is "{answer.text}", not "{example.answer}"'}

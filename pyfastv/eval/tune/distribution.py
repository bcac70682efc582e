"""How far a setting's next-token distributions are from those of the unpruned model, along its greedy answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ... import _native
from ...engine.runner import Runner
from ...settings.setting import Setting
from ..question import Question

__all__ = ["Divergence", "Reference", "compare", "refer"]

_LIKELIEST = 1024  # tokens that are compared one by one
_TINY = 1e-12


@dataclass(frozen=True)
class Reference:
    """The unpruned model's greedy answer to a question, and what it thought of every token of it."""

    tokens: tuple[int, ...]
    """The answer as far as it was followed, without the token that ends it."""
    likeliest: NDArray[np.int64]  # [positions, n], descending
    probabilities: NDArray[np.float64]  # [positions, n + 1]; the last is all other tokens
    rows: int
    """Token rows of the prompt, summed over the layers."""


@dataclass(frozen=True)
class Divergence:
    """One setting beside the reference, at every position of its answer; nats."""

    kl: NDArray[np.float64]  # [positions]
    changed: NDArray[np.bool_]  # [positions]: another token is the likeliest
    cost: float
    """Token rows of the prompt, summed over the layers, as a share of the reference's."""


def refer(runner: Runner, question: Question, text: str, system: str | None, positions: int) -> Reference:
    """Answer greedily with nothing in force, at most ``positions`` tokens, and keep the distributions.

    The first is that behind the prompt; the last one may be that of the token that ends the answer.
    """
    _prefill(runner, Setting(), question, text, system, positions)
    tokens: list[int] = []
    likeliest, probabilities = [], []
    with runner._engine_at_work() as engine:
        for _ in range(positions):
            token = engine.next()
            if (
                token is None and engine.finish_reason != "stop"
            ):  # the context is full: nothing new was evaluated
                break
            p = _softmax(engine.logits())
            order = np.argsort(-p, kind="stable")[:_LIKELIEST]
            likeliest.append(order)
            probabilities.append(_with_rest(p, order))
            if token is None:
                break
            tokens.append(token[0])
        rows = _rows(engine.report(), engine.n_layer)
    # behind the last token nothing was evaluated
    return Reference(tuple(tokens[: len(likeliest) - 1]), np.array(likeliest), np.array(probabilities), rows)


def compare(
    runner: Runner, setting: Setting, reference: Reference, question: Question, text: str, system: str | None
) -> Divergence:
    """Feed the reference's answer to a setting, and compare the distributions token by token.

    KL(reference || setting) over the 1024 likeliest tokens of the reference, with all others as one: a lower bound of
    the divergence over the whole vocabulary, which what is left in the tail can hardly raise.
    """
    _prefill(runner, setting, question, text, system, 1)
    kl, changed = [], []
    with runner._engine_at_work() as engine:
        cost = _rows(engine.report(), engine.n_layer) / reference.rows
        for position, order in enumerate(reference.likeliest):
            if position > 0:
                engine.feed(reference.tokens[position - 1])
            q = _softmax(engine.logits())
            p = reference.probabilities[position]
            kl.append(_kl(p, _with_rest(q, order)))
            changed.append(int(np.argmax(q)) != order[0])
    return Divergence(np.array(kl), np.array(changed), cost)


def _prefill(
    runner: Runner, setting: Setting, question: Question, text: str, system: str | None, max_tokens: int
) -> None:
    runner.stream(
        question.image,
        text,
        system=system,
        max_tokens=max_tokens,
        temperature=0.0,
        **setting.options(),
    )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exponents = np.exp(logits.astype(np.float64) - float(logits.max()))
    result: NDArray[np.float64] = exponents / exponents.sum()
    return result


def _with_rest(p: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.append(p[order], max(0.0, 1.0 - float(p[order].sum())))


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    some = p > _TINY
    return max(0.0, float(np.sum(p[some] * np.log(p[some] / np.maximum(q[some], _TINY)))))


def _rows(report: _native.RunReport, n_layer: int) -> int:
    """What the weight matrices of the language model are multiplied with during prefill. What Turbo or a reducer took
    away before is in no layer."""
    text = report.prompt_tokens - report.visual_tokens
    ends = (*report.first_layers[1:], n_layer)
    stages = zip(report.first_layers, ends, report.visual_tokens_in_stage, strict=True)
    return sum((end - first) * (visual + text) for first, end, visual in stages)

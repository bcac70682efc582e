"""A process for one folder of libraries: :mod:`lowlevel.requests` says how it is talked to.

    {"do": "info"}                                   the libraries, their flags, the prompt
    {"do": "attach", "spec": "k=2,drop=0.5"}         stages for what follows (pyfastv's libraries only)
    {"do": "detach"}                                 and off again
    {"do": "measure", "generate": 16}                times of a question
    {"do": "encode", "save": "embeddings.npy"}       the picture's embeddings: float32 (tokens, width)
    {"do": "logits", "steps": 32, "save": "logits.npy", "embeddings": "embeddings.npy", "tokens": [...]}
                                                     logits of greedy steps: float32 (steps, vocabulary); without
                                                     "embeddings" the picture is encoded; "tokens" are followed
                                                     instead of the greedy choice

The options are the fields of :class:`lowlevel.engine.Options`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .engine import Engine, Options
from .requests import serve

__all__ = ["main"]


def _make(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    engine = Engine(Options(**options))
    return {
        "info": engine.info,
        "attach": engine.attach,
        "detach": engine.detach,
        "measure": engine.measure,
        "encode": engine.encode,
        "logits": engine.logits,
    }


def main() -> None:
    serve(_make)

"""Measures settings in turn, round by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import Error
from ..settings.setting import Setting
from .worker import Worker, start_library_worker, start_runner_worker

__all__ = ["STOCK", "Plan", "Results", "measure", "order"]

STOCK = "stock"
"""The name of the unpatched libraries in tables."""

Measurement = dict[str, Any]
Item = TypeVar("Item")
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how."""

    model: str
    mmproj: str
    settings: Mapping[str, Setting]
    """By name; the first is off, with which the others are compared."""
    picture: str
    """A file."""
    rounds: int = 6
    """In each of which every setting is measured once."""
    restarts: int = 1
    """Of the processes, each with all rounds."""
    generate: int = 16
    """Tokens behind the prompt."""
    prompt_tokens: int = 14
    """Text tokens behind the picture."""
    n_ctx: int = 4096
    n_threads: int = 1
    n_gpu_layers: int = 0
    flash_attn: str = "auto"
    encoder_type: str = "stock"
    """Of our side; the stock libraries get the file as it is."""
    stock: str | None = None
    """Folder of unpatched libraries of the same pin."""

    @property
    def names(self) -> list[str]:
        """Rows of the table, in order."""
        return [*([STOCK] if self.stock else []), *self.settings]

    @property
    def off(self) -> str:
        """The name of the first."""
        return next(iter(self.settings))


@dataclass
class Results:
    """What was measured so far."""

    prompt: dict[str, Any] = field(default_factory=dict)
    """What the process of pyfastv told of it."""
    stock: dict[str, Any] | None = None
    """What the process of the stock libraries told."""
    rounds: dict[str, list[list[Measurement]]] = field(default_factory=dict)
    """By row of the table; for each restart, for each round."""
    interrupted: bool = False

    def paired(self, base: str, other: str, key: str) -> tuple[list[list[float]], list[list[float]]]:
        """Values of the rounds that both rows have, by restart."""
        pairs = list(zip(self.rounds.get(base, []), self.rounds.get(other, []), strict=False))
        n = [min(len(a), len(b)) for a, b in pairs]
        return (
            [[run[key] for run in a[:k]] for (a, _), k in zip(pairs, n, strict=True)],
            [[run[key] for run in b[:k]] for (_, b), k in zip(pairs, n, strict=True)],
        )

    def runs(self, name: str) -> list[Measurement]:
        """All measurements of a row."""
        return [run for restart in self.rounds.get(name, []) for run in restart]


def order(items: Sequence[Item], number: int) -> list[Item]:
    """In which order a round goes: the start moves on by one from round to round, so that each item takes each place."""
    start = number % len(items)
    return [*items[start:], *items[:start]]


def measure(plan: Plan, results: Results, progress: Progress) -> None:
    """Fills ``results`` as it goes, so that what there is can be told after an interrupt.

    ``progress``: called with (what comes now, measurements done, measurements in all). Raises Error if a process fails,
    or if the stock libraries are not comparable with ours.
    """
    n_all = plan.restarts * plan.rounds * len(plan.names)
    done = 0
    for restart in range(plan.restarts):
        progress(f"loading {restart + 1}/{plan.restarts}", done, n_all)
        with start_runner_worker(_options(plan) | {"encoder_type": plan.encoder_type}) as ours:
            results.prompt = ours.request("prepare", text_tokens=plan.prompt_tokens)
            stock = _start_stock(plan, results)
            try:
                entries: list[tuple[str, Worker, Setting | None]] = []
                if stock is not None:
                    entries.append((STOCK, stock, None))
                entries += [(name, ours, setting) for name, setting in plan.settings.items()]
                for name, _, _ in entries:
                    results.rounds.setdefault(name, []).append([])
                for number in range(plan.rounds):
                    for name, worker, setting in order(entries, number):
                        progress(f"round {number + 1}/{plan.rounds}: {name}", done, n_all)
                        if setting is not None:
                            worker.request("set", setting=name)
                        result = worker.request("measure", generate=plan.generate)
                        done += 1
                        results.rounds[name][-1].append(result)
            finally:
                if stock is not None:
                    stock.close()


def _options(plan: Plan) -> dict[str, Any]:
    names = ("model", "mmproj", "picture", "n_ctx", "n_threads", "n_gpu_layers", "flash_attn")
    return {name: getattr(plan, name) for name in names}


def _start_stock(plan: Plan, results: Results) -> Worker | None:
    if plan.stock is None:
        return None
    options = _options(plan) | {
        "libraries": plan.stock,
        "prompt": f"<image>{results.prompt['text']}",
        "version": results.prompt["bindings_version"],
    }
    worker = start_library_worker("the stock libraries", options)
    try:
        results.stock = worker.request("info")
        check_comparable(results.stock, results.prompt)
    except BaseException:
        worker.close()
        raise
    return worker


def check_comparable(stock: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Libraries of different pins or flags are not compared: the ratio would say nothing about pruning. Raises Error."""
    if stock["has_fastv"]:
        raise Error(f"{stock['libraries']}: these are pyfastv's libraries, not stock ones")
    for key in ("llama_version", "ggml_version", "system_info", "n_visual", "n_text"):
        theirs, mine = (str(info[key]).removesuffix("-dev") for info in (stock, ours))
        if theirs != mine:
            raise Error(
                f"not comparable: {key} of the stock libraries is {theirs}, of ours {mine}; "
                "build the stock libraries of the same pin with the same flags: benchmarks/build_stock.py"
            )

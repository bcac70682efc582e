"""``pyfastv demo``: one bundled picture and question, without pruning and with it, side by side."""

from __future__ import annotations

import re

import click
from rich.console import Console
from rich.table import Table

from .. import _native
from .._busy import busy_warning
from ..engine.answer import Answer
from ..engine.runner import Runner
from ..models import bundled_examples
from ..models.check import check_machine
from ..settings.presets import FastV, Recommended
from .bars import bar
from .streams import tell

__all__ = ["demo", "run_demo", "same_answer"]


@click.command()
def demo() -> int:
    """Ask the bundled model about a bundled picture, without pruning and with it."""
    return run_demo()


def run_demo() -> int:
    """Print the table; returns 1 if an answer is wrong, else 0. A machine whose kernels do not run is told first: 1."""
    findings = check_machine()
    if not findings.right:
        for title, text in findings.faults():
            print(f"{title:<10} {text}")
        return 1

    if (warning := busy_warning(_native.usable_cores())) is not None:
        tell(f"pyfastv: {warning}; until then the times below say nothing")
    picture, question, expected = bundled_examples()[0]
    rules = {"off": None, "FastV": FastV(k=2, drop=0.5), "recommended": Recommended(k=2, drop=0.5)}
    answers: dict[str, Answer] = {}
    with bar("Loading") as loading:
        runner = Runner(fastv=None, encoder_cache_mb=0, progress=loading)
    with runner:
        runner.ask(picture, question)  # so that no column pays for cold caches
        for name, rule in rules.items():
            runner.set_fastv(rule)
            answers[name] = runner.ask(picture, question)

    console = Console(soft_wrap=True)
    for title, value in {"picture": picture, "question": question, "expected": expected}.items():
        console.print(f"{title:<10} {value}", highlight=False)
    right = {name: same_answer(answer.text, expected) for name, answer in answers.items()}
    console.print(_table(answers, right))
    if not all(right.values()):
        console.print(f"wrong: {', '.join(name for name in right if not right[name])}")
        return 1
    return 0


def same_answer(given: str, expected: str) -> bool:
    """Equal but for case, punctuation and spacing."""
    first, second = (re.sub(r"[^\w\s]", "", text).casefold().split() for text in (given, expected))
    return first == second


def _table(answers: dict[str, Answer], right: dict[str, bool]) -> Table:
    reports = [answer.report for answer in answers.values()]
    rows = {
        "answer": [answer.text for answer in answers.values()],
        "right": ["yes" if right[name] else "no" for name in answers],
        "visual tokens": [str(report.visual_tokens) for report in reports],
        "kept": [str(report.visual_tokens_kept) for report in reports],
        "vision encoder": [f"{report.encode_ms:.0f} ms" for report in reports],
        "prefill": [f"{report.prefill_ms:.0f} ms" for report in reports],
        "generation": [f"{report.generate_ms:.0f} ms" for report in reports],
        "KV cache": [f"{sum(report.kv_bytes_used) / 1e6:.1f} MB" for report in reports],
    }
    table = Table("", *answers)
    for title, values in rows.items():
        table.add_row(title, *values)
    return table

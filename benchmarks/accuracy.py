"""Accuracy of a model on the bench, with FastV and without, beside the PyTorch reference's.

    python benchmarks/accuracy.py BENCH --answers answers.jsonl

BENCH is a folder with questions.jsonl and images. Answers are greedy, up to 96 tokens, and appended to the JSONL file
one by one; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import pyfastv

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "reference"
sys.path.insert(0, str(REFERENCE))

from scoring import accuracy  # noqa: E402 - the reference's own scorer

MAX_TOKENS = 96
SETTINGS = "off,2:0.5,2:0.75,4:0.5,4:0.75,6:0.75"

Job = tuple[str, dict[str, Any]]  # setting, question

runner: pyfastv.Runner
bench: Path


def rule(setting: str) -> pyfastv.FastV | None:
    """From "off", "K:DROP" or "K:DROP:SCORE:PICK"."""
    if setting == "off":
        return None
    k, drop, *others = setting.split(":")
    return pyfastv.FastV(int(k), float(drop), *others)


def start(folder: Path, model: Path | None, mmproj: Path | None) -> None:
    """Load the model in a worker. One thread each: several small models side by side beat one on many cores."""
    global runner, bench
    bench = folder
    runner = pyfastv.Runner(model, mmproj, n_ctx=1024, n_threads=1, fastv=None)


def answer(job: Job) -> dict[str, str]:
    setting, question = job
    if runner.fastv != rule(setting):
        runner.set_fastv(rule(setting))
    text = runner.ask(bench / question["image"], question["question"], max_tokens=MAX_TOKENS).text
    return {"setting": setting, "id": question["id"], "answer": text}


def answer_all(jobs: list[Job], args: argparse.Namespace) -> Iterator[dict[str, str]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes, start, (args.bench, args.model, args.mmproj)) as pool:
        yield from track(
            pool.imap_unordered(answer, jobs, chunksize=3),
            "Answering",
            len(jobs),
            console=Console(stderr=True),
        )


def print_table(questions: list[dict[str, Any]], answers: dict[str, dict[str, str]]) -> None:
    reference = json.loads((REFERENCE / "bench_reference.json").read_text())["settings"]
    table = Table("setting", "right", "accuracy %", "PyTorch reference %", "difference")
    for setting, given in answers.items():
        score = accuracy(questions, given)["all"]
        row = [setting, f"{score['right']} of {score['total']}", f"{score['percent']:.2f}"]
        if setting in reference and score["total"] == reference[setting]["all"]["total"]:
            expected = reference[setting]["all"]["percent"]
            row += [f"{expected:.2f}", f"{score['percent'] - expected:+.2f}"]
        table.add_row(*row)
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, help="folder with questions.jsonl and images")
    parser.add_argument("--answers", type=Path, required=True, help="JSONL file of the answers; resumed")
    parser.add_argument("--model", type=Path, help="GGUF file (default: the bundled model)")
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument(
        "--settings", default=SETTINGS, help="off, K:DROP or K:DROP:SCORE:PICK, ... (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="only the first questions")
    args = parser.parse_args()

    lines = (args.bench / "questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines][: args.limit]
    answers: dict[str, dict[str, str]] = {setting: {} for setting in args.settings.split(",")}

    if args.answers.exists():
        for line in args.answers.read_text().splitlines():
            old = json.loads(line)
            if old["setting"] in answers:
                answers[old["setting"]][old["id"]] = old["answer"]

    jobs = [(setting, q) for setting in answers for q in questions if q["id"] not in answers[setting]]
    with args.answers.open("a") as file:
        for new in answer_all(jobs, args):
            answers[new["setting"]][new["id"]] = new["answer"]
            file.write(json.dumps(new) + "\n")
            file.flush()

    asked = {question["id"] for question in questions}
    print_table(
        questions, {s: {i: a for i, a in given.items() if i in asked} for s, given in answers.items()}
    )


if __name__ == "__main__":
    main()

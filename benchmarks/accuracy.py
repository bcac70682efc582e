"""Accuracy of a model on the bench by schedule, beside the PyTorch reference's.

    python benchmarks/accuracy.py BENCH --answers answers.jsonl
    python benchmarks/accuracy.py BENCH --answers answers.jsonl --settings off "k=2,drop=0.5,score=question-max"

BENCH is a folder with questions.jsonl and images. A setting is off, a schedule, or parts separated by " | ", each as the
Runner takes it as text: turbo=..., reduce=... and fastv=..., as in "reduce=divprune,keep=288 | fastv=k=2,drop=0.5".
Answers are greedy, up to 96 tokens, and appended to the JSONL file one by one; a run that was interrupted goes on where
it stopped.
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
SETTINGS = [
    "off",
    *(f"k={k},drop={drop}" for k, drop in ((2, 0.5), (2, 0.75), (4, 0.5), (4, 0.75), (6, 0.75))),
]

Question = dict[str, Any]
Job = tuple[list[str], Question]  # settings, question
# setting, id, answer, visual tokens, share of what the encoder made that is retained, average over the layers
Given = dict[str, Any]

runner: pyfastv.Runner
bench: Path


def start(folder: Path, model: Path | None, mmproj: Path | None) -> None:
    """Load the model in a worker. One thread each: several small models side by side beat one on many cores."""
    global runner, bench
    bench = folder
    runner = pyfastv.Runner(model, mmproj, n_ctx=1024, n_threads=1, fastv=None)


def parts_of(setting: str) -> dict[str, str | None]:
    """What a setting gives a runner: fastv and reduce, and turbo if it is named."""
    parts: dict[str, str | None] = {"fastv": None, "reduce": None}
    for part in setting.split(" | "):
        name, _, value = part.strip().partition("=")
        if name in ("fastv", "reduce", "turbo"):
            parts[name] = None if value == "off" else value
        elif part.strip() != "off":
            parts["fastv"] = part.strip()
    return parts


def put_in_force(runner: pyfastv.Runner, setting: str) -> None:
    for name, value in parts_of(setting).items():
        getattr(runner, f"set_{name}")(value)


def answer(picture: list[Job]) -> list[Given]:
    """All questions about one picture, setting by setting: the encoder sees it once, stage 0 once for each setting."""
    given = []
    for setting in dict.fromkeys(s for settings, _ in picture for s in settings):
        put_in_force(runner, setting)
        for settings, question in picture:
            if setting in settings:
                made = runner.ask(bench / question["image"], question["question"], max_tokens=MAX_TOKENS)
                report = made.report
                share = report.retained_share * report.visual_tokens / report.encoded_tokens
                given.append(
                    {
                        "setting": setting,
                        "id": question["id"],
                        "answer": made.text,
                        "visual": report.visual_tokens,
                        "share": share,
                    }
                )
    return given


def ask(
    questions: list[Question], settings: list[str], args: argparse.Namespace
) -> dict[str, dict[str, Given]]:
    """What was answered, by setting and id; what the file of answers lacks is asked now."""
    answers: dict[str, dict[str, Given]] = {setting: {} for setting in settings}
    asked = {question["id"] for question in questions}
    if args.answers.exists():
        for line in args.answers.read_text().splitlines():
            old = json.loads(line)
            if old["setting"] in answers and old["id"] in asked:
                answers[old["setting"]][old["id"]] = old

    pictures: dict[str, list[Job]] = {}
    for question in questions:
        missing = [setting for setting in settings if question["id"] not in answers[setting]]
        if missing:
            pictures.setdefault(question["image"], []).append((missing, question))
    with args.answers.open("a") as file:
        for given in answer_all(list(pictures.values()), args):
            for new in given:
                answers[new["setting"]][new["id"]] = new
                file.write(json.dumps(new) + "\n")
            file.flush()
    return answers


def answer_all(pictures: list[list[Job]], args: argparse.Namespace) -> Iterator[list[Given]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes, start, (args.bench, args.model, args.mmproj)) as pool:
        yield from track(
            pool.imap_unordered(answer, pictures),
            "Answering, picture by picture",
            len(pictures),
            console=Console(stderr=True),
        )


def percent(questions: list[Question], given: dict[str, Given]) -> dict[str, Any]:
    """right, total and percent over all families."""
    return accuracy(questions, {i: one["answer"] for i, one in given.items()})["all"]


def mean_share(given: dict[str, Given]) -> float:
    return sum(one["share"] for one in given.values()) / len(given)


def print_table(questions: list[Question], answers: dict[str, dict[str, Given]]) -> None:
    reference = json.loads((REFERENCE / "bench_reference.json").read_text())["settings"]
    reference = {
        key if key == "off" else "k={},drop={}".format(*key.split(":")): r for key, r in reference.items()
    }
    table = Table("setting", "right", "accuracy %", "retained", "PyTorch reference %", "difference")
    for setting, given in answers.items():
        score = percent(questions, given)
        row = [
            setting,
            f"{score['right']} of {score['total']}",
            f"{score['percent']:.2f}",
            f"{mean_share(given):.3f}",
        ]
        if setting in reference and score["total"] == reference[setting]["all"]["total"]:
            expected = reference[setting]["all"]["percent"]
            row += [f"{expected:.2f}", f"{score['percent'] - expected:+.2f}"]
        table.add_row(*row)
    Console(width=110).print(table)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("bench", type=Path, help="folder with questions.jsonl and images")
    parser.add_argument("--answers", type=Path, required=True, help="JSONL file of the answers; resumed")
    parser.add_argument("--model", type=Path, help="GGUF file (default: the bundled model)")
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="only the first questions")
    return parser


def read_questions(args: argparse.Namespace) -> list[Question]:
    lines = (args.bench / "questions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][: args.limit]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="see above (default: %(default)s)")
    args = parser.parse_args()

    questions = read_questions(args)
    print_table(questions, ask(questions, args.settings, args))


if __name__ == "__main__":
    main()

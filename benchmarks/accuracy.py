"""Accuracy of a model on the bench by schedule, beside the PyTorch reference's.

    python benchmarks/accuracy.py BENCH --answers answers.jsonl
    python benchmarks/accuracy.py BENCH --answers answers.jsonl --settings off "k=2,drop=0.5,score=question-max"

BENCH is a folder with questions.jsonl and images. A setting is what `pyfastv eval` takes, as in
"reduce:divprune,keep=288 + k=2,drop=0.5". Answers are greedy, up to 96 tokens, and appended to the JSONL file one by one;
a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pyfastv.eval
from pyfastv.commands.bars import bar
from pyfastv.eval import AnswerFile, Asking, Given, ask_all

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "reference"
sys.path.insert(0, str(REFERENCE))

from scoring import accuracy  # noqa: E402 - the reference's own scorer

MAX_TOKENS = 96
SETTINGS = [
    "off",
    *(f"fastv,k={k},drop={drop}" for k, drop in ((2, 0.5), (2, 0.75), (4, 0.5), (4, 0.75), (6, 0.75))),
]

Question = dict[str, Any]  # a line of questions.jsonl


def ask(
    questions: list[Question], settings: list[str], args: argparse.Namespace
) -> dict[str, dict[str, Given]]:
    """What was answered, by setting and id; what the file of answers lacks is asked now."""
    # one thread each: several small models side by side beat one on many cores
    options = {"model_path": args.model, "mmproj_path": args.mmproj, "n_ctx": 1024, "n_threads": 1}
    asking = Asking(options, max_tokens=MAX_TOKENS, processes=args.processes, fingerprints=False)
    asked = [
        pyfastv.eval.Question(question["id"], args.bench / question["image"], question["question"])
        for question in questions
    ]
    with bar("Answering") as progress:
        answers = ask_all(asked, settings, AnswerFile(args.answers), asking, progress)
    return {setting: {given.id: given for given in answers[setting]} for setting in settings}


def percent(questions: list[Question], given: dict[str, Given]) -> dict[str, Any]:
    """right, total and percent over all families."""
    return accuracy(questions, {i: one.answer for i, one in given.items()})["all"]


def mean_share(given: dict[str, Given]) -> float:
    return sum(one.share for one in given.values() if one.share is not None) / len(given)


def print_table(questions: list[Question], answers: dict[str, dict[str, Given]]) -> None:
    reference = json.loads((REFERENCE / "bench_reference.json").read_text())["settings"]
    reference = {
        key if key == "off" else "fastv,k={},drop={}".format(*key.split(":")): r
        for key, r in reference.items()
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

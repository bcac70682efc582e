"""What recall is worth: something else is asked, then a word or number in the picture is to be read.

    python benchmarks/recall.py BENCH --schedule "k=4,drop=0.9,score=question-max"

For every reading question of BENCH: right when it is asked first; right as the second question, by the share of the
picture's tokens that it may bring back. The first question is a text (--first "Describe the image."), or one of the
bench about the same picture that is not about words and no caption, which would say the word (--first bench).
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import pyfastv

from accuracy import Question, read_questions
from scoring import is_right  # accuracy makes it findable

MAX_TOKENS = 96
LEAKS = {"ocr", "ocr_loc", "caption"}  # families whose answers may have the word that is asked for
Pair = tuple[str, Question]  # first question, second
Result = tuple[str, str, bool, int]  # schedule, how it was asked, right, tokens that came back

runner: pyfastv.Runner
args: argparse.Namespace


def start(parsed: argparse.Namespace) -> None:
    global runner, args
    args = parsed
    runner = pyfastv.Runner(args.model, args.mmproj, n_ctx=1024, n_threads=1, fastv=None)


def ask_both_ways(pair: Pair) -> list[Result]:
    first, question = pair
    picture, text = args.bench / question["image"], question["question"]
    results = []
    for schedule in args.schedule:
        runner.set_fastv(schedule)
        alone = runner.ask(picture, text, max_tokens=MAX_TOKENS)
        results.append((schedule, "asked first", is_right(question, alone.text), 0))
        for share in args.recall:
            runner.set_fastv(f"{schedule},recall={share}")
            with runner.session() as chat:
                chat.ask(picture, first, max_tokens=MAX_TOKENS)
                second = chat.ask(text, max_tokens=MAX_TOKENS)
            right = is_right(question, second.text)
            results.append((schedule, f"second, recall={share}", right, second.report.recalled_tokens))
    return results


def pairs(questions: list[Question], families: list[str], first: str) -> list[Pair]:
    second = [question for question in questions if question["family"] in families]
    if first != "bench":
        return [(first, question) for question in second]
    return [
        (other["question"], question)
        for question in second
        for other in questions
        if other["image"] == question["image"] and other["family"] not in LEAKS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, help="folder with questions.jsonl and images")
    parser.add_argument(
        "--schedule", nargs="+", default=["k=2,drop=0.75,score=question-max,pick=window4,merge"]
    )
    parser.add_argument(
        "--recall", type=float, nargs="+", default=[0.0, pyfastv.Schedule.recall, 0.0625, 1.0]
    )
    parser.add_argument("--first", default="bench", help="text, or bench (default: %(default)s)")
    parser.add_argument("--families", nargs="+", default=["ocr", "ocr_loc"])
    parser.add_argument("--model", type=Path, help="GGUF file (default: the bundled model)")
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--limit", type=int, help="only the first questions of the bench")
    parsed = parser.parse_args()

    asked = pairs(read_questions(parsed), parsed.families, parsed.first)
    results: dict[tuple[str, str], list[tuple[bool, int]]] = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(parsed.processes, start, (parsed,)) as pool:
        answered = pool.imap_unordered(ask_both_ways, asked)
        for found in track(answered, "Asking", len(asked), console=Console(stderr=True)):
            for schedule, how, right, recalled in found:
                results.setdefault((schedule, how), []).append((right, recalled))

    table = Table("schedule", "asked", "right", "%", "tokens recalled")
    for (schedule, how), found in results.items():
        right = sum(r for r, _ in found)
        recalled = sum(n for _, n in found) / len(found)
        table.add_row(
            schedule, how, f"{right} of {len(found)}", f"{100 * right / len(found):.1f}", f"{recalled:.1f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

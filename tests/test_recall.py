"""Recall on questions with answers: something else is asked about a picture, then a word in it is to be read.

The pairs are those of the bench's first twelve pictures that have both kinds of questions; benchmarks/recall.py has all.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyfastv

from scoring import is_right

FOLDER = Path(__file__).parent / "recall_pairs"
PAIRS = [json.loads(line) for line in (FOLDER / "pairs.jsonl").read_text().splitlines()]

# few tokens, and nearly all of them for what was asked: what the second question needs was dropped
SCHEDULE = "k=6,drop=0.95,score=question-max"


def second_answers(runner: pyfastv.Runner, recall: float) -> int:
    """Right ones, asked in a conversation."""
    runner.set_fastv(f"{SCHEDULE},recall={recall}")
    right = 0
    for pair in PAIRS:
        with runner.session() as chat:
            chat.ask(pair["first"], FOLDER / pair["image"], max_tokens=96)
            right += is_right(pair, chat.ask(pair["question"], max_tokens=96).text)
    return right


def test_a_second_question_is_answered_as_if_it_were_the_first_and_not_without_recall(
    runner: pyfastv.Runner,
) -> None:
    before = runner.fastv
    runner.set_fastv(SCHEDULE)
    first = sum(
        is_right(pair, runner.ask(FOLDER / pair["image"], pair["question"], max_tokens=96).text)
        for pair in PAIRS
    )
    with_recall = second_answers(runner, pyfastv.Schedule.recall)
    without = second_answers(runner, 0)
    runner.set_fastv(before)
    figures = f"of {len(PAIRS)}: asked first {first}, second {with_recall}, without recall {without}"
    assert with_recall >= first - 1, figures
    assert with_recall >= without + 3, figures

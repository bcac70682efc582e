"""The oracle's accuracy on the bench, unpruned and pruned: the reference for the C++ runner's.

    python bench_accuracy.py BENCH --hf FOLDER --answers answers.jsonl --out bench_reference.json
    python bench_accuracy.py BENCH --hf FOLDER --answers answers.jsonl --settings off "k=2,score=last;k=6,drop=0.75,merge"

Answers are greedy, up to </s> or --max-tokens, and appended to the JSONL file one by one; a run that
was interrupted goes on where it stopped. At the end the table is printed, and written as JSON to --out.
Several processes, each with its --shard, can write to one file; a run without --shard then prints the table.

Per question the layers are shared: every K:DROP starts from the boundary of its K. The dropped rows
are left out of the later layers (compact=True), not masked.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from oracle import (
    Boundary,
    Prefill,
    Prompt,
    boundary,
    embed_prompt,
    encode_prompt,
    generate,
    load,
    prefill,
    prefill_unpruned,
    read_image,
    visual_rows,
)
from rules import parse
from scoring import accuracy
from stages import EMPTY, ask
from weights import weights_sha256


@dataclass(frozen=True)
class Setting:
    """FastV(k, drop), or k=None for no pruning, or a schedule."""

    k: int | None
    drop: float
    spec: str | None = None  # in the language of pyfastv_parse()

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From "off", "K:DROP" or the text of a schedule."""
        if text == "off":
            return cls(None, 0.0)
        if "=" in text:
            return cls(None, 0.0, text)
        k, drop = text.split(":")
        return cls(int(k), float(drop))

    def __str__(self) -> str:
        return self.spec or ("off" if self.k is None else f"{self.k}:{self.drop}")


DEFAULT_SETTINGS = tuple(
    Setting.parse(text) for text in ("off", "2:0.5", "2:0.75", "4:0.5", "4:0.75", "6:0.75")
)


def answers_to(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    settings: list[Setting],
    max_tokens: int,
) -> dict[Setting, str]:
    at: dict[int, Boundary] = {}
    deepest = None
    for k in sorted({setting.k for setting in settings if setting.k is not None}):
        at[k] = deepest = boundary(model, prompt, k, deepest)

    answers = {}
    for setting in settings:
        if setting.spec is not None:
            schedule = parse(setting.spec, model.config.text_config.num_hidden_layers)
            asked = ask(model, schedule, prompt.visual, EMPTY, prompt.rows, compact=True)
            start = Prefill(np.empty(0), None, asked.logits, asked.memories, asked.n_past)
        elif setting.k is None:
            start = prefill_unpruned(model, prompt, deepest)
        else:
            start = prefill(model, prompt, at[setting.k], setting.drop, compact=True)
        tokens, _ = generate(model, start, max_tokens, stop=tokenizer.eos_token_id)
        answers[setting] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return answers


def read_answers(path: Path) -> dict[tuple[str, str], str]:
    """(setting, question id) to answer."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["setting"], row["id"]): row["answer"] for row in rows}


def answer_all(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    bench: Path,
    questions: list[dict[str, Any]],
    settings: list[Setting],
    max_tokens: int,
    path: Path,
) -> None:
    """Appends the answers that the file lacks."""
    have = read_answers(path)
    started, done = time.monotonic(), 0
    encoded: dict[str, torch.Tensor] = {}  # only the picture at hand: questions come by picture
    with path.open("a") as file:
        for i, question in enumerate(questions):
            missing = [s for s in settings if (str(s), question["id"]) not in have]
            if not missing:
                continue
            image = question["image"]
            if image not in encoded:
                encoded = {image: visual_rows(model, read_image(bench / image))}
            tokens = encode_prompt(tokenizer, question["question"])
            prompt = embed_prompt(model, tokens, encoded[image])
            for setting, answer in answers_to(model, tokenizer, prompt, missing, max_tokens).items():
                row = {"setting": str(setting), "id": question["id"], "answer": answer}
                file.write(json.dumps(row) + "\n")
            file.flush()
            done += 1
            if done % 20 == 0:
                pace = (time.monotonic() - started) / done
                left = (len(questions) - i - 1) * pace / 60
                print(
                    f"{i + 1}/{len(questions)}: {pace:.1f} s a question, {left:.0f} min left",
                    flush=True,
                )


def print_table(by_setting: dict[str, dict[str, dict[str, int | float]]]) -> None:
    settings = list(by_setting)
    groups = list(next(iter(by_setting.values())))
    widths = [max(8, len(setting) + 2) for setting in settings]
    heads = [f"{setting:>{width}}" for setting, width in zip(settings, widths, strict=True)]
    print("".join([f"{'':>10} {'n':>4}", *heads]))
    for group in groups:
        cells = [
            f"{by_setting[setting][group]['percent']:{width}.1f}"
            for setting, width in zip(settings, widths, strict=True)
        ]
        print("".join([f"{group:>10} {by_setting[settings[0]][group]['total']:>4}", *cells]))


def parse_shard(text: str) -> tuple[int, int]:
    index, n = map(int, text.split("/"))
    if not 0 <= index < n:
        raise ValueError(f"shard {text}")
    return index, n


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", type=Path, help="folder with questions.jsonl and images")
    parser.add_argument("--hf", type=Path, required=True, help="transformers folder of the weights")
    parser.add_argument("--answers", type=Path, required=True, help="JSONL of answers, appended to")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument(
        "--settings",
        nargs="+",
        type=Setting.parse,
        default=DEFAULT_SETTINGS,
        metavar="SETTING",
        help=f"off, K:DROP or a schedule as in pyfastv.h, k=...; default: {' '.join(map(str, DEFAULT_SETTINGS))}",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=96,
        help="of an answer (default: %(default)s; 48 would cut off one caption in six)",
    )
    parser.add_argument("--limit", type=int, help="only the first questions")
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="I/N",
        help="every N-th question from I on, I < N",
    )
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; default: %(default)s")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    lines = (args.bench / "questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines][: args.limit]
    questions = questions[args.shard[0] :: args.shard[1]]
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    answer_all(
        load(args.hf), tokenizer, args.bench, questions, list(args.settings), args.max_tokens, args.answers
    )

    answers = read_answers(args.answers)
    by_setting = {}
    for setting in map(str, args.settings):
        of_setting = {q["id"]: answers[setting, q["id"]] for q in questions}
        by_setting[setting] = accuracy(questions, of_setting)
    print_table(by_setting)
    reference = {
        "weights_sha256": weights_sha256(args.hf),
        "max_tokens": args.max_tokens,
        "settings": by_setting,
    }
    if args.out:
        args.out.write_text(json.dumps(reference, indent=1) + "\n")


if __name__ == "__main__":
    main()

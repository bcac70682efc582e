"""Writes golden_bundle.npz and golden_hf.npz beside this file: what the C++ must reproduce.

    python make_golden.py --hf FOLDER --bench BENCH     # both files, the chosen questions
    python make_golden.py --hf FOLDER --bench BENCH --only bundle
    python make_golden.py --hf FOLDER --bench BENCH --scan --families color count ocr   # fit questions

Settings: K in {1, 2, 4, 8} x drop in {0.25, 0.5, 0.75, 0.9}, and off; 32 greedy steps each.

golden_bundle.npz is of the bundled GGUF pair, dequantized to float32 (dequantize.py makes the same
weights for llama.cpp); golden_hf.npz of the transformers folder.

A question is fit when rounding does not change its outcome, in any setting, with either weights:
- the gap at the cut, (lowest kept score - highest dropped) / lowest kept, is at least --min-gap.
  Float32 rounding moves a score by 1e-6 of its value. llama.cpp's CPU backend looks the vision
  tower's activations up in tables of halves, which moves it by 3e-5 (median; 4e-4 at most);
- with those tables in the oracle, too, the kept sets and the 32 tokens are the same.
This is checked whenever the files are written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from golden import Golden, GoldenCase, GoldenQuestion, write_golden
from oracle import (
    Boundary,
    Prefill,
    Prompt,
    boundary,
    choose,
    embed_prompt,
    encode_prompt,
    generate,
    load,
    prefill,
    prefill_unpruned,
    prompt_text,
    read_image,
    visual_rows,
)
from weights import Weights, weights_sha256

KS = (1, 2, 4, 8)
DROPS = (0.25, 0.5, 0.75, 0.9)
N_STEPS = 32
CHOSEN = ("0002-2", "0109-0", "0115-2")

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "pyfastv" / "data"


@dataclass(frozen=True)
class Source:
    """One set of weights, loaded twice: as defined, and with ggml's activation tables."""

    name: str
    weights: Weights
    exact: LlavaForConditionalGeneration
    ggml: LlavaForConditionalGeneration


def load_source(name: str, weights: Weights) -> Source:
    return Source(name, weights, load(weights), load(weights, ggml_activations=True))


def relative_gap(scores: np.ndarray, kept: np.ndarray) -> float:
    dropped = np.delete(scores, kept)
    lowest = scores[kept].min()
    return float((lowest - dropped.max()) / lowest)


def prompt_of(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    bench: Path,
    question: dict[str, Any],
) -> Prompt:
    visual = visual_rows(model, read_image(bench / question["image"]))
    return embed_prompt(model, encode_prompt(tokenizer, question["question"]), visual)


def boundaries(model: LlavaForConditionalGeneration, prompt: Prompt) -> Iterator[Boundary]:
    at = None
    for k in KS:
        at = boundary(model, prompt, k, at)
        yield at


def prefills(
    model: LlavaForConditionalGeneration, prompt: Prompt
) -> Iterator[tuple[int | None, float, Prefill]]:
    """All settings: (k, drop, prefill)."""
    at = None
    for at in boundaries(model, prompt):
        for drop in DROPS:
            yield at.k, drop, prefill(model, prompt, at, drop)
    yield None, 0.0, prefill_unpruned(model, prompt, at)


def answer_of(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> str:
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    return tokenizer.decode(tokens[: ends[0]] if len(ends) else tokens).strip()


def cases_of(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, prompt: Prompt
) -> tuple[list[GoldenCase], dict[int, np.ndarray]]:
    cases, scores = [], {}
    for k, drop, start in prefills(model, prompt):
        tokens, logits = generate(model, start, N_STEPS)
        best = np.sort(logits, axis=1)[:, -2:]
        gap = float("inf")
        if k is not None:
            scores[k] = start.scores
            gap = relative_gap(start.scores, start.kept)
        cases.append(
            GoldenCase(
                k=k,
                drop=drop,
                gap=gap,
                answer=answer_of(tokenizer, tokens),
                kept=start.kept.astype(np.int16),
                logits_first=logits[0],
                logits_last=logits[-1],
                tokens=tokens.astype(np.int32),
                margins=best[:, 1] - best[:, 0],
            )
        )
    return cases, scores


def unstable(cases: list[GoldenCase], with_ggml: list[GoldenCase], min_gap: float) -> list[str]:
    """Why these cases are not fit; empty when they are."""
    reasons = []
    for case, other in zip(cases, with_ggml, strict=True):
        if case.gap < min_gap:
            reasons.append(f"{case.name}: gap {case.gap:.1e}")
        if not np.array_equal(case.kept, other.kept):
            reasons.append(f"{case.name}: ggml's activations change the kept set")
        if not np.array_equal(case.tokens, other.tokens):
            step = int(np.flatnonzero(case.tokens != other.tokens)[0])
            reasons.append(
                f"{case.name}: ggml's activations change token {step}, margin {case.margins[step]:.1e}"
            )
    return reasons


def golden_of(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    bench: Path,
    questions: list[dict[str, Any]],
    min_gap: float,
) -> tuple[Golden, list[str]]:
    """The golden file's content, and what is wrong with it."""
    done, problems = [], []
    for question in questions:
        prompt = prompt_of(source.exact, tokenizer, bench, question)
        cases, scores = cases_of(source.exact, tokenizer, prompt)
        with_ggml, _ = cases_of(source.ggml, tokenizer, prompt_of(source.ggml, tokenizer, bench, question))
        reasons = unstable(cases, with_ggml, min_gap)
        problems += [f"{source.name} {question['id']} {reason}" for reason in reasons]
        done.append(
            GoldenQuestion(
                id=question["id"],
                image=question["image"],
                image_sha256=hashlib.sha256((bench / question["image"]).read_bytes()).hexdigest(),
                family=question["family"],
                question=question["question"],
                prompt=prompt_text(question["question"]),
                prompt_ids=encode_prompt(tokenizer, question["question"]),
                scores=scores,
                cases=cases,
            )
        )
        gaps = [case.gap for case in cases]
        margins = [case.margins.min() for case in cases]
        print(
            f"{source.name} {question['id']} {question['family']}: smallest gap {min(gaps):.1e}, "
            f"smallest margin {min(margins):.1e}, off: {cases[-1].answer!r}, "
            f"fit: {not reasons}",
            flush=True,
        )
    return Golden(weights_sha256(source.weights), done), problems


def scan(
    sources: list[Source],
    tokenizer: PreTrainedTokenizerBase,
    bench: Path,
    questions: list[dict[str, Any]],
    min_gap: float,
) -> None:
    """Prints the questions whose gaps are wide enough in all settings and with all weights."""
    for question in questions:
        smallest = float("inf")
        for source in sources:
            if smallest < min_gap:
                break
            prompt = prompt_of(source.exact, tokenizer, bench, question)
            for at in boundaries(source.exact, prompt):
                gaps = [relative_gap(at.scores, choose(at.scores, drop)) for drop in DROPS]
                smallest = min(smallest, *gaps)
                if smallest < min_gap:
                    break
        if smallest < min_gap:
            continue
        print(f"{question['id']} {question['family']} gap {smallest:.1e}", flush=True)
        for source in sources:
            golden_of(source, tokenizer, bench, [question], min_gap)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--language-model",
        type=Path,
        default=DATA / "tiny-llava-Q4_K_M.gguf",
        help="GGUF of golden_bundle.npz (default: the bundled one)",
    )
    parser.add_argument(
        "--mmproj", type=Path, default=DATA / "mmproj-tiny-llava-q8_0.gguf", help="its mmproj"
    )
    parser.add_argument(
        "--hf",
        type=Path,
        required=True,
        help="transformers folder of golden_hf.npz; its tokenizer serves both",
    )
    parser.add_argument("--bench", type=Path, required=True, help="folder with questions.jsonl and images")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--only", choices=("bundle", "hf"), help="one of the two files")
    parser.add_argument("--questions", nargs="+", default=CHOSEN, metavar="ID", help=f"default: {CHOSEN}")
    parser.add_argument("--scan", action="store_true", help="write nothing, list fit questions")
    parser.add_argument("--families", nargs="+", help="with --scan: only these families")
    parser.add_argument("--min-gap", type=float, default=2e-4, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; default: %(default)s")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    lines = (args.bench / "questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    weights: dict[str, Weights] = {"bundle": (args.language_model, args.mmproj), "hf": args.hf}
    names = [args.only] if args.only else list(weights)
    sources = [load_source(name, weights[name]) for name in names]

    if args.scan:
        wanted = [q for q in questions if not args.families or q["family"] in args.families]
        scan(sources, tokenizer, args.bench, wanted, args.min_gap)
        return

    by_id = {question["id"]: question for question in questions}
    chosen = [by_id[name] for name in args.questions]
    problems = []
    for source in sources:
        golden, found = golden_of(source, tokenizer, args.bench, chosen, args.min_gap)
        problems += found
        path = args.out / f"golden_{source.name}.npz"
        write_golden(path, golden)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    if problems:
        sys.exit("\n".join(["not fit for a golden file:", *problems]))


if __name__ == "__main__":
    main()

"""Writes golden_rules.npz beside this file: the rules of rules.py on the questions of golden_bundle.npz.

    python make_golden_rules.py --bench BENCH
    python make_golden_rules.py --bench .     # the pictures are in images/ here, too

Settings: RULES x K in {2, 4} x drop in {0.5, 0.75}, of the bundled GGUF pair, dequantized to float32. The dropped
tokens are masked. Prompts and token ids are golden_bundle.npz's, so no tokenizer is needed.

Before anything is written, the rule of golden_bundle.npz, made the same way, must give that file's kept sets.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from golden import GoldenQuestion, read_golden
from oracle import Memory, Prompt, embed_prompt, last_logits, load, read_image, run_layers, visual_rows
from rules import MIN_GAP, RuleCase, gap, pick, visual_scores, write_rules
from weights import weights_sha256

KS = (2, 4)
DROPS = (0.5, 0.75)
BASE = ("last", "top-k", None)
# Score, pick, window. The score has no effect on "uniform".
RULES = (
    ("question-max", "top-k", None),
    ("question-mean", "top-k", None),
    ("last", "window", 4),
    ("question-max", "window", 4),
    ("question-max", "window", 5),
    ("last", "uniform", None),
)
# Of the base rule's logits against golden_bundle.npz's; another machine rounds differently.
MAX_DIFFERENCE = 1e-3

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "pyfastv" / "data"


def patch_grid(model: LlavaForConditionalGeneration) -> tuple[int, int]:
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    return side, side


def pruned_logits(
    model: LlavaForConditionalGeneration,
    prompt: Prompt,
    k: int,
    x: Tensor,
    memories: dict[int, Memory],
    kept: np.ndarray,
) -> np.ndarray:
    """Logits of the last prompt token; x and memories are the prompt's before layer k."""
    visible = torch.ones(len(x), dtype=bool)
    visible[prompt.visual] = False
    visible[prompt.visual.start + torch.from_numpy(kept)] = True
    layers = range(k, model.config.text_config.num_hidden_layers)
    x, _, _ = run_layers(model, layers, x, torch.arange(len(x)), memories, visible)
    return last_logits(model, x).numpy()


def cases_of(model: LlavaForConditionalGeneration, question: GoldenQuestion, image: Path) -> list[RuleCase]:
    """All settings of the base rule and of RULES."""
    prompt = embed_prompt(model, question.prompt_ids, visual_rows(model, read_image(image)))
    grid = patch_grid(model)
    cases = []
    for k in KS:
        positions = torch.arange(len(prompt.rows))
        x, memories, softmax = run_layers(model, range(k), prompt.rows, positions, {})
        matrix = softmax.mean(dim=0).numpy()
        for drop in DROPS:
            for score, how, window in (BASE, *RULES):
                scores = visual_scores(matrix, prompt.visual, score)
                kept = pick(scores, drop, how, grid=grid, window=window)
                distance = gap(scores, drop, how, grid=grid, window=window)
                cases.append(
                    RuleCase(
                        question=question.id,
                        image=question.image,
                        prompt=question.prompt,
                        k=k,
                        drop=drop,
                        score=score,
                        pick=how,
                        window=window,
                        gap=distance,
                        fragile=distance < MIN_GAP,
                        kept=kept.astype(np.int16),
                        scores=scores,
                        logits_first=pruned_logits(model, prompt, k, x, memories, kept),
                    )
                )
    return cases


def differences(question: GoldenQuestion, cases: list[RuleCase]) -> list[str]:
    """Where cases of the base rule are not golden_bundle.npz's."""
    found = []
    for case in cases:
        golden = next(other for other in question.cases if (other.k, other.drop) == (case.k, case.drop))
        if not np.array_equal(case.kept, golden.kept):
            found.append(f"{question.id} {case.name}: another kept set than golden_bundle.npz")
        if np.abs(case.logits_first - golden.logits_first).max() > MAX_DIFFERENCE:
            found.append(f"{question.id} {case.name}: other logits than golden_bundle.npz")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--language-model", type=Path, default=DATA / "tiny-llava-Q4_K_M.gguf", help="GGUF")
    parser.add_argument(
        "--mmproj", type=Path, default=DATA / "mmproj-tiny-llava-q8_0.gguf", help="its mmproj"
    )
    parser.add_argument("--bench", type=Path, required=True, help="folder with images/")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; default: %(default)s")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    weights = (args.language_model, args.mmproj)
    model = load(weights)
    done, problems = [], []
    for question in read_golden(HERE / "golden_bundle.npz").questions:
        image = args.bench / question.image
        if hashlib.sha256(image.read_bytes()).hexdigest() != question.image_sha256:
            sys.exit(f"{image}: not the picture of golden_bundle.npz")
        cases = cases_of(model, question, image)
        base = [case for case in cases if (case.score, case.pick, case.window) == BASE]
        problems += differences(question, base)
        done += [case for case in cases if (case.score, case.pick, case.window) in RULES]
    if problems:
        sys.exit("\n".join(problems))
    for case in done:
        print(f"{case.question} {case.name}: gap {case.gap:.1e}{' fragile' * case.fragile}")
    path = args.out / "golden_rules.npz"
    write_rules(path, weights_sha256(weights), done)
    n_fragile = sum(case.fragile for case in done)
    print(f"{path.name}: {len(done)} cases, {n_fragile} fragile, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

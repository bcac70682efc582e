"""Writes golden_rules.npz beside this file: schedules of rules.py on the pictures of golden_bundle.npz.

    python make_golden_rules.py --hf FOLDER --bench BENCH
    python make_golden_rules.py --hf FOLDER --bench .     # the pictures are in images/ here, too

SPECS on the questions of golden_bundle.npz, and TWO_TURNS on conversations: that question, the answer that
golden_bundle.npz has for the unpruned model, and a second question of FOLLOW_UPS. The weights are the bundled GGUF
pair's, dequantized to float32. The dropped tokens are masked.

A case is fragile when its gap is small (rules.MIN_GAP), or when the activations that ggml has on a CPU change a kept
set or, at a cut that weighs, the kept token that stands for a dropped one.

Before anything is written, FastV's own rule, run the same way, must give golden_bundle.npz's kept sets and logits.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from golden import GoldenQuestion, RuleCase, RuleTurn, read_golden, write_rules
from oracle import Prompt, embed_prompt, load, read_image, visual_rows
from rules import MIN_GAP, parse
from stages import EMPTY, Context, ask, feed, rows_of
from weights import weights_sha256

ONE_CUT = tuple(
    f"k={k},drop={drop},{rule}"
    for k in (2, 4)
    for drop in (0.5, 0.75)
    for rule in (
        "score=question-max",
        "score=question-mean",
        "pick=window4",
        "score=question-max,pick=window4",
        "score=question-max,pick=window5",
        "pick=uniform",
    )
)
SPECS = (
    *ONE_CUT,
    "k=2,drop=0.5,score=all",
    "k=2,drop=0.5,score=last-no-rope",
    "k=2,drop=0.75,score=last-no-rope,pick=grid3",
    "k=4,drop=0.95,score=question-max,pick=grid3",
    "k=2,drop=0.9,pick=mass0.9",
    "k=2,drop=0.75,score=question-max,pick=window4,merge",
    "k=2,drop=0.75,score=question-max,pick=cover",
    "k=4,drop=0.5,score=question-max,pick=cover;k=8,drop=0.75,score=question-max,pick=cover",
    "k=2,drop=0.75,score=question-max,pick=cover,weigh",
    "k=4,drop=0.5,score=question-max,pick=window4,weigh;k=8,drop=0.75,score=question-max,pick=window4,weigh",
    "k=2,drop=0.75,score=question-max,pick=window4,merge,weigh",
    "k=6,drop=1,score=none",
    "k=2,drop=0.5,score=question-max,pick=window4;k=6,drop=0.75,score=question-mean,pick=window4",
    "k=2,drop=0.5,score=last;k=6,drop=0.75,score=last-no-rope,pick=grid3",
    "k=2,drop=0.5,score=last;k=6,drop=0.75,score=none,pick=uniform",
    "k=2,drop=0.5,score=none,pick=uniform;k=6,drop=0.75,score=all",
    "k=2,drop=0.5,score=last;k=5,drop=0.9,score=question-max,pick=mass0.8,merge",
    "k=3,drop=0.5,score=last;k=6,drop=0.75,score=last;k=9,drop=0.875,score=last",
)
TWO_TURNS = (
    "k=2,drop=0.75,score=question-max,pick=window4,recall=0",
    "k=2,drop=0.75,score=question-max,pick=window4,recall=0.0625",
    "k=4,drop=0.75,merge,recall=0.0625",
    "k=4,drop=0.9,score=question-max,pick=cover,recall=0.03125",
    "k=4,drop=0.9,score=question-max,pick=cover,weigh,recall=0.03125",
    "k=2,drop=0.5,score=last;k=6,drop=0.75,score=question-max,recall=1",
)
FOLLOW_UPS = {
    "0002-2": "Shape of the medium orange object?",
    "0109-0": "Is the medium red object filled or outlined?",
    "0115-2": "What is the shape of the large purple object?",
}
N_LAYER = 12
# Of logits: how far golden_bundle.npz's machine may move them.
MAX_DIFFERENCE = 1e-3

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "pyfastv" / "data"


def follow_up(prompt: str, answer: str, question: str) -> str:
    """The conversation with a second question, as the model's chat template makes it."""
    return f"{prompt} {answer}</s>USER: {question} ASSISTANT:"


def turn_of(prompt: str, answer: list[int], before: Context, asked: Context, after: Context) -> RuleTurn:
    kept = [np.flatnonzero(choice.entered).astype(np.int16) for choice in asked.choices]
    had = [choice.entered.sum() for choice in before.choices] or [len(indices) for indices in kept]
    return RuleTurn(
        prompt=prompt,
        answer=answer,
        n_rows=after.n_past,
        n_recalled=[int(len(indices) - n) for indices, n in zip(kept, had, strict=True)],
        kept=kept,
        scores=[choice.scores for choice in asked.choices],
        logits=asked.logits.numpy(),
    )


def converse(
    model: LlavaForConditionalGeneration,
    spec: str,
    prompt: Prompt,
    texts: list[str],
    answers: list[list[int]],
    questions: list[list[int]],
) -> tuple[list[RuleTurn], float, list[np.ndarray]]:
    """All turns of a conversation, the smallest gap, and who stands for whom at every cut.

    texts: the prompts. answers: token ids behind each of them. questions: token ids of the second prompt on, less
    what the context has by then.
    """
    schedule = parse(spec, N_LAYER)
    turns, smallest, context = [], float("inf"), EMPTY
    for text, answer, rows in zip(
        texts, answers, [prompt.rows, *(rows_of(model, ids) for ids in questions)], strict=True
    ):
        asked = ask(model, schedule, prompt.visual, context, rows)
        after = asked
        for token in answer:
            after = feed(model, after, token)
        turns.append(turn_of(text, answer, context, asked, after))
        smallest = min(smallest, *(choice.gap for choice in asked.choices))
        context = after
    return turns, smallest, [choice.owner for choice in context.choices]


def same_kept(turns: list[RuleTurn], others: list[RuleTurn]) -> bool:
    return all(
        np.array_equal(kept, other_kept)
        for turn, other in zip(turns, others, strict=True)
        for kept, other_kept in zip(turn.kept, other.kept, strict=True)
    )


def largest_rms(turns: list[RuleTurn], others: list[RuleTurn]) -> float:
    """Relative, of the logits of every turn."""
    return max(
        float(np.sqrt(((turn.logits - other.logits) ** 2).mean() / (turn.logits**2).mean()))
        for turn, other in zip(turns, others, strict=True)
    )


def cases_of(
    models: tuple[LlavaForConditionalGeneration, LlavaForConditionalGeneration],
    tokenizer: PreTrainedTokenizerBase,
    question: GoldenQuestion,
    image: Path,
) -> list[RuleCase]:
    """models: as defined, and with ggml's activations."""
    pixels = read_image(image)
    prompts = [embed_prompt(model, question.prompt_ids, visual_rows(model, pixels)) for model in models]

    off = question.cases[-1]
    assert off.k is None
    answer = off.tokens[: off.tokens.tolist().index(tokenizer.eos_token_id)].tolist()
    text = follow_up(question.prompt, off.answer, FOLLOW_UPS[question.id])
    first = [*question.prompt_ids, *answer]
    ids = tokenizer(text).input_ids
    if ids[: len(first)] != first:
        sys.exit(
            f"{question.id}: the conversation does not begin with the ids of the first question and its answer"
        )

    one = ([question.prompt], [[]], [])
    two = ([question.prompt, text], [answer, []], [ids[len(first) :]])
    cases = []
    for spec in (*SPECS, *TWO_TURNS):
        conversation = two if spec in TWO_TURNS else one
        turns, distance, owners = converse(models[0], spec, prompts[0], *conversation)
        with_ggml, _, other_owners = converse(models[1], spec, prompts[1], *conversation)
        same_owners = all(map(np.array_equal, owners, other_owners))
        fragile = distance < MIN_GAP or not same_kept(turns, with_ggml) or not same_owners
        cases.append(RuleCase(question.id, question.image, spec, distance, fragile, turns))
        n_kept = [[len(kept) for kept in turn.kept] for turn in turns]
        print(
            f"{cases[-1].name}: {n_kept} kept, {turns[-1].n_recalled} recalled, gap {distance:.1e}, "
            f"rms with ggml {largest_rms(turns, with_ggml):.1e}{' fragile' * fragile}",
            flush=True,
        )
    return cases


def differences(model: LlavaForConditionalGeneration, question: GoldenQuestion, image: Path) -> list[str]:
    """Where FastV's own rule, run as a schedule, is not golden_bundle.npz's."""
    prompt = embed_prompt(model, question.prompt_ids, visual_rows(model, read_image(image)))
    found = []
    for case in question.cases:
        if case.k is None:
            continue
        spec = f"k={case.k},drop={case.drop},score=last"
        [turn], *_ = converse(model, spec, prompt, [question.prompt], [[]], [])
        if not np.array_equal(turn.kept[0], case.kept):
            found.append(f"{question.id} {case.name}: another kept set than golden_bundle.npz")
        if np.abs(turn.logits - case.logits_first).max() > MAX_DIFFERENCE:
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
    parser.add_argument("--hf", type=Path, required=True, help="transformers folder with the tokenizer")
    parser.add_argument("--bench", type=Path, required=True, help="folder with images/")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; default: %(default)s")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    weights = (args.language_model, args.mmproj)
    models = load(weights), load(weights, ggml_activations=True)
    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    cases, problems = [], []
    for question in read_golden(HERE / "golden_bundle.npz").questions:
        image = args.bench / question.image
        if hashlib.sha256(image.read_bytes()).hexdigest() != question.image_sha256:
            sys.exit(f"{image}: not the picture of golden_bundle.npz")
        problems += differences(models[0], question, image)
        cases += cases_of(models, tokenizer, question, image)
    if problems:
        sys.exit("\n".join(problems))
    path = args.out / "golden_rules.npz"
    write_rules(path, weights_sha256(weights), cases)
    n_fragile = sum(case.fragile for case in cases)
    print(f"{path.name}: {len(cases)} cases, {n_fragile} fragile, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

"""The golden files: what they hold, how they are written and read. Needs numpy only.

    for question in read_golden(Path("golden_bundle.npz")).questions:
        for case in question.cases: ...
    for case in read_rules(Path("golden_rules.npz")):
        for turn in case.turns: ...

Each is one .npz: the array "meta" is a JSON string. In golden_bundle.npz and golden_hf.npz the other arrays are named
"{question id}/scores" and "{question id}/{case name}/{field}"; in golden_rules.npz they are numbered, equal ones are
stored once, and "meta" has the number in the array's place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCORE = "scores"
CASE_ARRAYS = ("kept", "logits_first", "logits_last", "tokens", "margins")


@dataclass(frozen=True)
class GoldenCase:
    """One setting on one question."""

    k: int | None  # None: not pruned
    drop: float
    gap: float  # (lowest kept score - highest dropped) / lowest kept; inf when not pruned
    answer: str  # the tokens up to </s> as text
    kept: np.ndarray  # (n_keep) int16, ascending, 0 is the picture's first patch
    logits_first: np.ndarray  # (n_vocab) float32, of the last prompt token
    logits_last: np.ndarray  # (n_vocab) float32, that the last of the tokens was chosen from
    tokens: np.ndarray  # (n_steps) int32, greedy; goes on after </s>
    margins: np.ndarray  # (n_steps) float32, best logit minus second best

    @property
    def name(self) -> str:
        return "off" if self.k is None else f"k{self.k}-drop{self.drop}"


@dataclass(frozen=True)
class GoldenQuestion:
    id: str
    image: str  # name inside the bench folder
    image_sha256: str  # of the file
    family: str
    question: str
    prompt: str
    prompt_ids: list[int]  # <s> first, one <image> id for the picture
    scores: dict[int, np.ndarray]  # k: (n_visual) float32, attention received at layer k - 1
    cases: list[GoldenCase]


@dataclass(frozen=True)
class Golden:
    weights_sha256: dict[str, str]  # file name: sha256
    questions: list[GoldenQuestion]


def write_golden(path: Path, golden: Golden) -> None:
    arrays: dict[str, np.ndarray] = {}
    questions: list[dict[str, Any]] = []
    for question in golden.questions:
        about = {k: v for k, v in vars(question).items() if k not in (SCORE, "cases")}
        about["ks"] = list(question.scores)
        arrays[f"{question.id}/{SCORE}"] = np.stack(list(question.scores.values()))
        about["cases"] = []
        for case in question.cases:
            values = vars(case)
            about["cases"].append({k: v for k, v in values.items() if k not in CASE_ARRAYS})
            for name in CASE_ARRAYS:
                arrays[f"{question.id}/{case.name}/{name}"] = values[name]
        questions.append(about)
    meta = {"weights_sha256": golden.weights_sha256, "questions": questions}
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)


def read_golden(path: Path) -> Golden:
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        questions = []
        for about in meta["questions"]:
            ks, cases = about.pop("ks"), []
            for values in about.pop("cases"):
                empty = GoldenCase(**values, **dict.fromkeys(CASE_ARRAYS, np.empty(0)))
                prefix = f"{about['id']}/{empty.name}/"
                arrays = {name: file[prefix + name] for name in CASE_ARRAYS}
                cases.append(GoldenCase(**values, **arrays))
            scores = dict(zip(ks, file[f"{about['id']}/{SCORE}"], strict=True))
            questions.append(GoldenQuestion(**about, scores=scores, cases=cases))
    return Golden(meta["weights_sha256"], questions)


@dataclass(frozen=True)
class RuleTurn:
    """One question of a conversation about one picture. The lists have an entry for every cut."""

    prompt: str  # all of the conversation up to here, as the chat template makes it
    answer: list[int]  # token ids that are fed behind the prompt; [] after the last question
    n_rows: int  # of prompt and answer
    n_recalled: list[int]  # tokens that this question brought back
    kept: list[
        np.ndarray
    ]  # int16, ascending, tokens in the stage behind the cut; 0 is the picture's first patch
    scores: list[np.ndarray]  # (n_visual) float32, of this question; 0 for tokens that did not reach the cut
    logits: np.ndarray  # (n_vocab) float32, of the last prompt token


@dataclass(frozen=True)
class RuleCase:
    """One schedule on one conversation."""

    question: str  # id of the first question
    image: str  # images/NAME.png, in the bench folder and in this one
    spec: str  # in the language of pyfastv_parse()
    gap: float  # rules.gap(), the smallest of all cuts and turns
    fragile: bool  # rounding may change what is kept, or its sizes: compare with a tolerance
    turns: list[RuleTurn]

    @property
    def name(self) -> str:
        return f"{self.question}-{self.spec}"


def write_rules(path: Path, weights_sha256: dict[str, str], cases: list[RuleCase]) -> None:
    numbers: dict[tuple[str, bytes], int] = {}
    arrays: dict[str, np.ndarray] = {}

    def number(array: np.ndarray) -> int:
        key = (array.dtype.str, array.tobytes())
        numbers.setdefault(key, len(numbers))
        arrays[str(numbers[key])] = array
        return numbers[key]

    about = []
    for case in cases:
        turns = [
            vars(turn)
            | {
                "kept": [number(array) for array in turn.kept],
                "scores": [number(array) for array in turn.scores],
                "logits": number(turn.logits),
            }
            for turn in case.turns
        ]
        about.append(vars(case) | {"turns": turns})
    meta = {"weights_sha256": weights_sha256, "cases": about}
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)


def read_rules(path: Path) -> list[RuleCase]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    cases = json.loads(str(arrays["meta"]))["cases"]
    for case in cases:
        for turn in case["turns"]:
            turn["kept"] = [arrays[str(number)] for number in turn["kept"]]
            turn["scores"] = [arrays[str(number)] for number in turn["scores"]]
            turn["logits"] = arrays[str(turn["logits"])]
        case["turns"] = [RuleTurn(**turn) for turn in case["turns"]]
    return [RuleCase(**case) for case in cases]

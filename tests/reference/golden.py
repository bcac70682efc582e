"""The golden files: what they hold, how they are written and read. Needs numpy only.

    for question in read_golden(Path("golden_bundle.npz")).questions:
        for case in question.cases: ...

One .npz: the array "meta" is a JSON string, the other arrays are named "{question id}/scores" and
"{question id}/{case name}/{field}".
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

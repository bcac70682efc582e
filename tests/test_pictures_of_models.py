"""Pictures through the vision encoders of several families, with random weights: what mtmd makes of a picture, and what
becomes of its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pyfastv
from pyfastv import _native

import random_mmproj
from random_mmproj import FAMILIES

# The first layer where a cut can be.
FIRST_CUT = {"gemma3": 6, "qwen3vl": 3, "qwen35": 4, "lfm2": 3}

RNG = np.random.default_rng(5)
PICTURES = [RNG.integers(0, 256, (168, 224, 3), dtype=np.uint8) for _ in range(2)]


class Case:
    def __init__(self, folder: Path, name: str) -> None:
        family = FAMILIES[name]
        self.grids = family.grids
        self.n = sum(nx * ny for nx, ny in family.grids)  # tokens of a picture
        self.layer = FIRST_CUT.get(family.arch, 2)
        model, mmproj = random_mmproj.write_pair(folder, name)
        # equal computations have equal bits
        self.runner = pyfastv.Runner(model, mmproj, n_ctx=512, n_threads=1, fastv=None, flash_attn=False)

    def prefill(self, fastv: str | None, pictures: list[np.ndarray]) -> np.ndarray:
        """The logits behind a question about pictures."""
        self.runner.set_fastv(fastv)
        engine = self.runner._engine
        ids = [str(hash(picture.tobytes())) for picture in pictures]
        prompt = "".join(f"{engine.media_marker}\n" for _ in pictures) + "What is it?"
        engine.prefill(prompt, pictures, ids, None, True, 8)
        return engine.logits()

    def kept(self) -> np.ndarray:
        return self.runner._engine.kept(-1)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    case = Case(tmp_path_factory.mktemp("pictures"), request.param)
    yield case
    case.runner.close()


@pytest.mark.parametrize("n_pictures", [1, 2])
def test_without_drop_generation_is_stock_s_to_the_bit(case: Case, n_pictures: int) -> None:
    generated = []
    for fastv in (None, f"fastv,k={case.layer},drop=0"):
        steps = [case.prefill(fastv, PICTURES[:n_pictures])]
        for _ in range(6):
            case.runner._engine.feed(int(steps[-1].argmax()))
            steps.append(case.runner._engine.logits())
        generated.append(np.array(steps))
    np.testing.assert_array_equal(generated[0], generated[1])


def test_the_pictures_matter(case: Case) -> None:
    one, other = (case.prefill(None, [picture]) for picture in PICTURES)
    assert np.abs(one - other).max() > 1e-3


def test_half_of_a_picture_with_all_its_slices_stays(case: Case) -> None:
    logits = case.prefill(f"fastv,k={case.layer},drop=0.5", PICTURES[:1])
    report = case.runner._engine.report()
    assert report.visual_tokens == case.n
    assert report.first_layers == [0, case.layer]
    assert report.visual_tokens_in_stage == [case.n, case.n // 2]
    assert len(case.kept()) == case.n // 2
    assert np.isfinite(logits).all()
    assert np.abs(logits - case.prefill(None, PICTURES[:1])).max() > 1e-4


def test_every_picture_has_its_own_half(case: Case) -> None:
    case.prefill(f"fastv,k={case.layer},drop=0.5", PICTURES)
    kept = case.kept()
    assert [np.sum(kept < case.n), np.sum(kept >= case.n)] == [case.n // 2, case.n // 2]


def test_the_grid_of_every_slice_is_known(case: Case) -> None:
    case.prefill(f"fastv,k={case.layer},drop=0.5", PICTURES)
    assert case.runner._engine.grids() == [case.grids, case.grids]


def test_windows_are_laid_on_every_slice(case: Case) -> None:
    rule = "drop=0.5,pick=window4"
    case.prefill(f"k={case.layer},{rule}", PICTURES[:1])
    scores = case.runner._engine.scores(0)
    assert len(scores) == case.n
    assert case.kept().tolist() == _native.choose(scores, rule, grids=case.grids).tolist()


def test_the_page_of_models_lists_what_is_tested() -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    listed = re.findall(r"^\| [^`|]+ \| `([\w.]+)`", page.read_text("utf-8"), re.M)
    assert listed == [family.projector for family in FAMILIES.values()]


def test_an_answer_reports_what_was_kept(case: Case) -> None:
    answer = case.runner.ask(
        PICTURES[0], "What is it?", max_tokens=3, fastv=f"fastv,k={case.layer},drop=0.75"
    )
    assert answer.report.visual_tokens == case.n
    assert answer.report.visual_tokens_kept == round(case.n * 0.25)

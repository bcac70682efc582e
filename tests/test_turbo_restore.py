"""Turbo whose merged rows are given back behind the encoder's blocks, against the same mathematics written again; and
that everything else about a picture stays as it is without merging."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pyfastv
from pyfastv import OptionError, Turbo
from pyfastv.models.header import _encoder
from pyfastv.models.info import _describe_vision
from pyfastv.settings.setting import Setting
from pyfastv.theory import entering_tokens

import random_mmproj
from c_api import OK, Model
from turbo_grid_reference import GridReference
from turbo_reference import spread
from vision_api import Encoded, Encoder, counts_of, is_picture, last_error, mtmd, saved

# as in test_turbo.py; gates are looked up in a table of F16 values
TOLERANCE, OF_GATED = 1e-4, 5e-4
SAFE = 1e-5

FAMILIES = ("SmolVLM", "InternVL", "Gemma 3", "Pixtral", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL")
GATED = ("Pixtral", "Qwen2.5-VL")
SQUARE = ("SmolVLM", "InternVL", "Gemma 3")

# text, share, alpha, first and last block of three
CASES = [
    ("share=0.5", 0.5, 0.05, 0, 1),
    ("share=0.8,alpha=0,layers=0-0", 0.8, 0.0, 0, 0),
    ("share=0.66,alpha=0.2,layers=1-2", 0.66, 0.2, 1, 2),
]


class Case:
    """An encoder with its language model, and pictures, of which ``picture`` is the first."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.paths = random_mmproj.write_pair(folder, name)
        size = (224, 224) if name in SQUARE else (168, 224)
        noise = np.random.default_rng(5).integers(0, 256, (4, *size, 3), dtype=np.uint8)
        self.picture = noise[0]
        self.model = Model(self.paths[0])
        self.encoder = Encoder(self.model, self.paths[1])
        self.off = self.encoder.encode(self.picture)
        self.reference = GridReference(self.paths[1])
        with self.runner() as runner:
            # what the encoder sees of each first slice
            self.seen = [(picture, runner._engine.pixels(picture)[0]) for picture in noise]

    def close(self) -> None:
        self.encoder.close()
        self.model.close()

    def encode(self, spec: str | None, picture: np.ndarray | None = None) -> Encoded:
        if spec is None:
            self.encoder.detach()
        else:
            assert self.encoder.attach(spec) == OK, last_error()
        return self.encoder.encode(self.picture if picture is None else picture)

    @contextmanager
    def runner(self, turbo: str | None = None) -> Iterator[pyfastv.Runner]:
        with pyfastv.Runner(*self.paths, n_ctx=1024, fastv=None, turbo=turbo, encoder_type="stock") as runner:
            yield runner


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case(tmp_path_factory.mktemp("restore"), request.param)
    yield made
    made.close()


def relative(error: np.ndarray, features: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean() / (features**2).mean()))


@pytest.mark.parametrize(("spec", "share", "alpha", "first", "last"), CASES, ids=[c[0] for c in CASES])
def test_features_are_the_reference_s(
    case: Case, spec: str, share: float, alpha: float, first: int, last: int
) -> None:
    height, width, _ = case.seen[0][1].shape
    n = (height // random_mmproj.PATCH) * (width // random_mmproj.PATCH)
    counts = spread(round(n * share), first, last)
    results = ((picture, case.reference.merged(seen, counts, alpha)) for picture, seen in case.seen)
    picture, expected = next(result for result in results if result[1].margin > SAFE)
    made, off = case.encode(spec, picture), case.encode(None, picture)
    assert len(expected.places) == n - round(n * share)
    assert made.places.tolist() == expected.places
    assert made.sizes.tolist() == expected.sizes
    assert made.targets.tolist() == expected.targets
    tolerance = OF_GATED if case.name in GATED else TOLERANCE
    assert relative(made.features - expected.features, expected.features) < tolerance
    assert relative(made.features - off.features, off.features) > 0.01  # or nothing is shown


def test_without_merging_the_reference_is_llama_cpp_s_encoder(case: Case) -> None:
    expected = case.reference.merged(case.seen[0][1], {}, 0.0).features
    tolerance = OF_GATED if case.name in GATED else TOLERANCE
    assert relative(case.off.features - expected, expected) < tolerance


def test_tokens_positions_and_chunks_are_those_without_merging(case: Case) -> None:
    """Of every slice, and in what a program saves of it."""
    told = []
    for spec in (None, "share=0.75"):
        case.encode(spec)
        with case.encoder.tokenized("<> and", [case.picture]) as chunks:
            pictures = [chunk for chunk in chunks if is_picture(chunk)]
            told.append([(counts_of(chunk), saved(chunk)) for chunk in pictures])
    assert len(told[0]) == len(random_mmproj.FAMILIES[case.name].grids)
    assert told[0] == told[1]


def test_detached_is_as_never_attached_to_the_bit(case: Case) -> None:
    assert np.abs(case.encode("share=0.25").features - case.off.features).max() > 1e-3
    made = case.encode(None)
    np.testing.assert_array_equal(made.features, case.off.features)
    assert len(made.targets) == 0


def test_flash_attention_makes_the_same_rows(case: Case) -> None:
    """Windows and sizes are in its masks, too. One block merges, before which nothing is rounded to F16 but attention."""
    spec = "share=0.4,alpha=0,layers=0-0"
    flash = Encoder(case.model, case.paths[1], spec, flash_attn=True)
    try:
        made = flash.encode(case.picture)
    finally:
        flash.close()
    expected = case.encode(spec)
    assert made.targets.tolist() == expected.targets.tolist()
    assert 0.0 < relative(made.features - expected.features, expected.features) < 5e-3


def test_an_encoder_that_needs_its_grid_cannot_leave_it_out(case: Case) -> None:
    projector = random_mmproj.FAMILIES[case.name].projector
    assert case.encoder.attach("share=0.25,restore") == OK
    for spec, what in (("restore=off", "restore=off: "), ("renumber", "renumber: ")):
        assert case.encoder.attach(spec) == -1
        assert f"{what}the projector {projector} needs the encoder's whole grid" in last_error()
    made = case.encoder.encode(case.picture)
    assert (made.n_tokens, len(made.places)) == (case.off.n_tokens, len(made.targets) * 3 // 4)


def test_a_runner_counts_and_chooses_as_without(case: Case) -> None:
    """The same tokens and grids, of other rows."""
    layer = pyfastv._native.model_info(str(case.paths[0]))["cut_layers"][0]
    reports, logits, grids = [], [], []
    with case.runner() as runner:
        for turbo in (None, "share=0.75"):
            answer = runner.ask(
                case.picture, "What?", max_tokens=1, turbo=turbo, fastv=f"k={layer},drop=0.5,score=random"
            )
            reports.append(answer.report)
            grids.append(runner._engine.grids())
            logits.append(runner._engine.logits())
            again = runner.ask(case.picture, "What?", max_tokens=1, turbo=turbo, fastv="off")
            assert again.report.pictures_encoded == 0
        embedded = runner._engine.embed(case.picture, "again")[0].shape
    assert reports[0].visual_tokens == reports[1].visual_tokens == reports[1].patches
    assert reports[0].visual_tokens_in_stage == reports[1].visual_tokens_in_stage
    assert grids[0] == grids[1]
    assert embedded[0] == case.off.n_tokens
    assert np.isfinite(logits[1]).all()
    assert np.abs(logits[0] - logits[1]).max() > 1e-4


def test_the_variable_of_unmodified_programs_does_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = case.encode("share=0.5").features
    monkeypatch.setenv("LLAMA_TURBO", "share=0.5")
    other = Encoder(case.model, case.paths[1])
    try:
        np.testing.assert_array_equal(other.encode(case.picture).features, expected)
    finally:
        other.close()


def test_costs_are_counted_with_all_tokens(case: Case) -> None:
    header = pyfastv._native.gguf_header(case.paths[1])
    encoder, n = _encoder("mmproj.gguf", header), case.off.n_tokens
    for text in ("turbo:share=0.5", "turbo:share=0.5,restore"):
        assert entering_tokens(Setting.parse(text), encoder, n) == n
    assert encoder.flops(64, turbo=Turbo(share=0.5)) < encoder.flops(64)
    assert "restores all tokens" in _describe_vision(pyfastv._native.vision_info(case.paths[1]))["turbo"]


# encoders that may leave it out


@pytest.fixture(scope="module", params=["LLaVA", "Janus-Pro"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    made = Case(tmp_path_factory.mktemp("plain"), request.param)
    yield made
    made.close()


@pytest.mark.parametrize(
    "spec", ["share=0.5", "share=0.8,alpha=0,layers=0-0", "r=7,layers=0-1", "share=0.3,once"]
)
def test_asked_for_every_patch_has_the_row_of_its_token(plain: Case, spec: str) -> None:
    merged, restored = plain.encode(spec), plain.encode(f"{spec},restore")
    assert merged.n_tokens < restored.n_tokens == plain.off.n_tokens
    assert restored.n_positions == restored.n_patches == restored.n_tokens
    assert merged.targets.tolist() == restored.targets.tolist()
    expected = merged.features[merged.targets]
    # products of more rows may be summed in another order
    assert relative(restored.features - expected, expected) < 1e-5
    assert plain.encode(f"{spec},restore=off").n_tokens == merged.n_tokens


def test_a_request_restores(plain: Case) -> None:
    with plain.runner() as runner:
        counts = {
            spec: runner.ask(plain.picture, "What?", max_tokens=1, turbo=spec).report.visual_tokens
            for spec in ("share=0.5", "share=0.5,restore", "off")
        }
        assert list(counts.values()) == [32, 64, 64]
        report = runner.ask(
            plain.picture, "What?", max_tokens=1, turbo=Turbo(restore=True), reduce="pool,window=2"
        ).report
        assert report.visual_tokens == 16  # it sees the grid
        with pytest.raises(OptionError, match="excludes renumber"):
            runner.ask(plain.picture, "What?", turbo="renumber,restore")


def test_several_pictures_are_not_one_graph_while_it_merges(tmp_path: Path) -> None:
    """As llama-server takes slices of one size. InternVL's go side by side, a graph of Turbo is one picture's."""
    case = Case(tmp_path, "InternVL")
    try:
        for spec, status in ((None, 0), ("share=0.5", 2)):
            case.encode(spec)
            with case.encoder.tokenized("<>", [case.picture]) as chunks:
                pictures = [chunk for chunk in chunks if is_picture(chunk)]
                batch = mtmd.mtmd_batch_init(case.encoder.pointer)
                assert mtmd.mtmd_batch_add_chunk(batch, pictures[0]) == 0
                assert mtmd.mtmd_batch_add_chunk(batch, pictures[1]) == status
                mtmd.mtmd_batch_free(batch)
    finally:
        case.close()


@pytest.mark.parametrize("spec", ["share=0.5", "share=0.5,restore"])
def test_a_picture_of_too_many_patches_is_an_error_before_it_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    family = random_mmproj.FAMILIES["Phi-4"]
    large = dataclasses.replace(family, extra=family.extra | {"vision.image_max_pixels": 3000**2})
    monkeypatch.setitem(random_mmproj.FAMILIES, "Phi-4", large)
    paths = random_mmproj.write_pair(tmp_path, "Phi-4")
    with pyfastv.Runner(*paths, n_ctx=1024, fastv=None, turbo=spec) as runner:
        picture = Image.new("RGB", (14 * 132, 14 * 132))
        with pytest.raises(pyfastv.Error, match="17424 patches, Turbo merges at most 16384"):
            runner.ask(picture, "What?", max_tokens=1)

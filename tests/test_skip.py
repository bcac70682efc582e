"""Patches that their neighbours predict are not encoded: the encoders against the same mathematics on the rest, what
mtmd makes of it, and the language model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyfastv
from pyfastv import _native

import random_mmproj
from c_api import OK, Model, contexts, read
from skip_reference import SkipReference
from test_predict import expected
from vision_api import Encoder, counts_of, is_picture, loaded, mtmd, saved, skip_error, units_of

FAMILIES = [
    "LLaVA",
    "Qwen2-VL",
    "Qwen2.5-VL",
    "Qwen3-VL",
    "Gemma 3",
    "Janus-Pro",
    "Phi-4",
    "SmolVLM",
    "InternVL",
]
QWEN = [name for name in FAMILIES if name.startswith("Qwen")]

# Root mean square of the difference, of the features': see test_turbo
TOLERANCE = 3e-4

RNG = np.random.default_rng(26)
NOISE = RNG.integers(0, 256, (168, 224, 3), dtype=np.uint8)
SQUARE = RNG.integers(0, 256, (224, 224, 3), dtype=np.uint8)  # is not filled up at its edges
FLAT = NOISE.copy()
FLAT[14:154, 28:] = (200, 30, 90)


def kept_of(pixels: np.ndarray, side: int, tau: int = 0) -> list[int]:
    """Of a picture as the encoder sees it."""
    ny, nx = pixels.shape[0] // side, pixels.shape[1] // side
    units = pixels.reshape(ny, side, nx, side, 3).transpose(0, 2, 1, 3, 4).reshape(ny, nx, -1)
    return np.unique(expected(units, tau)).tolist()


class Case:
    def __init__(self, folder: Path, name: str) -> None:
        self.model, self.mmproj = random_mmproj.write_pair(folder, name)
        self.reference = SkipReference(self.mmproj)
        self.side = self.reference.patch * self.reference.merge
        # equal computations have equal bits
        options = {"n_ctx": 512, "n_threads": 1, "fastv": None, "flash_attn": False}
        self.runner = pyfastv.Runner(self.model, self.mmproj, **options)
        self.engine = self.runner._engine

    def embed(self, skip: str, picture: np.ndarray) -> list[np.ndarray]:
        self.engine.set_skip(skip)
        return self.engine.embed(picture, f"{skip} {hash(picture.tobytes())}")

    def kept(self, picture: np.ndarray, tau: int = 0) -> list[list[int]]:
        return [kept_of(pixels, self.side, tau) for pixels in self.engine.pixels(picture)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    cases: dict[str, Case] = {}
    yield cases
    for case in cases.values():
        case.runner.close()


@pytest.fixture
def case(
    request: pytest.FixtureRequest, made: dict[str, Case], tmp_path_factory: pytest.TempPathFactory
) -> Case:
    name = request.param
    if name not in made:
        made[name] = Case(tmp_path_factory.mktemp("skip"), name)
    return made[name]


of_all = pytest.mark.parametrize("case", FAMILIES, indirect=True)
of_qwen = pytest.mark.parametrize("case", QWEN, indirect=True)


def relative(made: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(((made - reference) ** 2).mean() / (reference**2).mean()))


# positions of Phi-4's encoder are stretched with a filter, which the reference has not
@pytest.mark.parametrize("case", [name for name in FAMILIES if name != "Phi-4"], indirect=True)
def test_what_is_left_is_encoded_as_the_reference_encodes_it(case: Case) -> None:
    rows, pixels, kept = case.embed("tau=0", FLAT), case.engine.pixels(FLAT), case.kept(FLAT)
    whole = case.embed("", FLAT)
    assert [len(part) for part in rows] == [len(part) for part in kept]
    assert sum(map(len, kept)) < 0.9 * sum(map(len, whole))
    for some, every, seen, left in zip(rows, whole, pixels, kept, strict=True):
        assert relative(every, case.reference.encoded(seen, range(len(every)))) < TOLERANCE
        assert relative(some, case.reference.encoded(seen, left)) < TOLERANCE
        if len(left) < len(every):  # what was left out is missing, and that is seen
            assert relative(some, every[left]) > 1e-2


@of_all
def test_a_picture_without_equal_neighbours_is_encoded_as_without(case: Case) -> None:
    every = case.embed("", SQUARE)
    assert [len(kept) for kept in case.kept(SQUARE)] == [len(rows) for rows in every]
    for some, rows in zip(case.embed("tau=0", SQUARE), every, strict=True):
        np.testing.assert_array_equal(some, rows)


@of_all
def test_a_larger_tau_leaves_out_what_is_nearly_the_same(case: Case) -> None:
    picture = FLAT.copy()
    picture[14:154, 28:] += RNG.integers(0, 5, (140, 196, 3), dtype=np.uint8)
    counts = [sum(len(part) for part in case.embed(f"tau={tau}", picture)) for tau in (0, 6, 255)]
    assert counts == [sum(map(len, case.kept(picture, tau))) for tau in (0, 6, 255)]
    assert counts[0] > counts[1] > counts[2] == len(case.engine.pixels(picture))


@of_all
def test_prompts_and_reports_count_what_is_left(case: Case) -> None:
    whole = case.runner.ask(FLAT, "What is it?", max_tokens=1, skip=None).report
    some = case.runner.ask(FLAT, "What is it?", max_tokens=1, skip="tau=0").report
    left = sum(map(len, case.kept(FLAT)))
    assert (some.encoded_tokens, some.visual_tokens, some.visual_tokens_kept) == (left, left, left)
    assert (some.patches, some.skipped_tokens) == (whole.patches, whole.patches - left)
    assert whole.skipped_tokens == 0
    assert whole.prompt_tokens - some.prompt_tokens == some.skipped_tokens
    assert case.engine.places().tolist() == [unit for kept in case.kept(FLAT) for unit in kept]


@of_all
def test_the_runner_computes_what_libmtmd_s_own_helper_computes(case: Case) -> None:
    """As unmodified programs call it, each with its positions."""
    model = Model(case.model)
    encoder = Encoder(model, case.mmproj)
    logits = {}
    try:
        for skip in (None, "tau=0"):
            assert encoder.skip(skip) == OK, skip_error()
            with encoder.tokenized("Look: <> What is it?", [FLAT]) as chunks, contexts(model) as make:
                context, position = make(), 0
                for number, chunk in enumerate(chunks):
                    position = encoder.evaluate(chunk, context, position, logits=number == len(chunks) - 1)
                expected_logits = read(context)
            case.engine.set_skip(skip or "")
            case.engine.reset()
            prompt = f"Look: {case.engine.media_marker} What is it?"
            case.engine.prefill(prompt, [FLAT], [f"helper {skip}"], None, False, 8)
            logits[skip] = case.engine.logits()
            np.testing.assert_allclose(logits[skip], expected_logits, atol=2e-4)
    finally:
        encoder.close()
        model.close()
    assert np.abs(logits["tau=0"] - logits[None]).max() > 1e-3


@of_qwen
def test_tokens_have_the_rows_and_columns_of_their_units(case: Case) -> None:
    model = Model(case.model)
    encoder = Encoder(model, case.mmproj)
    try:
        assert encoder.skip("tau=0") == OK
        with encoder.tokenized("<>", [FLAT]) as chunks:
            [chunk] = filter(is_picture, chunks)
            image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
            [kept] = case.kept(FLAT)
            assert units_of(chunk) == kept
            places = [mtmd.mtmd_image_tokens_get_decoder_pos(image, 10, i) for i in range(len(kept))]
            assert [(at.t, at.y, at.x) for at in places] == [(10, 10 + u // 8, 10 + u % 8) for u in kept]
            assert counts_of(chunk) == (len(kept), 8, 48)  # as far as the whole picture's
    finally:
        encoder.close()
        model.close()


@of_qwen
def test_two_frames_that_are_encoded_as_one_are_compared_as_one(case: Case) -> None:
    """A unit goes where nothing has changed in either of them, and is not noise in one."""
    changed = FLAT.copy()
    changed[60:80, 100:120] = 0
    model = Model(case.model)
    encoder = Encoder(model, case.mmproj)
    try:
        assert encoder.skip("tau=0") == OK
        for frames in ([FLAT, FLAT], [FLAT, changed], [FLAT, NOISE]):
            both = np.concatenate(frames, axis=2).reshape(6, 28, 8, 28, 6).transpose(0, 2, 1, 3, 4)
            kept = np.unique(expected(both.reshape(6, 8, -1), 0)).tolist()
            with encoder.tokenized("<><>", frames, mergeable=True) as chunks:
                [chunk] = filter(is_picture, chunks)
                assert units_of(chunk) == (kept if len(kept) < 48 else [])
                rows = encoder._encode(chunk).features
                assert len(rows) == len(kept)
                assert np.isfinite(rows).all()
    finally:
        encoder.close()
        model.close()


@pytest.mark.parametrize("case", ["Qwen2-VL", "LLaVA"], indirect=True)
def test_a_saved_or_copied_chunk_is_encoded_in_the_same_way(case: Case) -> None:
    model = Model(case.model)
    encoder = Encoder(model, case.mmproj)
    try:
        assert encoder.skip("tau=0") == OK
        with encoder.tokenized("<>", [FLAT]) as chunks:
            [chunk] = filter(is_picture, chunks)
            data, counts, units = saved(chunk), counts_of(chunk), units_of(chunk)
            copy = mtmd.mtmd_input_chunk_copy(chunk)
            assert encoder.skip(None) == OK  # of later pictures
            assert units
            np.testing.assert_array_equal(encoder._encode(copy).features, encoder._encode(chunk).features)
            again = loaded(data)
            assert counts_of(again) == counts_of(copy) == counts
            assert units_of(again) == units_of(copy) == units
            for chunk in (copy, again):
                mtmd.mtmd_input_chunk_free(chunk)
            # the last numbers: how many units, and which
            n = len(units)
            for changed in (
                data[:-1],
                data[:-4] + units[0].to_bytes(4, "little"),  # twice
                data[:-4] + (10**6).to_bytes(4, "little"),
                data[: -4 * n - 4] + (n + 1).to_bytes(4, "little") + data[-4 * n :],
                data[: -4 * n - 4] + (2**31).to_bytes(4, "little") + data[-4 * n :],
                data[: -4 * n - 4] + bytes(4),
                data[: -4 * n - 12] + (9).to_bytes(4, "little") + data[-4 * n - 8 :],
            ):
                assert loaded(changed) is None
    finally:
        encoder.close()
        model.close()


@pytest.mark.parametrize("case", ["Qwen2.5-VL", "SmolVLM"], indirect=True)
def test_a_reducer_and_a_schedule_take_what_is_left(case: Case) -> None:
    left = sum(map(len, case.kept(FLAT)))
    both = {"skip": "tau=0", "reduce": "stride,keep=0.5"}
    report = case.runner.ask(FLAT, "What is it?", max_tokens=2, **both, fastv="k=2,drop=0.5").report
    assert report.encoded_tokens == left
    rows = [(len(kept), 1) for kept in case.kept(FLAT)]
    assert report.visual_tokens == _native.count_reduced(both["reduce"], rows) < left
    assert report.visual_tokens_kept < report.visual_tokens
    assert set(case.engine.places()) <= {unit for kept in case.kept(FLAT) for unit in kept}


@pytest.mark.parametrize("case", ["Qwen2-VL"], indirect=True)
def test_a_picture_with_another_tau_is_another(case: Case) -> None:
    """What a slot and the encoder's cache hold of it is not taken for it; of one with the same it is."""
    ask: Any = case.runner.ask
    first = ask(FLAT, "Who?", max_tokens=1, skip="tau=0").report
    other = ask(FLAT, "Who?", max_tokens=1, skip=None).report
    again = ask(FLAT, "What?", max_tokens=1, skip=None).report
    assert first.visual_tokens < other.visual_tokens
    assert other.cached_tokens < other.visual_tokens <= again.cached_tokens
    # nothing was left out: the same as off
    case.runner.ask(NOISE, "Who?", max_tokens=1, skip=None)
    same = ask(NOISE, "What?", max_tokens=1, skip="tau=0").report
    assert same.cached_tokens >= same.visual_tokens
    assert same.pictures_encoded == 0


@pytest.mark.parametrize("case", ["Qwen2.5-VL", "Janus-Pro"], indirect=True)
def test_a_conversation_goes_on_and_so_does_a_saved_state(case: Case) -> None:
    with case.runner.session(skip="tau=0") as session:
        first = session.ask(FLAT, "Who?", max_tokens=2).report
        second = session.ask("What?", max_tokens=2).report
    assert second.cached_tokens >= first.visual_tokens == sum(map(len, case.kept(FLAT)))
    engine = case.engine
    engine.set_skip("tau=0")
    prompt = f"{engine.media_marker} What?"
    number = engine.prefill(prompt, [FLAT], ["state"], None, False, 8)
    expected_logits, state = engine.logits(), engine.save(number)
    engine.reset()
    engine.restore(state)
    engine.prefill(prompt, [FLAT], ["state"], None, False, 8)
    assert engine.report().cached_tokens >= len(engine.places())
    np.testing.assert_allclose(engine.logits(), expected_logits, atol=1e-5)


@pytest.mark.parametrize("case", ["LLaVA", "Janus-Pro"], indirect=True)
def test_turbo_merges_what_is_left(case: Case) -> None:
    [kept] = case.kept(FLAT)
    report = case.runner.ask(FLAT, "Who?", max_tokens=1, skip="tau=0", turbo="share=0.5").report
    assert report.encoded_tokens == len(kept) - round(len(kept) / 2)
    assert (report.patches, report.skipped_tokens) == (64, 64 - len(kept))
    assert set(case.engine.places()) < set(kept)


@pytest.mark.parametrize("case", ["Qwen2-VL", "Gemma 3"], indirect=True)
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_pictures_of_hostile_sizes_are_answered(case: Case, size: tuple[int, int]) -> None:
    """Or refused, where the preprocessor has no form for them."""
    picture = np.zeros((*size, 3), np.uint8)
    try:
        report = case.runner.ask(picture, "Who?", max_tokens=1, skip="tau=255").report
    except pyfastv.ImageError:
        assert size != (1, 1)
    else:
        assert report.visual_tokens == 1


@pytest.mark.parametrize("name", ["Pixtral", "MiniCPM-V"])
def test_other_projectors_are_refused_by_name(tmp_path: Path, name: str) -> None:
    files = random_mmproj.write_pair(tmp_path, name)
    with pytest.raises(pyfastv.UnsupportedModelError, match=random_mmproj.FAMILIES[name].projector):
        pyfastv.Runner(*files, n_ctx=256, n_threads=1, fastv=None, skip="tau=0")


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("tau=-1", "tau = -1 is out of range; 0 <= tau <= 255"),
        ("tau=255.5", "tau = 255.5 is out of range"),
        ("tau=nan", 'tau = "nan"'),
        ("tau=", 'tau = ""'),
        ("tau", '"tau" is not tau='),
        ("", '"" is not tau='),
        ("tau=1,tau=2", "given twice"),
        ("share=0.5", '"share=0.5" is not tau='),
    ],
)
def test_wrong_text_is_named(spec: str, wrong: str) -> None:
    with pytest.raises(pyfastv.OptionError) as told:
        pyfastv.Skip.parse(spec)
    assert wrong in str(told.value)


@pytest.mark.parametrize("tau", [-1, 256, float("nan"), float("inf"), "8", True])
def test_wrong_values_are_named(tau: Any) -> None:
    with pytest.raises(pyfastv.OptionError, match="tau must be"):
        pyfastv.Skip(tau)


def test_text_and_values_are_the_same() -> None:
    assert pyfastv.Skip.parse(" tau = 8 ") == pyfastv.Skip(8)
    assert pyfastv.Skip(2.5).spec() == "tau=2.5"
    assert pyfastv.Skip() == pyfastv.Skip(0)

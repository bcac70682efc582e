"""Turbo in the vision encoder, against the same mathematics written again, and what mtmd makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pyfastv
from pyfastv.models import bundled_examples, bundled_mmproj

import random_mmproj
from c_api import OK, Model, contexts, read
from dequantize import dequantize
from turbo_reference import Reference, spread
from vision_api import Encoder, counts_of, is_picture, last_error, loaded, mtmd, saved

# Root mean square of the difference, of the features'. Single numbers differ by more: ggml looks activations up in
# tables of F16, and sums in another order meet their steps.
TOLERANCE = 1e-4
# no choice of the reference may hang on less than rounding
SAFE = 1e-5

CLIP, SIGLIP = "CLIP with CLS", "SigLIP without"
PATCHES = {CLIP: 576, SIGLIP: 64}

CASES = [
    (CLIP, "chart", "r=8,alpha=0,layers=0-6", 0.0, spread(56, 0, 6)),
    (CLIP, "chart", "r=40,alpha=0.05,layers=1-3", 0.05, spread(120, 1, 3)),
    (CLIP, "chart", "share=0.5,alpha=0.2,layers=0-3", 0.2, spread(288, 0, 3)),
    (SIGLIP, "noise", "share=0.75,alpha=0.02,layers=1-2", 0.02, spread(48, 1, 2)),
    (CLIP, "dice", "share=0.66,alpha=0.1,once", 0.1, {6: 380}),
    (SIGLIP, "noise", "r=5,alpha=0", 0.0, spread(10, 0, 1)),
    (SIGLIP, "noise", "share=0.5,alpha=0.2,layers=0-2", 0.2, spread(32, 0, 2)),
    (SIGLIP, "noise", "share=0.8,alpha=0.1,once", 0.1, {2: 51}),
]


def bundled_picture(name: str) -> np.ndarray:
    path = next(example.picture for example in bundled_examples() if example.picture.stem == name)
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((336, 336)))


def relative(error: np.ndarray, features: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean() / (features**2).mean()))


class Case:
    """An encoder, its reference and pictures of its size; ``picture`` is the first."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        if kind == CLIP:
            self.model, self.path = Model(), folder / "mmproj.gguf"
            dequantize(bundled_mmproj(), self.path)
            self.pictures = {name: bundled_picture(name) for name in ("chart", "dice")}
        else:
            model, self.path = random_mmproj.write_pair(folder, "Janus-Pro")
            self.model = Model(model)
            noise = np.random.default_rng(8).integers(0, 256, (112, 112, 3), dtype=np.uint8)
            self.pictures = {"noise": noise}
        self.picture = next(iter(self.pictures.values()))
        self.reference = Reference(self.path)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    made = {kind: Case(tmp_path_factory.mktemp("turbo"), kind) for kind in (CLIP, SIGLIP)}
    yield made
    for case in made.values():
        case.model.close()


@pytest.fixture(scope="module")
def encoders(cases: dict[str, Case]) -> Iterator[dict[str, Encoder]]:
    made = {kind: Encoder(case.model, case.path) for kind, case in cases.items()}
    yield made
    for encoder in made.values():
        encoder.close()


@pytest.mark.parametrize(
    ("kind", "name", "spec", "alpha", "counts"), CASES, ids=[f"{case[0]}, {case[2]}" for case in CASES]
)
def test_features_places_and_sizes_are_the_reference_s(
    cases: dict[str, Case],
    encoders: dict[str, Encoder],
    kind: str,
    name: str,
    spec: str,
    alpha: float,
    counts: dict[int, int],
) -> None:
    picture = cases[kind].pictures[name]
    expected = cases[kind].reference.merged(picture, counts, alpha)
    assert encoders[kind].attach(spec) == OK, last_error()
    made = encoders[kind].encode(picture)
    assert expected.margin > SAFE
    assert made.n_tokens == PATCHES[kind] - sum(counts.values())
    assert made.places.tolist() == expected.places
    assert made.sizes.tolist() == expected.sizes
    assert made.targets.tolist() == expected.targets
    assert relative(made.features - expected.features, expected.features) < TOLERANCE


@pytest.mark.parametrize("kind", [CLIP, SIGLIP])
def test_without_merging_the_reference_is_llama_cpp_s_encoder(
    cases: dict[str, Case], encoders: dict[str, Encoder], kind: str
) -> None:
    """Or the test above would compare two other things."""
    encoders[kind].detach()
    case = cases[kind]
    expected = case.reference.merged(case.picture, {}, 0.0).features
    made = encoders[kind].encode(case.picture)
    assert relative(made.features - expected, expected) < TOLERANCE
    assert len(made.places) == len(made.sizes) == len(made.targets) == 0


@pytest.mark.parametrize("kind", [CLIP, SIGLIP])
def test_detached_is_as_never_attached_to_the_bit(
    cases: dict[str, Case], encoders: dict[str, Encoder], kind: str
) -> None:
    case, encoder = cases[kind], encoders[kind]
    fresh = Encoder(case.model, case.path)
    try:
        expected = fresh.encode(case.picture)
    finally:
        fresh.close()
    assert encoder.attach("share=0.5") == OK
    merged = encoder.encode(case.picture)
    encoder.detach()
    made = encoder.encode(case.picture)
    assert merged.n_tokens == made.n_tokens // 2
    np.testing.assert_array_equal(made.features, expected.features)
    assert (made.n_tokens, made.n_positions, made.n_patches) == (PATCHES[kind],) * 3


@pytest.mark.parametrize("kind", [CLIP, SIGLIP])
def test_counts_positions_and_order(cases: dict[str, Case], encoders: dict[str, Encoder], kind: str) -> None:
    encoder, n = encoders[kind], PATCHES[kind]
    for spec, left in (("share=0.25", n - n // 4), ("r=3,layers=0-1", n - 6), ("share=0.999,once", 1)):
        assert encoder.attach(spec) == OK, last_error()
        made = encoder.encode(cases[kind].picture)
        assert made.n_tokens == len(made.places) == left
        assert made.n_positions == made.n_patches == n
        assert (np.diff(made.places) > 0).all()
        assert made.sizes.sum() == n
        assert np.bincount(made.targets).tolist() == made.sizes.tolist()
        # a token stands for the patch whose place it has
        assert made.targets[made.places].tolist() == list(range(left))
    assert encoder.attach("share=0.25,renumber") == OK
    made = encoder.encode(cases[kind].picture)
    assert (made.n_tokens, made.n_positions, made.n_patches) == (n - n // 4, n - n // 4, n)


@pytest.mark.parametrize("kind", [CLIP, SIGLIP])
def test_flash_attention_makes_the_same_tokens(
    cases: dict[str, Case], encoders: dict[str, Encoder], kind: str
) -> None:
    """Early choices are the same; later ones may hang on F16."""
    case, spec = cases[kind], "r=20,alpha=0.05,layers=0-0"
    flash = Encoder(case.model, case.path, spec, flash_attn=True)
    try:
        made = flash.encode(case.picture)
    finally:
        flash.close()
    assert encoders[kind].attach(spec) == OK
    expected = encoders[kind].encode(case.picture)
    assert made.places.tolist() == expected.places.tolist()
    rms = np.sqrt(((made.features - expected.features) ** 2).mean() / (expected.features**2).mean())
    assert 0.0 < rms < 5e-3


def test_the_language_model_sees_tokens_at_their_places(
    cases: dict[str, Case], encoders: dict[str, Encoder]
) -> None:
    """mtmd's helper against rows and positions put into the batch by hand."""
    case, encoder = cases[CLIP], encoders[CLIP]
    for spec, kept in (("share=0.5,alpha=0.05", True), ("share=0.5,alpha=0.05,renumber", False)):
        assert encoder.attach(spec) == OK
        encoded = encoder.encode(case.picture)
        places = encoded.places if kept else np.arange(encoded.n_tokens)
        behind = 3 + (PATCHES[CLIP] if kept else encoded.n_tokens)
        with contexts(case.model) as make:
            by_helper, by_hand = make(), make()
            for context in (by_helper, by_hand):
                assert context.tokens([1, 5, 6], 0, logits=False) == 0
            assert encoder.decode(case.picture, by_helper, 3) == 0
            assert encoder.behind == behind
            by_hand.allow_position_gaps()
            assert by_hand.picture_at(encoded.features, 3 + places) == 0
            for context in (by_helper, by_hand):
                assert context.tokens([7, 8, 9], behind) == 0
            np.testing.assert_array_equal(read(by_helper), read(by_hand))


def test_positions_may_not_jump_unless_allowed(cases: dict[str, Case]) -> None:
    rows = np.zeros((3, cases[CLIP].model.n_embd), np.float32)
    with contexts(cases[CLIP].model) as make:
        context = make()
        assert context.picture_at(rows, np.array([0, 2, 3])) != 0
        context.allow_position_gaps()
        assert context.picture_at(rows, np.array([0, 2, 3])) == 0
        assert context.tokens([5], 3) != 0  # nor go back
        assert context.tokens([5], 9) == 0


def test_embeddings_that_were_kept_bring_their_places(
    cases: dict[str, Case], encoders: dict[str, Encoder]
) -> None:
    """Another picture encoded in between does not matter; places of another number are refused."""
    case, encoder = cases[CLIP], encoders[CLIP]
    assert encoder.attach("share=0.5") == OK
    kept = encoder.encode(case.picture)
    other = encoder.encode(case.picture[::-1])
    assert kept.places.tolist() != other.places.tolist()
    with contexts(case.model) as make:

        def logits(places: np.ndarray) -> np.ndarray:
            encoder.set_places(places)
            context = make()
            assert encoder.decode_kept(case.picture, kept.features, context, 0) == 0
            assert context.tokens([7], encoder.behind) == 0
            return read(context)

        right, wrong = logits(kept.places), logits(other.places)
        direct = make()
        assert encoder.decode(case.picture, direct, 0) == 0
        assert direct.tokens([7], encoder.behind) == 0
        np.testing.assert_array_equal(right, read(direct))
        assert np.abs(wrong - right).max() > 1e-3
        encoder.set_places(kept.places[:-1])
        assert encoder.decode_kept(case.picture, kept.features, make(), 0) != 0


def test_other_projectors_are_refused_by_name(tmp_path: Path) -> None:
    name = "MiniCPM-V"
    model_path, path = random_mmproj.write_pair(tmp_path, name)
    model = Model(model_path)
    encoder = Encoder(model, path)
    try:
        assert encoder.attach("share=0.5") == -2
        projector = random_mmproj.FAMILIES[name].projector
        assert f"the projector {projector} " in last_error()
        assert encoder.unsupported() in last_error()
    finally:
        encoder.close()
        model.close()


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("share=1", "share = 1 is out of range; 0 < share < 1"),
        ("share=half", 'share = "half"'),
        ("share=0", "share = 0"),
        ("share=0.5,r=3", "exclude each other"),
        ("r=0", "r = 0 is out of range"),
        ("alpha=-1", "alpha = -1 is out of range"),
        ("layers=3-2", "layers = 3-2 is out of range"),
        ("layers=3", 'layers = "3"'),
        ("layers=2-7", "runs 7 blocks, the last is 6"),
        ("once,layers=1-2", "excludes layers=1-2"),
        ("once,once", "given twice"),
        ("speed=11", '"speed=11" is none of'),
        ("", '"" is none of'),
        ("r=200,layers=0-2", "leaves nothing of 576"),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(
    cases: dict[str, Case], encoders: dict[str, Encoder], spec: str, wrong: str
) -> None:
    encoder = encoders[CLIP]
    assert encoder.attach("share=0.25") == OK
    assert encoder.attach(spec) == -1
    assert wrong in last_error()
    with encoder.tokenized("<>", [cases[CLIP].picture]) as chunks:
        assert [counts_of(chunk) for chunk in chunks if is_picture(chunk)] == [(432, 576, 576)]


def test_behind_what_was_wrong_the_encoder_merges_as_before(
    cases: dict[str, Case], encoders: dict[str, Encoder]
) -> None:
    encoder = encoders[CLIP]
    assert encoder.attach("share=0.25") == OK
    before = encoder.encode(cases[CLIP].picture)
    for spec in ("layers=3-2", "r=200,layers=0-2"):
        assert encoder.attach(spec) == -1
    np.testing.assert_array_equal(encoder.encode(cases[CLIP].picture).features, before.features)


def test_the_runner_s_own_setting_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says to programs that cannot be asked."""
    monkeypatch.setenv("LLAMA_TURBO", "share=0.9")
    picture = bundled_examples()[-1].picture
    with pyfastv.Runner(n_ctx=1024, fastv=None) as runner:
        assert runner.ask(picture, "What?", max_tokens=1).report.visual_tokens == 576
        answer = runner.ask(picture, "What?", max_tokens=1, turbo="share=0.5")
        assert (answer.report.visual_tokens, answer.report.patches) == (288, 576)


# of a saved image chunk, behind version, type, number of text tokens and whether there are image tokens
FIELDS = np.dtype([("nx", "<u4"), ("ny", "<u4"), ("position", "<u4"), ("image_idx", "<u4")])
AT_FIELDS = 8 + 4 + 8 + 1
HUNYUANVL = 2  # MTMD_POS_TYPE_HUNYUANVL


def fields_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, FIELDS, 1, AT_FIELDS)[0].copy()


def with_fields(data: bytes, fields: np.ndarray) -> bytes:
    return data[:AT_FIELDS] + fields.tobytes() + data[AT_FIELDS + FIELDS.itemsize :]


@pytest.mark.parametrize("spec", ["share=0.5", "share=0.5,renumber"])
def test_a_saved_or_copied_chunk_keeps_its_counts(
    cases: dict[str, Case], encoders: dict[str, Encoder], spec: str
) -> None:
    """In a field of their own: HunyuanVL's number of the picture stays what it is."""
    case, encoder = cases[CLIP], encoders[CLIP]
    assert encoder.attach(spec) == OK
    with encoder.tokenized("<>", [case.picture]) as chunks:
        [chunk] = filter(is_picture, chunks)
        data = saved(chunk)
        assert fields_of(data)["image_idx"] == 0
        for made in (loaded(data), mtmd.mtmd_input_chunk_copy(chunk)):
            assert counts_of(made) == counts_of(chunk) == (288, 288 if "renumber" in spec else 576, 576)
            mtmd.mtmd_input_chunk_free(made)


def test_the_number_of_a_picture_is_no_count_of_merged_tokens(
    cases: dict[str, Case], encoders: dict[str, Encoder]
) -> None:
    encoder = encoders[CLIP]
    encoder.detach()
    with encoder.tokenized("<>", [cases[CLIP].picture]) as chunks:
        data = saved(next(filter(is_picture, chunks)))
    fields = fields_of(data)
    fields["image_idx"] = 3
    numbered = loaded(with_fields(data, fields))
    assert counts_of(numbered) == (576,) * 3
    mtmd.mtmd_input_chunk_free(numbered)

    # a line end a row, and two tokens around
    fields["position"], fields["nx"], fields["ny"] = HUNYUANVL, 4, 3
    hunyuan = loaded(with_fields(data, fields))
    assert counts_of(hunyuan) == (17,) * 3
    position = mtmd.mtmd_image_tokens_get_decoder_pos(mtmd.mtmd_input_chunk_get_tokens_image(hunyuan), 0, 1)
    assert position.z == 3
    mtmd.mtmd_input_chunk_free(hunyuan)


@pytest.mark.parametrize("n_patches", [-1, 0, 287, None])
def test_a_chunk_that_has_fewer_patches_than_tokens_is_refused(
    cases: dict[str, Case], encoders: dict[str, Encoder], n_patches: int | None
) -> None:
    encoder = encoders[CLIP]
    assert encoder.attach("share=0.5") == OK
    with encoder.tokenized("<>", [cases[CLIP].picture]) as chunks:
        data = saved(next(filter(is_picture, chunks)))
    behind = data[-12:-4] + n_patches.to_bytes(4, "little", signed=True) if n_patches is not None else b""
    assert loaded(data[:-12] + behind) is None
    mtmd.mtmd_input_chunk_free(loaded(data))

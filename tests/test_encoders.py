"""The table of encoders (native/vision/encoders.cpp): what is known of one is read from its row, wherever it is asked."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pyfastv
from pyfastv import _native
from pyfastv.models.header import _encoder
from pyfastv.models.quantize_plan import matrices

import random_mmproj
from random_mmproj import FAMILIES

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "native" / "vision" / "encoders.cpp"

# what a file without clip.projector_type has
DEFAULT = "mlp"

# of two dimensions, and more than multiplied with: rows are looked up or added, or it is transposed
LOOKED_UP = {"v.position_embd.weight"}
OTHERS = {
    "Gemma 3": {"mm.input_projection.weight"},
    "MiniCPM-V": {"resampler.query", "resampler.pos_embed_k"},
}


def test_a_projector_is_named_in_the_table_alone() -> None:
    """So that a new one is a row."""
    projectors = set(re.findall(r'^    \{ "([\w.]+)", place_table', TABLE.read_text("utf-8"), re.M))
    assert projectors >= {family.projector for family in FAMILIES.values()}
    names = "|".join(projectors - {DEFAULT})
    pattern = re.compile(rf'PROJECTOR_TYPE_[A-Z0-9]+\b(?<!_NAMES)|"(?:{names})"')

    sources = [path for path in (ROOT / "native").rglob("*.[hc]*") if path != TABLE]
    sources += (ROOT / "pyfastv" / "models").glob("*.py")
    named = {}
    for path in sources:
        if found := pattern.findall(path.read_text("utf-8")):
            named[path.relative_to(ROOT).as_posix()] = found
    for path in (ROOT / "third_party" / "patches").glob("*.patch"):
        added = [line for line in path.read_text("utf-8").splitlines() if line.startswith("+")]
        if found := pattern.findall("\n".join(added)):
            named[path.name] = found
    assert named == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_multiplied_with_may_be_quantized(tmp_path: Path, name: str) -> None:
    _, mmproj = random_mmproj.write_pair(tmp_path, name)
    header = _native.gguf_header(mmproj)
    of_two = {tensor for tensor, (shape, _, _) in header["tensors"].items() if len(shape) == 2}
    assert of_two - set(matrices(header)) == (LOOKED_UP | OTHERS.get(name, set())) & of_two
    # an encoder that is not in the table is told by its names, if all that have a name do the same with it
    unknown = {**header, "metadata": {**header["metadata"], "clip.projector_type": "another"}}
    assert set(matrices(unknown)) == set(matrices(header)) - OTHERS["Gemma 3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_header_tells_how_many_tokens_every_picture_has(tmp_path: Path, name: str) -> None:
    _, mmproj = random_mmproj.write_pair(tmp_path, name)
    nx, ny = FAMILIES[name].grids[0]
    expected = nx * ny if name in ("LLaVA", "Janus-Pro", "Gemma 3") else None
    assert _native.vision_info(mmproj)["visual_tokens"] == expected
    header = _encoder("mmproj.gguf", _native.gguf_header(mmproj))
    assert (header.patches is None) == (expected is None)
    if expected is not None:
        assert header.patches == expected * header.merged


def test_a_picture_that_an_encoder_has_no_positions_for_is_refused(tmp_path: Path) -> None:
    """Gemma 4's are looked up by column and row."""
    picture = np.random.default_rng(0).integers(0, 256, (2000, 10, 3), dtype=np.uint8)
    with pyfastv.Runner(*random_mmproj.write_pair(tmp_path, "Gemma 4"), n_threads=1, fastv=None) as runner:
        for thin in (picture, picture.swapaxes(0, 1)):
            with pytest.raises(
                pyfastv.ImageError, match=r"its longer side is of 142 patches, .* positions for 66"
            ):
                runner.ask(thin, "What is it?", max_tokens=1)
        report = runner.ask(picture.reshape(200, 100, 3), "What is it?", max_tokens=1).report
        assert report.visual_tokens == 12 * 6


def test_features_of_several_layers_are_no_merged_patches() -> None:
    """They lie side by side, too."""
    width, layers = 64, 3
    tensors = {"mm.0.weight": ((128, layers * width), "f16", 0), "mm.2.weight": ((128, 128), "f16", 0)}
    metadata = {
        "clip.projector_type": "mlp",
        "clip.vision.embedding_length": width,
        "clip.vision.image_size": 112,
        "clip.vision.patch_size": 14,
    }
    made = _encoder("mmproj.gguf", {"metadata": metadata, "tensors": tensors})
    assert (made.merged, made.patches) == (1, 64)


@pytest.mark.parametrize(("factor", "merged"), [(2, 4), (None, 16), ("many", 16), (0, 16)])
def test_the_header_tells_how_many_patches_are_merged(factor: object, merged: int) -> None:
    metadata = {
        "clip.projector_type": "gemma3",
        "clip.vision.projector.scale_factor": factor,
        "clip.vision.embedding_length": 64,
        "clip.vision.image_size": 112,
        "clip.vision.patch_size": 14,
    }
    tensors = {"mm.input_projection.weight": ((64, 128), "f16", 0)}
    assert _encoder("mmproj.gguf", {"metadata": metadata, "tensors": tensors}).merged == merged

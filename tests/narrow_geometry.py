"""Files of the geometries with a few narrow layers: headers, and what is in a picture's way, are those of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pyfastv.bench.geometry import sizes
from pyfastv.bench.geometry.files import make_geometry

# of heads of 64
NARROW: dict[str, sizes.Value] = {
    "rope.dimension_sections": [8, 12, 12, 0],
    "n_deepstack_layers": 1,
    "vision.feature_layer": [2],
}


def narrowed(metadata: Mapping[str, sizes.Value]) -> dict[str, sizes.Value]:
    return {key: NARROW.get(key, value) for key, value in metadata.items()}


def write_narrow(name: str, folder: Path) -> tuple[Path, Path]:
    """The paths of a model and of its mmproj."""
    geometry = sizes.GEOMETRIES[name]
    d, e = geometry.decoder, geometry.encoder
    decoder = replace(
        d,
        layers=3,
        width=256,
        # all heads together narrower than the model where the sizes are told one by one
        heads=2 if d.head_size else 4,
        kv_heads=2,
        head_size=64 if d.head_size else None,
        ffn=256,
        vocab=512,
        metadata=narrowed(d.metadata),
    )
    encoder = replace(
        e,
        layers=2,
        width=64,
        heads=2,
        ffn=64,
        deepstack=(0,) if e.deepstack else (),
        metadata=narrowed(e.metadata),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sizes.GEOMETRIES, name, sizes.Geometry(decoder, encoder, geometry.visual_tokens))
        return make_geometry(name, folder, "Q4_0")

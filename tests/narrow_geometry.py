"""Files of the geometries with a few narrow layers: headers, and what is in a picture's way, are those of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pyfastv.bench.geometry import sizes
from pyfastv.bench.geometry.files import make_geometry
from pyfastv.bench.geometry.shapes import Decoder, DeltaNet, Experts

# of heads of 64
NARROW: dict[str, sizes.Value] = {
    "rope.dimension_sections": [8, 12, 12, 0],
    "n_deepstack_layers": 1,
    "vision.feature_layer": [2],
}


def narrowed(metadata: Mapping[str, sizes.Value]) -> dict[str, sizes.Value]:
    return {key: NARROW.get(key, value) for key, value in metadata.items()}


def narrow(d: Decoder) -> Decoder:
    experts = None if d.gemma4 is None or d.gemma4.experts is None else Experts(4, 2, 64)
    gemma4 = d.gemma4 and replace(
        d.gemma4,
        every=2,
        window_head=32,
        window_kv_heads=2,
        with_cache=d.gemma4.with_cache and 4,  # a cut at 2 is in front of the two that are shared
        per_layer=min(d.gemma4.per_layer, 32),
        experts=experts,
    )
    return replace(
        d,
        layers=3 if gemma4 is None and d.attention_every == 1 else 6,
        width=256,
        # all heads together narrower than the model where the sizes are told one by one
        heads=4 if d.arch == "lfm2" or not d.head_size else 2,
        kv_heads=2,
        head_size=64 if d.head_size else None,
        ffn=256,
        vocab=512,
        delta_net=d.delta_net and DeltaNet(2, 4, size=32),
        gemma4=gemma4,
        metadata=narrowed(d.metadata),
    )


def write_narrow(name: str, folder: Path) -> tuple[Path, Path]:
    """The paths of a model and of its mmproj."""
    geometry = sizes.GEOMETRIES[name]
    d, e = geometry.decoder, geometry.encoder
    decoder = narrow(d)
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

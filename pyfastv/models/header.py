"""A model's sizes, from the headers of its GGUF files; no weights are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .. import _native
from ..errors import ModelError, UnsupportedModelError
from ..theory import Decoder, Encoder
from .hub import mmproj_beside
from .split import part_names

__all__ = ["ModelFiles", "WeightBytes", "read_model"]

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightBytes:
    """Bytes that generating one token reads: of experts the active ones."""

    layers: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class ModelFiles:
    """A model and its vision encoder, as their headers tell."""

    name: str
    paths: tuple[str, ...]
    """The language model's file, or its parts in order."""
    mmproj: str | None
    description: str
    decoder: Decoder
    encoder: Encoder | None
    visual_tokens: int | None
    """Of a picture; None: depends on it."""
    weights: WeightBytes
    weight_bytes: int
    """The language model's, all of them."""
    mmproj_bytes: int
    window: int
    """Cells that layers with a sliding window see; 0: no layer has one."""
    cut_layers: tuple[int, ...]
    """Where a cut that ranks by attention can be."""


def read_model(model: str, mmproj: str | None = None) -> ModelFiles:
    """The sizes of a model. ``mmproj``: None: the only one beside it, if there is one.

    Raises ModelError for what is no model or no mmproj, UnsupportedModelError for a model that cannot be run in stages:
    its layers do not cost what :mod:`pyfastv.theory` counts.
    """
    info = _native.model_info(model)
    if info["unsupported_reason"] is not None:
        raise UnsupportedModelError(f"{model}: {info['unsupported_reason']}: its cost is not counted here")
    paths = part_names(model)
    headers = [_native.gguf_header(path) for path in paths]
    metadata = headers[0]["metadata"]
    tensors: dict[str, Any] = {}
    for header in headers:
        tensors |= header["tensors"]
    prefix = f"{info['architecture']}."
    values = {key.removeprefix(prefix): v for key, v in metadata.items() if key.startswith(prefix)}
    mmproj = mmproj or mmproj_beside(model)
    vision = None if mmproj is None else _native.vision_info(mmproj)
    vision_header = None if mmproj is None else _native.gguf_header(mmproj)
    return ModelFiles(
        name=Path(model).name,
        paths=tuple(paths),
        mmproj=mmproj,
        description=info["description"],
        decoder=_decoder(model, values, _shapes(tensors), info["n_layer"]),
        encoder=None if vision_header is None else _encoder(str(mmproj), vision_header),
        visual_tokens=None if vision is None else vision["visual_tokens"],
        weights=_weight_bytes(values, tensors, info["n_layer"]),
        weight_bytes=_bytes(tensors),
        mmproj_bytes=0 if vision_header is None else _bytes(vision_header["tensors"]),
        window=int(values.get("attention.sliding_window") or 0),
        cut_layers=tuple(info["cut_layers"]),
    )


def _shapes(tensors: Mapping[str, tuple[tuple[int, ...], str, int]]) -> Shapes:
    return {name: shape for name, (shape, _, _) in tensors.items()}


def _bytes(tensors: Mapping[str, tuple[tuple[int, ...], str, int]]) -> int:
    return sum(size for _, _, size in tensors.values())


def _active_share(values: Mapping[str, Any]) -> float:
    """Share of the experts that a row meets; 1 for a dense model."""
    experts = int(values.get("expert_count") or 0)
    return int(values.get("expert_used_count") or 0) / experts if experts else 1.0


def _weight_bytes(values: Mapping[str, Any], tensors: Mapping[str, Any], n_layer: int) -> WeightBytes:
    share, layers = _active_share(values), [0.0] * n_layer
    for name, (_, _, size) in tensors.items():
        found = _LAYER.fullmatch(name)
        if found is not None and int(found[1]) < n_layer:
            layers[int(found[1])] += size * (share if found[2].endswith("_exps") else 1.0)
    output = tensors.get("output.weight") or tensors.get("token_embd.weight") or ((), "", 0)
    return WeightBytes(tuple(round(size) for size in layers), output[2])


def _decoder(model: str, values: Mapping[str, Any], shapes: Shapes, n_layer: int) -> Decoder:
    width = values.get("embedding_length")
    if not isinstance(width, int):
        raise ModelError(f"{model}: its header has no embedding_length")
    share = _active_share(values)
    attention, ffn, ffn_sizes = [0] * n_layer, [0] * n_layer, [0] * n_layer
    for name, shape in shapes.items():
        found = _LAYER.fullmatch(name)
        if found is None or len(shape) < 2 or int(found[1]) >= n_layer:
            continue
        il, kind = int(found[1]), found[2]
        met = round(prod(shape) * (share if kind.endswith("_exps") else 1.0))
        if kind.startswith("ffn_"):
            ffn[il] += met
        else:
            attention[il] += met
        if kind.startswith("ffn_down"):
            ffn_sizes[il] += round(met / width)
    # what all layers add of a row is made of it in front of the first
    attention[0] += prod(shapes.get("per_layer_model_proj.weight", (0,)))
    n_with_cache = n_layer - int(values.get("attention.shared_kv_layers") or 0)
    heads = [_heads(model, shapes, il, il < n_with_cache) for il in range(n_layer)]
    # a model without an output matrix uses the embeddings' again
    output = shapes.get("output.weight") or shapes.get("token_embd.weight") or (0, 0)
    return Decoder(
        width=width,
        ffn=max(ffn_sizes),
        attention_weights=tuple(attention),
        ffn_weights=tuple(ffn),
        pair_width=tuple(pair for pair, _ in heads),
        kv_width=tuple(kv for _, kv in heads),
        output_weights=prod(output),
        state_bytes=sum(_state_bytes(values, shapes, il) for il in range(n_layer)),
    )


def _state_bytes(values: Mapping[str, Any], shapes: Shapes, il: int) -> int:
    """Of a recurrent layer, in f32: the last rows of its convolution, and what it remembers of all."""
    numbers = 0
    for name in ("ssm_conv1d", "shortconv.conv"):
        channels, taps = shapes.get(f"blk.{il}.{name}.weight", (0, 1))
        numbers += channels * (taps - 1)
    if f"blk.{il}.ssm_out.weight" in shapes:
        numbers += int(values.get("ssm.state_size") or 0) * int(values.get("ssm.inner_size") or 0)
    return 4 * numbers


def _heads(model: str, shapes: Shapes, il: int, has_cache: bool) -> tuple[int, int]:
    """A layer's pair_width and kv_width (see Decoder), from its matrices: headers leave out or vary head sizes."""

    def rows(name: str, otherwise: int) -> int:
        return shapes.get(f"blk.{il}.{name}.weight", (otherwise,))[0]

    out = shapes.get(f"blk.{il}.attn_output.weight")
    recurrent = any(f"blk.{il}.{name}.weight" in shapes for name in ("ssm_out", "shortconv.out_proj"))
    if (out is None and not recurrent) or f"blk.{il}.ffn_down.weight" not in shapes | _experts(shapes, il):
        raise UnsupportedModelError(
            f"{model}: layer {il} has no attention or no feed-forward block of the common form: "
            "its cost is not counted here"
        )
    if out is None:  # a state in place of cells
        return 0, 0
    latent = shapes.get(f"blk.{il}.attn_k_b.weight")
    if latent is not None:  # of all heads in one: the keys, whose first part is the values
        heads, rank, kv = latent[0], latent[1], rows("attn_kv_a_mqa", 0)
        return heads * (kv + rank), kv
    queries = rows("attn_q", out[1])
    if queries == 2 * out[1]:  # and their gates
        queries = out[1]
    fused = rows("attn_qkv", 0)
    keys = rows("attn_k", 0)
    kv = fused - queries if fused else keys + rows("attn_v", keys)
    return queries + out[1], kv if has_cache else 0


def _experts(shapes: Shapes, il: int) -> Shapes:
    """The down projection of a layer's experts, under the name that a dense layer has."""
    down = shapes.get(f"blk.{il}.ffn_down_exps.weight")
    return {} if down is None else {f"blk.{il}.ffn_down.weight": down}


def _encoder(mmproj: str, header: dict[str, Any]) -> Encoder:
    metadata, shapes = header["metadata"], _shapes(header["tensors"])
    width = metadata.get("clip.vision.embedding_length")
    size, patch = metadata.get("clip.vision.image_size"), metadata.get("clip.vision.patch_size")
    if not isinstance(width, int) or not isinstance(size, int) or not isinstance(patch, int):
        raise ModelError(f"{mmproj}: its header does not tell the vision encoder's sizes")

    layers: dict[int, int] = {}
    for name, shape in shapes.items():
        found = _LAYER.fullmatch(name.removeprefix("v.")) if name.startswith("v.") else None
        if found is not None and len(shape) == 2:
            layers[int(found[1])] = layers.get(int(found[1]), 0) + prod(shape)
    projector = {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(("mm.", "resampler.", "v.deepstack.")) and len(shape) == 2
    }
    kind = str(metadata.get("clip.projector_type", "mlp"))
    known = _native.encoder_sizes(kind, set(shapes))
    if known is not None:
        fixed, merge_key, merge = known
        given = metadata.get(merge_key)
        merged = (given if isinstance(given, int) and given > 0 else merge) ** 2
    else:
        # a projector that takes several patches side by side is as many times wider
        fixed = kind in ("ldp", "ldpv2")
        widest = max((shape[1] for shape in projector.values()), default=width)
        first = next(iter(projector.values()), (width, width))
        merged = max(1, first[1] // width) if first[1] % width == 0 else max(1, widest // width)
    return Encoder(
        width=width,
        layer_weights=tuple(layers[il] for il in sorted(layers)),
        patch_weights=sum(prod(s) for n, s in shapes.items() if n.startswith("v.patch_embd.weight")),
        projector_weights=sum(prod(shape) for shape in projector.values()),
        patches=(size // patch) ** 2 if fixed else None,
        merged=merged,
        cls="v.class_embd" in shapes,
    )

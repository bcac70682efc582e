"""Which tensors of an mmproj change when it is quantized, told by its header alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import _native

__all__ = ["BLOCK", "FLOATS", "Plan", "make_plan", "matrices"]

BLOCK: Mapping[str, int] = {
    **dict.fromkeys(("f32", "f16", "bf16"), 1),
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"), 32),
}
"""Numbers of a row that are quantized together."""
FLOATS = ("f32", "f16", "bf16")

_FFN = re.compile(r"(v\.blk\.\d+\.)ffn_down\.weight")
_WIDTH, _FFN_WIDTH = "clip.vision.embedding_length", "clip.vision.feed_forward_length"


class Target(NamedTuple):
    """What becomes of a tensor: more columns and rows than it had are zeros."""

    type: str
    columns: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """What :func:`pyfastv._native.rewrite_gguf` is told."""

    tensors: Mapping[str, Target]
    """Those that change, by name."""
    keys: Mapping[str, int]
    """Metadata that changes with them."""
    matrices: tuple[str, ...]
    """Of ``tensors`` the names of the matrices; the others are biases that grew with one."""


def matrices(header: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """By name (type, columns, rows) of what can be quantized. ``header``: of :func:`pyfastv._native.gguf_header`.

    Only what is multiplied with, as the encoder's row in native/vision/encoders.cpp says. Others are convolutions, tables
    whose rows are read, or, as Gemma's mm.input_projection, transposed first: ggml cannot do that with quantized ones.
    """
    metadata, tensors = header["metadata"], header["tensors"]
    projector = str(metadata.get("clip.projector_type") or metadata.get("clip.vision.projector_type"))
    multiplied = set(_native.encoder_matrices(projector, set(tensors)))
    return {
        name: (kind, shape[1], shape[0])
        for name, (shape, kind, _) in tensors.items()
        if len(shape) == 2 and name in multiplied
    }


def make_plan(header: Mapping[str, Any], type: str, multiple: int | None = None) -> Plan:
    """The matrices as ``type``; f16 where their rows are no whole number of blocks.

    The rows of ``ffn_down`` are as long as the feed-forward blocks are wide inside: 4304 in SigLIP-400M, 3420 in
    Qwen2.5-VL. These widths grow to a ``multiple`` (None: of the type's block): rows of zeros in ``ffn_up`` and
    ``ffn_gate`` and zeros in their biases, columns of zeros in ``ffn_down``. Nothing changes in the sums, since every
    activation of clip_graph::build_ffn makes 0 of 0.
    """
    found = matrices(header)
    grown: dict[str, Target] = {}
    keys: dict[str, int] = {}
    for old, new, tensors in _widths(header, found, multiple or BLOCK[type]):
        grown |= tensors
        if header["metadata"].get(_FFN_WIDTH) == old:
            keys[_FFN_WIDTH] = new
    targets: dict[str, Target] = {}
    for name, (_, columns, rows) in found.items():
        _, columns, rows = grown.pop(name, Target("", columns, rows))
        targets[name] = Target(type if columns % BLOCK[type] == 0 else "f16", columns, rows)
    return Plan({**targets, **grown}, keys, tuple(targets))


def _widths(
    header: Mapping[str, Any], found: Mapping[str, tuple[str, int, int]], multiple: int
) -> Iterator[tuple[int, int, dict[str, Target]]]:
    """Of every block whose width grows (old width, new width, the tensors that grow)."""
    width = header["metadata"].get(_WIDTH)
    for down in filter(_FFN.fullmatch, found):
        block = down.removesuffix("ffn_down.weight")
        up = f"{block}ffn_up.weight"
        if up not in found:
            continue
        # older files have the names the wrong way round; llama.cpp tells by the columns of ffn_down
        if found[down][1] == width:
            down, up = up, down
        old = found[down][1]
        new = -(-old // multiple) * multiple
        if old == new or found[down][2] != width or width in (old, new):
            continue  # which is which could not be told any more
        first = [name for name in (up, f"{block}ffn_gate.weight") if name in found]
        tensors = {down: Target("", new, width)}
        right = True
        for name in first:
            right &= found[name][1:] == (width, old)
            tensors[name] = Target("", width, new)
            bias = name.removesuffix("weight") + "bias"
            if bias in header["tensors"]:
                shape, kind, _ = header["tensors"][bias]
                right &= shape == (old,) and kind in FLOATS
                tensors[bias] = Target(kind, new, 1)
        if right:
            yield old, new, tensors

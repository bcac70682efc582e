"""What a prompt costs in theory: multiply-adds, and bytes of KV cache, layer by layer.

One multiply-add counts as one FLOP, as in FastV's paper. Two counts:

:func:`paper_flops` is the paper's (Chen et al., ECCV 2024, arXiv 2403.06764, section 4.2), 4nd^2 + 2n^2d + 2ndm for a
layer of n rows: no grouped-query attention, two feed-forward matrices, every pair of rows attended to.

:func:`flops` is what llama.cpp's CPU backend computes, as closely as a formula can say it: every row of a layer meets
every weight matrix that the file has for it (three feed-forward matrices in llama, narrower keys and values with
grouped-query attention, of a mixture of experts the active ones); attention visits the causal half of the pairs, because
the flash attention kernel skips tiles that are masked as a whole; the last layer runs its feed-forward block, and the
output matrix, for one row. Not counted: norms, activations, rotary positions, scoring and choosing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import _native
from .schedule import Schedule

__all__ = [
    "Decoder",
    "Encoder",
    "flops",
    "kept_tokens",
    "kv_bytes",
    "paper_flops",
    "rows_by_layer",
    "visual_by_layer",
    "weight_flops",
]


@dataclass(frozen=True)
class Decoder:
    """Sizes of a language model. Weights count elements that one row meets, of experts the active ones."""

    width: int
    """Of the embeddings, the paper's d."""
    ffn: int
    """Of the feed-forward block, the paper's m; of a mixture of experts that of all active ones together."""
    attention_weights: tuple[int, ...]
    """Each layer's matrices outside of the feed-forward block."""
    ffn_weights: tuple[int, ...]
    """Each layer's matrices of the feed-forward block."""
    pair_width: tuple[int, ...]
    """Multiply-adds for one pair of a query row and a cell, all heads together: Q.K and P.V."""
    kv_width: tuple[int, ...]
    """Values that one token has in each layer's KV cache, keys and values together."""
    output_weights: int
    """The output matrix."""

    @property
    def n_layer(self) -> int:
        """Layers."""
        return len(self.attention_weights)

    @staticmethod
    def llama(layers: int, width: int, kv_width: int, ffn: int, vocab: int) -> Decoder:
        """A llama-type decoder. ``kv_width``: of the keys, and of the values."""
        return Decoder(
            width=width,
            ffn=ffn,
            attention_weights=(2 * width * width + 2 * width * kv_width,) * layers,
            ffn_weights=(3 * width * ffn,) * layers,
            pair_width=(2 * width,) * layers,
            kv_width=(2 * kv_width,) * layers,
            output_weights=width * vocab,
        )


@dataclass(frozen=True)
class Encoder:
    """Sizes of a vision encoder with its projector."""

    width: int
    layer_weights: tuple[int, ...]
    """Each layer's matrices."""
    patch_weights: int
    """The matrix that makes a row of a patch."""
    projector_weights: int
    """The projector's matrices; they run once for each visual token."""
    patches: int | None
    """Of a picture; None: depends on it."""
    merged: int
    """Patches that become one visual token."""
    cls: bool
    """One row more than patches."""

    def flops(self, n_visual: int, n_slices: int = 1) -> int:
        """Multiply-adds for one picture of ``n_visual`` tokens in equal slices, each of which attends to itself."""
        patches = n_visual // n_slices * self.merged if self.patches is None else self.patches
        rows = patches + self.cls
        # not causal: all pairs, Q.K and P.V
        attention = 2 * rows * rows * self.width * len(self.layer_weights)
        of_slice = patches * self.patch_weights + rows * sum(self.layer_weights) + attention
        return n_slices * of_slice + n_visual * self.projector_weights


def kept_tokens(n_visual: int, drop: float) -> int:
    """Visual tokens of a picture that stay: n*(1-drop), halves to even, at least one unless drop is 1."""
    return 0 if drop == 1.0 else max(1, round(n_visual * (1 - drop)))


def visual_by_layer(schedule: Schedule | None, n_layer: int, pictures: Sequence[int]) -> list[int]:
    """Visual tokens that each layer sees, of ``pictures`` with so many tokens each.

    For ``pick=mass``, whose count depends on the picture, the fewest. Raises OptionError for cuts that a model of
    ``n_layer`` layers cannot have."""
    counts = [sum(pictures)] * n_layer
    if schedule is None:
        return counts
    # layers given as shares are resolved as the native code does it
    resolved = re.findall(r"\bk=(\d+)", _native.check_schedule(schedule.spec(), n_layer))
    for cut, layer in zip(schedule.cuts, resolved, strict=True):
        first = int(layer)
        counts[first:] = [sum(kept_tokens(n, cut.drop) for n in pictures)] * (n_layer - first)
    return counts


def rows_by_layer(schedule: Schedule | None, n_layer: int, pictures: Sequence[int], n_text: int) -> list[int]:
    """Rows of a prompt in each layer: see :func:`visual_by_layer`."""
    return [n_text + n for n in visual_by_layer(schedule, n_layer, pictures)]


def paper_flops(decoder: Decoder, rows: Sequence[int]) -> int:
    """The paper's formula, for rows of each layer."""
    d, m = decoder.width, decoder.ffn
    return sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in rows)


def weight_flops(decoder: Decoder, rows: Sequence[int]) -> int:
    """Of the weight matrices alone, each layer whole for all of its rows, and one row of the output matrix."""
    per_row = zip(rows, decoder.attention_weights, decoder.ffn_weights, strict=True)
    return sum(n * (a + f) for n, a, f in per_row) + decoder.output_weights


def layer_flops(decoder: Decoder, layer: int, n: int) -> int:
    """Of one layer with ``n`` rows, in a prompt without a past."""
    ffn_rows = 1 if layer == decoder.n_layer - 1 else n
    pairs = n * (n + 1) // 2
    return (
        n * decoder.attention_weights[layer]
        + ffn_rows * decoder.ffn_weights[layer]
        + pairs * decoder.pair_width[layer]
    )


def flops(decoder: Decoder, rows: Sequence[int]) -> int:
    """The count of what is computed, for rows of each layer."""
    return sum(layer_flops(decoder, il, n) for il, n in enumerate(rows)) + decoder.output_weights


def kv_bytes(decoder: Decoder, rows: Sequence[int], value_bytes: float = 2.0) -> int:
    """KV cache that holds these rows; ``value_bytes``: of one value, 2 in f16."""
    return round(sum(n * width for n, width in zip(rows, decoder.kv_width, strict=True)) * value_bytes)

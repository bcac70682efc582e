"""What a prompt costs in theory: multiply-adds, and bytes of KV cache, layer by layer.

One multiply-add counts as one FLOP, as in FastV's paper. Two counts:

:func:`paper_flops` is the paper's (Chen et al., ECCV 2024, arXiv 2403.06764, section 4.2), 4nd^2 + 2n^2d + 2ndm for a
layer of n rows: no grouped-query attention, two feed-forward matrices, every pair of rows attended to.

:func:`flops` is what llama.cpp's CPU backend computes, as closely as a formula can say it: every row of a layer meets
every weight matrix that the file has for it (three feed-forward matrices in llama, narrower keys and values with
grouped-query attention, of a mixture of experts the active ones); attention visits the causal half of the pairs, because
the flash attention kernel skips tiles that are masked as a whole; the last layer runs its feed-forward block, and the
output matrix, for one row. Recurrent layers have matrices, and no pairs. Not counted: norms, activations, rotary
positions, what a row does to a state, scoring and choosing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from . import _native
from .errors import OptionError
from .settings.schedule import Schedule
from .settings.setting import Setting
from .settings.turbo import Turbo

__all__ = [
    "Decoder",
    "Encoder",
    "entering_tokens",
    "flops",
    "kept_tokens",
    "kv_bytes",
    "paper_flops",
    "patches_by_block",
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
    state_bytes: int = 0
    """What all recurrent layers together keep of a sequence, however long it is."""

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
    needs_grid: bool = False
    """Patches are put side by side behind the blocks: where Turbo has merged, each has a row again."""

    def restores(self, turbo: Turbo) -> bool:
        """Does every patch have a row again behind the blocks, so that there are as many tokens as without?"""
        return self.needs_grid or bool(turbo.restore)

    def flops(self, n_visual: int, n_slices: int = 1, turbo: Turbo | None = None) -> int:
        """Multiply-adds for one picture of ``n_visual`` tokens in equal slices, each of which attends to itself.

        With ``turbo`` a block's attention runs on the rows before it merges, what is behind it on those that are left;
        finding who merges is not counted. Raises OptionError for blocks that the encoder does not have."""
        patches = n_visual // n_slices * self.merged if self.patches is None else self.patches
        left = patches_by_block(turbo, len(self.layer_weights), patches)
        of_slice = patches * self.patch_weights
        for weights, n, after in zip(self.layer_weights, left[:-1], left[1:], strict=True):
            of_attention = min(weights, 4 * self.width * self.width)
            # not causal: all pairs, Q.K and P.V
            of_slice += (n + self.cls) * of_attention + 2 * (n + self.cls) ** 2 * self.width
            of_slice += (after + self.cls) * (weights - of_attention)
        if turbo is None or self.restores(turbo):
            return n_slices * of_slice + n_visual * self.projector_weights
        return n_slices * of_slice + n_visual * left[-1] // patches * self.projector_weights


def patches_by_block(turbo: Turbo | None, n_blocks: int, n_patches: int) -> list[int]:
    """Patches of a slice that enter each block of an encoder, and, the last, that leave it. Raises OptionError for blocks
    that it does not have."""
    if turbo is None:
        return [n_patches] * (n_blocks + 1)
    first, last = turbo.layers or (0, max(0, (n_blocks + 1) // 2 - 1))
    if turbo.once:
        first = last = n_blocks - 1
    if last >= n_blocks:
        raise OptionError(
            f"turbo: layers={first}-{last}: this encoder has {n_blocks} blocks, the last is {n_blocks - 1}"
        )
    length = last - first + 1
    wanted = round(n_patches * turbo.share) if turbo.share is not None else (turbo.r or 0) * length
    total = min(wanted, n_patches - 1)
    merging = [min(max(0, block - first), length) for block in range(n_blocks + 1)]
    return [n_patches - total * blocks // length for blocks in merging]


def entering_tokens(setting: Setting, encoder: Encoder | None, n_visual: int) -> int:
    """Of a picture's ``n_visual`` tokens those that Turbo and the reducer leave for the language model.

    Where shapes count (pool), a square number of tokens is a square, any other one row. Raises OptionError, for skip
    always."""
    if setting.skip is not None:
        raise OptionError("skip: how much is left out depends on the picture, and there is none: measure it")
    left, merged = n_visual, False
    if setting.turbo is not None:
        if encoder is None:
            raise OptionError("turbo merges in a vision encoder, and there is none: pass an mmproj")
        after = patches_by_block(setting.turbo, len(encoder.layer_weights), n_visual)[-1]
        merged = not encoder.restores(setting.turbo)
        left = after if merged else n_visual
    if setting.reduce is None:
        return left
    side = isqrt(left)
    grid = (side, side) if not merged and side * side == left else (left, 1)
    return _native.count_reduced(setting.reduce.spec(), [grid])


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
    """KV cache that holds these rows, with the states of recurrent layers; ``value_bytes``: of one value, 2 in f16."""
    cells = round(sum(n * width for n, width in zip(rows, decoder.kv_width, strict=True)) * value_bytes)
    return cells + decoder.state_bytes

"""How much faster FastV can make the prefill: ratios of the counts in pyfastv/theory.py.

Two readings of "theory". `weights`: the weight matrices alone, every layer whole for all of its rows. This is the
theoretical ratio of the README: 1.30, 1.84, 3.19 for drop 0.25, 0.5, 0.75 at K=2 on LLaVA-1.5-7B with 576 visual and 14
text tokens. `all`: what llama.cpp's CPU backend computes, attention included, less what it leaves out of the last layer.
Pruning saves more than its share of the n^2 terms, and nothing of the last layer's missing part; for the prompt above the
ratios become 1.30, 1.85, 3.20.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pyfastv import theory
from pyfastv.theory import Decoder, kept_tokens

if TYPE_CHECKING:
    from client import Setting

__all__ = ["Sizes", "kept_tokens", "theoretical_ratios"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a llama-type decoder."""

    layers: int
    width: int  # d, also of the queries
    kv_width: int  # d_kv, of keys and of values
    ffn: int  # m
    vocab: int


def rows_by_layer(sizes: Sizes, n_visual: int, n_text: int, setting: Setting) -> list[int]:
    """Rows of the prompt in each layer."""
    if setting is None:
        return [n_visual + n_text] * sizes.layers
    k, drop, _ = setting
    return [n_visual + n_text] * k + [kept_tokens(n_visual, drop) + n_text] * (sizes.layers - k)


def theoretical_ratios(sizes: Sizes, n_visual: int, n_text: int, setting: Setting) -> dict[str, float]:
    """Stock's multiply-adds over those of the setting, for both counts."""
    decoder = Decoder.llama(**asdict(sizes))
    stock = rows_by_layer(sizes, n_visual, n_text, None)
    ours = rows_by_layer(sizes, n_visual, n_text, setting)
    return {
        "weights": theory.weight_flops(decoder, stock) / theory.weight_flops(decoder, ours),
        "all": theory.flops(decoder, stock) / theory.flops(decoder, ours),
    }

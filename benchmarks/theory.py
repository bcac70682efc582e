"""How much faster FastV can make the prefill: counts of multiply-adds.

Two counts, for two readings of "theory".

`weights`: what the weight matrices cost when every layer runs on every row that it holds: per row and layer
2*d*d (Q, output) + 2*d*d_kv (K, V) + 3*d*m (gate, up, down), plus one row of the output matrix. Attention's
n^2 terms are left out. This is the theoretical ratio of the README: 1.30, 1.84, 3.19 for drop 0.25, 0.5, 0.75
at K=2 on LLaVA-1.5-7B with 576 visual and 14 text tokens.

`all`: what llama.cpp's CPU backend computes, as closely as a formula can say it. It adds attention, 2*d per
query row and visible cell (Q.K and P.V): n*(n+1)/2 pairs in a layer of n rows, the causal half, because the
flash attention kernel skips tiles that are masked as a whole. And it takes away what llama.cpp does not
compute: the last layer runs its attention block for every row, but its feed-forward block only for the row
whose logits are asked for. Pruning saves more than its share of the n^2 terms, and nothing of the last
layer's missing part; for the prompt above the ratios become 1.30, 1.85, 3.20.
"""

from __future__ import annotations

from dataclasses import dataclass

from client import Setting


@dataclass(frozen=True)
class Sizes:
    """Sizes of a llama-type decoder."""

    layers: int
    width: int  # d, also of the queries
    kv_width: int  # d_kv, of keys and of values
    ffn: int  # m
    vocab: int


def kept_tokens(n_visual: int, drop: float) -> int:
    """Visual tokens that FastV keeps: n*(1-drop), halves to even, at least one."""
    return max(1, round(n_visual * (1 - drop)))


def rows_by_layer(sizes: Sizes, n_visual: int, n_text: int, setting: Setting) -> list[int]:
    """Rows of the prompt in each layer."""
    if setting is None:
        return [n_visual + n_text] * sizes.layers
    k, drop, _ = setting
    return [n_visual + n_text] * k + [kept_tokens(n_visual, drop) + n_text] * (sizes.layers - k)


def multiply_adds_weights(sizes: Sizes, rows: list[int]) -> int:
    """Of the weight matrices alone: see `weights` above."""
    d, d_kv, m = sizes.width, sizes.kv_width, sizes.ffn
    return sum(rows) * (2 * d * d + 2 * d * d_kv + 3 * d * m) + d * sizes.vocab


def multiply_adds_all(sizes: Sizes, rows: list[int]) -> int:
    """Everything that llama.cpp's CPU backend multiplies: see `all` above."""
    attention = sum(n * (n + 1) // 2 for n in rows) * 2 * sizes.width
    last_layer_ffn = (rows[-1] - 1) * 3 * sizes.width * sizes.ffn
    return multiply_adds_weights(sizes, rows) + attention - last_layer_ffn


def theoretical_ratios(
    sizes: Sizes, n_visual: int, n_text: int, setting: tuple[int, float] | None
) -> dict[str, float]:
    """Stock's multiply-adds over those of the setting, for both counts."""
    stock = rows_by_layer(sizes, n_visual, n_text, None)
    ours = rows_by_layer(sizes, n_visual, n_text, setting)
    return {
        "weights": multiply_adds_weights(sizes, stock) / multiply_adds_weights(sizes, ours),
        "all": multiply_adds_all(sizes, stock) / multiply_adds_all(sizes, ours),
    }

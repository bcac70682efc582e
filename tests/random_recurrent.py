"""Recurrent layers for random_gguf: gated delta nets (qwen35), short convolutions (lfm2), Mamba-2 (granitehybrid)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from random_gguf import Extra, Weights

STATE, KEY_HEADS, VALUE_HEADS, KERNEL = 32, 2, 4, 4  # of gated delta nets; every key is of two values
MAMBA_STATE, MAMBA_HEADS = 16, 8

DELTA_NET: Extra = {
    "full_attention_interval": 4,
    "rope.dimension_count": 32,
    "ssm.conv_kernel": KERNEL,
    "ssm.inner_size": VALUE_HEADS * STATE,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": VALUE_HEADS,
    "ssm.group_count": KEY_HEADS,
}
SHORT_CONVOLUTION: Extra = {"shortconv.l_cache": 3, "rope.freq_base": 1e6}


def mamba(width: int) -> Extra:
    return {
        "ssm.conv_kernel": KERNEL,
        "ssm.inner_size": 2 * width,
        "ssm.state_size": MAMBA_STATE,
        "ssm.time_step_rank": MAMBA_HEADS,
        "ssm.group_count": 1,
    }


def add_layer(weights: Weights, block: str, arch: str, width: int) -> None:
    """In place of attention."""
    if arch.startswith("lfm2"):
        _add_short_convolution(weights, f"{block}.shortconv", width)
    elif arch == "granitehybrid":
        _add_mamba(weights, block, width)
    else:
        _add_delta_net(weights, block, arch, width)


def _add_delta_net(weights: Weights, block: str, arch: str, width: int) -> None:
    keys, values = KEY_HEADS * STATE, VALUE_HEADS * STATE
    weights.matrix(f"{block}.attn_qkv", 2 * keys + values, width)
    weights.matrix(f"{block}.attn_gate", values, width)
    weights.matrix(f"{block}.ssm_conv1d", 2 * keys + values, KERNEL)
    weights.bias(f"{block}.ssm_dt", VALUE_HEADS)
    weights.add(f"{block}.ssm_a", -np.exp(weights.normal(VALUE_HEADS) - 3))  # slow: it remembers a picture
    if arch == "qwen3next":
        weights.matrix(f"{block}.ssm_ba", 2 * VALUE_HEADS, width)
    else:
        weights.matrix(f"{block}.ssm_beta", VALUE_HEADS, width)
        weights.matrix(f"{block}.ssm_alpha", VALUE_HEADS, width)
    weights.norm(f"{block}.ssm_norm", STATE)
    weights.matrix(f"{block}.ssm_out", width, values)


def _add_short_convolution(weights: Weights, block: str, width: int) -> None:
    weights.add(f"{block}.conv.weight", weights.normal(width, 3))
    weights.matrix(f"{block}.in_proj", 3 * width, width)
    weights.matrix(f"{block}.out_proj", width, width)


def _add_mamba(weights: Weights, block: str, width: int) -> None:
    inner = 2 * width
    channels = inner + 2 * MAMBA_STATE
    weights.matrix(f"{block}.ssm_in", inner + channels + MAMBA_HEADS, width)
    weights.matrix(f"{block}.ssm_conv1d", channels, KERNEL)
    weights.bias(f"{block}.ssm_conv1d", channels)
    weights.bias(f"{block}.ssm_dt", MAMBA_HEADS)
    weights.add(f"{block}.ssm_a", -np.exp(weights.normal(MAMBA_HEADS, 1) - 3))
    weights.add(f"{block}.ssm_d", weights.normal(MAMBA_HEADS, 1))
    weights.add(f"{block}.ssm_norm.weight", 1 + 0.1 * weights.normal(1, inner))
    weights.matrix(f"{block}.ssm_out", width, inner)

"""The tensors of layers that are not llama's: gated delta nets, short convolutions, Gemma 4's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Type

from .shapes import Decoder, DeltaNet, Gemma4
from .weights import size_in_bytes, type_for_rows

__all__ = ["Matrices", "Tensor", "delta_net", "gemma4_inputs", "gemma4_layer", "norm", "short_convolution"]

_DECAY = -0.05  # of a delta net's state, a row: it remembers a picture


@dataclass(frozen=True)
class Tensor:
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    """In numpy's order, rows last."""
    type: Type = Type.F32
    std: float | None = None
    """Standard deviation; None: constant ``value``."""
    value: float = 0.0

    @property
    def n_bytes(self) -> int:
        return size_in_bytes(self.shape, self.type)


@dataclass(frozen=True)
class Matrices:
    """Random matrices of a type, or of the next that their rows divide into. They keep unit inputs at unit size."""

    type: Type

    def __call__(
        self, name: str, n_out: int, n_in: int, scale: float = 1.0, of: Type | None = None
    ) -> Tensor:
        return Tensor(
            f"{name}.weight", (n_out, n_in), type_for_rows(of or self.type, n_in), n_in**-0.5 * scale
        )

    def experts(self, name: str, count: int, n_out: int, n_in: int, scale: float = 1.0) -> Tensor:
        return Tensor(
            f"{name}.weight", (count, n_out, n_in), type_for_rows(self.type, n_in), n_in**-0.5 * scale
        )


def norm(name: str, width: int, value: float = 1.0) -> Tensor:
    """An RMS norm's factors."""
    return Tensor(f"{name}.weight", (width,), value=value)


def delta_net(block: str, width: int, net: DeltaNet, matrix: Matrices, residual: float) -> Iterator[Tensor]:
    """In place of attention. ``residual``: size of what is added to the stream."""
    keys, values = net.key_heads * net.size, net.value_heads * net.size
    yield matrix(f"{block}.attn_qkv", 2 * keys + values, width)
    yield matrix(f"{block}.attn_gate", values, width)
    yield Tensor(f"{block}.ssm_conv1d.weight", (2 * keys + values, net.taps), std=net.taps**-0.5)
    yield Tensor(f"{block}.ssm_dt.bias", (net.value_heads,))
    yield Tensor(f"{block}.ssm_a", (net.value_heads,), value=_DECAY)
    yield matrix(f"{block}.ssm_beta", net.value_heads, width)
    yield matrix(f"{block}.ssm_alpha", net.value_heads, width)
    yield norm(f"{block}.ssm_norm", net.size)
    yield matrix(f"{block}.ssm_out", width, values, residual)


def short_convolution(
    block: str, width: int, taps: int, matrix: Matrices, residual: float
) -> Iterator[Tensor]:
    """In place of attention."""
    yield Tensor(f"{block}.shortconv.conv.weight", (width, taps), std=taps**-0.5)
    yield matrix(f"{block}.shortconv.in_proj", 3 * width, width)
    yield matrix(f"{block}.shortconv.out_proj", width, width, residual)


def gemma4_inputs(d: Decoder, g: Gemma4, matrix: Matrices) -> Iterator[Tensor]:
    """Beside the token embeddings."""
    yield norm("rope_freqs", d.head // 2)
    if g.per_layer:
        yield matrix("per_layer_token_embd", d.vocab, g.per_layer * d.layers)
        yield matrix("per_layer_model_proj", g.per_layer * d.layers, d.width, of=Type.F16)
        yield norm("per_layer_proj_norm", g.per_layer)


def gemma4_layer(d: Decoder, g: Gemma4, il: int, matrix: Matrices, std_residual: float) -> Iterator[Tensor]:
    """A layer: norms behind attention and feed-forward make the size of what these add."""
    block = f"blk.{il}"
    head, kv_heads, ffn = d.head_in(il), d.kv_heads_in(il), d.ffn_in(il)
    yield norm(f"{block}.attn_norm", d.width)
    yield matrix(f"{block}.attn_q", d.heads * head, d.width)
    yield norm(f"{block}.attn_q_norm", head, head**-0.5)  # products are not scaled
    if d.has_cache(il):
        yield matrix(f"{block}.attn_k", kv_heads * head, d.width)
        yield norm(f"{block}.attn_k_norm", head)
        if g.values or not d.sees_all(il):
            yield matrix(f"{block}.attn_v", kv_heads * head, d.width)
    yield matrix(f"{block}.attn_output", d.width, d.heads * head)
    yield norm(f"{block}.post_attention_norm", d.width, std_residual)
    yield norm(f"{block}.ffn_norm", d.width)
    for name in ("ffn_gate", "ffn_up"):
        yield matrix(f"{block}.{name}", ffn, d.width)
    yield matrix(f"{block}.ffn_down", d.width, ffn)
    yield norm(f"{block}.post_ffw_norm", d.width, std_residual)
    yield norm(f"{block}.layer_output_scale", 1)
    if g.experts is not None:
        e = g.experts
        yield Tensor(f"{block}.ffn_gate_inp.weight", (e.count, d.width), std=d.width**-0.5)
        yield Tensor(f"{block}.ffn_gate_inp.scale", (d.width,), value=d.width**0.5)
        for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            yield norm(f"{block}.{name}", d.width)
        yield matrix.experts(f"{block}.ffn_gate_up_exps", e.count, 2 * e.ffn, d.width)
        yield matrix.experts(f"{block}.ffn_down_exps", e.count, d.width, e.ffn)
    if g.per_layer:
        yield matrix(f"{block}.inp_gate", g.per_layer, d.width)
        yield matrix(f"{block}.proj", d.width, g.per_layer)
        yield norm(f"{block}.post_norm", d.width, std_residual)

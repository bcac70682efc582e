"""The tensors of a geometry's two files: names, shapes, types, and how large their values are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Type

from .sizes import Decoder, Encoder
from .weights import size_in_bytes, type_for_rows

__all__ = ["Tensor", "language_tensors", "vision_tensors"]


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


def language_tensors(d: Decoder, type_: Type) -> Iterator[Tensor]:
    """Of the language model. Every matrix has the type ``type_``, except the output matrix, which is Q6_K for types of 4
    and 5 bits, and those whose rows do not divide into its blocks: as llama-quantize does it. Norms are ones, in f32.

    Matrices keep unit inputs at unit size; what is added to the residual is smaller by sqrt(2 layers).
    """
    std_residual = (2 * d.layers) ** -0.5
    output_type = type_ if type_ in (Type.F16, Type.Q8_0) else Type.Q6_K

    def matrix(name: str, n_out: int, n_in: int, scale: float = 1.0, of: Type = type_) -> Tensor:
        return Tensor(f"{name}.weight", (n_out, n_in), type_for_rows(of, n_in), n_in**-0.5 * scale)

    yield matrix("token_embd", d.vocab, d.width, of=output_type if d.tied else type_)
    yield Tensor("output_norm.weight", (d.width,), value=1.0)
    if not d.tied:
        yield matrix("output", d.vocab, d.width, of=output_type)
    q_width, kv_width = d.heads * d.head, d.kv_heads * d.head
    # a norm behind a block makes its output's size
    residual = 1.0 if d.post_norms else std_residual
    for i in range(d.layers):
        block = f"blk.{i}"
        yield Tensor(f"{block}.attn_norm.weight", (d.width,), value=1.0)
        for name, n_out in (("attn_q", q_width), ("attn_k", kv_width), ("attn_v", kv_width)):
            yield matrix(f"{block}.{name}", n_out, d.width)
            if d.qkv_bias:
                yield Tensor(f"{block}.{name}.bias", (n_out,))
        if d.qk_norm:
            for name in ("attn_q_norm", "attn_k_norm"):
                yield Tensor(f"{block}.{name}.weight", (d.head,), value=1.0)
        yield matrix(f"{block}.attn_output", d.width, q_width, residual)
        yield Tensor(f"{block}.ffn_norm.weight", (d.width,), value=1.0)
        for name in ("ffn_gate", "ffn_up"):
            yield matrix(f"{block}.{name}", d.ffn, d.width)
        yield matrix(f"{block}.ffn_down", d.width, d.ffn, residual)
        if d.post_norms:
            for name in ("post_attention_norm", "post_ffw_norm"):
                yield Tensor(f"{block}.{name}.weight", (d.width,), value=std_residual)


def vision_tensors(e: Encoder, width: int, cls: bool) -> Iterator[Tensor]:
    """Of the vision encoder and the projector to ``width``; matrices in f16, the rest in f32. ``cls``: with the CLS
    embedding that LLaVA's files have; llama.cpp wants that of the others."""
    std_residual = (2 * e.layers) ** -0.5
    std_patch = (3 * e.patch**2) ** -0.5
    for i in range(e.frames):
        name = "v.patch_embd.weight" + (f".{i}" if i else "")
        yield Tensor(name, (e.width, 3, e.patch, e.patch), Type.F16, std_patch)
    if e.patch_bias:
        yield Tensor("v.patch_embd.bias", (e.width,))
    with_cls = e.cls and (cls or e.projector != "mlp")
    if with_cls:
        yield Tensor("v.class_embd", (e.width,), std=1.0)
    if e.places:
        yield Tensor("v.position_embd.weight", ((e.image // e.patch) ** 2 + with_cls, e.width), std=1.0)
    if e.outer_norm:
        yield from _norm(e.outer_norm, e.width, e.rms)
    for i in range(e.layers):
        block = f"v.blk.{i}"
        yield from _norm(f"{block}.ln1", e.width, e.rms)
        if e.fused:
            yield from _linear(f"{block}.attn_qkv", 3 * e.width, e.width)
        else:
            for name in ("attn_q", "attn_k", "attn_v"):
                yield from _linear(f"{block}.{name}", e.width, e.width)
        yield from _linear(f"{block}.attn_out", e.width, e.width, std_residual)
        yield from _norm(f"{block}.ln2", e.width, e.rms)
        if e.gated:
            yield from _linear(f"{block}.ffn_gate", e.ffn, e.width)
        yield from _linear(f"{block}.ffn_up", e.ffn, e.width)
        yield from _linear(f"{block}.ffn_down", e.width, e.ffn, std_residual)
        if e.layer_scale:
            for name in ("ls1", "ls2"):
                yield Tensor(f"{block}.{name}.weight", (e.width,), value=1.0)
    yield from _projector_tensors(e, width)


def _projector_tensors(e: Encoder, width: int) -> Iterator[Tensor]:
    merged = e.width * e.merge**2
    if e.projector == "idefics3":
        yield Tensor("mm.model.fc.weight", (width, merged), Type.F16, merged**-0.5)
    elif e.projector == "gemma3":  # of pooled patches; the matrix is transposed
        yield Tensor("mm.input_projection.weight", (e.width, width), Type.F16, e.width**-0.5)
        yield from _norm("mm.soft_emb_norm", e.width, rms=True)
    elif e.projector == "internvl":
        yield from _norm("mm.model.mlp.0", merged)
        yield from _linear("mm.model.mlp.1", width, merged)
        yield from _linear("mm.model.mlp.3", width, width)
    else:
        hidden = width if e.projector == "mlp" else merged
        yield from _linear("mm.0", hidden, merged)
        yield from _linear("mm.2", width, hidden)
    for i in e.deepstack:
        yield from _norm(f"v.deepstack.{i}.norm", merged)
        yield from _linear(f"v.deepstack.{i}.fc1", merged, merged)
        yield from _linear(f"v.deepstack.{i}.fc2", width, merged)


def _linear(name: str, n_out: int, n_in: int, scale: float = 1.0) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (n_out, n_in), Type.F16, n_in**-0.5 * scale)
    yield Tensor(f"{name}.bias", (n_out,))


def _norm(name: str, width: int, rms: bool = False) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (width,), value=1.0)
    if not rms:
        yield Tensor(f"{name}.bias", (width,))

"""The tensors of a geometry's two files: names, shapes, types, and how large their values are."""

from __future__ import annotations

from collections.abc import Iterator

from gguf import GGMLQuantizationType as Type

from .layers import Matrices, Tensor, delta_net, gemma4_inputs, gemma4_layer, norm, short_convolution
from .shapes import Decoder, Encoder

__all__ = ["Tensor", "language_tensors", "vision_tensors"]


def language_tensors(d: Decoder, type_: Type) -> Iterator[Tensor]:
    """Of the language model. Every matrix has the type ``type_``, except the output matrix, which is Q6_K for types of 4
    and 5 bits, and those whose rows do not divide into its blocks: as llama-quantize does it. Norms are ones, in f32.

    Matrices keep unit inputs at unit size; what is added to the residual is smaller by sqrt(2 layers).
    """
    std_residual = (2 * d.layers) ** -0.5
    output_type = type_ if type_ in (Type.F16, Type.Q8_0) else Type.Q6_K
    matrix = Matrices(type_)

    yield matrix("token_embd", d.vocab, d.width, of=output_type if d.tied else type_)
    yield norm(d.output_norm, d.width)
    if not d.tied:
        yield matrix("output", d.vocab, d.width, of=output_type)
    if d.gemma4 is not None:
        yield from gemma4_inputs(d, d.gemma4, matrix)
        for il in range(d.layers):
            yield from gemma4_layer(d, d.gemma4, il, matrix, std_residual)
        return
    # a norm behind a block makes its output's size
    residual = 1.0 if d.post_norms else std_residual
    for il in range(d.layers):
        block = f"blk.{il}"
        yield norm(f"{block}.attn_norm", d.width)
        if d.attends(il):
            yield from _attention(block, d, matrix, residual)
        elif d.delta_net is not None:
            yield from delta_net(block, d.width, d.delta_net, matrix, residual)
        else:
            yield from short_convolution(block, d.width, d.convolution_taps, matrix, residual)
        yield norm(f"{block}.{d.ffn_norm}", d.width)
        for name in ("ffn_gate", "ffn_up"):
            yield matrix(f"{block}.{name}", d.ffn, d.width)
        yield matrix(f"{block}.ffn_down", d.width, d.ffn, residual)
        if d.post_norms:
            for name in ("post_attention_norm", "post_ffw_norm"):
                yield norm(f"{block}.{name}", d.width, std_residual)


def _attention(block: str, d: Decoder, matrix: Matrices, residual: float) -> Iterator[Tensor]:
    q_width, kv_width = d.heads * d.head, d.kv_heads * d.head
    sizes = (("attn_q", 2 * q_width if d.gated else q_width), ("attn_k", kv_width), ("attn_v", kv_width))
    for name, n_out in sizes:
        yield matrix(f"{block}.{name}", n_out, d.width)
        if d.qkv_bias:
            yield Tensor(f"{block}.{name}.bias", (n_out,))
    if d.qk_norm:
        for name in ("attn_q_norm", "attn_k_norm"):
            yield norm(f"{block}.{name}", d.head)
    yield matrix(f"{block}.attn_output", d.width, q_width, residual)


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
    if e.place_tables:
        yield Tensor("v.position_embd.weight", (2, e.place_tables, e.width), std=1.0)
    if e.outer_norm:
        yield from _norm(e.outer_norm, e.width, e.rms)
    for i in range(e.layers):
        block = f"v.blk.{i}"
        yield from _norm(f"{block}.ln1", e.width, e.rms)
        if e.fused:
            yield from _linear(f"{block}.attn_qkv", 3 * e.width, e.width)
        else:
            for name in ("attn_q", "attn_k", "attn_v"):
                yield from _linear(f"{block}.{name}", e.width, e.width, bias=e.biases)
        if e.qk_norm:
            head = e.width // e.heads
            yield norm(f"{block}.attn_q_norm", head, head**-0.5)  # products are not scaled
            yield norm(f"{block}.attn_k_norm", head)
        yield from _linear(f"{block}.attn_out", e.width, e.width, std_residual, bias=e.biases)
        yield from _norm(f"{block}.ln2", e.width, e.rms)
        if e.gated:
            yield from _linear(f"{block}.ffn_gate", e.ffn, e.width, bias=e.biases)
        yield from _linear(f"{block}.ffn_up", e.ffn, e.width, bias=e.biases)
        yield from _linear(f"{block}.ffn_down", e.width, e.ffn, std_residual, bias=e.biases)
        if e.post_norms:
            for name in ("attn_post_norm", "ffn_post_norm"):
                yield norm(f"{block}.{name}", e.width, std_residual)
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
    elif e.projector == "gemma4v":
        yield Tensor("mm.input_projection.weight", (width, e.width), Type.F16, e.width**-0.5)
    elif e.projector == "lfm2":
        hidden = e.projector_width or merged
        yield from _norm("mm.input_norm", merged)
        yield from _linear("mm.1", hidden, merged)
        yield from _linear("mm.2", width, hidden)
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


def _linear(name: str, n_out: int, n_in: int, scale: float = 1.0, *, bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (n_out, n_in), Type.F16, n_in**-0.5 * scale)
    if bias:
        yield Tensor(f"{name}.bias", (n_out,))


def _norm(name: str, width: int, rms: bool = False) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (width,), value=1.0)
    if not rms:
        yield Tensor(f"{name}.bias", (width,))

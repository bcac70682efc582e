"""Small language models of many architectures, with random F32 weights, as GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

import random_recurrent

WIDTH, FFN, VOCAB, CONTEXT = 128, 256, 512, 1024
PER_LAYER = 16  # size of a token's embedding in each layer, of models that have one

Extra = dict[str, int | np.int32 | float | bool | str | list[int] | list[bool] | list[float]]


@dataclass(frozen=True)
class Kind:
    """What an architecture has that llama's has not."""

    arch: str = ""  # if the name is another
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head: int = 32  # size of one
    tied: bool = False  # no output.weight
    fused_qkv: bool = False
    fused_gate: bool = False  # with up
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False  # behind attention and feed-forward
    experts: int = 0  # instead of a feed-forward layer; a row has two of them, of Q4_0 matrices
    expert_step: int = 1  # every so manieth layer has them
    exact_experts: bool = False  # of F32 matrices
    shared_expert: bool = False  # beside those
    attention: tuple[int, ...] = ()  # the layers that have it, beside recurrent ones; none named: all
    gated: bool = False  # attention, by as many numbers as queries
    ffn_norm: str = "ffn_norm"
    output_norm: str = "output_norm"
    rope_factors: str = ""  # name of a tensor, [head / 2]
    extra: Extra = field(default_factory=dict)  # metadata, keys without the architecture


HEADS_BY_LAYER = ("lfm2", "lfm2moe", "granitehybrid")  # none of keys and values in recurrent layers

# Windows are small, so that prompts of a test are longer than one.
KINDS = {
    "llama": Kind(rope_factors="rope_freqs"),
    "mistral3": Kind(
        heads=6,  # 6*32 is not WIDTH
        extra={"attention.temperature_scale": 0.3, "rope.scaling.original_context_length": 16},
    ),
    "qwen2": Kind(qkv_bias=True),
    "qwen3": Kind(
        head=64, qk_norm=True
    ),  # of size 64: llama.cpp rotates quantized keys and values of such heads
    "phi3": Kind(
        fused_qkv=True,
        fused_gate=True,
        rope_factors="rope_factors_short",
        extra={"rope.scaling.attn_factor": 1.19, "rope.dimension_count": 32},
    ),
    "gemma": Kind(tied=True),
    "gemma2": Kind(  # layers 0, 2 and 4 see a window
        layers=6,
        tied=True,
        post_norms=True,
        extra={
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 2.0,  # small, so that it shows
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": Kind(  # all but layers 5 and 11 see a window
        layers=13,
        tied=True,
        qk_norm=True,
        post_norms=True,
        extra={"attention.sliding_window": 16, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4},
    ),
    "qwen2vl": Kind(qkv_bias=True, extra={"rope.dimension_sections": [5, 4, 4, 3]}),
    "qwen3vl": Kind(
        layers=6,
        qk_norm=True,
        extra={"rope.dimension_sections": [6, 5, 5, 0], "n_deepstack_layers": 2},
    ),
    "qwen3moe": Kind(qk_norm=True, experts=8, extra={"expert_feed_forward_length": FFN}),
    # recurrent layers beside attention
    "qwen35": Kind(
        layers=12,
        qk_norm=True,
        attention=(3, 7, 11),
        gated=True,
        ffn_norm="post_attention_norm",
        extra={**random_recurrent.DELTA_NET, "rope.dimension_sections": [6, 5, 5, 0]},
    ),
    "qwen35moe": Kind(
        layers=8,
        qk_norm=True,
        attention=(3, 7),
        gated=True,
        ffn_norm="post_attention_norm",
        experts=8,
        shared_expert=True,
        extra={
            **random_recurrent.DELTA_NET,
            "rope.dimension_sections": [6, 5, 5, 0],
            "expert_feed_forward_length": FFN,
        },
    ),
    "qwen3next": Kind(
        layers=8,
        qk_norm=True,
        attention=(3, 7),
        gated=True,
        ffn_norm="post_attention_norm",
        experts=8,
        shared_expert=True,
        extra={**random_recurrent.DELTA_NET, "expert_feed_forward_length": FFN},
    ),
    "lfm2": Kind(
        layers=11,
        tied=True,
        qk_norm=True,
        attention=(2, 5, 8, 10),
        output_norm="token_embd_norm",
        extra=random_recurrent.SHORT_CONVOLUTION,
    ),
    "lfm2moe": Kind(
        layers=6,
        tied=True,
        qk_norm=True,
        attention=(2, 5),
        output_norm="token_embd_norm",
        experts=8,
        extra={
            **random_recurrent.SHORT_CONVOLUTION,
            "leading_dense_block_count": 2,
            "expert_feed_forward_length": FFN,
            "expert_gating_func": 2,
        },
    ),
    "granitehybrid": Kind(layers=6, attention=(2, 5), extra=random_recurrent.mamba(WIDTH)),
    "deepseek2": Kind(
        kv_heads=1,
        head=48,  # of the latent and the rotated part
        extra={
            "leading_dense_block_count": 4,
            "attention.q_lora_rank": 32,
            "attention.kv_lora_rank": 32,
            "attention.value_length": 32,
            "attention.key_length_mla": 48,
            "attention.value_length_mla": 32,
            "rope.dimension_count": 16,
            "expert_shared_count": 1,
            "expert_feed_forward_length": FFN,
        },
    ),
    "llama4": Kind(  # layers 3, 7 and 11 see everything, the others chunks of 8192 positions
        layers=12,
        experts=4,
        expert_step=2,
        exact_experts=True,
        shared_expert=True,
        extra={
            "expert_used_count": 1,
            "interleave_moe_layer_step": 2,
            "expert_feed_forward_length": FFN,
        },
    ),
    # the following cannot be given stages
    "mamba": Kind(
        heads=0,
        kv_heads=0,
        extra={
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * WIDTH,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 8,
        },
    ),
    "cogvlm": Kind(kv_heads=4, fused_qkv=True),  # weights of their own for visual tokens
    "gemma4 dense": Kind(  # as the large ones
        arch="gemma4",
        layers=6,
        tied=True,
        qk_norm=True,
        post_norms=True,
        rope_factors="rope_freqs",
        extra={
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": [True, False] * 3,
            "attention.key_length_swa": 32,
            "attention.value_length_swa": 32,
            "embedding_length_per_layer_input": 0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma4 e": Kind(  # as E2B and E4B: per-layer embeddings; the last four layers have no keys and values of their own
        arch="gemma4",
        layers=10,
        tied=True,
        qk_norm=True,
        post_norms=True,
        rope_factors="rope_freqs",
        extra={
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": [True, False] * 5,
            "attention.key_length_swa": 32,
            "attention.value_length_swa": 32,
            "attention.shared_kv_layers": 4,
            "embedding_length_per_layer_input": PER_LAYER,
            "final_logit_softcapping": 5.0,
        },
    ),
}


def n_layer(arch: str) -> int:
    return KINDS[arch].layers


def n_embd_inp(arch: str) -> int:
    """Width of an embedding row: deepstack features are behind the embedding."""
    return WIDTH * (1 + int(KINDS[arch].extra.get("n_deepstack_layers", 0)))


def write(
    path: Path,
    name: str,
    extra: Extra | None = None,
    vocab: Sequence[str] | None = None,
    words: Sequence[str] = (),
    draft_head: bool = False,
) -> None:
    """`extra`: further metadata, keys without the architecture. `vocab`: control tokens of a vocabulary that has all
    bytes too; None: no vocabulary. `words`: tokens that whoever writes them means, behind `vocab`. `draft_head`: a last
    block that predicts one token more (of qwen35)."""
    kind = KINDS[name]
    arch = kind.arch or name
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(kind.layers + draft_head)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(kind.heads)
    by_layer = [kind.kv_heads if il in kind.attention else 0 for il in range(kind.layers)]
    writer.add_head_count_kv(by_layer if arch in HEADS_BY_LAYER else kind.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    _add_vocabulary(writer, vocab, words)
    metadata: Extra = {"attention.key_length": kind.head, "attention.value_length": kind.head}
    if kind.experts:
        metadata |= {"expert_count": kind.experts, "expert_used_count": 2}
    if draft_head:
        metadata |= {"nextn_predict_layers": 1}
    for key, value in (metadata | kind.extra | (extra or {})).items():
        add_value(writer, f"{arch}.{key}", value)

    weights = Weights(writer)
    weights.matrix("token_embd", VOCAB, WIDTH)
    weights.norm(kind.output_norm, WIDTH)
    if not kind.tied:
        weights.matrix("output", VOCAB, WIDTH)
    if kind.rope_factors:
        weights.norm(kind.rope_factors, kind.head // 2)
    has_per_layer = bool(kind.extra.get("embedding_length_per_layer_input"))
    if has_per_layer:
        weights.matrix("per_layer_token_embd", VOCAB, PER_LAYER * kind.layers)
        weights.matrix("per_layer_model_proj", PER_LAYER * kind.layers, WIDTH)
        weights.norm("per_layer_proj_norm", PER_LAYER)
    n_with_cache = kind.layers - int(kind.extra.get("attention.shared_kv_layers", 0))
    for il in range(kind.layers + draft_head):
        block = f"blk.{il}"
        weights.norm(f"{block}.attn_norm", WIDTH)
        if arch == "mamba":
            _add_mamba(weights, block)
            continue
        if kind.attention and il not in kind.attention and il < kind.layers:
            random_recurrent.add_layer(weights, block, arch, WIDTH)
        elif arch == "deepseek2":
            _add_latent_attention(weights, block)
        else:
            _add_attention(weights, block, kind, has_cache=il < n_with_cache or il == kind.layers)
        weights.norm(f"{block}.{kind.ffn_norm}", WIDTH)
        is_dense = il < int(kind.extra.get("leading_dense_block_count", 0)) or (il + 1) % kind.expert_step
        if kind.experts and not is_dense:
            weights.matrix(f"{block}.ffn_gate_inp", kind.experts, WIDTH)
            experts = weights.matrix if kind.exact_experts else weights.quantized
            experts(f"{block}.ffn_gate_exps", kind.experts, FFN, WIDTH)
            experts(f"{block}.ffn_up_exps", kind.experts, FFN, WIDTH)
            experts(f"{block}.ffn_down_exps", kind.experts, WIDTH, FFN)
            if kind.shared_expert:
                if arch != "llama4":
                    weights.norm(f"{block}.ffn_gate_inp_shexp", WIDTH)
                weights.matrix(f"{block}.ffn_gate_shexp", FFN, WIDTH)
                weights.matrix(f"{block}.ffn_up_shexp", FFN, WIDTH)
                weights.matrix(f"{block}.ffn_down_shexp", WIDTH, FFN)
            if arch == "lfm2moe":
                weights.bias(f"{block}.exp_probs_b", kind.experts)
        else:
            if not kind.fused_gate:
                weights.matrix(f"{block}.ffn_gate", FFN, WIDTH)
            weights.matrix(f"{block}.ffn_up", 2 * FFN if kind.fused_gate else FFN, WIDTH)
            weights.matrix(f"{block}.ffn_down", WIDTH, FFN)
        if kind.post_norms:
            weights.norm(f"{block}.post_attention_norm", WIDTH)
            weights.norm(f"{block}.post_ffw_norm", WIDTH)
        if arch == "cogvlm":
            weights.matrix(f"{block}.vis_attn_qkv", 3 * WIDTH, WIDTH)
            weights.matrix(f"{block}.vis_attn_output", WIDTH, WIDTH)
            weights.matrix(f"{block}.vis_gate", FFN, WIDTH)
            weights.matrix(f"{block}.vis_up", FFN, WIDTH)
            weights.matrix(f"{block}.vis_down", WIDTH, FFN)
        if has_per_layer:
            weights.matrix(f"{block}.inp_gate", PER_LAYER, WIDTH)
            weights.matrix(f"{block}.proj", WIDTH, PER_LAYER)
            weights.norm(f"{block}.post_norm", WIDTH)
            weights.norm(f"{block}.layer_output_scale", 1)
        if il == kind.layers:
            weights.matrix(f"{block}.nextn.eh_proj", WIDTH, 2 * WIDTH)
            weights.norm(f"{block}.nextn.enorm", WIDTH)
            weights.norm(f"{block}.nextn.hnorm", WIDTH)

    write_file(writer)


def write_lora(path: Path, arch: str, rank: int = 4) -> None:
    """A LoRA adapter for the queries and the feed-forward layers."""
    kind = KINDS[arch]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    weights = Weights(writer)
    for il in range(kind.layers):
        for name, n_in, n_out in (("attn_q", WIDTH, kind.heads * kind.head), ("ffn_down", FFN, WIDTH)):
            weights.matrix(f"blk.{il}.{name}.weight.lora_a", rank, n_in, suffix="")
            weights.matrix(f"blk.{il}.{name}.weight.lora_b", n_out, rank, suffix="")
    write_file(writer)


def write_file(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_attention(weights: Weights, block: str, kind: Kind, *, has_cache: bool) -> None:
    sizes = {
        "attn_q": (2 if kind.gated else 1) * kind.heads * kind.head,
        "attn_k": kind.kv_heads * kind.head,
        "attn_v": kind.kv_heads * kind.head,
    }
    if kind.fused_qkv:
        sizes = {"attn_qkv": sum(sizes.values())}
    if not has_cache:
        sizes = {"attn_q": sizes["attn_q"]}
    for name, size in sizes.items():
        weights.matrix(f"{block}.{name}", size, WIDTH)
        if kind.qkv_bias:
            weights.bias(f"{block}.{name}", size)
    if kind.qk_norm:
        weights.norm(f"{block}.attn_q_norm", kind.head)
        if has_cache:
            weights.norm(f"{block}.attn_k_norm", kind.head)
    weights.matrix(f"{block}.attn_output", WIDTH, kind.heads * kind.head)


def _add_latent_attention(weights: Weights, block: str) -> None:
    weights.matrix(f"{block}.attn_q_a", 32, WIDTH)
    weights.norm(f"{block}.attn_q_a_norm", 32)
    weights.matrix(f"{block}.attn_q_b", 4 * 48, 32)
    weights.matrix(f"{block}.attn_kv_a_mqa", 32 + 16, WIDTH)
    weights.norm(f"{block}.attn_kv_a_norm", 32)
    weights.matrix(f"{block}.attn_k_b", 4, 32, 32)
    weights.matrix(f"{block}.attn_v_b", 4, 32, 32)
    weights.matrix(f"{block}.attn_output", WIDTH, 4 * 32)


def _add_mamba(weights: Weights, block: str) -> None:
    inner, state, rank = 2 * WIDTH, 16, 8
    weights.matrix(f"{block}.ssm_in", 2 * inner, WIDTH)
    weights.matrix(f"{block}.ssm_conv1d", inner, 4)
    weights.bias(f"{block}.ssm_conv1d", inner)
    weights.matrix(f"{block}.ssm_x", rank + 2 * state, inner)
    weights.matrix(f"{block}.ssm_dt", inner, rank)
    weights.bias(f"{block}.ssm_dt", inner)
    weights.add(f"{block}.ssm_a", -np.ones((inner, state)))
    weights.add(f"{block}.ssm_d", np.ones(inner))
    weights.matrix(f"{block}.ssm_out", WIDTH, inner)


class Weights:
    """Adds random tensors; dimensions in NumPy's order."""

    def __init__(self, writer: gguf.GGUFWriter) -> None:
        self._writer = writer
        self._rng = np.random.default_rng(0)

    def normal(self, *shape: int) -> np.ndarray:
        return self._rng.normal(size=shape)

    def add(self, name: str, values: np.ndarray) -> None:
        self._writer.add_tensor(name, values.astype(np.float32))

    def matrix(self, name: str, *shape: int, suffix: str = ".weight") -> None:
        self.add(f"{name}{suffix}", self._rng.normal(size=shape) / shape[-1] ** 0.5)

    def quantized(self, name: str, *shape: int) -> None:
        """As matrix(), of Q4_0."""
        kind = gguf.GGMLQuantizationType.Q4_0
        values = (self._rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)
        self._writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(self, name: str, size: int) -> None:
        self.add(f"{name}.weight", 1 + 0.1 * self._rng.normal(size=size))

    def bias(self, name: str, size: int) -> None:
        self.add(f"{name}.bias", self._rng.normal(size=size))


def add_value(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        np.int32: writer.add_int32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, special: Sequence[str] | None, words: Sequence[str]) -> None:
    if special is None:
        writer.add_tokenizer_model("no_vocab")
        return
    types = gguf.TokenType
    tokens = [("<unk>", types.UNKNOWN), ("<s>", types.CONTROL), ("</s>", types.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", types.BYTE) for byte in range(256)]
    tokens += [(token, types.CONTROL) for token in special]
    tokens += [(word, types.USER_DEFINED) for word in words]
    tokens += [(f"unused{i}", types.UNUSED) for i in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)

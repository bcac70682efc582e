"""Small language models of several architectures, with random weights, as GGUF files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, FFN, VOCAB = 128, 4, 4, 2, 256, 512

Extra = dict[str, int | float | list[int]]


def write(path: Path, arch: str, extra: Extra | None = None) -> None:
    """A model of WIDTH x LAYERS; grouped-query attention. `extra`: further metadata, keys without the architecture."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    for key, value in (extra or {}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
        add(f"{arch}.{key}", value)

    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32))

    def add_norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", (1 + 0.1 * rng.normal(size=size)).astype(np.float32))

    head = WIDTH // HEADS
    add("token_embd", VOCAB, WIDTH)
    add_norm("output_norm", WIDTH)
    if not arch.startswith("gemma"):  # tied
        add("output", VOCAB, WIDTH)
    for il in range(LAYERS):
        block = f"blk.{il}"
        add_norm(f"{block}.attn_norm", WIDTH)
        for name, size in (("attn_q", WIDTH), ("attn_k", KV_HEADS * head), ("attn_v", KV_HEADS * head)):
            add(f"{block}.{name}", size, WIDTH)
            if arch in ("qwen2", "qwen2vl"):
                writer.add_tensor(f"{block}.{name}.bias", rng.normal(size=size).astype(np.float32))
        if arch == "qwen3":
            add_norm(f"{block}.attn_q_norm", head)
            add_norm(f"{block}.attn_k_norm", head)
        if arch == "gemma2":
            add_norm(f"{block}.post_attention_norm", WIDTH)
            add_norm(f"{block}.post_ffw_norm", WIDTH)
        add(f"{block}.attn_output", WIDTH, WIDTH)
        add_norm(f"{block}.ffn_norm", WIDTH)
        add(f"{block}.ffn_gate", FFN, WIDTH)
        add(f"{block}.ffn_up", FFN, WIDTH)
        add(f"{block}.ffn_down", WIDTH, FFN)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

"""Byte-level vocabularies, as GGUF files without weights: the 256 bytes, some merges and two special tokens."""

from __future__ import annotations

from pathlib import Path

import gguf

import random_gguf

MERGED = ("a", " ", "1", "\n", "!")  # each with itself, four times over: tokens of up to 16 characters


def characters() -> list[str]:
    """What GPT-2 writes for each byte: itself where it can be seen, else a character behind U+0100."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def write(path: Path, pre: str, special: tuple[str, ...] = ("<s>", "</s>")) -> None:
    """``pre``: the name of the pre-tokenizer. ``special``: control tokens, the first two of begin and end."""
    tokens = characters()
    merges = []
    for character in MERGED:
        piece = tokens[ord(character)]
        for _ in range(4):
            merges.append(f"{piece} {piece}")
            piece += piece
            tokens.append(piece)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_vocab_size(len(tokens) + len(special))
    writer.add_token_list([*tokens, *special])
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(special)
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    random_gguf.write_file(writer)

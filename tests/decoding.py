"""Decodes the prompts of masked_reference with llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import random_gguf
from c_api import Context, Model, llama
from masked_reference import Part, picture, picture_2d, text

NX, NY = 8, 5
PICTURE = NX * NY
BEGIN = {"llama4": 8170}  # the first position of a prompt: that model has chunks of 8192
M_ROPE = ("qwen2vl", "qwen3vl", "qwen35", "qwen35moe")


@contextmanager
def random_llama(folder: Path) -> Iterator[Model]:
    """A model with random weights, whose file is written into the folder; it is freed at the end."""
    random_gguf.write(folder / "llama.gguf", "llama")
    model = Model(folder / "llama.gguf")
    try:
        yield model
    finally:
        model.close()


def small_context(model: Model, **options: object) -> Context:
    """One thread: with more, a model this small mostly waits, and longer on a busy machine."""
    context = Context(model, **{"n_ctx": 256, **options})
    llama.llama_set_n_threads(context.pointer, 1, 1)
    return context


def prompt_for(arch: str, *, causal: bool = True, seed: int = 1) -> list[Part]:
    """Some text, a picture and a question."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(PICTURE, random_gguf.n_embd_inp(arch))).astype(np.float32)
    begin = BEGIN.get(arch, 0)
    before, at = text([1, 2, 3], begin), begin + 3
    if arch in M_ROPE:
        return [before, picture_2d(rows, at, NX), text([5, 6, 7, 8], at + NX)]
    return [before, picture(rows, at, causal=causal), text([5, 6, 7, 8], at + PICTURE)]


def long_prompt_for(arch: str, *, n_pictures: int, causal: bool) -> list[Part]:
    """As prompt_for(), so many times; not for M-RoPE."""
    parts: list[Part] = []
    for seed in range(n_pictures):
        for part in prompt_for(arch, causal=causal, seed=seed):
            start = int(parts[-1].positions[0, -1]) + 1 if parts else 0
            parts.append(
                text(part.rows, start) if not part.is_picture else picture(part.rows, start, causal=causal)
            )
    return parts


def decode(context: Context, prompt: Sequence[Part], *, seq: int = 0) -> np.ndarray:
    """Each part in a call of its own; the logits of the last row."""
    for part in prompt:
        assert decode_part(context, part, seq=seq) == 0
    logits = context.logits()
    assert logits is not None
    return logits


def decode_part(context: Context, part: Part, *, seq: int = 0) -> int:
    """llama_decode's status; the logits of the last row of a text are asked for."""
    n = len(part.rows)
    batch = llama.llama_batch()
    batch.n_tokens = n
    rows = np.ascontiguousarray(part.rows, np.float32 if part.is_picture else np.int32)
    positions = np.ascontiguousarray(part.positions, np.int32)  # without M-RoPE the first row is read
    outputs = np.zeros(n, np.int8)
    outputs[-1] = not part.is_picture
    if part.is_picture:
        batch.embd = rows.ctypes.data_as(type(batch.embd))
        context.begin_picture("", NX, NY)
    else:
        batch.token = rows.ctypes.data_as(type(batch.token))
    batch.pos = positions.ctypes.data_as(type(batch.pos))
    batch.logits = outputs.ctypes.data_as(type(batch.logits))
    seq_id, n_seq_id = (ctypes.c_int32 * 1)(seq), (ctypes.c_int32 * n)(*[1] * n)
    seq_ids = (ctypes.POINTER(ctypes.c_int32) * n)(*[seq_id] * n)
    batch.seq_id = ctypes.cast(seq_ids, type(batch.seq_id))
    batch.n_seq_id = ctypes.cast(n_seq_id, type(batch.n_seq_id))
    llama.llama_set_causal_attn(context.pointer, part.causal)
    status = llama.llama_decode(context.pointer, batch)
    llama.llama_set_causal_attn(context.pointer, True)
    return int(status)

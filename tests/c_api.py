"""libllama as other programs use it: llama-cpp-python's low-level bindings on our libraries.

The bindings are the real package, which knows nothing of us; only the functions of pyfastv.h are declared here, with
the structures that the benchmarks use.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import pyfastv

os.environ["LLAMA_CPP_LIB_PATH"] = str(pyfastv.lib_path())

from llama_cpp import llama_cpp as llama

from bindings import FastvParams, FastvReport

OK, BAD_PARAMS, UNSUPPORTED, OUT_OF_MEMORY, FAILED, ABORTED = 0, -1, -2, -3, -4, -5


fastv = llama._lib
fastv.pyfastv_attach.argtypes = [ctypes.c_void_p, ctypes.POINTER(FastvParams)]
fastv.pyfastv_flush.argtypes = [ctypes.c_void_p]
fastv.pyfastv_set_media.argtypes = [ctypes.c_void_p, ctypes.c_int]
fastv.pyfastv_last_error.restype = ctypes.c_char_p
fastv.pyfastv_get_report.argtypes = [ctypes.c_void_p]
fastv.pyfastv_get_report.restype = FastvReport
fastv.pyfastv_get_kept.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t]
fastv.pyfastv_get_kept.restype = ctypes.c_size_t

_quiet = llama.llama_log_callback(lambda level, text, user_data: None)


class Model:
    """A language model; the bundled one by default."""

    def __init__(self, path: Path | None = None) -> None:
        llama.llama_log_set(_quiet, None)
        llama.llama_backend_init()
        path = path or pyfastv.models.bundled_model()
        self.pointer = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        self.n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.pointer))
        self.n_embd = llama.llama_model_n_embd(self.pointer)

    def close(self) -> None:
        llama.llama_model_free(self.pointer)


class Context:
    """A context of the model; flash attention off, so that equal computations give equal bits."""

    def __init__(self, model: Model, *, n_ctx: int = 1024, n_seq_max: int = 1) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, n_ctx, 512, n_seq_max
        params.n_threads = params.n_threads_batch = 2
        params.flash_attn_type = 0
        self.model = model
        self.pointer = llama.llama_init_from_model(model.pointer, params)
        self.memory = llama.llama_get_memory(self.pointer)

    def close(self) -> None:
        llama.llama_free(self.pointer)

    def attach(self, k: int, drop: float) -> int:
        status = fastv.pyfastv_attach(self.pointer, ctypes.byref(FastvParams(k, drop)))
        self.memory = llama.llama_get_memory(self.pointer)
        return int(status)

    def detach(self) -> int:
        status = fastv.pyfastv_attach(self.pointer, None)
        self.memory = llama.llama_get_memory(self.pointer)
        return int(status)

    def tokens(self, ids: Sequence[int], position: int, *, logits: bool = True) -> int:
        """Decode text; logits of its last token are asked for. Returns llama_decode's status."""
        n = len(ids)
        batch = self._batch(n, position, logits)
        token = (ctypes.c_int32 * n)(*ids)
        batch.token = ctypes.cast(token, type(batch.token))
        return int(llama.llama_decode(self.pointer, batch))

    def picture(self, rows: np.ndarray, position: int) -> int:
        """Decode visual rows, float32 [n, n_embd]."""
        batch = self._batch(len(rows), position, False)
        batch.embd = rows.ctypes.data_as(type(batch.embd))
        return int(llama.llama_decode(self.pointer, batch))

    def _batch(self, n: int, position: int, logits: bool):
        self._keep = (
            (ctypes.c_int32 * n)(*range(position, position + n)),
            (ctypes.c_int8 * n)(*[0] * (n - 1), int(logits)),
        )
        batch = llama.llama_batch()
        batch.n_tokens = n
        batch.pos = ctypes.cast(self._keep[0], type(batch.pos))
        batch.logits = ctypes.cast(self._keep[1], type(batch.logits))
        return batch

    def flush(self) -> int:
        return int(fastv.pyfastv_flush(self.pointer))

    def logits(self) -> np.ndarray | None:
        """float32 [n_vocab] of the last output; None where llama.cpp has none."""
        pointer = llama.llama_get_logits_ith(self.pointer, -1)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,)).copy() if pointer else None

    def report(self) -> FastvReport:
        return fastv.pyfastv_get_report(self.pointer)

    def kept(self) -> list[int]:
        n = fastv.pyfastv_get_kept(self.pointer, None, 0)
        out = (ctypes.c_int32 * n)()
        fastv.pyfastv_get_kept(self.pointer, out, n)
        return list(out)

    def remove(self, begin: int, end: int) -> bool:
        return bool(llama.llama_memory_seq_rm(self.memory, 0, begin, end))

    def shift(self, begin: int, end: int, delta: int) -> None:
        llama.llama_memory_seq_add(self.memory, 0, begin, end, delta)

    def clear(self) -> None:
        llama.llama_memory_clear(self.memory, True)

    def save(self) -> bytes:
        size = llama.llama_state_get_size(self.pointer)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(buffer[: llama.llama_state_get_data(self.pointer, buffer, size)])

    def load(self, state: bytes) -> int:
        """Bytes read; 0 if the state is refused."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return int(llama.llama_state_set_data(self.pointer, buffer, len(state)))

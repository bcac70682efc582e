"""libllama as other programs use it: llama-cpp-python's low-level bindings on our libraries.

The bindings are the real package, which knows nothing of us; only the functions of pyfastv.h are declared here, with
the structures that the bench uses.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pyfastv

os.environ["LLAMA_CPP_LIB_PATH"] = str(pyfastv.lib_path())

from llama_cpp import llama_cpp as llama

from pyfastv.bench.lowlevel.bindings import FastvParams, FastvReport, declare, report_of

IMAGE, AUDIO, SLICE = 0, 1, 2
OK, BAD_PARAMS, UNSUPPORTED, OUT_OF_MEMORY, FAILED, ABORTED = 0, -1, -2, -3, -4, -5


class _Grid(ctypes.Structure):
    """struct pyfastv_grid of pyfastv.h."""

    _fields_ = [("picture", ctypes.c_int32), ("nx", ctypes.c_int32), ("ny", ctypes.c_int32)]


fastv = llama._lib
declare(fastv)
fastv.pyfastv_allow_position_gaps.argtypes = [ctypes.c_void_p]
for function in (fastv.pyfastv_set_schedule, fastv.pyfastv_get_schedule):
    function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(FastvParams)]
fastv.pyfastv_fits.argtypes = [ctypes.c_void_p, ctypes.POINTER(FastvParams)]
fastv.pyfastv_fits.restype = ctypes.c_bool
fastv.pyfastv_get_grids.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(_Grid), ctypes.c_size_t]
fastv.pyfastv_flush_piece.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_bool)]
fastv.pyfastv_continue_media.argtypes = [ctypes.c_void_p]
fastv.pyfastv_get_grids.restype = ctypes.c_size_t

quiet = llama.llama_log_callback(lambda level, text, user_data: None)


class Row(NamedTuple):
    """A text token of a batch."""

    seq: int | tuple[int, ...]  # several: they share the row
    position: int
    token: int


class Grid(NamedTuple):
    """A slice of a picture."""

    picture: int
    nx: int
    ny: int


def last_error() -> str:
    return fastv.pyfastv_last_error().decode()


@contextmanager
def logged() -> Iterator[list[str]]:
    """What llama.cpp logs meanwhile, line by line."""
    lines: list[str] = []
    callback = llama.llama_log_callback(lambda level, text, user_data: lines.append(text.decode()))
    llama.llama_log_set(callback, None)
    try:
        yield lines
    finally:
        llama.llama_log_set(quiet, None)


class Model:
    """A language model; the bundled one by default."""

    def __init__(self, path: Path | None = None) -> None:
        llama.llama_log_set(quiet, None)
        llama.llama_backend_init()
        path = path or pyfastv.models.bundled_model()
        self.pointer = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        self.n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.pointer))
        self.n_embd = llama.llama_model_n_embd(self.pointer)
        self.n_layer = llama.llama_model_n_layer(self.pointer)

    def close(self) -> None:
        llama.llama_model_free(self.pointer)


class Context:
    """A context of the model.

    Flash attention is off, so that equal computations give equal bits. One thread: more of them mostly wait for each
    other in models this small, and for whatever else the machine does.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 1024,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        kv_unified: bool = True,
        flash_attn: bool = False,
        swa_full: bool = True,
        n_rs_seq: int = 0,
        type_k: int = llama.GGML_TYPE_F16,
        type_v: int = llama.GGML_TYPE_F16,
        cb_eval: object = None,
    ) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, n_ctx, n_ubatch, n_seq_max
        params.n_threads = params.n_threads_batch = 1
        params.kv_unified, params.swa_full = kv_unified, swa_full
        params.n_rs_seq = n_rs_seq
        params.flash_attn_type = int(flash_attn)
        params.type_k, params.type_v = type_k, type_v
        if cb_eval is not None:
            params.cb_eval = cb_eval
        self.model = model
        self.pointer = llama.llama_init_from_model(model.pointer, params)
        self.memory = llama.llama_get_memory(self.pointer)

    def close(self) -> None:
        llama.llama_free(self.pointer)

    def attach(self, spec: str) -> int:
        """Stages by the language of pyfastv_parse()."""
        params, status = self._parsed(spec)
        return self.attach_params(params) if status == OK else status

    def _parsed(self, spec: str) -> tuple[FastvParams, int]:
        params = FastvParams()
        return params, fastv.pyfastv_parse(spec.encode(), self.model.n_layer, ctypes.byref(params))

    def attach_params(self, params: FastvParams) -> int:
        status = fastv.pyfastv_attach(self.pointer, ctypes.byref(params))
        self.memory = llama.llama_get_memory(self.pointer)
        return int(status)

    def detach(self) -> int:
        status = fastv.pyfastv_attach(self.pointer, None)
        self.memory = llama.llama_get_memory(self.pointer)
        return int(status)

    def set_schedule(self, spec: str | None, *, seq: int = 0) -> int:
        """Of a sequence; None: that which was attached."""
        if spec is None:
            return int(fastv.pyfastv_set_schedule(self.pointer, seq, None))
        params, status = self._parsed(spec)
        assert status == OK
        return int(fastv.pyfastv_set_schedule(self.pointer, seq, ctypes.byref(params)))

    def schedule(self, *, seq: int = 0) -> FastvParams:
        """Of a sequence; -1: that which was attached."""
        params = FastvParams()
        assert fastv.pyfastv_get_schedule(self.pointer, seq, ctypes.byref(params)) == OK, last_error()
        return params

    def fits(self, spec: str) -> bool:
        return bool(fastv.pyfastv_fits(self.pointer, ctypes.byref(self._parsed(spec)[0])))

    def tokens(self, ids: Sequence[int], position: int, *, logits: bool = True, seq: int = 0) -> int:
        """Decode text; logits of its last token are asked for. Returns llama_decode's status."""
        return self.rows([Row(seq, position + i, token) for i, token in enumerate(ids)], logits=logits)

    def rows(self, rows: Sequence[Row], *, logits: bool | Collection[int] = True) -> int:
        """Decode text of several sequences. Logits are asked for of the last token of each, of none, or by index."""
        if isinstance(logits, bool):
            logits = {row.seq: i for i, row in enumerate(rows)}.values() if logits else ()
        batch = self._batch([row.position for row in rows], [row.seq for row in rows], logits)
        token = (ctypes.c_int32 * len(rows))(*[row.token for row in rows])
        batch.token = ctypes.cast(token, type(batch.token))
        return int(llama.llama_decode(self.pointer, batch))

    def picture(
        self,
        rows: np.ndarray,
        position: int,
        *,
        seq: int | tuple[int, ...] = 0,
        logits: Collection[int] = (),
    ) -> int:
        """Decode visual rows, float32 [n, n_embd]."""
        return self.picture_at(rows, range(position, position + len(rows)), seq=seq, logits=logits)

    def picture_at(
        self,
        rows: np.ndarray,
        positions: Sequence[int],
        *,
        seq: int | tuple[int, ...] = 0,
        logits: Collection[int] = (),
    ) -> int:
        """Decode visual rows, each at its own position."""
        batch = self._batch(positions, [seq] * len(rows), logits)
        batch.embd = rows.ctypes.data_as(type(batch.embd))
        return int(llama.llama_decode(self.pointer, batch))

    def allow_position_gaps(self) -> None:
        fastv.pyfastv_allow_position_gaps(self.pointer)

    def begin_picture(self, name: str = "", nx: int = 0, ny: int = 0) -> None:
        """As libmtmd does for every picture."""
        fastv.pyfastv_begin_media(self.pointer, IMAGE, name.encode(), nx, ny)

    def begin_slice(self, name: str = "", nx: int = 0, ny: int = 0) -> None:
        """As libmtmd does for every slice of a picture but the first."""
        fastv.pyfastv_begin_media(self.pointer, SLICE, name.encode(), nx, ny)

    def continue_picture(self) -> None:
        fastv.pyfastv_continue_media(self.pointer)

    def begin_audio(self) -> None:
        fastv.pyfastv_begin_media(self.pointer, AUDIO, b"", 0, 0)

    def _batch(
        self,
        positions: Sequence[int],
        seqs: Sequence[int | tuple[int, ...]],
        logits: Collection[int],
    ) -> llama.llama_batch:
        n = len(positions)
        all_ids = [(seq,) if isinstance(seq, int) else seq for seq in seqs]
        arrays = [(ctypes.c_int32 * len(ids))(*ids) for ids in all_ids]
        seq_id = (ctypes.POINTER(ctypes.c_int32) * n)(
            *[ctypes.cast(array, ctypes.POINTER(ctypes.c_int32)) for array in arrays]
        )
        self._keep = (
            (ctypes.c_int32 * n)(*positions),
            (ctypes.c_int8 * n)(*[int(i in logits) for i in range(n)]),
            (ctypes.c_int32 * n)(*[len(ids) for ids in all_ids]),
            seq_id,
            arrays,
        )
        batch = llama.llama_batch()
        batch.n_tokens = n
        batch.pos = ctypes.cast(self._keep[0], type(batch.pos))
        batch.logits = ctypes.cast(self._keep[1], type(batch.logits))
        batch.n_seq_id = ctypes.cast(self._keep[2], type(batch.n_seq_id))
        batch.seq_id = ctypes.cast(self._keep[3], type(batch.seq_id))
        return batch

    def flush(self) -> int:
        return int(fastv.pyfastv_flush(self.pointer))

    def flush_piece_status(self, seq: int) -> tuple[int, bool]:
        more = ctypes.c_bool()
        return int(fastv.pyfastv_flush_piece(self.pointer, seq, ctypes.byref(more))), more.value

    def flush_piece(self, seq: int) -> bool:
        """Is there more to do? It must not fail."""
        status, more = self.flush_piece_status(seq)
        assert status == OK, last_error()
        return more

    def logits(self, index: int = -1) -> np.ndarray | None:
        """float32 [n_vocab] of an output by its index in the batch, or the last; None where llama.cpp has none."""
        pointer = llama.llama_get_logits_ith(self.pointer, index)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,)).copy() if pointer else None

    def report(self) -> FastvReport:
        return report_of(fastv, self.pointer)

    def kept(self, cut: int = 0, *, seq: int = 0) -> list[int]:
        n = fastv.pyfastv_get_kept(self.pointer, seq, cut, None, 0)
        out = (ctypes.c_int32 * n)()
        fastv.pyfastv_get_kept(self.pointer, seq, cut, out, n)
        return list(out)

    def scores(self, cut: int = 0, *, seq: int = 0) -> np.ndarray:
        n = fastv.pyfastv_get_scores(self.pointer, seq, cut, None, 0)
        out = (ctypes.c_float * n)()
        fastv.pyfastv_get_scores(self.pointer, seq, cut, out, n)
        return np.array(out, np.float32)

    def grids(self, *, seq: int = 0) -> list[Grid]:
        n = fastv.pyfastv_get_grids(self.pointer, seq, None, 0)
        out = (_Grid * n)()
        fastv.pyfastv_get_grids(self.pointer, seq, out, n)
        return [Grid(grid.picture, grid.nx, grid.ny) for grid in out]

    def first_position(self, *, seq: int = 0) -> int:
        """What programs take for the first that sliding windows remember. -1: the sequence is empty."""
        return int(llama.llama_memory_seq_pos_min(self.memory, seq))

    def last_position(self, *, seq: int = 0) -> int:
        """-1: the sequence is empty."""
        return int(llama.llama_memory_seq_pos_max(self.memory, seq))

    @contextmanager
    def aborting(self, *, after: int = 0) -> Iterator[None]:
        """Meanwhile the abort callback says stop when it has been called so many times."""
        calls = iter(range(after))
        callback = llama.ggml_abort_callback(lambda data: next(calls, None) is None)
        llama.llama_set_abort_callback(self.pointer, callback, None)
        try:
            yield
        finally:
            llama.llama_set_abort_callback(self.pointer, llama.ggml_abort_callback(), None)

    def remove(self, begin: int, end: int, *, seq: int = 0) -> bool:
        return bool(llama.llama_memory_seq_rm(self.memory, seq, begin, end))

    def copy(self, source: int, target: int, begin: int = -1, end: int = -1) -> None:
        llama.llama_memory_seq_cp(self.memory, source, target, begin, end)

    def keep_only(self, seq: int) -> None:
        llama.llama_memory_seq_keep(self.memory, seq)

    def shift(self, begin: int, end: int, delta: int, *, seq: int = 0) -> None:
        llama.llama_memory_seq_add(self.memory, seq, begin, end, delta)

    def clear(self) -> None:
        llama.llama_memory_clear(self.memory, True)

    def save(self) -> bytes:
        size = llama.llama_state_get_size(self.pointer)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(memoryview(buffer)[: llama.llama_state_get_data(self.pointer, buffer, size)])

    def load(self, state: bytes) -> int:
        """Bytes read; 0 if the state is refused."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return int(llama.llama_state_set_data(self.pointer, buffer, len(state)))

    def save_sequence(self, seq: int, *, partial: bool = False) -> bytes:
        """Partial: what llama-server keeps as a checkpoint of models with sliding windows."""
        flags = llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        size = llama.llama_state_seq_get_size_ext(self.pointer, seq, flags)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(
            memoryview(buffer)[: llama.llama_state_seq_get_data_ext(self.pointer, buffer, size, seq, flags)]
        )

    def load_sequence(self, state: bytes, seq: int, *, partial: bool = False) -> int:
        """Bytes read; 0 if the state is refused."""
        flags = llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return int(llama.llama_state_seq_set_data_ext(self.pointer, buffer, len(state), seq, flags))


@contextmanager
def contexts(model: Model, **options: object) -> Iterator[Callable[..., Context]]:
    """A function that makes contexts with these options, by a spec with stages; they are closed at the end."""
    made: list[Context] = []

    def make(spec: str = "", **more: object) -> Context:
        context = Context(model, **{**options, **more})
        made.append(context)
        if spec:
            assert context.attach(spec) == OK, last_error()
        return context

    try:
        yield make
    finally:
        for context in made:
            context.close()


def read(context: Context, index: int = -1) -> np.ndarray:
    """Logits that must be there."""
    logits = context.logits(index)
    assert logits is not None
    return logits

"""libmtmd as other programs use it: llama-cpp-python's low-level bindings on our libraries, with pyfastv_turbo.h and
pyfastv_skip.h."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import pyfastv
from pyfastv.engine.c_structures import SkipParams, TurboParams

os.environ["LLAMA_CPP_LIB_PATH"] = os.environ["MTMD_CPP_LIB"] = str(pyfastv.lib_path())

from llama_cpp import mtmd_cpp as mtmd

from c_api import Context, Model, llama

I32 = ctypes.POINTER(ctypes.c_int32)

_quiet = llama.llama_log_callback(lambda level, text, user_data: None)
_lib = mtmd._libmtmd

_lib.pyfastv_turbo_default_params.argtypes = [ctypes.POINTER(TurboParams), ctypes.c_size_t]
_lib.pyfastv_turbo_parse.argtypes = [ctypes.c_char_p, ctypes.POINTER(TurboParams)]
_lib.pyfastv_turbo_attach.argtypes = [ctypes.c_void_p, ctypes.POINTER(TurboParams)]
_lib.pyfastv_turbo_last_error.restype = ctypes.c_char_p
_lib.pyfastv_turbo_unsupported_reason.argtypes = [ctypes.c_void_p]
_lib.pyfastv_turbo_unsupported_reason.restype = ctypes.c_char_p
_lib.pyfastv_turbo_set_places.argtypes = [ctypes.c_void_p, I32, ctypes.c_size_t]
_lib.pyfastv_turbo_patches.argtypes = [ctypes.c_void_p]
_lib.pyfastv_turbo_patches.restype = ctypes.c_int32
_lib.pyfastv_skip_parse.argtypes = [ctypes.c_char_p, ctypes.POINTER(SkipParams)]
_lib.pyfastv_skip_attach.argtypes = [ctypes.c_void_p, ctypes.POINTER(SkipParams)]
_lib.pyfastv_skip_last_error.restype = ctypes.c_char_p
_lib.pyfastv_skip_unsupported_reason.argtypes = [ctypes.c_void_p]
_lib.pyfastv_skip_unsupported_reason.restype = ctypes.c_char_p
_lib.pyfastv_skip_places.argtypes, _lib.pyfastv_skip_places.restype = (
    [ctypes.c_void_p, I32, ctypes.c_size_t],
    ctypes.c_size_t,
)
for _name in ("places", "sizes", "targets"):
    _function = getattr(_lib, f"pyfastv_turbo_{_name}")
    _function.argtypes, _function.restype = [ctypes.c_void_p, I32, ctypes.c_size_t], ctypes.c_size_t


def last_error() -> str:
    return str(_lib.pyfastv_turbo_last_error().decode())


def skip_error() -> str:
    return str(_lib.pyfastv_skip_last_error().decode())


def units_of(chunk: ctypes.c_void_p) -> list[int]:
    """Those that are encoded; empty: all."""
    image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
    n = _lib.pyfastv_skip_places(image, None, 0)
    out = (ctypes.c_int32 * n)()
    assert _lib.pyfastv_skip_places(image, out, n) == n
    return list(out)


def is_picture(chunk: ctypes.c_void_p) -> bool:
    return bool(mtmd.mtmd_input_chunk_get_type(chunk) == 1)


def counts_of(chunk: ctypes.c_void_p) -> tuple[int, int, int]:
    """Tokens, positions and patches."""
    image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
    return (
        mtmd.mtmd_image_tokens_get_n_tokens(image),
        mtmd.mtmd_image_tokens_get_n_pos(image),
        _lib.pyfastv_turbo_patches(image),
    )


def saved(chunk: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    assert mtmd.mtmd_input_chunk_save(chunk, None, 0, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert mtmd.mtmd_input_chunk_save(chunk, buffer, size.value, None) == 0
    return buffer.raw


def loaded(data: bytes) -> ctypes.c_void_p | None:
    """None: it is refused. To be freed by mtmd.mtmd_input_chunk_free()."""
    chunk = mtmd.mtmd_input_chunk_load(data, len(data))
    return ctypes.c_void_p(chunk) if chunk else None


def default_params() -> TurboParams:
    params = TurboParams()
    assert _lib.pyfastv_turbo_default_params(ctypes.byref(params), ctypes.sizeof(params)) == 0
    return params


@dataclass(frozen=True)
class Encoded:
    """A picture behind the projector."""

    features: np.ndarray  # float32 [n, n_embd]
    n_tokens: int
    n_positions: int
    n_patches: int
    places: np.ndarray  # [n]
    sizes: np.ndarray  # [n]
    targets: np.ndarray  # [patches]


class Encoder:
    """An mmproj file beside its language model; one thread, flash attention off unless asked for."""

    def __init__(
        self,
        model: Model,
        path: Path,
        turbo: str | None = None,
        *,
        flash_attn: bool = False,
        n_threads: int = 1,
        on_node: Callable[[int, bool], bool] | None = None,
    ) -> None:
        """``on_node``: ggml's cb_eval, of a node's address: whether it wants to be told, and then whether to go on."""
        mtmd.mtmd_log_set(_quiet, None)
        mtmd.mtmd_helper_log_set(_quiet, None)
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.n_threads, params.warmup = False, n_threads, False
        params.flash_attn_type = int(flash_attn)
        if on_node is not None:
            params.cb_eval = self._callback = llama.ggml_backend_sched_eval_callback(
                lambda node, ask, data: on_node(node, ask)
            )
        self.model, self.width = model, int(llama.llama_model_n_embd_inp(model.pointer))
        self.pointer = mtmd.mtmd_init_from_file(str(path).encode(), model.pointer, params)
        assert self.pointer
        if turbo is not None:
            assert self.attach(turbo) == 0, last_error()

    def close(self) -> None:
        mtmd.mtmd_free(self.pointer)

    def attach(self, spec: str) -> int:
        params = TurboParams()
        status = _lib.pyfastv_turbo_parse(spec.encode(), ctypes.byref(params))
        return int(status or self.attach_params(params))

    def attach_params(self, params: TurboParams) -> int:
        return int(_lib.pyfastv_turbo_attach(self.pointer, ctypes.byref(params)))

    def skip(self, spec: str | None) -> int:
        """None: nothing is left out any more."""
        params = SkipParams()
        status = 0 if spec is None else _lib.pyfastv_skip_parse(spec.encode(), ctypes.byref(params))
        wanted = None if spec is None else ctypes.byref(params)
        return int(status or _lib.pyfastv_skip_attach(self.pointer, wanted))

    def detach(self) -> None:
        assert _lib.pyfastv_turbo_attach(self.pointer, None) == 0

    def unsupported(self) -> str | None:
        reason = _lib.pyfastv_turbo_unsupported_reason(self.pointer)
        return None if reason is None else reason.decode()

    def set_places(self, places: np.ndarray) -> None:
        array = (ctypes.c_int32 * len(places))(*places.tolist())
        _lib.pyfastv_turbo_set_places(self.pointer, array, len(places))

    def encode(self, picture: np.ndarray) -> Encoded:
        """uint8 [height, width, 3]."""
        return self._with_chunk(picture, self._encode)

    def encode_often(self, picture: np.ndarray, use: Callable[[Callable[[], int]], None]) -> None:
        """``use`` gets a function that encodes and returns mtmd_encode_chunk's status."""
        self._with_chunk(picture, lambda chunk: use(lambda: int(mtmd.mtmd_encode_chunk(self.pointer, chunk))))

    def merged(self) -> list[list[int]]:
        """Places, sizes and targets of the picture that was encoded last."""
        return [self._read(name).tolist() for name in ("places", "sizes", "targets")]

    def decode(self, picture: np.ndarray, context: Context, position: int) -> int:
        """Encode, and decode with mtmd's own helper; returns its status."""

        def run(chunk: ctypes.c_void_p) -> int:
            assert mtmd.mtmd_encode_chunk(self.pointer, chunk) == 0
            embeddings = mtmd.mtmd_get_output_embd(self.pointer)
            return self.decode_chunk(context, chunk, embeddings, position)

        return self._with_chunk(picture, run)

    def decode_kept(self, picture: np.ndarray, features: np.ndarray, context: Context, position: int) -> int:
        """As decode(), with features of an earlier encode()."""
        embeddings = features.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return self._with_chunk(
            picture, lambda chunk: self.decode_chunk(context, chunk, embeddings, position)
        )

    def decode_chunk(
        self, context: Context, chunk: ctypes.c_void_p, embeddings: object, position: int
    ) -> int:
        behind = ctypes.c_int32()
        status = mtmd.mtmd_helper_decode_image_chunk(
            self.pointer,
            context.pointer,
            chunk,
            embeddings,
            position,
            0,
            1024,
            ctypes.byref(behind),
            mtmd.mtmd_helper_post_decode_callback(),
            None,
        )
        self.behind = behind.value
        return int(status)

    @contextmanager
    def tokenized(
        self, text: str, pictures: Sequence[np.ndarray], ids: Sequence[str] = (), *, mergeable: bool = False
    ) -> Iterator[list[ctypes.c_void_p]]:
        """The chunks of a text in which "<>" stands for a picture; ids: of the pictures, as programs give them.
        ``mergeable``: they are the frames of a video."""
        kept = [np.ascontiguousarray(picture) for picture in pictures]
        bitmaps = (ctypes.c_void_p * len(kept))()
        for i, picture in enumerate(kept):
            height, width, _ = picture.shape
            bitmaps[i] = mtmd.mtmd_bitmap_init(
                width, height, picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            )
            mtmd.mtmd_bitmap_set_mergeable(bitmaps[i], mergeable)
            if ids:
                mtmd.mtmd_bitmap_set_id(bitmaps[i], ids[i].encode())
        marked = text.encode().replace(b"<>", mtmd.mtmd_default_marker())
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            source = mtmd.mtmd_input_text(marked, len(marked), False, True)
            assert mtmd.mtmd_tokenize(self.pointer, chunks, ctypes.byref(source), bitmaps, len(kept)) == 0
            yield [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd.mtmd_bitmap_free(bitmap)

    def evaluate(
        self, chunk: ctypes.c_void_p, context: Context, position: int, *, logits: bool = False
    ) -> int:
        """By mtmd's own helper, as llama-server does. Returns the position behind."""
        behind = ctypes.c_int32(position)
        status = mtmd.mtmd_helper_eval_chunk_single(
            self.pointer, context.pointer, chunk, position, 0, 1024, logits, ctypes.byref(behind)
        )
        assert status == 0
        return behind.value

    def _with_chunk(self, picture: np.ndarray, use: Callable) -> object:
        with self.tokenized("<>", [picture]) as chunks:
            return use(next(filter(is_picture, chunks)))

    def _encode(self, chunk: ctypes.c_void_p) -> Encoded:
        n = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        assert mtmd.mtmd_image_tokens_get_n_tokens(image) == n
        assert mtmd.mtmd_encode_chunk(self.pointer, chunk) == 0
        rows = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self.pointer), (n, self.width)).copy()
        return Encoded(
            rows,
            n,
            mtmd.mtmd_input_chunk_get_n_pos(chunk),
            _lib.pyfastv_turbo_patches(image),
            *(self._read(name) for name in ("places", "sizes", "targets")),
        )

    def _read(self, name: str) -> np.ndarray:
        function = getattr(_lib, f"pyfastv_turbo_{name}")
        n = function(self.pointer, None, 0)
        out = (ctypes.c_int32 * n)()
        function(self.pointer, out, n)
        return np.array(out, np.int32)

"""The pictures of llama-cpp-python's handler: mtmd_cpp as :class:`pyfastv.llama_cpp.FastVChatHandler` has it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import OptionError, UnsupportedModelError
from ..inputs.chat import Prompt
from ..settings.reduce import Reducer

__all__ = ["Mtmd"]

_IMAGE, _SLICE = 0, 2  # PYFASTV_MEDIA_
_INT32_POINTER, _FLOAT_POINTER = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_float)


class _Rows(NamedTuple):
    """What of a slice enters the language model."""

    values: NDArray[np.float32]  # [rows, n_embd_inp]
    places: NDArray[np.int32]  # [rows] the patch whose position a row has
    grid: tuple[int, int]
    media: int  # the first of its picture, or one more slice of it


class Mtmd:
    """llama_cpp.mtmd_cpp, with its pictures counted, their encoding timed, and a reducer behind it."""

    def __init__(self, mtmd_cpp: Any, llama_cpp: Any, reducer: Reducer | None, merges: bool) -> None:
        """``merges``: its encoder may make fewer tokens than there are patches, which have no grid."""
        self._mtmd, self._llama = mtmd_cpp, llama_cpp
        self._reducer, self._merges = reducer, merges
        self.prompt: Prompt | None = None
        """Of the request: what its text is."""
        self.reset()

    def reset(self) -> None:
        """For another request."""
        self.tokens = self.encoded_tokens = self.visual_tokens = self.encoded = 0
        self.encode_ms = self.reduce_ms = 0.0
        self._pictures = 0
        self._chunks: Any = None
        self._at = 0  # chunk that was asked for last
        self._reduced: dict[int, _Rows] = {}  # by chunk

    def number(self) -> int:
        """Of another picture of the prompt."""
        self._pictures += 1
        return self._pictures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mtmd, name)

    def mtmd_tokenize(self, vision: Any, chunks: Any, text: Any, bitmaps: Any, n_bitmaps: int) -> int:
        """Names of control tokens, and markers, that somebody has typed are text."""
        if self.prompt is None or not self.prompt.literal:
            return int(self._mtmd.mtmd_tokenize(vision, chunks, text, bitmaps, n_bitmaps))
        mtmd = self._mtmd
        marker = mtmd.mtmd_default_marker()
        parts = []
        pictures = iter(bitmaps[:n_bitmaps])
        for data, special in self.prompt.stretches():
            for number, piece in enumerate(data.split(marker) if special else [data]):
                if number > 0:
                    parts.append(mtmd.mtmd_input_part(None, next(pictures)))
                if piece:
                    of_piece = mtmd.mtmd_input_text(piece, len(piece), False, special)
                    parts.append(mtmd.mtmd_input_part(ctypes.pointer(of_piece), None))
        pointers = (ctypes.POINTER(mtmd.mtmd_input_part) * len(parts))(*map(ctypes.pointer, parts))
        return int(mtmd.mtmd_tokenize_from_parts(vision, chunks, pointers, len(parts), True))

    def mtmd_input_chunks_get(self, chunks: Any, index: int) -> Any:
        chunk = self._mtmd.mtmd_input_chunks_get(chunks, index)
        self._chunks, self._at = chunks, index
        self.tokens += self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        return chunk

    def mtmd_helper_eval_chunk_single(
        self,
        vision: Any,
        context: Any,
        chunk: Any,
        n_past: Any,
        seq_id: Any,
        n_batch: int,
        logits_last: bool,
        new_n_past: Any,
    ) -> int:
        """As in mtmd-helper.cpp for chunks of a picture or of audio."""
        if self._reducer is not None and self._is_picture(chunk):
            return self._eval_reduced(vision, context, chunk, n_past.value, seq_id, n_batch, new_n_past)
        status = self._encode(vision, chunk)
        if status:
            return status
        if self._is_picture(chunk):
            self.visual_tokens += self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        rows = self._mtmd.mtmd_get_output_embd(vision)
        no_callback = self._mtmd.mtmd_helper_post_decode_callback()
        return int(
            self._mtmd.mtmd_helper_decode_image_chunk(
                vision, context, chunk, rows, n_past, seq_id, n_batch, new_n_past, no_callback, None
            )
        )

    def _is_picture(self, chunk: Any) -> bool:
        kind = self._mtmd.mtmd_input_chunk_get_type(chunk)
        return bool(kind == self._mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)

    def _encode(self, vision: Any, chunk: Any) -> int:
        begin = time.perf_counter()
        status = int(self._mtmd.mtmd_encode_chunk(vision, chunk))
        self.encode_ms += (time.perf_counter() - begin) * 1e3
        if status == 0 and self._is_picture(chunk):
            self.encoded += 1
            self.encoded_tokens += self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        return status

    # as the engine does it: native/runner/reduction.cpp, native/runner/pictures.cpp

    def _eval_reduced(
        self,
        vision: Any,
        context: Any,
        chunk: Any,
        n_past: int,
        seq_id: Any,
        n_batch: int,
        new_n_past: Any,
    ) -> int:
        if self._at not in self._reduced:
            status = self._reduce(vision, context)
            if status:
                return status
        assert self._reducer is not None
        rows = self._reduced.pop(self._at)
        n_rows, n_encoded = len(rows.places), self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        self.visual_tokens += n_rows
        self.tokens += n_rows - n_encoded
        renumber = self._reducer.renumber
        n_pos = n_rows if renumber else self._mtmd.mtmd_input_chunk_get_n_pos(chunk)
        new_n_past._obj.value = n_past + n_pos

        library = self._llama._lib
        if n_pos != n_rows:
            library.pyfastv_allow_position_gaps(context)
        name = self._mtmd.mtmd_input_chunk_get_id(chunk)
        library.pyfastv_begin_media(context, rows.media, name, *rows.grid)
        with self._not_causal(context, self._mtmd.mtmd_decode_use_non_causal(vision, chunk), n_rows):
            for first in range(0, n_rows, n_batch):
                part = slice(first, first + n_batch)
                places = np.arange(n_rows)[part] if renumber else rows.places[part]
                positions = self._positions(vision, chunk, n_past, places, renumber)
                status = self._decode(context, rows.values[part], positions, seq_id)
                if status:
                    return status
        return 0

    def _reduce(self, vision: Any, context: Any) -> int:
        """All slices of the picture that begins at the chunk asked for last."""
        assert self._reducer is not None
        slices = self._slices()
        model = self._llama.llama_get_model(context)
        width = self._llama.llama_model_n_embd_inp(model)
        values, places, grids = [], [], []
        for index in slices:
            chunk = self._mtmd.mtmd_input_chunks_get(self._chunks, index)
            status = self._encode(vision, chunk)
            if status:
                return status
            n = self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            rows = self._mtmd.mtmd_get_output_embd(vision)
            values.append(np.ctypeslib.as_array(rows, (n, width)).copy())
            places.append(self._places(vision, chunk, n))
            grids.append(self._grid(chunk, n))
        begin = time.perf_counter()
        question = self._question(model, slices[-1]) if self._reducer.name == "cdpruner" else None
        made = _native.reduce(
            np.concatenate(values),
            self._reducer.spec(),
            grids=grids,
            question=question,
            n_threads=self._llama.llama_n_threads(context),
        )
        self.reduce_ms += (time.perf_counter() - begin) * 1e3
        ends = np.cumsum([nx * ny for nx, ny in grids])
        slice_of = np.searchsorted(ends, made["place"], side="right")
        all_places = np.concatenate(places)
        for number, index in enumerate(slices):
            mine = slice_of == number
            self._reduced[index] = _Rows(
                made["embeddings"][mine],
                all_places[made["place"][mine]],
                made["grids"][number],
                _IMAGE if number == 0 else _SLICE,
            )
        return 0

    def _slices(self) -> list[int]:
        """Chunks of one picture have one id; there may be text between them."""
        chunks = range(self._at, self._mtmd.mtmd_input_chunks_size(self._chunks))
        get = self._mtmd.mtmd_input_chunks_get
        name = self._mtmd.mtmd_input_chunk_get_id(get(self._chunks, self._at))
        pictures = [i for i in chunks if self._is_picture(get(self._chunks, i))]
        return [i for i in pictures if self._mtmd.mtmd_input_chunk_get_id(get(self._chunks, i)) == name]

    def _merged(self, chunk: Any, n: int) -> bool:
        image = self._mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        return self._merges and int(self._mtmd._libmtmd.pyfastv_turbo_patches(image)) > n

    def _places(self, vision: Any, chunk: Any, n: int) -> NDArray[np.int32]:
        """Where positions are the tokens' own to libmtmd (M-RoPE), their numbers."""
        library = self._mtmd._libmtmd
        places = np.arange(n, dtype=np.int32)
        image = self._mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        left = self._left(image)
        if self._merges and n < (len(left) or int(library.pyfastv_turbo_patches(image))):
            library.pyfastv_turbo_places(vision, places.ctypes.data_as(_INT32_POINTER), n)
        if not len(left) or self._mtmd.mtmd_decode_use_mrope(vision):
            return places
        return left[places]

    def _left(self, image: Any) -> NDArray[np.int32]:
        """Places of the units that were encoded, where some were not; else none."""
        library = self._mtmd._libmtmd
        if not hasattr(library, "pyfastv_skip_places"):
            return np.zeros(0, np.int32)
        units = np.zeros(library.pyfastv_skip_places(image, None, 0), np.int32)
        library.pyfastv_skip_places(image, units.ctypes.data_as(_INT32_POINTER), len(units))
        return units

    def _grid(self, chunk: Any, n: int) -> tuple[int, int]:
        """Where libmtmd does not tell, a square number of tokens is a square. What is not whole is a row."""
        image = self._mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        nx, ny = self._mtmd.mtmd_image_tokens_get_nx(image), self._mtmd.mtmd_image_tokens_get_ny(image)
        if self._merged(chunk, n) or len(self._left(image)):
            return (n, 1)
        if ny > 1 and nx * ny == n:
            return (nx, ny)
        side = isqrt(n)
        return (side, side) if side * side == n else (n, 1)

    def _question(self, model: Any, last: int) -> NDArray[np.float32]:
        """The mean embedding of the text behind a chunk, up to the next picture."""
        tokens: list[int] = []
        for index in range(last + 1, self._mtmd.mtmd_input_chunks_size(self._chunks)):
            chunk = self._mtmd.mtmd_input_chunks_get(self._chunks, index)
            if self._mtmd.mtmd_input_chunk_get_type(chunk) != self._mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                break
            n = ctypes.c_size_t()
            found = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
            tokens += [found[i] for i in range(n.value)]
        if not tokens:
            raise OptionError("reduce: cdpruner needs a question, but there is no text behind the picture")
        row = np.zeros(self._llama.llama_model_n_embd(model), np.float32)
        total = np.zeros(len(row))
        for token in tokens:
            pointer = row.ctypes.data_as(_FLOAT_POINTER)
            if not self._llama._lib.pyfastv_token_embedding(model, token, pointer):
                raise UnsupportedModelError(
                    "reduce: the model has no table of token embeddings that could be read: use a reducer that does not "
                    "look at the question"
                )
            total += row
        return (total / len(tokens)).astype(np.float32)

    def _positions(
        self, vision: Any, chunk: Any, n_past: int, places: Sequence[int] | NDArray[Any], renumber: bool
    ) -> NDArray[np.int32]:
        """[n], for M-RoPE [4 * n]: t, y, x and one more."""
        if not self._mtmd.mtmd_decode_use_mrope(vision):
            return (n_past + np.asarray(places)).astype(np.int32)
        if renumber:
            at = n_past + np.asarray(places)
            return np.concatenate([at, at, at, np.zeros_like(at)]).astype(np.int32)
        image = self._mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        found = [self._mtmd.mtmd_image_tokens_get_decoder_pos(image, n_past, int(i)) for i in places]
        return np.array([[getattr(at, name) for at in found] for name in "tyxz"], np.int32).reshape(-1)

    def _decode(
        self, context: Any, values: NDArray[np.float32], positions: NDArray[np.int32], seq_id: Any
    ) -> int:
        n = len(values)
        values = np.ascontiguousarray(values)
        sequence = (ctypes.c_int32 * 1)(seq_id.value)
        batch = self._llama.llama_batch(
            n_tokens=n,
            embd=values.ctypes.data_as(_FLOAT_POINTER),
            pos=positions.ctypes.data_as(_INT32_POINTER),
            n_seq_id=(ctypes.c_int32 * n)(*[1] * n),
            seq_id=(_INT32_POINTER * n)(*[ctypes.cast(sequence, _INT32_POINTER)] * n),
            logits=(ctypes.c_int8 * n)(),
        )
        return int(self._llama.llama_decode(context, batch))

    @contextmanager
    def _not_causal(self, context: Any, enabled: bool, n_rows: int) -> Iterator[None]:
        """A picture that the model reads at once."""
        if not enabled:
            yield
            return
        n_ubatch = self._llama.llama_n_ubatch(context)
        if n_rows > n_ubatch:
            raise OptionError(
                f"this model reads a picture of {n_rows} tokens at once, but n_ubatch is {n_ubatch}: use a larger "
                "n_ubatch (and n_batch)"
            )
        self._llama.llama_set_causal_attn(context, False)
        try:
            yield
        finally:
            self._llama.llama_set_causal_attn(context, True)

"""One loaded model with its vision encoder, driven through llama-cpp-python's low-level bindings."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bindings import (
    EngineError,
    FastvParams,
    FastvReport,
    declare,
    foreign_libraries,
    load_bindings,
    report_of,
)
from .requests import Stopwatch, peak_bytes, reset_peak

__all__ = ["FLASH_ATTENTION", "Engine", "Options"]

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True)
class Options:
    """What to load, and the prompt."""

    libraries: str
    """Folder of libllama, libmtmd and libggml*."""
    model: str
    mmproj: str
    picture: str
    """A file that Pillow reads."""
    prompt: str
    """With <image> once, as mtmd tokenizes it."""
    add_bos: bool = False
    """In front of the prompt, if the vocabulary asks for it."""
    version: str | None = None
    """Of llama-cpp-python, that the libraries are of."""
    n_ctx: int = 4096
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = 1
    n_gpu_layers: int = 0
    flash_attn: str = "auto"


@dataclass(frozen=True)
class Chunk:
    """A piece of the prompt: text has tokens; a picture has mtmd's chunk, which stays owned by its list."""

    n_tokens: int
    tokens: tuple[int, ...] = ()
    picture: int | None = None
    """mtmd_input_chunk *"""


class Engine:
    """A loaded model with its picture encoder, one context and one prompt."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = Path(options.libraries).resolve()
        self.llama, self.mtmd = load_bindings(self.folder, options.version)
        if foreign := foreign_libraries(self.folder):
            raise EngineError(
                f"{self.folder}: its libraries load others from elsewhere: {', '.join(foreign)}"
            )
        self._quieten()
        self.llama.llama_backend_init()
        self.model = self._load_model()
        self.context = self._make_context()
        self.vision = self._load_mmproj()
        self.vocab = self.llama.llama_model_get_vocab(self.model)
        self.n_vocab: int = self.llama.llama_vocab_n_tokens(self.vocab)
        self.n_embd: int = self.llama.llama_model_n_embd_inp(self.model)
        self.attached = False
        self._chunk_list: int | None = None
        self.chunks = self._tokenize(self._read_picture())
        self._bind_fastv()

    # --- loading ---

    def _quieten(self) -> None:
        """Only warnings and errors of llama.cpp reach stderr."""

        def log(level: int, text: bytes, _: Any) -> None:
            if level in (3, 4):  # GGML_LOG_LEVEL_WARN, _ERROR
                sys.stderr.write(text.decode(errors="replace"))

        self._log = self.llama.llama_log_callback(log)  # kept: llama.cpp holds the pointer
        self.llama.llama_log_set(self._log, None)
        self.mtmd.mtmd_helper_log_set(self._log, None)

    def _load_model(self) -> int:
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers = self.options.n_gpu_layers
        model = self.llama.llama_model_load_from_file(str(self.options.model).encode(), params)
        if not model:
            raise EngineError(f"{self.options.model}: llama.cpp cannot load it")
        return int(model)

    def _make_context(self) -> int:
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = (
            self.options.n_ctx,
            self.options.n_batch,
            self.options.n_ubatch,
        )
        params.n_threads = params.n_threads_batch = self.options.n_threads
        params.flash_attn_type = FLASH_ATTENTION[self.options.flash_attn]
        params.no_perf = False
        context = self.llama.llama_init_from_model(self.model, params)
        if not context:
            raise EngineError(f"no context of {self.options.n_ctx} tokens for {self.options.model}")
        return int(context)

    def _load_mmproj(self) -> int:
        params = self.mtmd.mtmd_context_params_default()
        params.use_gpu = self.options.n_gpu_layers != 0
        params.n_threads = self.options.n_threads
        params.flash_attn_type = FLASH_ATTENTION[self.options.flash_attn]
        params.print_timings = False
        vision = self.mtmd.mtmd_init_from_file(str(self.options.mmproj).encode(), self.model, params)
        if not vision:
            raise EngineError(f"{self.options.mmproj}: libmtmd cannot load it for {self.options.model}")
        return int(vision)

    def _read_picture(self) -> NDArray[np.uint8]:
        """RGB (height, width, 3)."""
        from PIL import Image

        with Image.open(self.options.picture) as picture:
            return np.ascontiguousarray(picture.convert("RGB"))

    def _tokenize(self, picture: NDArray[np.uint8]) -> list[Chunk]:
        """The prompt in chunks; those of the last call are freed."""
        marker: bytes = self.mtmd.mtmd_default_marker()
        text = self.options.prompt.encode().replace(b"<image>", marker)
        if text.count(marker) != 1:
            raise EngineError(f"the prompt must hold <image> once: {self.options.prompt!r}")
        height, width, _ = picture.shape
        pixels = picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = ctypes.c_void_p(self.mtmd.mtmd_bitmap_init(width, height, pixels))
        self._text = text  # kept: the request points to it
        request = self.mtmd.mtmd_input_text(text, len(text), self.options.add_bos, True)
        if self._chunk_list is not None:
            self.mtmd.mtmd_input_chunks_free(self._chunk_list)
        self._chunk_list = self.mtmd.mtmd_input_chunks_init()
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        status = self.mtmd.mtmd_tokenize(self.vision, self._chunk_list, ctypes.byref(request), bitmaps, 1)
        self.mtmd.mtmd_bitmap_free(bitmap)
        if status:
            raise EngineError(f"mtmd_tokenize failed with status {status}")
        return list(self._read_chunks())

    def _read_chunks(self) -> Iterator[Chunk]:
        for i in range(self.mtmd.mtmd_input_chunks_size(self._chunk_list)):
            chunk = self.mtmd.mtmd_input_chunks_get(self._chunk_list, i)
            if self.mtmd.mtmd_input_chunk_get_type(chunk) == self.mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                n = ctypes.c_size_t()
                ids = self.mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
                yield Chunk(n.value, tokens=tuple(ids[: n.value]))
            else:
                yield Chunk(self.mtmd.mtmd_input_chunk_get_n_tokens(chunk), picture=chunk)

    def _bind_fastv(self) -> None:
        """Types of the pyfastv functions, where the library has them."""
        library = self.llama._lib
        self.fastv = library if hasattr(library, "pyfastv_attach") else None
        if self.fastv:
            declare(self.fastv)

    # --- requests ---

    def info(self) -> dict[str, Any]:
        """The libraries, and how long the prompt is."""
        library = self.llama._lib  # ggml's functions are visible through libllama's dependencies
        library.ggml_version.restype = library.llama_version.restype = ctypes.c_char_p
        return {
            "libraries": str(self.folder),
            "has_fastv": self.fastv is not None,
            "llama_version": library.llama_version().decode(),
            "ggml_version": library.ggml_version().decode(),
            "system_info": self.llama.llama_print_system_info().decode().strip(),
            "n_visual": sum(chunk.n_tokens for chunk in self.chunks if chunk.picture),
            "n_text": sum(chunk.n_tokens for chunk in self.chunks if not chunk.picture),
        }

    def attach(self, spec: str) -> dict[str, Any]:
        """Stages on, by the language of pyfastv_parse()."""
        if not self.fastv:
            raise EngineError(
                f"{self.folder}: libllama has no pyfastv_attach, these are not pyfastv's libraries"
            )
        params = FastvParams()
        n_layer = self.llama.llama_model_n_layer(self.model)
        parsed = self.fastv.pyfastv_parse(spec.encode(), n_layer, ctypes.byref(params)) == 0
        if not parsed or self.fastv.pyfastv_fit_layers(self.model, ctypes.byref(params)) != 0:
            raise EngineError(self.fastv.pyfastv_last_error().decode())
        self._set_stages(params)
        self.attached = True
        return {}

    def detach(self) -> dict[str, Any]:
        """Stages off. Nothing is called if it never was on."""
        if self.attached:
            self._set_stages(None)
            self.attached = False
        return {}

    def _set_stages(self, params: FastvParams | None) -> None:
        assert self.fastv
        self._clear()
        if self.fastv.pyfastv_attach(self.context, None if params is None else ctypes.byref(params)) != 0:
            raise EngineError(self.fastv.pyfastv_last_error().decode())

    def measure(self, generate: int) -> dict[str, Any]:
        """Times of one question, and ``generate`` tokens behind it.

        ``first_token``: from the picture's file to the first token. Of it, ``picture``: the file to RGB, ``encoder``, and
        ``prefill``: the language model's, every chunk until logits can be read. The rest is tokenization, and making
        the picture as large as the encoder wants it. A question that is not measured comes before it.
        """
        self._clear()
        self.chunks = self._tokenize(self._read_picture())
        self._prefill(None)
        self._logits()
        self._clear()
        has_reset = reset_peak()
        whole = Stopwatch()
        rgb = self._read_picture()
        picture = whole.read()
        self.chunks = self._tokenize(rgb)
        encoder_ms = prefill_ms = encoder_cpu = prefill_cpu = 0.0
        n_past = 0
        for i, chunk in enumerate(self.chunks):
            rows = None
            if chunk.picture is not None:
                watch = Stopwatch()
                rows = self._encode(chunk)
                spent = watch.read()
                encoder_ms, encoder_cpu = encoder_ms + spent.wall_ms, encoder_cpu + spent.cpu_ms
            watch = Stopwatch()
            n_past = self._decode_chunk(chunk, rows, n_past)
            if i == len(self.chunks) - 1:
                logits = self._logits()
            spent = watch.read()
            prefill_ms, prefill_cpu = prefill_ms + spent.wall_ms, prefill_cpu + spent.cpu_ms
        token = int(logits.argmax())
        first_token = whole.read()
        if not np.isfinite(logits).all():
            raise EngineError("the logits behind the prompt are not finite")
        answer: dict[str, Any] = {
            "first_token_ms": first_token.wall_ms,
            "first_token_cpu_ms": first_token.cpu_ms,
            "picture_ms": picture.wall_ms,
            "encoder_ms": encoder_ms,
            "encoder_cpu_ms": encoder_cpu,
            "prefill_ms": prefill_ms,
            "prefill_cpu_ms": prefill_cpu,
        }

        self.llama.llama_perf_context_reset(self.context)
        watch = Stopwatch()
        for i in range(generate):
            self._decode_tokens((token,), n_past + i)
            token = int(self._logits().argmax())
        spent = watch.read()
        answer["generate"] = generate
        answer["generate_ms"] = spent.wall_ms / max(generate, 1)
        answer["generate_cpu_ms"] = spent.cpu_ms / max(generate, 1)
        answer["graphs_reused"] = self.llama.llama_perf_context(self.context).n_reused
        answer["peak_bytes"], answer["peak_is_of_setting"] = peak_bytes(), has_reset
        self._clear()
        return answer

    def encode(self, save: str) -> dict[str, Any]:
        """Save the picture's embeddings."""
        embeddings = np.concatenate([self._encode(chunk) for chunk in self.chunks if chunk.picture])
        np.save(save, embeddings)
        return {"shape": embeddings.shape}

    def logits(
        self, steps: int, save: str, embeddings: str | None = None, tokens: list[int] | None = None
    ) -> dict[str, Any]:
        """Save the logits of greedy steps; the answer holds the chosen tokens."""
        self._clear()
        rows = None if embeddings is None else np.ascontiguousarray(np.load(embeddings), np.float32)
        n_past = self._prefill(rows)
        out = np.empty((steps, self.n_vocab), np.float32)
        chosen: list[int] = []
        for i in range(steps):
            out[i] = self._logits()
            chosen.append(int(out[i].argmax()))
            if i + 1 < steps:
                self._decode_tokens((tokens[i] if tokens else chosen[i],), n_past + i)
        np.save(save, out)
        answer = {"tokens": chosen, "report": self._report() if self.attached else None}
        self._clear()
        return answer

    # --- steps ---

    def _clear(self) -> None:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def _encode(self, chunk: Chunk) -> NDArray[np.float32]:
        """(tokens of the chunk, width); a copy, for mtmd's own buffer is short-lived."""
        if self.mtmd.mtmd_encode_chunk(self.vision, chunk.picture) != 0:
            raise EngineError("mtmd_encode_chunk failed")
        pointer = self.mtmd.mtmd_get_output_embd(self.vision)
        return np.array(np.ctypeslib.as_array(pointer, (chunk.n_tokens, self.n_embd)), np.float32)

    def _prefill(self, embeddings: NDArray[np.float32] | None) -> int:
        """Decode every chunk; None: the picture is encoded. Gives the next position."""
        n_past = 0
        for chunk in self.chunks:
            rows = None
            if chunk.picture is not None and embeddings is None:
                rows = self._encode(chunk)
            elif chunk.picture is not None and embeddings is not None:
                rows, embeddings = embeddings[: chunk.n_tokens], embeddings[chunk.n_tokens :]
            n_past = self._decode_chunk(chunk, rows, n_past)
        return n_past

    def _decode_chunk(self, chunk: Chunk, rows: NDArray[np.float32] | None, n_past: int) -> int:
        """As mtmd's own helpers do it. ``rows``: of a picture. Gives the next position."""
        if rows is None:
            self._decode_tokens(chunk.tokens, n_past)
            return n_past + chunk.n_tokens
        if rows.shape != (chunk.n_tokens, self.n_embd):
            raise EngineError(f"embeddings of shape {rows.shape}, not {(chunk.n_tokens, self.n_embd)}")
        position = self.llama.llama_pos(0)
        status = self.mtmd.mtmd_helper_decode_image_chunk(
            self.vision,
            self.context,
            chunk.picture,
            rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            n_past,
            0,
            self.options.n_batch,
            ctypes.byref(position),
            self.mtmd.mtmd_helper_post_decode_callback(),
            None,
        )
        if status != 0:
            raise EngineError(f"mtmd_helper_decode_image_chunk failed with status {status}")
        return int(position.value)

    def _decode_tokens(self, tokens: tuple[int, ...], position: int) -> None:
        """Decode text; logits are asked for at the last token."""
        n = len(tokens)
        batch = self.llama.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == n - 1
        status = self.llama.llama_decode(self.context, batch)
        self.llama.llama_batch_free(batch)
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status}")

    def _logits(self) -> NDArray[np.float32]:
        """The logits of the last token, float32 (vocabulary): a view, valid until the next decode."""
        pointer = self.llama.llama_get_logits_ith(self.context, -1)
        if not pointer:
            raise EngineError("llama_get_logits_ith returned nothing")
        view: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        return view

    def _report(self) -> dict[str, Any]:
        """pyfastv's own account of the prompt."""
        assert self.fastv
        report = report_of(self.fastv, self.context)
        values = ((name, getattr(report, name)) for name, *_ in FastvReport._fields_ if name != "size")
        return {name: list(value) if isinstance(value, ctypes.Array) else value for name, value in values}

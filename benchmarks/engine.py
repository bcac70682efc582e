"""One loaded model with its picture encoder, driven through llama-cpp-python's low-level bindings."""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bindings import EngineError, FastvParams, FastvReport, declare, foreign_libraries, load_bindings

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
FIRST_WORD = 259  # ids below are specials and bytes in a SentencePiece vocabulary


@dataclass(frozen=True)
class Chunk:
    """A piece of the prompt: text has tokens; a picture has mtmd's chunk, which stays owned by its list."""

    n_tokens: int
    tokens: tuple[int, ...] = ()
    picture: int | None = None  # mtmd_input_chunk *


@dataclass(frozen=True)
class Timing:
    """Wall and CPU milliseconds; CPU is summed over all threads of the process."""

    wall_ms: float
    cpu_ms: float


class Stopwatch:
    """Measures from its construction on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Timing:
        return Timing(1e3 * (time.perf_counter() - self._wall), 1e3 * (time.process_time() - self._cpu))


def drawn_picture(size: int = 336) -> np.ndarray:
    """A fixed picture, uint8 (size, size, 3): gradients under a coarse and a fine pattern."""
    y, x = np.mgrid[0:size, 0:size]
    waves = np.sin(x / 9.0) * np.cos(y / 13.0) + 0.3 * np.sin(x * y / 997.0)
    planes = [255 * x / size + 40 * waves, 255 * y / size - 40 * waves, 128 + 90 * waves]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


class Engine:
    """A loaded model with its picture encoder, one context and one prompt."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder: Path = args.libraries
        self.llama, self.mtmd = load_bindings(self.folder)
        if foreign := foreign_libraries(self.folder):
            raise EngineError(
                f"{self.folder}: its libraries load others from elsewhere: {', '.join(foreign)}"
            )
        self._quieten()
        self.llama.llama_backend_init()
        self.model = self._load_model(args)
        self.context = self._make_context(args)
        self.vision = self._load_mmproj(args)
        self.vocab = self.llama.llama_model_get_vocab(self.model)
        self.n_vocab: int = self.llama.llama_vocab_n_tokens(self.vocab)
        self.n_embd: int = self.llama.llama_model_n_embd_inp(self.model)
        self.n_batch: int = args.n_batch
        self.attached = False
        self.chunks = list(self._make_chunks(args))
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

    def _load_model(self, args: argparse.Namespace) -> int:
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers = args.n_gpu_layers
        model = self.llama.llama_model_load_from_file(str(args.model).encode(), params)
        if not model:
            raise EngineError(f"{args.model}: llama.cpp cannot load it")
        return int(model)

    def _make_context(self, args: argparse.Namespace) -> int:
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = args.n_ctx, args.n_batch, args.n_ubatch
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = FLASH_ATTENTION[args.flash_attention]
        params.no_perf = False
        context = self.llama.llama_init_from_model(self.model, params)
        if not context:
            raise EngineError(f"no context of {args.n_ctx} tokens for {args.model}")
        return int(context)

    def _load_mmproj(self, args: argparse.Namespace) -> int:
        params = self.mtmd.mtmd_context_params_default()
        params.use_gpu = args.n_gpu_layers != 0
        params.n_threads = args.threads
        params.flash_attn_type = FLASH_ATTENTION[args.flash_attention]
        params.print_timings = False
        vision = self.mtmd.mtmd_init_from_file(str(args.mmproj).encode(), self.model, params)
        if not vision:
            raise EngineError(f"{args.mmproj}: libmtmd cannot load it for {args.model}")
        return int(vision)

    def _make_chunks(self, args: argparse.Namespace) -> Iterator[Chunk]:
        """The prompt: --prompt as mtmd tokenises it, or the picture and then --text-tokens fixed words."""
        marker: str = self.mtmd.mtmd_default_marker().decode()
        text = marker if args.prompt is None else args.prompt.replace("\\n", "\n").replace("<image>", marker)
        if text.count(marker) != 1:
            raise EngineError(f"the prompt must hold <image> once: {args.prompt!r}")
        picture = drawn_picture()
        if args.picture:
            from PIL import Image

            picture = np.asarray(Image.open(args.picture).convert("RGB"))
        height, width, _ = picture.shape
        pixels = np.ascontiguousarray(picture).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = ctypes.c_void_p(self.mtmd.mtmd_bitmap_init(width, height, pixels))
        parsed = text.encode()
        request = self.mtmd.mtmd_input_text(parsed, len(parsed), args.prompt is not None, True)
        self._chunk_list = self.mtmd.mtmd_input_chunks_init()
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        status = self.mtmd.mtmd_tokenize(self.vision, self._chunk_list, ctypes.byref(request), bitmaps, 1)
        self.mtmd.mtmd_bitmap_free(bitmap)
        if status:
            raise EngineError(f"mtmd_tokenize failed with status {status}")
        for i in range(self.mtmd.mtmd_input_chunks_size(self._chunk_list)):
            chunk = self.mtmd.mtmd_input_chunks_get(self._chunk_list, i)
            if self.mtmd.mtmd_input_chunk_get_type(chunk) == self.mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                n = ctypes.c_size_t()
                ids = self.mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
                yield Chunk(n.value, tokens=tuple(ids[: n.value]))
            else:
                yield Chunk(self.mtmd.mtmd_input_chunk_get_n_tokens(chunk), picture=chunk)
        if args.prompt is None:
            words = self.n_vocab - FIRST_WORD
            yield Chunk(
                args.text_tokens, tokens=tuple(FIRST_WORD + 7919 * i % words for i in range(args.text_tokens))
            )

    def _bind_fastv(self) -> None:
        """Types of the pyfastv functions, where the library has them."""
        library = self.llama._lib
        self.fastv = library if hasattr(library, "pyfastv_attach") else None
        if self.fastv:
            declare(self.fastv)

    # --- requests ---

    def info(self) -> dict[str, Any]:
        """The libraries and the sizes that the theoretical ratio needs."""
        llama, model = self.llama, self.model
        arch = self._metadata("general.architecture")
        library = llama._lib  # ggml's functions are visible through libllama's dependencies
        library.ggml_version.restype = library.llama_version.restype = ctypes.c_char_p
        head = llama.llama_model_n_embd(model) // llama.llama_model_n_head(model)
        return {
            "libraries": str(self.folder),
            "has_fastv": self.fastv is not None,
            "llama_version": library.llama_version().decode(),
            "ggml_version": library.ggml_version().decode(),
            "system_info": llama.llama_print_system_info().decode().strip(),
            "n_visual": sum(chunk.n_tokens for chunk in self.chunks if chunk.picture),
            "n_text": sum(chunk.n_tokens for chunk in self.chunks if not chunk.picture),
            "sizes": {
                "layers": llama.llama_model_n_layer(model),
                "width": llama.llama_model_n_embd(model),
                "kv_width": head * llama.llama_model_n_head_kv(model),
                "ffn": int(self._metadata(f"{arch}.feed_forward_length")),
                "vocab": self.n_vocab,
            },
        }

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        if self.llama.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer)) < 0:
            raise EngineError(f"the model has no {key}")
        return buffer.value.decode()

    def attach(self, spec: str) -> dict[str, Any]:
        """Stages on, by the language of pyfastv_parse()."""
        if not self.fastv:
            raise EngineError(
                f"{self.folder}: libllama has no pyfastv_attach, these are not pyfastv's libraries"
            )
        params = FastvParams()
        n_layer = self.llama.llama_model_n_layer(self.model)
        if self.fastv.pyfastv_parse(spec.encode(), n_layer, ctypes.byref(params)) != 0:
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

    def measure(self, generate: int = 16) -> dict[str, Any]:
        """Times of one question. Prefill is the language model's: every chunk, until logits can be read."""
        self._clear()
        watch = Stopwatch()
        self._encode()
        encoder = watch.read()
        embeddings = self._copy_embeddings()

        watch = Stopwatch()
        n_past = self._prefill(embeddings)
        logits = self._logits()
        prefill = watch.read()
        answer: dict[str, Any] = {
            "encoder_ms": encoder.wall_ms,
            "encoder_cpu_ms": encoder.cpu_ms,
            "prefill_ms": prefill.wall_ms,
            "prefill_cpu_ms": prefill.cpu_ms,
            "report": self._report() if self.attached else None,
        }
        if not np.isfinite(logits).all():
            raise EngineError("the logits after the prompt are not finite")

        self.llama.llama_perf_context_reset(self.context)
        watch = Stopwatch()
        for i in range(generate):
            self._decode_tokens((int(logits.argmax()),), n_past + i)
            logits = self._logits()
        generation = watch.read()
        answer["generate"] = generate
        answer["generate_ms"] = generation.wall_ms / max(generate, 1)
        answer["generate_cpu_ms"] = generation.cpu_ms / max(generate, 1)
        answer["graphs_reused"] = self.llama.llama_perf_context(self.context).n_reused
        self._clear()
        return answer

    def encode(self, save: str) -> dict[str, Any]:
        """Save the picture's embeddings."""
        self._encode()
        embeddings = self._copy_embeddings()
        np.save(save, embeddings)
        return {"shape": embeddings.shape}

    def logits(
        self, steps: int, save: str, embeddings: str | None = None, tokens: list[int] | None = None
    ) -> dict[str, Any]:
        """Save the logits of greedy steps; the answer holds the chosen tokens."""
        self._clear()
        if embeddings is None:
            self._encode()
            rows = self._copy_embeddings()
        else:
            rows = np.ascontiguousarray(np.load(embeddings), np.float32)
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

    def _encode(self) -> None:
        for chunk in self.chunks:
            if chunk.picture and self.mtmd.mtmd_encode_chunk(self.vision, chunk.picture) != 0:
                raise EngineError("mtmd_encode_chunk failed")

    def _copy_embeddings(self) -> np.ndarray:
        """float32 (visual tokens, width) of the last encoded picture; mtmd's own buffer is short-lived."""
        n_visual = next(chunk.n_tokens for chunk in self.chunks if chunk.picture)
        pointer = self.mtmd.mtmd_get_output_embd(self.vision)
        return np.array(np.ctypeslib.as_array(pointer, (n_visual, self.n_embd)), np.float32)

    def _prefill(self, embeddings: np.ndarray) -> int:
        """Decode every chunk as mtmd's own helpers do. Returns the next position."""
        n_past = 0
        for chunk in self.chunks:
            if chunk.picture is None:
                self._decode_tokens(chunk.tokens, n_past)
                n_past += chunk.n_tokens
                continue
            if embeddings.shape != (chunk.n_tokens, self.n_embd):
                raise EngineError(
                    f"embeddings of shape {embeddings.shape}, not {(chunk.n_tokens, self.n_embd)}"
                )
            position = self.llama.llama_pos(0)
            status = self.mtmd.mtmd_helper_decode_image_chunk(
                self.vision,
                self.context,
                chunk.picture,
                embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                n_past,
                0,
                self.n_batch,
                ctypes.byref(position),
                self.mtmd.mtmd_helper_post_decode_callback(),
                None,
            )
            if status != 0:
                raise EngineError(f"mtmd_helper_decode_image_chunk failed with status {status}")
            n_past = position.value
        return n_past

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

    def _logits(self) -> np.ndarray:
        """The logits of the last token, float32 (vocabulary): a view, valid until the next decode."""
        pointer = self.llama.llama_get_logits_ith(self.context, -1)
        if not pointer:
            raise EngineError("llama_get_logits_ith returned nothing")
        view: np.ndarray = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        return view

    def _report(self) -> dict[str, Any]:
        """pyfastv's own account of the prompt."""
        assert self.fastv
        report = self.fastv.pyfastv_get_report(self.context)
        values = ((field[0], getattr(report, field[0])) for field in FastvReport._fields_)
        return {name: list(value) if isinstance(value, ctypes.Array) else value for name, value in values}

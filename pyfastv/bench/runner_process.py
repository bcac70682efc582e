"""The process that measures a :class:`pyfastv.Runner`; :mod:`pyfastv.bench.lowlevel.requests` says how it is talked to.

{"do": "prepare", "text_tokens": 14}             finds the prompt; the libraries, and how long it is
{"do": "set", "setting": "k=2,drop=0.5"}         what follows is measured with it
{"do": "measure", "generate": 16}                times of a question
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .. import _native
from .._about import lib_path
from ..engine.runner import Runner
from ..errors import DecodeError
from ..inputs.images import load_image
from ..settings.setting import Setting
from .lowlevel.requests import Stopwatch, peak_bytes, reset_peak, serve

__all__ = ["Options", "main"]

# Texts of as many tokens as wanted are found by repeating one of these: the first is a token in nearly every
# vocabulary; a vocabulary of single characters has the others.
_FILLERS = (" a", "a", ".")


@dataclass(frozen=True)
class Options:
    """What to load, and the picture."""

    model: str
    mmproj: str
    picture: str
    n_ctx: int
    n_threads: int
    n_gpu_layers: int
    flash_attn: str
    encoder_type: str = "stock"


class _Measuring:
    def __init__(self, options: Options) -> None:
        # read by bytes: a measurement is of decoding, not of the disk
        self._file = Path(options.picture).read_bytes()
        self._runner = Runner(
            options.model,
            options.mmproj,
            n_ctx=options.n_ctx,
            n_threads=options.n_threads,
            n_gpu_layers=options.n_gpu_layers,
            flash_attn=options.flash_attn,  # type: ignore[arg-type]  # checked there
            fastv=None,
            encoder_cache_mb=0,
            encoder_type=options.encoder_type,
        )
        self._engine = self._runner._engine
        self._text = ""
        self._ids = count()

    def prepare(self, text_tokens: int) -> dict[str, Any]:
        """The prompt: a picture, then a text of as many tokens, or nearly, if the vocabulary has no such text."""
        self._text = self._find_text(text_tokens)
        rgb = load_image(self._file)
        self._prefill(rgb, 1)
        report = self._engine.report()
        build = _native.build_info()
        return {
            "text": self._text,
            "n_visual": report.visual_tokens,
            "n_text": report.prompt_tokens - report.visual_tokens,
            "n_slices": len(self._engine.pixels(rgb)),
            "description": self._engine.description,
            "n_layer": self._engine.n_layer,
            **_versions(),
            "bindings_version": build["llama_cpp_python"],
            "system_info": _native.system_info().strip(),
            "encoder": self._runner.info["encoder"],
        }

    def _find_text(self, n: int) -> str:
        best = ("", n)
        for filler in _FILLERS:
            text = filler * n
            tried: set[str] = set()
            while text and text not in tried:
                tried.add(text)
                self._engine.reset()
                self._engine.prefill(text, [], [], None, False, 1)
                found = int(self._engine.report().prompt_tokens)
                if abs(found - n) < best[1]:
                    best = (text, abs(found - n))
                text = filler * max(1, len(text) // len(filler) + n - found)
            if best[1] == 0:
                break
        return best[0]

    def set(self, setting: str) -> dict[str, Any]:
        """The setting, as :meth:`pyfastv.settings.setting.Setting.parse` takes it."""
        self._runner._use(Setting.parse(setting))
        return {}

    def measure(self, generate: int) -> dict[str, Any]:
        """Times of one question and of ``generate`` tokens behind it, each as the engine reports it.

        ``first_token_ms``: from the picture's file to the first token; CPU time is summed over all threads. A question
        that is not measured comes before it: the first one after a change of setting has fresh buffers, and pays for
        their pages (4 of 35 ms on the smallest model)."""
        engine = self._engine
        self._prefill(load_image(self._file), 1)
        has_reset = reset_peak()
        whole = Stopwatch()
        rgb = load_image(self._file)
        picture_ms = whole.read().wall_ms
        self._prefill(rgb, generate + 1)
        logits = engine.logits()
        token = int(logits.argmax())
        first_token = whole.read()
        if not np.isfinite(logits).all():
            raise DecodeError("the logits behind the prompt are not finite")
        report = engine.report()
        watch = Stopwatch()
        for _ in range(generate):
            engine.feed(token)
            token = int(engine.logits().argmax())
        generation = watch.read()
        after = engine.report()
        times = {name: getattr(report, name) for name in ("full_ms", "stage0_ms", "choose_ms", "later_ms")}
        prefill_ms = sum(times.values())
        times["reduce_ms"] = report.reduce_ms
        answer = {
            "first_token_ms": first_token.wall_ms,
            "first_token_cpu_ms": first_token.cpu_ms,
            "picture_ms": picture_ms,
            "encoder_ms": report.encode_ms,
            "prefill_ms": prefill_ms,
            **times,
            "generate": generate,
            "generate_ms": generation.wall_ms / max(generate, 1),
            "generate_cpu_ms": generation.cpu_ms / max(generate, 1),
            "graphs_reused": after.graphs_reused - report.graphs_reused,
            "peak_bytes": peak_bytes(),
            "peak_is_of_setting": has_reset,
        }
        names = ("visual_tokens", "prompt_tokens", "first_layers", "visual_tokens_in_stage", "archive_bytes")
        bytes_of_kv = ("used", "allocated", "used_stock", "allocated_stock")
        answer |= {name: getattr(report, name) for name in names}
        answer |= {f"kv_bytes_{name}": getattr(report, f"kv_bytes_{name}") for name in bytes_of_kv}
        engine.reset()
        return answer

    def _prefill(self, rgb: Any, reserve: int) -> None:
        self._engine.reset()
        # never the same picture twice: neither the context nor a cache knows it
        self._engine.prefill(
            f"{self._engine.media_marker}{self._text}",
            [rgb],
            [f"picture {next(self._ids)}"],
            None,
            False,
            reserve,
        )


def _versions() -> dict[str, str]:
    """As the libraries tell them, for comparison with others."""
    (path,) = (p for p in lib_path().glob("*llama.*") if p.suffix in (".so", ".dylib", ".dll"))
    library = ctypes.CDLL(str(path))
    versions = {}
    for name in ("llama_version", "ggml_version"):
        function = getattr(library, name)
        function.restype = ctypes.c_char_p
        versions[name] = function().decode()
    return versions


def _make(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    measuring = _Measuring(Options(**options))
    return {"prepare": measuring.prepare, "set": measuring.set, "measure": measuring.measure}


def main() -> None:
    serve(_make)

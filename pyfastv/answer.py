"""What a request gives back: the text, and a report of what was done for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .options import FastV

__all__ = ["Answer", "Report"]

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Report:
    """What one request did. Times are wall-clock milliseconds, counts are tokens; nothing is NaN."""

    fastv: FastV | None
    """The rule in force; None: every layer saw every token."""
    visual_tokens: int
    """Visual tokens in the prompt."""
    visual_tokens_kept: int
    """Of those, the ones that the layers from ``fastv.k`` on saw."""
    prompt_tokens: int
    """Prompt, visual tokens included."""
    cached_tokens: int
    """Of the prompt, the tokens that were still in the context from the request before."""
    generated_tokens: int
    image_decode_ms: float
    """Picture files to RGB."""
    encode_ms: float
    """Vision encoder and projector."""
    full_ms: float
    """Prompt tokens that ran through every layer at once."""
    stage0_ms: float
    """Layers [0, k)."""
    choose_ms: float
    """Reading the scores and choosing."""
    later_ms: float
    """Layers [k, n_layer) of the kept tokens."""
    generate_ms: float
    first_token_ms: float
    """From the start of prefill, vision encoder included, to the first token of the answer."""
    tokens_per_second: float
    """Generation; 0 if nothing was generated."""
    prefill_tokens_per_second: float
    """Prompt tokens that were not cached, through the language model; 0 if there were none."""
    kv_bytes_used: tuple[int, ...]
    """KV cache that holds tokens, one entry a stage."""
    kv_bytes_allocated: tuple[int, ...]
    """KV cache, one entry a stage."""
    graphs_reused: int
    """Batches that could use the graph of the batch before."""

    @classmethod
    def of(cls, engine: Mapping[str, Any], *, image_decode_ms: float, fastv: FastV | None) -> Report:
        """From the native engine's report."""
        values = {field.name: _plain(engine[field.name]) for field in fields(cls) if field.name in engine}
        prefill_ms = sum(values[name] for name in ("full_ms", "stage0_ms", "choose_ms", "later_ms"))
        return cls(
            fastv=fastv,
            image_decode_ms=_finite(image_decode_ms),
            tokens_per_second=_per_second(values["generated_tokens"], values["generate_ms"]),
            prefill_tokens_per_second=_per_second(
                values["prompt_tokens"] - values["cached_tokens"], prefill_ms
            ),
            **values,
        )

    @property
    def prefill_ms(self) -> float:
        """The language model's share of prefill: every layer, every stage, and choosing."""
        return self.full_ms + self.stage0_ms + self.choose_ms + self.later_ms

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers, lists of numbers, and ``fastv`` as ``{"k": ..., "drop": ...}`` or None."""
        items = asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in items}

    def __str__(self) -> str:
        rule = "off" if self.fastv is None else str(self.fastv)
        stages = (
            f"all layers {self.full_ms:.0f}, before k {self.stage0_ms:.0f}, "
            f"choosing {self.choose_ms:.1f}, from k on {self.later_ms:.0f}"
        )
        used, allocated = (
            " + ".join(f"{size / _MIB:.1f}" for size in sizes) or "0"
            for sizes in (self.kv_bytes_used, self.kv_bytes_allocated)
        )
        lines = {
            "visual tokens": f"{self.visual_tokens}, {self.visual_tokens_kept} kept ({rule})",
            "prompt": f"{self.prompt_tokens} tokens, {self.cached_tokens} cached",
            "picture": f"read in {self.image_decode_ms:.0f} ms, encoded in {self.encode_ms:.0f} ms",
            "prefill": f"{self.prefill_ms:.0f} ms, {self.prefill_tokens_per_second:.0f} tokens/s"
            + (f" ({stages})" if self.stage0_ms else ""),
            "generation": f"{self.generated_tokens} tokens in {self.generate_ms:.0f} ms, "
            f"{self.tokens_per_second:.1f} tokens/s; first after {self.first_token_ms:.0f} ms",
            "KV cache": f"{used} of {allocated} MiB used",
        }
        return "\n".join(f"{name:<14} {value}" for name, value in lines.items())


@dataclass(frozen=True)
class Answer:
    """An answer; ``str(answer)`` is its text."""

    text: str
    report: Report
    finish_reason: str
    """"stop": the model ended it, or a stop string; "length": ``max_tokens`` or the context ended it."""

    def __str__(self) -> str:
        return self.text


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(int(item) for item in value)
    return _finite(value) if isinstance(value, float) else int(value)


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _per_second(count: int, milliseconds: float) -> float:
    return count * 1000.0 / milliseconds if milliseconds > 0 else 0.0

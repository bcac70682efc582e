"""What a request gives back: the text, and a report of what was done for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ..inputs.budget import SeenPicture
from ..settings.setting import InForce, Setting
from .pieces import TokenProb, chat_logprobs

if TYPE_CHECKING:
    from .. import _native

__all__ = ["Answer", "Report", "Saved"]

_MIB = 1024 * 1024


class Saved(NamedTuple):
    """Bytes of KV cache less than stock llama.cpp has for the same tokens."""

    used: int
    allocated: int


@dataclass(frozen=True)
class Report(InForce):
    """What one request did. Times are wall-clock milliseconds, counts are tokens; nothing is NaN."""

    setting: Setting
    """What was in force; ``fastv``, ``turbo``, ``reduce`` and ``skip`` are its parts."""
    encoded_tokens: int
    """Visual tokens that the vision encoder and the projector make of the prompt's pictures."""
    visual_tokens: int
    """Visual tokens in the prompt, as they enter the language model."""
    patches: int
    """What the encoder would make of whole pictures without Turbo."""
    skipped_tokens: int
    """Of those, the ones that were left out before the encoder, because their neighbours predict them."""
    visual_tokens_kept: int
    """Of those, the ones that the last layers see, recalled ones included."""
    recalled_tokens: int
    """Visual tokens that this question brought back."""
    retained_share: float | None
    """Share of the visual tokens that a layer sees, mean over the layers; None without a picture."""
    pictures_encoded: int
    pictures_from_cache: int
    """Pictures whose encoder output was still there from an earlier request; those that were still in the context are
    neither encoded nor fetched."""
    pictures_from_disk: int
    """Of these, the ones that ``encoder_cache_dir`` had and the memory had not."""
    prompt_tokens: int
    """Prompt, visual tokens included."""
    cached_tokens: int
    """Of the prompt, the tokens that were still in the context from the request before."""
    generated_tokens: int
    image_decode_ms: float
    """Picture files to RGB."""
    encode_ms: float
    """Vision encoder and projector."""
    reduce_ms: float
    """The reducer, between them and the language model."""
    full_ms: float
    """Prompt tokens that ran through every layer at once."""
    stage0_ms: float
    """Layers before the first cut."""
    choose_ms: float
    """Choosing."""
    later_ms: float
    """Layers from the first cut on, of the tokens that they see."""
    generate_ms: float
    first_token_ms: float
    """From the start of prefill, vision encoder included, to the first token of the answer."""
    tokens_per_second: float
    """Generation; 0 if nothing was generated."""
    prefill_tokens_per_second: float
    """Prompt tokens that were not cached, through the language model; 0 if there were none."""
    first_layers: tuple[int, ...]
    """The first layer of each stage; one stage without a schedule."""
    visual_tokens_in_stage: tuple[int, ...]
    """Of the prompt's visual tokens, those that each stage sees."""
    kv_bytes_used: tuple[int, ...]
    """KV cache that holds tokens, one entry a stage."""
    kv_bytes_allocated: tuple[int, ...]
    """KV cache, one entry a stage."""
    kv_bytes_used_stock: int
    """What stock llama.cpp would use for the same tokens."""
    kv_bytes_allocated_stock: int
    """What it would allocate."""
    archive_bytes: int
    """Hidden rows, and their similarities, kept for later questions."""
    checkpoint_bytes: int
    """States of recurrent layers, of all slots, that later prompts can go back to; 0 for models without such layers."""
    graphs_reused: int
    """Batches that could use the graph of the batch before."""
    queue_ms: float = 0.0
    """Waiting for a slot of a pool; a runner has no queue."""
    pictures: tuple[SeenPicture, ...] = ()
    """The prompt's pictures and frames, in order: their sizes, tiles and tokens, before Turbo and reducers."""

    @classmethod
    def of(
        cls,
        engine: _native.RunReport,
        *,
        n_layer: int,
        image_decode_ms: float,
        setting: Setting,
        queue_ms: float = 0.0,
        pictures: Sequence[SeenPicture] = (),
    ) -> Report:
        """From the native engine's report."""
        names = [field.name for field in fields(cls) if hasattr(engine, field.name)]
        values = {name: _plain(getattr(engine, name)) for name in names}
        prefill_ms = sum(values[name] for name in ("full_ms", "stage0_ms", "choose_ms", "later_ms"))
        in_stage = values["visual_tokens_in_stage"]
        return cls(
            setting=setting,
            visual_tokens_kept=in_stage[-1],
            retained_share=_retained_share(values["first_layers"], in_stage, n_layer),
            image_decode_ms=_finite(image_decode_ms),
            queue_ms=queue_ms,
            pictures=tuple(pictures),
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

    @property
    def kv_bytes_saved(self) -> Saved:
        """Against stock llama.cpp: ``used`` and ``allocated``."""
        return Saved(
            self.kv_bytes_used_stock - sum(self.kv_bytes_used),
            self.kv_bytes_allocated_stock - sum(self.kv_bytes_allocated),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers, lists of numbers; ``fastv``, ``turbo``, ``reduce`` and ``skip`` as text (``spec()``) or
        None; ``pictures`` as objects."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "setting"}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        values["pictures"] = [picture.to_dict() for picture in self.pictures]
        return {**self.setting.specs(), **values, "kv_bytes_saved": self.kv_bytes_saved._asdict()}

    def __str__(self) -> str:
        lines = {
            "visual tokens": self._describe_visual_tokens(),
            "prompt": f"{self.prompt_tokens} tokens, {self.cached_tokens} cached",
            "pictures": f"read in {self.image_decode_ms:.0f} ms; {self.pictures_encoded} encoded in "
            f"{self.encode_ms:.0f} ms, {self.pictures_from_cache} from the cache"
            + (f" ({self.pictures_from_disk} from disk)" if self.pictures_from_disk else ""),
            "prefill": self._describe_prefill(),
            "generation": f"{self.generated_tokens} tokens in {self.generate_ms:.0f} ms, "
            f"{self.tokens_per_second:.1f} tokens/s; first after {self.first_token_ms:.0f} ms",
            "KV cache": f"{_mib(*self.kv_bytes_used)} of {_mib(*self.kv_bytes_allocated)} MiB used; stock: "
            f"{_mib(self.kv_bytes_used_stock)} of {_mib(self.kv_bytes_allocated_stock)}",
        }
        told = [f"{name:<14} {value}" for name, value in lines.items()]
        # frames of a video are alike
        counts = Counter(map(str, self.pictures))
        told[1:1] = [f"{'picture' if n == 1 else f'{n} pictures':<14} {text}" for text, n in counts.items()]
        return "\n".join(told)

    def _describe_visual_tokens(self) -> str:
        rule = "off" if self.fastv is None else str(self.fastv)
        recalled = f", {self.recalled_tokens} recalled" if self.recalled_tokens else ""
        share = "" if self.retained_share is None else f"; {self.retained_share:.0%} a layer"
        before = "".join(
            f" of {n}"
            for n, m in ((self.encoded_tokens, self.visual_tokens), (self.patches, self.encoded_tokens))
            if n != m
        )
        reduced = "" if self.reduce is None else f" ({self.reduce}, {self.reduce_ms:.1f} ms)"
        return (
            f"{self.visual_tokens}{before}{reduced}, {self.visual_tokens_kept} kept{recalled} ({rule}){share}"
        )

    def _describe_prefill(self) -> str:
        text = f"{self.prefill_ms:.0f} ms, {self.prefill_tokens_per_second:.0f} tokens/s"
        if not self.stage0_ms:
            return text
        return (
            f"{text} (all layers {self.full_ms:.0f}, before the first cut {self.stage0_ms:.0f}, "
            f"choosing {self.choose_ms:.1f}, later layers {self.later_ms:.0f})"
        )


@dataclass(frozen=True)
class Answer:
    """An answer; ``str(answer)`` is its text."""

    text: str
    report: Report
    finish_reason: str
    """"stop": the model ended it, or a stop string, or :meth:`pyfastv.Stream.stop`; "length": ``max_tokens`` or the
    context ended it."""
    logprobs: tuple[TokenProb, ...] | None = None
    """Of its tokens, in order; None where they were not asked for (``logprobs=True``)."""

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``text``, ``finish_reason``, ``report`` as :meth:`Report.to_dict` has it, and ``logprobs``, if they
        were asked for, as OpenAI's chat completions have their content."""
        told = {} if self.logprobs is None else {"logprobs": chat_logprobs(self.logprobs)["content"]}
        report = self.report.to_dict()
        return {"text": self.text, "finish_reason": self.finish_reason, "report": report, **told}


def _retained_share(first_layers: Sequence[int], in_stage: Sequence[int], n_layer: int) -> float | None:
    if in_stage[0] == 0:
        return None
    ends = (*first_layers[1:], n_layer)
    seen = sum((end - first) * count for first, end, count in zip(first_layers, ends, in_stage, strict=True))
    return seen / (n_layer * in_stage[0])


def _mib(*sizes: int) -> str:
    return " + ".join(f"{size / _MIB:.1f}" for size in sizes)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(int(item) for item in value)
    return _finite(value) if isinstance(value, float) else int(value)


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _per_second(count: int, milliseconds: float) -> float:
    return count * 1000.0 / milliseconds if milliseconds > 0 else 0.0

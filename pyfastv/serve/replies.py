"""Answers in OpenAI's form, with llama-server's ``timings`` and what became of the pictures."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..engine.answer import Report
from ..engine.job_pool import Progress, TokenProb
from ..engine.pieces import chat_logprobs, finite, logprob_entry

__all__ = [
    "TextOffsets",
    "chat_logprobs",
    "details",
    "head",
    "native_probs",
    "progress",
    "text_logprobs",
    "timings",
    "unpruned_prefill_ms",
    "usage",
]

_SUMMED = (
    "image_decode_ms",
    "encode_ms",
    "reduce_ms",
    "full_ms",
    "stage0_ms",
    "choose_ms",
    "later_ms",
    "pictures_encoded",
    "pictures_from_cache",
    "pictures_from_disk",
    "recalled_tokens",
)


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What every object of one answer begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": "pyfastv",
    }


def usage(reports: Sequence[Report], n: int = 1) -> dict[str, Any]:
    """Tokens of all answers, ``n`` to each prompt, and of the prompts; beside OpenAI's keys ``visual_patches`` (of the
    pictures before Turbo and reducers), ``visual_tokens`` (those that enter the language model) and
    ``visual_tokens_kept`` (those that its last layers see); and ``visual_pictures``, if there are any: the size of each,
    as it was given, scaled and encoded."""
    of_prompts = partial(_sum, reports[::n])
    prompt_tokens, generated = of_prompts("prompt_tokens"), _sum(reports, "generated_tokens")
    seen = [picture.to_dict() for report in reports[::n] for picture in report.pictures]
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": of_prompts("cached_tokens")},
        "visual_patches": of_prompts("patches"),
        "visual_tokens": of_prompts("visual_tokens"),
        "visual_tokens_kept": of_prompts("visual_tokens_kept"),
        **({"visual_pictures": seen} if seen else {}),
    }


def timings(reports: Sequence[Report]) -> dict[str, Any]:
    """llama-server's keys (``prompt_*``: what was not cached, encoder and reducers included), then the stages; of several
    answers their sums, but for ``first_token_ms``, that of the one that was first."""
    of_all = partial(_sum, reports)
    prompt_n = of_all("prompt_tokens") - of_all("cached_tokens")
    prefill_ms = of_all("full_ms") + of_all("stage0_ms") + of_all("choose_ms") + of_all("later_ms")
    prompt_ms = of_all("encode_ms") + of_all("reduce_ms") + prefill_ms
    predicted_n, predicted_ms = of_all("generated_tokens"), of_all("generate_ms")
    return {
        "cache_n": of_all("cached_tokens"),
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _share(prompt_ms, prompt_n),
        "prompt_per_second": _share(1000.0 * prompt_n, prompt_ms),
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _share(predicted_ms, predicted_n),
        "predicted_per_second": _share(1000.0 * predicted_n, predicted_ms),
        "first_token_ms": min(report.first_token_ms for report in reports),
        **{name: of_all(name) for name in _SUMMED},
    }


def unpruned_prefill_ms(report: Report, n_layer: int) -> float | None:
    """What prefill would have taken with every token in every layer: an estimate.

    The layers before the first cut saw every token that came; their time, by layer, is taken for the others. The
    attention of a layer costs the same in all of them then, so that nothing but the output layer is left out. None
    where nothing went through stages.
    """
    first_cut = report.first_layers[1] if len(report.first_layers) > 1 else 0
    if not first_cut or report.stage0_ms <= 0:
        return None
    return report.full_ms + report.stage0_ms * n_layer / first_cut


def details(report: Report, found: Mapping[str, Any] | None, n_layer: int) -> dict[str, Any]:
    """``fastv_details``: which visual tokens each stage sees, and the time beside an estimate of it without pruning."""
    return {
        **report.setting.specs(),
        "n_layer": n_layer,
        "first_layers": list(report.first_layers),
        "visual_tokens_in_stage": list(report.visual_tokens_in_stage),
        **{name: [] if found is None else found[name] for name in ("pictures", "grids", "kept")},
        "prefill_ms": report.full_ms + report.stage0_ms + report.choose_ms + report.later_ms,
        "unpruned_prefill_ms_estimate": unpruned_prefill_ms(report, n_layer),
    }


def native_probs(probs: Sequence[TokenProb], n_top: int) -> list[dict[str, Any]]:
    """Of llama-server's own completions."""
    return [
        {
            "id": prob.id,
            **logprob_entry(prob),
            "top_logprobs": [{"id": other.id, **logprob_entry(other)} for other in prob.top[:n_top]],
        }
        for prob in probs
    ]


def progress(read: Progress, seconds: float) -> dict[str, Any]:
    """llama-server's ``prompt_progress``, in tokens; ``seconds``: since the request came."""
    return {
        "total": read.total,
        "cache": read.cached,
        "processed": read.done,
        "time_ms": round(seconds * 1000.0),
    }


class TextOffsets:
    """Where the text of each token begins in an answer, in characters, some of which are of several tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._length = 0

    def next(self, token: bytes) -> int:
        """Of the next token."""
        begin = self._length
        self._length += len(self._decoder.decode(token))
        return begin


def text_logprobs(probs: Sequence[TokenProb], n_top: int, offsets: TextOffsets) -> dict[str, Any]:
    """Of a text completion's choice; ``offsets``: of the answer that these tokens go on."""
    return {
        "tokens": [prob.token for prob in probs],
        "token_logprobs": [finite(prob.logprob) for prob in probs],
        "top_logprobs": [
            {other.token: finite(other.logprob) for other in prob.top[:n_top]} for prob in probs
        ],
        "text_offset": [offsets.next(prob.bytes) for prob in probs],
    }


def _share(amount: float, of: float) -> float:
    return amount / of if of > 0 else 0.0


def _sum(reports: Sequence[Report], name: str) -> Any:
    return sum(getattr(report, name) for report in reports)

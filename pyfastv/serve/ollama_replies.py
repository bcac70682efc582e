"""Answers in Ollama's form: what OpenAI's chat completion says, in other words; and the model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ..engine.job_pool import Job, JobPool, Piece
from ..inputs.thinking import THOUGHT_TAGS
from ..models.facts import ModelFacts
from . import replies
from .chat import ChatForm
from .errors import ApiError, error_text
from .objects import line

__all__ = ["LineForm", "ModelLists", "model_details", "now"]

_FOREVER = "2318-01-01T00:00:00Z"  # what Ollama has where nothing is unloaded, about
_THINKING = (*THOUGHT_TAGS, "enable_thinking", "reasoning_effort")


def now() -> str:
    return _moment(time.time())


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _nanoseconds(milliseconds: float) -> int:
    # clients divide by it
    return max(1, round(milliseconds * 1e6))


class LineForm:
    """Of ``/api/chat``; with ``generates`` of ``/api/generate``. ``began``: perf_counter() when the request came;
    ``details``: with ``fastv_details``, of a model with so many layers."""

    def __init__(
        self, chat: ChatForm, model: str, began: float, *, generates: bool = False, details: int | None = None
    ) -> None:
        self._chat, self._model, self._began = chat, model, began
        self._generates, self._details = generates, details
        self._jobs: Sequence[Job] = ()
        self._calls = _Calls()

    def begin(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._chat.begin(jobs)

    def whole(self, pieces: Sequence[Sequence[Piece]], finish_reasons: Sequence[str]) -> Any:
        (of_one,), (reason,) = pieces, finish_reasons
        text = "".join(piece.text for piece in of_one)
        choice = self._chat.whole(0, text, [prob for piece in of_one for prob in piece.probs], reason)
        message = choice["message"]
        self._calls.add(message)
        return {**self._said(message, choice["logprobs"], self._calls.made), **self._done(reason)}

    def opening(self) -> str:
        return self.waiting()

    def waiting(self) -> str:
        """Nothing more is said; a stream of lines has no comments."""
        return line(self._said({}))

    def progress(self, index: int, read: dict[str, Any]) -> str:
        return line({**self._said({}), "prompt_progress": read})

    def piece(self, index: int, piece: Piece) -> str:
        choice = self._chat.piece(index, piece)
        delta = choice["delta"]
        self._calls.add(delta)
        said = delta.get("content") or delta.get("reasoning_content") or choice["logprobs"]
        return line(self._said(delta, choice["logprobs"])) if said else ""

    def closing(self, index: int, finish_reason: str) -> str:
        delta = self._chat.closing(index, finish_reason)["delta"]
        self._calls.add(delta)
        rest, calls = any(map(delta.get, ("content", "reasoning_content"))), self._calls.made
        # some clients read no text of the last line
        more = line(self._said(delta, calls=calls)) if rest or calls else ""
        return more + line({**self._said({}), **self._done(finish_reason)})

    def failure(self, error: ApiError) -> str:
        return line({"error": error_text(error)})

    def _said(
        self,
        message: Mapping[str, Any],
        logprobs: Mapping[str, Any] | None = None,
        calls: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        text, thought = message.get("content") or "", message.get("reasoning_content")
        thinking = {"thinking": thought} if thought else {}
        made = {"tool_calls": list(calls)} if calls else {}
        said = (
            {"response": text, **thinking, **made}
            if self._generates
            else {"message": {"role": "assistant", "content": text, **thinking, **made}}
        )
        told = {"logprobs": logprobs["content"]} if logprobs else {}
        return {"model": self._model, "created_at": now(), **said, "done": False, **told}

    def _done(self, finish_reason: str) -> dict[str, Any]:
        job = self._jobs[0]
        assert job.report is not None
        usage, timings = replies.usage([job.report]), replies.timings([job.report])
        found = {}
        if self._details is not None:
            found = {"fastv_details": replies.details(job.report, job.details, self._details)}
        return {
            "done": True,
            "done_reason": "length" if finish_reason == "length" else "stop",
            "total_duration": _nanoseconds((time.perf_counter() - self._began) * 1000.0),
            "load_duration": 0,  # the model is there
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": _nanoseconds(timings["prompt_ms"]),
            "eval_count": usage["completion_tokens"],
            "eval_duration": _nanoseconds(timings["predicted_ms"]),
            **{name: value for name, value in usage.items() if name.startswith("visual_")},
            **found,
        }


class _Calls:
    """Of functions, which OpenAI streams in parts and Ollama does not, with arguments as an object."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[str, str]] = {}

    def add(self, message: Mapping[str, Any]) -> None:
        """Those of a message, or parts of them in a delta."""
        for number, call in enumerate(message.get("tool_calls") or ()):
            whole = self._parts.setdefault(call.get("index", number), {"id": "", "name": "", "arguments": ""})
            whole["id"] = call.get("id") or whole["id"]
            for name in ("name", "arguments"):
                whole[name] += call.get("function", {}).get(name) or ""

    @property
    def made(self) -> list[dict[str, Any]]:
        return [
            {
                "id": call["id"],
                "function": {
                    "index": index,
                    "name": call["name"],
                    "arguments": _arguments(call["arguments"]),
                },
            }
            for index, call in sorted(self._parts.items())
        ]


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def model_details(facts: ModelFacts, sees: bool) -> dict[str, Any]:
    """Of a model; ``sees``: it has a vision encoder."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": facts.family,
        # clients of before capabilities look for the encoder there
        "families": [facts.family, *(["clip"] if sees else [])],
        "parameter_size": facts.size_label,
        "quantization_level": facts.quantization,
        "context_length": facts.n_ctx_train,
        "embedding_length": facts.n_embd,
    }


class ModelLists:
    """The one model, as Ollama lists them."""

    def __init__(self, pool: JobPool, facts: ModelFacts) -> None:
        self._pool, self._facts = pool, facts
        self.name = pool.name if ":" in pool.name else f"{pool.name}:latest"

    def tags(self) -> dict[str, Any]:
        facts = self._facts
        model = {
            **self._head(),
            "modified_at": _moment(facts.modified),
            "capabilities": self._capabilities(),
        }
        return {"models": [model]}

    def ps(self) -> dict[str, Any]:
        """Those that are loaded."""
        model = {**self._head(), "expires_at": _FOREVER, "context_length": self._pool.n_ctx}
        return {"models": [model]}

    def show(self) -> dict[str, Any]:
        facts, template = self._facts, self._pool.chat_template or ""
        vision = {} if facts.vision_metadata is None else {"projector_info": dict(facts.vision_metadata)}
        parameters = f"num_ctx                        {self._pool.n_ctx}"
        return {
            "modelfile": f"FROM {self._pool.file}\nPARAMETER num_ctx {self._pool.n_ctx}\n",
            "parameters": parameters,
            "template": template,
            "details": model_details(facts, self._pool.sees),
            "model_info": {
                **{
                    name: value for name, value in facts.metadata.items() if name != "tokenizer.chat_template"
                },
                "general.parameter_count": facts.n_params,
            },
            **vision,
            "capabilities": self._capabilities(),
            "modified_at": _moment(facts.modified),
        }

    def _head(self) -> dict[str, Any]:
        facts = self._facts
        return {
            "name": self.name,
            "model": self.name,
            "size": facts.bytes,
            "digest": facts.digest,
            "details": model_details(facts, self._pool.sees),
        }

    def _capabilities(self) -> list[str]:
        template = self._pool.chat_template or ""
        thinks = any(word in template for word in _THINKING)
        can = {
            "completion": True,
            "vision": self._pool.sees,
            "thinking": thinks,
            "tools": "tools" in template,
        }
        return [name for name, there in can.items() if there]

"""llama-server's own completions, ``/completion``: their requests, and the objects of their answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field
from starlette.responses import JSONResponse, Response

from ..engine.job_pool import Job, JobPool, Piece, TokenProb
from ..engine.sampling import Sampling
from . import replies
from .answerer import Answerer
from .answering import event
from .chat import ChatMessage
from .completions import PromptText, Token
from .errors import ApiError, error_body
from .generation import Generation, Wanted
from .model import Model
from .objects import EventAnswering
from .pictures import bare_picture
from .settings import Settings

__all__ = ["MARK", "NativeForm", "NativeRequest", "add_routes", "generation_settings"]

MARK = "<__media__>"
"""Of a picture in a text, llama-server's own; that of the engine is nobody's to know."""


class MediaPrompt(Model):
    """A text with pictures."""

    prompt_string: PromptText
    multimodal_data: list[str] | None = Field(
        default=None, description=f"Pictures in base64, one for each {MARK} in the text, in this order."
    )


def _as_prompts(value: Any) -> Any:
    """Of one prompt a list of it; tokens, and texts among tokens, are one."""
    if not isinstance(value, list):
        return [value]
    of_tokens = any(isinstance(one, int) for one in value)
    return [value] if of_tokens and all(isinstance(one, (int, str)) for one in value) else value


MixedPrompt = Annotated[list[Token | PromptText], Field(min_length=1)]
NativePrompt = PromptText | MixedPrompt | MediaPrompt


class NativeRequest(Generation):
    """``POST /completion``: texts go on, without a chat template."""

    prompt: Annotated[
        list[NativePrompt],
        Field(min_length=1),
        BeforeValidator(_as_prompts, json_schema_input_type=NativePrompt | list[NativePrompt]),
    ]
    n_cmpl: int | None = Field(default=None, ge=1, le=128, description="n, as llama-server has it.")
    alternatives: int | None = Field(
        default=None, alias="n_probs", ge=0, le=100, description="Likeliest tokens told for each token."
    )
    return_tokens: bool | None = None
    response_fields: list[str] | None = Field(
        default=None, description='Only these of the answer, such as "content" or "timings/predicted_n".'
    )
    n_indent: int | None = Field(default=None, description="Not supported.")

    def _refused(self) -> tuple[str, ...]:
        return (*super()._refused(), "n_indent")

    def wanted(self, pool: JobPool, settings: Settings) -> Wanted:
        self.n = self.n or self.n_cmpl
        return super().wanted(pool, settings)

    @property
    def n_probs(self) -> int:
        """At least 1 where the tokens are told, which are those of the probabilities."""
        told = self.return_tokens or self.stream
        return max(self.alternatives or 0, 1 if told else 0)

    def media(self) -> list[ChatMessage]:
        """The pictures of each prompt, as of a message."""
        return [
            ChatMessage(role="user", content=[bare_picture(data) for data in prompt.multimodal_data or ()])
            if isinstance(prompt, MediaPrompt)
            else ChatMessage(role="user")
            for prompt in self.prompt
        ]

    def texts(self, pool: JobPool) -> list[str | list[int]]:
        """Of each prompt the text, or its tokens. It may take a while. Raises ContextLengthError."""
        return [
            prompt
            if isinstance(prompt, str)
            else prompt.prompt_string
            if isinstance(prompt, MediaPrompt)
            else _tokens(pool, prompt)
            for prompt in self.prompt
        ]


def _tokens(pool: JobPool, prompt: Sequence[int | str]) -> list[int]:
    """Of tokens and texts, as llama-server joins them: a text at the begin has what begins a prompt."""
    tokens: list[int] = []
    for number, part in enumerate(prompt):
        tokens += [part] if isinstance(part, int) else pool.tokenize(part, add_special=number == 0)
    return tokens


def _spelt(pool: JobPool, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else pool.detokenize(prompt).decode("utf-8", "replace")


def generation_settings(sampling: Sampling) -> dict[str, Any]:
    """What was asked for, by llama-server's names."""
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "repeat_penalty")
    most = -1 if sampling.max_tokens is None else sampling.max_tokens
    return {
        "n_predict": most,
        "max_tokens": most,
        "seed": -1 if sampling.seed is None else sampling.seed,
        **{name: getattr(sampling, name) for name in (*names, "presence_penalty", "frequency_penalty")},
        "ignore_eos": sampling.ignore_eos,
        "stop": list(sampling.stop or ()),
        "grammar": sampling.grammar or "",
    }


class NativeForm:
    """``prompts``: as text, of each job."""

    def __init__(self, body: NativeRequest, wanted: Wanted, pool: JobPool, prompts: Sequence[str]) -> None:
        self._body, self._wanted, self._pool, self._prompts = body, wanted, pool, prompts
        self._jobs: Sequence[Job] = ()
        self._predicted = [0] * len(prompts)
        self._lines = [False] * len(prompts)

    def begin(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def whole(self, pieces: Sequence[Sequence[Piece]], finish_reasons: Sequence[str]) -> Any:
        answers = [
            self._whole(index, *told) for index, told in enumerate(zip(pieces, finish_reasons, strict=True))
        ]
        return answers[0] if len(answers) == 1 else answers

    def opening(self) -> str:
        return ""

    def waiting(self) -> str:
        return ": ping\n\n"

    def progress(self, index: int, read: dict[str, Any]) -> str:
        return event({**self._partial(index, "", ()), "prompt_progress": read})

    def piece(self, index: int, piece: Piece) -> str:
        self._predicted[index] += len(piece.probs)
        self._lines[index] = self._lines[index] or "\n" in piece.text
        chunk = {**self._partial(index, piece.text, piece.probs), **self._told(piece.probs)}
        if piece.report is not None:
            chunk["timings"] = replies.timings([piece.report])
        return event(chunk)

    def closing(self, index: int, finish_reason: str) -> str:
        return event(self._last(index, "", (), finish_reason))

    def failure(self, error: ApiError) -> str:
        return event(error_body(error))

    def _whole(self, index: int, pieces: Sequence[Piece], finish_reason: str) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        probs = [prob for piece in pieces for prob in piece.probs]
        self._lines[index] = "\n" in text
        last = self._last(index, text, probs if self._body.return_tokens else (), finish_reason)
        return _only({**last, **self._told(probs)}, self._body.response_fields)

    def _partial(self, index: int, text: str, probs: Sequence[TokenProb]) -> dict[str, Any]:
        read = self._jobs[index].progress
        return {
            "index": index,
            "content": text,
            "tokens": [prob.id for prob in probs],
            "stop": False,
            "id_slot": self._slot(index),
            "tokens_predicted": self._predicted[index],
            "tokens_evaluated": 0 if read is None else read.total,
        }

    def _last(self, index: int, text: str, probs: Sequence[TokenProb], finish_reason: str) -> dict[str, Any]:
        job = self._jobs[index]
        report = job.report
        assert report is not None
        stop_type = "limit" if finish_reason == "length" else "word" if job.stop_string else "eos"
        asked = {
            "stream": self._wanted.stream,
            "n_probs": self._body.alternatives or 0,
            "timings_per_token": self._wanted.timings,
        }
        full = report.prompt_tokens + report.generated_tokens >= self._pool.n_ctx
        found = {}
        if self._wanted.details:
            found = {"fastv_details": replies.details(report, job.details, self._pool.n_layer)}
        return {
            "index": index,
            "content": text,
            "tokens": [prob.id for prob in probs],
            "id_slot": self._slot(index),
            "stop": True,
            "model": self._pool.name,
            "tokens_predicted": report.generated_tokens,
            "tokens_evaluated": report.prompt_tokens,
            "generation_settings": {
                "n_ctx": self._pool.n_ctx,
                **generation_settings(self._wanted.sampling),
                **asked,
                **self._wanted.setting.specs(),
            },
            "prompt": self._prompts[index],
            "has_new_line": self._lines[index],
            "truncated": finish_reason == "length" and full,
            "stop_type": stop_type,
            "stopping_word": job.stop_string,
            "tokens_cached": report.cached_tokens,
            "timings": replies.timings([report]),
            "usage": replies.usage([report]),
            **found,
        }

    def _slot(self, index: int) -> int:
        slot = self._jobs[index].slot
        return -1 if slot is None else slot

    def _told(self, probs: Sequence[TokenProb]) -> dict[str, Any]:
        n_top = self._body.alternatives
        return {"completion_probabilities": replies.native_probs(probs, n_top)} if n_top else {}


def add_routes(router: APIRouter, pool: JobPool, settings: Settings, answerer: Answerer) -> None:
    """Adds it to the others."""

    @router.post("/completion", tags=["llama-server"], response_class=JSONResponse)
    async def completion(body: NativeRequest, request: Request) -> Response:
        """llama-server's own completion: texts, tokens, both, or texts with pictures; of several a list."""
        begin = time.perf_counter()
        wanted = await to_thread.run_sync(body.wanted, pool, settings)
        prompts = await to_thread.run_sync(body.texts, pool)
        spelt = await to_thread.run_sync(lambda: [_spelt(pool, prompt) for prompt in prompts])
        form = NativeForm(body, wanted, pool, [text for text in spelt for _ in range(wanted.n)])

        async def submit(held: AsyncExitStack) -> list[Job]:
            media = answerer.pictures.read(body.media(), lambda n, at: f"prompt.{n}.multimodal_data.{at}")
            calls: list[Callable[[], Job]] = []
            for prompt, message in zip(prompts, await held.enter_async_context(media), strict=True):
                pictures = [part["image"] for part in message["content"]]
                call = partial(pool.submit_text, prompt, pictures=pictures, mark=MARK)
                calls += [partial(call, **wanted.keywords(i)) for i in range(wanted.n)]
            jobs = await answerer.submit(calls)
            form.begin(jobs)
            return jobs

        return await answerer.respond(request, submit, form, wanted, begin, EventAnswering)


def _only(answer: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """``a/b`` is the field b of the object a, under this name; what there is not is left out."""
    if not fields:
        return dict(answer)
    found = {}
    for path in fields:
        value: Any = answer
        *outer, name = path.split("/")
        for step in outer:
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and name in value:
            found[path] = value[name]
    return found

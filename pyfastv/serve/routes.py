"""The addresses under ``/v1``, ``/health`` and ``/metrics``."""

from __future__ import annotations

import threading
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, cast

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..options import Sampling
from ..schedule import Cut, Schedule
from ..setting import SETTING_OPTIONS, SettingOptions
from .answering import ClientGone, Wanted, answer, while_connected
from .body import BoundedJsonRoute
from .errors import ApiError, invalid
from .forms import ChatForm, TextForm
from .grammar import json_grammar, schema_grammar
from .metrics import Metrics
from .pictures import PictureReader
from .pool import Job, Pool
from .schema import ChatRequest, CompletionRequest, JsonObjectFormat, JsonSchemaFormat, ScheduleFields
from .settings import Settings

__all__ = ["make_router"]

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERROR = {
    "description": "OpenAI's error object.",
    "content": {"application/json": {"schema": _ERROR_SCHEMA}},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _ERROR for status in (400, 401, 404, 408, 413, 415, 421, 429, 500, 503)
}
_COMPLETION_OK: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completion; with stream: true server-sent events of its chunks.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


def make_router(pool: Pool, settings: Settings, metrics: Metrics) -> APIRouter:
    """All of them."""
    router = APIRouter(route_class=BoundedJsonRoute, responses=_ERRORS)
    pictures = PictureReader(settings)
    preparing = CapacityLimiter(max(2, pool.n_slots))  # decoding pictures is work for the CPU
    started = int(time.time())
    model = {
        "id": pool.name,
        "object": "model",
        "created": started,
        "owned_by": "pyfastv",
        "meta": {
            "n_ctx": pool.n_ctx,
            "slots": pool.n_slots,
            **pool.setting.specs(),
        },
    }

    @router.get("/v1/models", tags=["models"])
    async def list_models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name}", tags=["models"])
    async def get_model(name: str) -> dict[str, Any]:
        """The model, by its name."""
        if name != pool.name:
            raise ApiError(404, f"no such model: {name!r:.100}; there is {pool.name}", code="model_not_found")
        return model

    @router.get("/health", tags=["server"])
    async def health() -> dict[str, Any]:
        """Is the server there, and how busy?"""
        stats = pool.stats()
        counts = {name: int(stats[name]) for name in ("slots", "active", "waiting")}
        return {"status": "ok", "version": __version__, **counts}

    @router.get(
        "/metrics",
        tags=["server"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
    )
    async def get_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.post(
        "/v1/chat/completions", tags=["completions"], response_class=JSONResponse, responses=_COMPLETION_OK
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """OpenAI's chat completion; pictures in image_url parts."""
        begin = time.perf_counter()
        body.check_supported()
        sampling = _sampling(body, pool, settings, grammar=await to_thread.run_sync(_grammar, body))
        options = _setting_options(body)
        details = bool(body.fastv_details)
        form = ChatForm(pool.name, body.n_probs > 0, body.top_logprobs or 0)
        async with AsyncExitStack() as held:

            async def submit() -> Job:
                messages = await held.enter_async_context(pictures.read(body.messages))
                call = partial(
                    pool.submit, messages, sampling, n_probs=body.n_probs, details=details, **options
                )
                return await _submit(call, preparing)

            return await _respond(request, submit, form, body, held, begin)

    @router.post(
        "/v1/completions", tags=["completions"], response_class=JSONResponse, responses=_COMPLETION_OK
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """OpenAI's text completion: no chat template, no pictures."""
        begin = time.perf_counter()
        body.check_supported()
        sampling = _sampling(body, pool, settings, grammar=None)
        call = partial(
            pool.submit_text,
            body.prompt,
            sampling,
            n_probs=body.n_probs,
            details=bool(body.fastv_details),
            **_setting_options(body),
        )
        form = TextForm(pool.name, body.logprobs)
        async with AsyncExitStack() as held:
            return await _respond(request, lambda: _submit(call, preparing), form, body, held, begin)

    async def _respond(
        request: Request, submit: Any, form: Any, body: Any, held: AsyncExitStack, begin: float
    ) -> Response:
        options = body.stream_options
        wanted = Wanted(
            bool(body.stream), bool(options is not None and options.include_usage), bool(body.fastv_details)
        )
        try:
            job = await while_connected(request, submit())
            return await answer(request, job, form, wanted, pool.n_layer, metrics, begin, held.aclose)
        except ClientGone:
            return Response(status_code=499)  # nobody reads it

    return router


async def _submit(call: Any, limiter: CapacityLimiter) -> Job:
    """Queues in a thread of its own: pictures are decoded there. A job of a client that left meanwhile is cancelled."""
    made: list[Job] = []
    left = threading.Event()

    def run() -> Job:
        made.append(call())
        if left.is_set():
            made[0].cancel()
        return made[0]

    try:
        return await to_thread.run_sync(run, limiter=limiter)
    except BaseException:  # the thread goes on, and looks at this when it has made the job
        left.set()
        for job in made:
            job.cancel()
        raise


def _sampling(
    body: ChatRequest | CompletionRequest, pool: Pool, settings: Settings, grammar: str | None
) -> Sampling:
    name, most = body.most_tokens
    limit = pool.n_ctx if settings.max_tokens is None else settings.max_tokens
    if most is not None and most > limit:
        raise invalid(f"{name} is {most}; the limit is {limit}", name, "too_many_tokens")
    if most is None and settings.max_tokens is not None:
        most = settings.max_tokens
    defaults = settings.sampling
    return Sampling(
        max_tokens=most,
        temperature=_or(body.temperature, defaults.temperature),
        # -1 is what other servers take for all
        top_k=max(0, int(_or(body.top_k, defaults.top_k))),
        top_p=_or(body.top_p, defaults.top_p),
        min_p=_or(body.min_p, defaults.min_p),
        typical_p=_or(body.typical_p, 1.0),
        repeat_penalty=_or(body.repeat_penalty, 1.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        # OpenAI's seeds are signed and of 64 bits; -1 is llama-server's for none
        seed=None if body.seed in (None, -1) else int(body.seed or 0) % (2**32 - 1),
        stop=tuple(body.stop),
        grammar=grammar,
    )


def _grammar(body: ChatRequest) -> str | None:
    form = body.response_format
    if isinstance(form, JsonSchemaFormat):
        return schema_grammar(form.json_schema.schema_)
    if isinstance(form, JsonObjectFormat):
        return json_grammar() if form.schema_ is None else schema_grammar(form.schema_)
    return None


def _setting_options(body: ChatRequest | CompletionRequest) -> SettingOptions:
    """What the request says of its setting; false is off."""
    given = {name: value for name in SETTING_OPTIONS if (value := getattr(body, name)) is not None}
    return cast(SettingOptions, {name: _setting_option(value) for name, value in given.items()})


def _setting_option(value: str | bool | ScheduleFields) -> Schedule | str | None:
    if isinstance(value, ScheduleFields):
        given = value.model_dump(exclude_none=True, exclude={"k", "recall", "cells"})
        shared = value.model_dump(exclude_none=True, include={"recall", "cells"})
        return Schedule([Cut(value.k, **given)], **shared)
    return None if value is False else str(value)


def _or(value: float | None, default: float) -> Any:
    return default if value is None else value

"""The addresses under ``/v1``, ``/health`` and ``/metrics``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from .._about import __version__
from ..engine.job_pool import Job, JobPool
from ..models.facts import model_facts
from . import native, ollama
from .answerer import Answerer, Submit
from .answering import Answering, Chunks, ClientGone, Telling, while_connected
from .body import BoundedJsonRoute
from .chat import ChatForm, ChatRequest
from .chats import Chats
from .completions import CompletionRequest, TextForm
from .errors import ApiError
from .generation import Wanted
from .inspection import add_routes, describe_model, listed_model
from .messages import add_routes as add_messages
from .metrics import Metrics
from .objects import ObjectForm
from .pictures import PictureReader
from .responses import add_routes as add_responses
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


def make_router(pool: JobPool, settings: Settings, metrics: Metrics) -> APIRouter:
    """All of them."""
    router = APIRouter(route_class=BoundedJsonRoute, responses=_ERRORS)
    pictures = PictureReader(settings)
    preparing = CapacityLimiter(max(2, pool.n_slots))  # decoding pictures is work for the CPU
    facts = model_facts(pool.path, pool.mmproj)
    model = describe_model(pool, facts, int(time.time()))

    @router.get("/v1/models", tags=["models"])
    async def list_models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [model], "models": [listed_model(pool, facts)]}

    @router.get("/v1/models/{name:path}", tags=["models"])
    async def get_model(name: str) -> dict[str, Any]:
        """The model, by its name."""
        if name not in (pool.name, pool.file):
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
        """OpenAI's chat completion; pictures in image_url parts, videos in video_url parts."""
        return await answer_chat(body, request, Chunks())

    def shown(body: ChatRequest) -> dict[str, Any]:
        """Keywords of the pool's submit() and count_tokens()."""
        return {
            "tools": body.tool_use,
            "variables": body.template_variables(),
            "continues": bool(body.continue_final_message),
        }

    async def answer_chat(body: ChatRequest, request: Request, telling: Telling) -> Response:
        """Chats of every protocol come here; ``telling``: how the answer is told."""
        begin = time.perf_counter()
        wanted = await to_thread.run_sync(body.wanted, pool, settings)
        form = ChatForm(pool.name, body.n_probs > 0, body.top_logprobs or 0, body.tells_thoughts_apart)
        return await respond(request, chat(body, form, wanted), form, wanted, begin, telling=telling)

    async def count_chat(body: ChatRequest) -> int:
        """Tokens of its prompt."""
        wanted = await to_thread.run_sync(body.wanted, pool, settings)
        async with pictures.read(body.messages) as messages:
            count = partial(
                pool.count_tokens, messages, budget=wanted.budget, **shown(body), **wanted.setting.options()
            )
            return await to_thread.run_sync(count, limiter=preparing)

    @router.post(
        "/v1/completions", tags=["completions"], response_class=JSONResponse, responses=_COMPLETION_OK
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """OpenAI's text completion: no chat template, no pictures."""
        begin = time.perf_counter()
        wanted = await to_thread.run_sync(body.wanted, pool, settings)
        form = TextForm(pool.name, body.logprobs)

        async def submit(_: AsyncExitStack) -> list[Job]:
            return await submit_all(
                [
                    partial(pool.submit_text, prompt, **wanted.keywords(i))
                    for prompt in body.prompt
                    for i in range(wanted.n)
                ]
            )

        return await respond(request, submit, form, wanted, begin)

    def chat(body: ChatRequest, form: ChatForm | ObjectForm, wanted: Wanted, **where: Any) -> Submit:
        """``where``: see :meth:`pyfastv.serve.pictures.PictureReader.read`."""

        async def submit(held: AsyncExitStack) -> list[Job]:
            messages = await held.enter_async_context(pictures.read(body.messages, **where))
            jobs = await submit_all(
                [partial(pool.submit, messages, **shown(body), **wanted.keywords(i)) for i in range(wanted.n)]
            )
            form.begin(jobs)
            return jobs

        return submit

    async def submit_all(calls: Sequence[Callable[[], Job]]) -> list[Job]:
        """In their order; all or none."""
        places = pool.n_slots + pool.queue
        if len(calls) > places:
            raise ApiError(
                400,
                f"{len(calls)} answers are asked for at once; there is room for {places}: see --slots and --queue",
                param="n",
                code="too_many_answers",
            )
        jobs: list[Job] = []
        try:
            for call in calls:
                jobs.append(await _submit(call, preparing))
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        return jobs

    async def respond(
        request: Request,
        submit: Submit,
        form: Any,
        wanted: Wanted,
        begin: float,
        kind: type[Answering] = Answering,
        telling: Telling | None = None,
    ) -> Response:
        """``form``: as the answering wants it."""
        held = AsyncExitStack()
        try:
            jobs = await while_connected(request, submit(held))
            answering = kind(
                jobs,
                form,
                wanted,
                pool.n_layer,
                metrics,
                begin,
                held.aclose,
                settings.ping_seconds,
                telling or Chunks(),
            )
            return await answering.respond(request)
        except ClientGone:
            await held.aclose()
            return Response(status_code=499)  # nobody reads it
        except BaseException:
            await held.aclose()
            raise

    chats = Chats(answer_chat, count_chat, pool)
    add_responses(router, chats)
    add_messages(router, chats)
    add_routes(router, pool, settings)
    answerer = Answerer(pictures, chat, submit_all, respond)
    native.add_routes(router, pool, settings, answerer)
    router.include_router(ollama.make_router(pool, settings, answerer, facts))
    return router


async def _submit(call: Callable[[], Job], limiter: CapacityLimiter) -> Job:
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

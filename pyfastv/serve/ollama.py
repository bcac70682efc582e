"""Ollama's API: its requests, each as one of OpenAI's, and its addresses.

What Ollama ignores is ignored, unless it would change the answer; what it has and this server has not is refused by name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import Field, ValidationError
from starlette.responses import JSONResponse, Response

from .._about import __version__
from ..engine.job_pool import Job, JobPool
from ..models.facts import ModelFacts
from ..settings.setting import SETTING_OPTIONS
from .answerer import Answerer
from .body import BoundedJsonRoute
from .chat import ChatForm, ChatMessage, ChatRequest
from .completions import CompletionRequest
from .constraints import check_unknown
from .errors import FORMS, ApiError, error_text, invalid, validation_error
from .generation import Generation
from .model import Model
from .objects import LineAnswering
from .ollama_messages import OllamaMessage, as_chat, conversation
from .ollama_replies import LineForm, ModelLists, now
from .pictures import bare_picture
from .settings import Settings

__all__ = ["ChatBody", "GenerateBody", "make_router"]

_SPOKEN = "0.12.11"
"""The version of Ollama whose API this is: the first with ``logprobs``."""

# what `options` has, by the names of :class:`Generation`
_OPTIONS = {
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop")},
    **{name: name for name in ("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty")},
    "num_predict": "n_predict",
}
_OURS = (*SETTING_OPTIONS, "image_tokens", "image_min_tokens", "image_max_tokens", "enlarge", "fastv_details")
_EFFORTS = {"none": "none", "low": "low", "medium": "medium", "high": "high", "max": "xhigh"}
_DURATION = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+|[+-]?\d+(\.\d*)?")
_MARK = "[img-{}]"

_ERROR_SCHEMA = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_ERROR = {"description": "Ollama's error.", "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _ERROR for status in (400, 401, 404, 408, 413, 415, 421, 429, 500, 503)
}
_OK: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON objects, one a line; with stream: false one object.",
        "content": {"application/x-ndjson": {}, "application/json": {}},
    }
}
_MODELS = (
    "this server has the one model that it was started with: see pyfastv serve --model, and pyfastv pull"
)
_EMBEDDINGS = "this server makes no embeddings"
_MISSING = {
    **dict.fromkeys(("pull", "push", "create", "copy"), ("POST", _MODELS)),
    "delete": ("DELETE", _MODELS),
    **dict.fromkeys(("embed", "embeddings"), ("POST", _EMBEDDINGS)),
}

R = TypeVar("R", bound=Generation)


class OllamaRequest(Model):
    """What both have."""

    model: str | None = Field(default=None, description="Any name is taken.")
    stream: bool | None = Field(default=None, description="True unless false.")
    format: dict[str, Any] | str | None = Field(default=None, description='"json", or a JSON schema.')
    options: dict[str, Any] | None = Field(
        default=None,
        description=f"{', '.join(_OPTIONS)}; num_ctx up to the server's; {', '.join(_OURS)}.",
    )
    think: bool | str | None = Field(default=None, description=f"True, false, or {', '.join(_EFFORTS)}.")
    keep_alive: float | str | None = Field(default=None, description="Of no effect: the model stays.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    debug_render_only: bool | None = Field(
        default=None, alias="_debug_render_only", description="Not supported."
    )

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def unloads(self) -> bool:
        """Is it to be unloaded? Raises ApiError."""
        value = self.keep_alive
        if isinstance(value, str):
            if not _DURATION.fullmatch(value):
                raise invalid(f'keep_alive must be seconds, or a duration such as "5m"; got {value!r:.100}')
            return not re.search("[1-9]", value)
        return value == 0

    def fields(self, pool: JobPool) -> dict[str, Any]:
        """By the names of :class:`Generation`, not checked yet. Raises ApiError."""
        if self.debug_render_only:
            raise _unsupported("_debug_render_only")
        options = self.options or {}
        n_ctx = options.get("num_ctx")
        if n_ctx is not None and (not isinstance(n_ctx, int) or isinstance(n_ctx, bool)):
            raise invalid(f"options.num_ctx must be a whole number; got {n_ctx!r:.100}")
        if n_ctx is not None and n_ctx > pool.n_ctx:
            raise invalid(
                f"options.num_ctx: {n_ctx} tokens are asked for, and the context of this server has {pool.n_ctx}: "
                "leave it out, or start the server with a larger --n-ctx"
            )
        check_unknown(options)
        known = {**_OPTIONS, **{name: name for name in _OURS}}
        given = {ours: options[name] for name, ours in known.items() if options.get(name) is not None}
        return {**given, **self._form(), "stream": self.streams}

    def _form(self) -> dict[str, Any]:
        if isinstance(self.format, dict):
            return {"response_format": {"type": "json_schema", "json_schema": {"schema": self.format}}}
        if self.format == "json":
            return {"response_format": {"type": "json_object"}}
        if self.format:
            raise invalid(
                f'invalid format: {self.format!r:.100}; expected "json" or a valid JSON Schema object'
            )
        return {}

    def chat(self, pool: JobPool, messages: list[ChatMessage], tools: Any = None) -> ChatRequest:
        """The same of OpenAI's API. Raises ApiError."""
        fields: dict[str, Any] = {"messages": messages, "tools": tools}
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return _checked(ChatRequest, {**fields, **self._thinking(), **self.fields(pool)})

    def _thinking(self) -> dict[str, Any]:
        if self.think is None:
            return {}
        if self.think is True:
            return {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}
        effort = _EFFORTS.get(self.think or "none")
        if effort is None:
            raise invalid(
                f"think must be true, false or one of {', '.join(_EFFORTS)}; got {self.think!r:.100}"
            )
        return {"reasoning_effort": effort}


class ChatBody(OllamaRequest):
    """``POST /api/chat``"""

    messages: list[OllamaMessage] | None = None
    tools: Any = Field(default=None, description="As in OpenAI's chat completions.")


class GenerateBody(OllamaRequest):
    """``POST /api/generate``"""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = Field(default=None, description="In base64, or data URIs.")
    raw: bool | None = Field(
        default=None,
        description="The prompt as it is, without a chat template; pictures where it has [img-0].",
    )
    suffix: str | None = Field(default=None, description="Not supported.")
    template: str | None = Field(default=None, description="Not supported.")
    context: list[int] | None = Field(default=None, description="Not supported: see /api/chat.")

    def check_supported(self) -> None:
        """Raises ApiError."""
        if self.raw and self.system:
            raise invalid("raw mode does not support template, system, or context")
        for name in ("suffix", "template"):
            if getattr(self, name):
                raise _unsupported(name)
        if self.context:
            raise invalid(
                "context is not supported by this server: send the conversation to /api/chat", "context"
            )

    @property
    def question(self) -> OllamaMessage:
        return OllamaMessage(role="user", content=self.prompt, images=self.images)

    def messages(self) -> list[ChatMessage]:
        system = [OllamaMessage(role="system", content=self.system)] if self.system else []
        return [as_chat(message) for message in (*system, self.question)]

    def text(self, pool: JobPool) -> CompletionRequest:
        """The same of OpenAI's text completions. Raises ApiError."""
        fields: dict[str, Any] = {"prompt": self.prompt}
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        return _checked(CompletionRequest, {**fields, **self.fields(pool)})

    def pictures_of_text(self) -> list[str]:
        """In the order of their marks. Raises ApiError: there are others."""
        images, prompt = self.images or [], self.prompt or ""
        places = [prompt.find(_MARK.format(number)) for number in range(len(images))]
        if any(prompt.count(_MARK.format(number)) != 1 for number in range(len(images))):
            raise invalid(
                "images: with raw the prompt has [img-0] for the first, [img-1] for the second, once each"
            )
        return [image for _, image in sorted(zip(places, images, strict=True))]


class ShowBody(Model):
    """``POST /api/show``"""

    model: str | None = Field(default=None, description="Any name is taken.")
    verbose: bool | None = None


def _unsupported(name: str) -> ApiError:
    return invalid(f"{name} is not supported by this server: leave it out", name, "unsupported")


def _checked(kind: type[R], fields: Mapping[str, Any]) -> R:
    """Raises ApiError, which names an option as the client does."""
    theirs = {ours: name for name, ours in _OPTIONS.items()} | {name: name for name in _OURS}
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        found: list[dict[str, Any]] = [
            {**one, "loc": ("options", theirs[str(one["loc"][0])], *one["loc"][1:])}
            if one["loc"] and str(one["loc"][0]) in theirs
            else {**one}
            for one in error.errors(include_url=False, include_context=False)
        ]
        raise validation_error(found) from None


def make_router(pool: JobPool, settings: Settings, answerer: Answerer, facts: ModelFacts) -> APIRouter:
    """All of Ollama's."""
    router = APIRouter(prefix="/api", tags=["Ollama"], route_class=BoundedJsonRoute, responses=_ERRORS)
    lists = ModelLists(pool, facts)

    @router.get("/version")
    async def version() -> dict[str, Any]:
        """That of Ollama whose API this is, and this server's."""
        return {"version": _SPOKEN, "pyfastv": __version__}

    @router.get("/tags")
    async def tags() -> dict[str, Any]:
        """The one model."""
        return lists.tags()

    @router.get("/ps")
    async def ps() -> dict[str, Any]:
        """The one model, which stays."""
        return lists.ps()

    @router.post("/show")
    async def show(body: ShowBody) -> dict[str, Any]:
        """The one model, by any name."""
        return lists.show()

    @router.post("/chat", response_class=JSONResponse, responses=_OK)
    async def chat(body: ChatBody, request: Request) -> Response:
        """The next message of a conversation."""
        begin = time.perf_counter()
        unloads = body.unloads
        if not body.messages:
            return loaded(body, unloads, {"message": {"role": "assistant", "content": ""}})
        asked = body.chat(pool, conversation(body.messages), body.tools)
        messages = body.messages

        def place(number: int, at: int) -> str:
            message = messages[number]
            return f"messages.{number}.images.{message.placed[at]}"

        return await answer(request, body, asked, begin, place)

    @router.post("/generate", response_class=JSONResponse, responses=_OK)
    async def generate(body: GenerateBody, request: Request) -> Response:
        """The answer to one question; with ``raw`` how a text goes on."""
        begin = time.perf_counter()
        unloads = body.unloads
        body.check_supported()
        if not body.prompt:
            return loaded(body, unloads, {"response": ""})
        if body.raw:
            return await go_on(request, body, begin)
        asked = body.chat(pool, body.messages())
        order = body.question.placed
        return await answer(request, body, asked, begin, lambda n, at: f"images.{order[at]}")

    async def answer(
        request: Request, body: OllamaRequest, asked: ChatRequest, begin: float, place: Any
    ) -> Response:
        wanted = await to_thread.run_sync(asked.wanted, pool, settings)
        form = line_form(body, asked.tells_thoughts_apart, begin, wanted.details)
        submit = answerer.chat(asked, form, wanted, place=place)
        return await answerer.respond(request, submit, form, wanted, begin, LineAnswering)

    async def go_on(request: Request, body: GenerateBody, begin: float) -> Response:
        asked, images = body.text(pool), body.pictures_of_text()
        wanted = await to_thread.run_sync(asked.wanted, pool, settings)
        form = line_form(body, False, begin, wanted.details)
        shown = ChatMessage(role="user", content=[bare_picture(image) for image in images])

        async def submit(held: AsyncExitStack) -> list[Job]:
            read = answerer.pictures.read([shown], lambda n, at: f"images.{at}")
            (message,) = await held.enter_async_context(read)
            pictures = [part["image"] for part in message["content"]]
            prompt = body.prompt or ""
            for number in range(len(pictures)):
                prompt = prompt.replace(_MARK.format(number), _MARK.format(""))
            mark = _MARK.format("")
            call = partial(pool.submit_text, prompt, pictures=pictures, mark=mark, **wanted.keywords())
            jobs = await answerer.submit([call])
            form.begin(jobs)
            return jobs

        return await answerer.respond(request, submit, form, wanted, begin, LineAnswering)

    def line_form(body: OllamaRequest, thoughts: bool, begin: float, details: bool) -> LineForm:
        name = body.model or lists.name
        chat_form = ChatForm(name, bool(body.logprobs), body.top_logprobs or 0, thoughts)
        return LineForm(
            chat_form,
            name,
            begin,
            generates=isinstance(body, GenerateBody),
            details=pool.n_layer if details else None,
        )

    def loaded(body: OllamaRequest, unloads: bool, said: dict[str, Any]) -> Response:
        """Nothing was asked: Ollama loads a model so, and unloads it."""
        reason = "unload" if unloads else "load"
        head = {"model": body.model or lists.name, "created_at": now()}
        return JSONResponse({**head, **said, "done": True, "done_reason": reason})

    def missing(message: str) -> Any:
        async def refuse() -> Response:
            raise invalid(message, code="unsupported")

        return refuse

    for name, (method, message) in _MISSING.items():
        refuse = missing(f"/api/{name}: {message}")
        router.add_api_route(f"/{name}", refuse, methods=[method], name=name, include_in_schema=False)
    return router


FORMS["/api/"] = lambda error: {"error": error_text(error)}

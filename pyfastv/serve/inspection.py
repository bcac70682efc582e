"""llama-server's addresses beside OpenAI's: what there is, the tokens of a text, the prompt of a conversation."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter
from pydantic import Field

from .._about import __version__
from ..engine.job_pool import JobPool
from ..engine.sampling import Sampling
from ..models.facts import ModelFacts
from .chat import ChatMessage, ImagePart, VideoPart
from .completions import Token
from .errors import ApiError, invalid
from .model import Model
from .native import MARK, generation_settings
from .ollama_replies import model_details
from .settings import Settings

__all__ = ["add_routes", "describe_model", "listed_model"]


class TokenizeRequest(Model):
    """``POST /tokenize``"""

    content: str
    add_special: bool | None = Field(default=None, description="With the tokens that begin a prompt.")
    parse_special: bool | None = Field(default=None, description="False: special tokens are text.")
    with_pieces: bool | None = Field(default=None, description="With the text of each token.")


class DetokenizeRequest(Model):
    """``POST /detokenize``"""

    tokens: Annotated[list[Token], Field(max_length=1_000_000)]


class TemplateRequest(Model):
    """``POST /apply-template``"""

    messages: list[ChatMessage] = Field(min_length=1)
    continue_final_message: bool | None = None


def describe_model(pool: JobPool, facts: ModelFacts, created: int) -> dict[str, Any]:
    """OpenAI's model object, and what clients look for beside it."""
    return {
        "id": pool.name,
        "object": "model",
        "created": created,
        "owned_by": "pyfastv",
        "architecture": {"input_modalities": _modalities(pool), "output_modalities": ["text"]},
        "meta": {
            "n_ctx": pool.n_ctx,
            "n_ctx_train": facts.n_ctx_train,
            "n_embd": facts.n_embd,
            "n_params": facts.n_params,
            "size": facts.bytes,
            "slots": pool.n_slots,
            "file": pool.file,
            **pool.setting.specs(),
        },
    }


def listed_model(pool: JobPool, facts: ModelFacts) -> dict[str, Any]:
    """As llama-server has it beside OpenAI's object: clients look there whether it takes pictures."""
    return {
        "name": pool.name,
        "model": pool.name,
        "type": "model",
        "capabilities": ["completion", *(["multimodal"] if pool.sees else [])],
        "details": model_details(facts, pool.sees),
    }


def _modalities(pool: JobPool) -> list[str]:
    return ["text", "image"] if pool.sees else ["text"]


def add_routes(router: APIRouter, pool: JobPool, settings: Settings) -> None:
    """Adds them to the others."""

    @router.get("/props", tags=["llama-server"])
    async def props() -> dict[str, Any]:
        """The model, its context and template, what requests get that are silent."""
        defaults = settings.sampling
        sampling = {name: getattr(defaults, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        return {
            "default_generation_settings": {
                "id": 0,
                "n_ctx": pool.n_ctx,
                "speculative": False,
                "is_processing": 0 in pool.busy_slots(),
                "params": generation_settings(Sampling(max_tokens=settings.max_tokens, **sampling)),
            },
            "total_slots": pool.n_slots,
            "model_alias": pool.name,
            "model_path": pool.file,
            "modalities": {"vision": pool.sees, "audio": False},
            "media_marker": MARK,
            "chat_template": pool.chat_template or "",
            # of any template: one that knows no tools gets them in a system message
            "chat_template_caps": {"supports_tools": True, "supports_tool_calls": True},
            "bos_token": pool.bos_token,
            "eos_token": pool.eos_token,
            "build_info": f"pyfastv {__version__}",
            "is_sleeping": False,
            **pool.setting.specs(),
        }

    @router.get("/slots", tags=["llama-server"])
    async def slots(fail_on_no_slot: str | None = None) -> list[dict[str, Any]]:
        """Which are at work; with ``fail_on_no_slot=1`` 503 if all are."""
        busy = pool.busy_slots()
        if fail_on_no_slot not in (None, "", "0") and len(busy) == pool.n_slots:
            raise ApiError(503, "no slot available", code="unavailable")
        return [
            {"id": i, "n_ctx": pool.n_ctx, "speculative": False, "is_processing": i in busy}
            for i in range(pool.n_slots)
        ]

    @router.post("/tokenize", tags=["llama-server"])
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text."""
        call = partial(
            pool.tokenize,
            body.content,
            add_special=bool(body.add_special),
            parse_special=body.parse_special is not False,
        )
        tokens = await to_thread.run_sync(call)
        if not body.with_pieces:
            return {"tokens": tokens}
        return {"tokens": [{"id": token, "piece": _piece(pool.detokenize([token]))} for token in tokens]}

    @router.post("/detokenize", tags=["llama-server"])
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """The text of tokens; broken characters are U+FFFD."""
        data = await to_thread.run_sync(pool.detokenize, body.tokens)
        return {"content": data.decode("utf-8", "replace")}

    @router.post("/apply-template", tags=["llama-server"])
    async def apply_template(body: TemplateRequest) -> dict[str, Any]:
        """The prompt that messages become; pictures and frames, which are not read, are ``<__media__>``."""
        call = partial(
            pool.render,
            [_unread(message) for message in body.messages],
            MARK,
            continues=bool(body.continue_final_message),
        )
        return {"prompt": await to_thread.run_sync(call)}


def _piece(data: bytes) -> str | list[int]:
    """As llama-server has it: bytes of a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _unread(message: ChatMessage) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, VideoPart):
            frames = part.sampled["frames"]
            if frames is None:
                raise invalid("fps: only the video, which is not read here, tells how many frames these are")
            parts += [{"type": "image", "image": part.video_url.url}] * frames
        elif isinstance(part, ImagePart):
            parts.append({"type": "image", "image": part.image_url.url})
        else:
            parts.append({"type": "text", "text": part.text})
    role = "system" if message.role == "developer" else message.role
    return {**message.beside_content(), "role": role, "content": parts}

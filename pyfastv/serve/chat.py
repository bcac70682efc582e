"""OpenAI's chat completions: their requests, and the choices of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from ..constraints.tools import ToolUse
from ..engine.job_pool import Job, Piece, TokenProb
from ..engine.told import AnswerReader, as_delta, as_message
from ..errors import OptionError
from ..inputs.budget import LOW_DETAIL_TOKENS
from ..inputs.template_options import TEMPLATE_OPTIONS, template_variables
from ..inputs.video import DEFAULT_FRAMES, MAX_FRAMES
from . import replies
from .errors import invalid
from .generation import Generation
from .model import Model

__all__ = [
    "ChatForm",
    "ChatMessage",
    "ChatRequest",
    "Detail",
    "Effort",
    "Fps",
    "Frames",
    "ImageAddress",
    "ImagePart",
    "ImageUrl",
    "Part",
    "TextPart",
    "VideoAddress",
    "VideoPart",
]


class TextPart(Model):
    """Text of a message."""

    type: Literal["text"]
    text: str


Detail = Annotated[
    Literal["low", "high", "auto", "original"],
    Field(description=f"low: at most {LOW_DETAIL_TOKENS} visual tokens, or as few as the model can have."),
]


class ImageUrl(Model):
    """Where a picture is: ``data:image/png;base64,...``; http(s) and file URLs if the server allows them."""

    url: str = Field(min_length=1)
    detail: Detail | None = None


def _as_image_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


ImageAddress = Annotated[ImageUrl, BeforeValidator(_as_image_url, json_schema_input_type=ImageUrl | str)]


class _Seen(Model):
    """A part that is not text."""

    _place: str | None = PrivateAttr(default=None)

    @property
    def place(self) -> str | None:
        """Where it was in a request of another protocol; None: where it is here."""
        return self._place

    def at(self, place: str) -> Any:
        """The same, with its place."""
        self._place = place
        return self


class ImagePart(_Seen):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageAddress


Frames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
Fps = Annotated[float, Field(gt=0, le=1000)]


class VideoUrl(ImageUrl):
    """Where a video is, as for pictures, and which of its frames are seen; see :class:`pyfastv.Video`."""

    frames: Frames | None = None
    fps: Fps | None = None


VideoAddress = Annotated[VideoUrl, BeforeValidator(_as_image_url, json_schema_input_type=VideoUrl | str)]


class VideoPart(_Seen):
    """A video of a message. ``frames`` and ``fps`` are taken beside ``video_url`` and in it."""

    type: Literal["video_url"]
    video_url: VideoAddress
    frames: Frames | None = None
    fps: Fps | None = None

    @property
    def sampled(self) -> dict[str, Any]:
        """Keywords of :class:`pyfastv.Video`."""
        inner = self.video_url
        frames = inner.frames if self.frames is None else self.frames
        fps = inner.fps if self.fps is None else self.fps
        return {"frames": DEFAULT_FRAMES if frames is None and fps is None else frames, "fps": fps}


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [] if value is None else value


class FunctionCall(Model):
    """A function that an answer has called; its arguments in JSON."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(Model):
    """A call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Model):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part] | None)
    ] = Field(default_factory=list)
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    def beside_content(self) -> dict[str, Any]:
        """What else it has for the chat template."""
        return self.model_dump(exclude={"role", "content"}, exclude_none=True)


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChatRequest(Generation):
    """``POST /v1/chat/completions``"""

    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    continue_final_message: bool | None = Field(
        default=None, description="The answer goes on with the last message, one of the assistant."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="False only beside continue_final_message."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description='Variables of the chat template, such as {"enable_thinking": false}.'
    )
    reasoning_effort: Effort | None = None
    reasoning_format: Literal["none", "auto", "deepseek"] | None = Field(
        default=None, description="none: thoughts stay in the content; else they are reasoning_content."
    )
    tools: list[dict[str, Any]] | None = Field(
        default=None, description="Functions that the answer may call, as far as tool_choice allows."
    )
    tool_choice: str | dict[str, Any] | None = Field(
        default=None, description="none, auto, required, or the function to call."
    )
    parallel_tool_calls: bool | None = Field(
        default=None, description="Several calls in one answer; null: where the chat template takes them."
    )
    functions: Any = Field(default=None, description="Not supported: see tools.")
    modalities: Any = Field(default=None, description="Only text.")
    audio: Any = Field(default=None, description="Not supported.")
    web_search_options: Any = Field(default=None, description="Not supported.")

    def check_supported(self) -> None:
        super().check_supported()
        use = self.tool_use
        if use is not None and use.offers:
            if self.is_constrained:
                raise invalid(
                    "tools and a form of the answer (response_format, grammar) exclude each other", "tools"
                )
            if self.continue_final_message:
                raise invalid("tools and continue_final_message exclude each other", "continue_final_message")
        if self.modalities not in (None, ["text"]):
            raise invalid("modalities: this server answers in text only", "modalities", "unsupported")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "continue_final_message and add_generation_prompt exclude each other", "add_generation_prompt"
            )
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise invalid(
                "add_generation_prompt: false is not supported by this server without continue_final_message: true",
                "add_generation_prompt",
                "unsupported",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")

    def _refused(self) -> tuple[str, ...]:
        return (*super()._refused(), "functions", "audio", "web_search_options")

    @cached_property
    def tool_use(self) -> ToolUse | None:
        """What it says of tools. Raises ApiError."""
        try:
            return ToolUse.of(self.tools, self.tool_choice, self.parallel_tool_calls)
        except OptionError as error:
            raise invalid(
                str(error), "tool_choice" if str(error).startswith("tool_choice") else "tools"
            ) from None

    @property
    def n_probs(self) -> int:
        """Alternatives wanted for each token; at least 1 where probabilities are wanted at all."""
        return max(1, self.top_logprobs or 0) if self.logprobs else 0

    @property
    def tells_thoughts_apart(self) -> bool:
        """What a grammar makes is an answer."""
        return self.reasoning_format != "none" and not self.is_constrained

    def template_variables(self) -> dict[str, Any]:
        """Of the model's chat template. Raises OptionError."""
        return template_variables(self.model_dump(include=set(TEMPLATE_OPTIONS)))


class ChatForm:
    """``chat.completion``"""

    def __init__(self, model: str, logprobs: bool, n_top: int, thoughts: bool = True) -> None:
        """``thoughts``: they are told apart from answers."""
        self.head = replies.head("chat.completion", "chatcmpl", model)
        self.chunk_head = {**self.head, "object": "chat.completion.chunk"}
        self._logprobs, self._n_top = logprobs, n_top
        self._apart = thoughts
        self._readers: list[AnswerReader] = []

    def begin(self, jobs: Sequence[Job]) -> None:
        """Before the first piece."""
        self._readers = [AnswerReader(job.open_thought if self._apart else None, job.calls) for job in jobs]

    def whole(self, index: int, text: str, probs: list[TokenProb], finish_reason: str) -> dict[str, Any]:
        reader = self._readers[index]
        message = as_message(reader.feed(text) + reader.finish())
        return {
            "index": index,
            "message": {**message, "refusal": None},
            "logprobs": self._told(probs),
            "finish_reason": reader.reason(finish_reason),
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def waiting(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {})

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        delta = as_delta(self._readers[index].feed(piece.text))
        return {**self._chunk(index, delta or {"content": ""}), "logprobs": self._told(piece.probs)}

    def closing(self, index: int, finish_reason: str) -> dict[str, Any]:
        reader = self._readers[index]
        delta = as_delta(reader.finish())
        return {**self._chunk(index, delta), "finish_reason": reader.reason(finish_reason)}

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _told(self, probs: Any) -> dict[str, Any] | None:
        return replies.chat_logprobs(probs, self._n_top) if self._logprobs else None

"""The requests, as OpenAI has them; what a client may send beside these fields is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from .errors import invalid

__all__ = ["ChatMessage", "ChatRequest", "CompletionRequest", "ImagePart", "TextPart"]

_INT32_MAX = 2**31 - 1
_INT64 = 2**63


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(_Model):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Model):
    """Where a picture is: ``data:image/png;base64,...``; http(s) and file URLs if the server allows them."""

    url: str = Field(min_length=1)


def _as_image_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(_Model):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_image_url, json_schema_input_type=ImageUrl | str)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [] if value is None else value


class ChatMessage(_Model):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part] | None)
    ] = Field(default_factory=list)


class StreamOptions(_Model):
    """Of a streamed answer."""

    include_usage: bool | None = None


class JsonSchema(_Model):
    """A schema that the answer follows."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class TextFormat(_Model):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(_Model):
    """Any JSON object; with ``schema``, as llama-server takes it, one that follows it."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class JsonSchemaFormat(_Model):
    """A JSON value that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _as_stops(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    return [] if value is None else value


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ScheduleFields(_Model):
    """One cut, as the options of ``pyfastv ask`` have it."""

    k: int | str = 2
    drop: float = 0.5
    score: str | None = None
    pick: str | None = None
    weigh: bool | None = None
    merge: bool | None = None
    recall: float | None = None
    cells: int | str | None = None


class _Generation(_Model):
    """What both kinds of request have. None is as good as left out."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=_INT32_MAX)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=_INT32_MAX)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: Annotated[
        list[Stop], BeforeValidator(_as_stops, json_schema_input_type=str | list[Stop] | None)
    ] = Field(default_factory=list, max_length=16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    fastv: str | Literal[False] | ScheduleFields | None = Field(
        default=None,
        description='A schedule, such as "k=2,drop=0.5", "pyramiddrop" or "off", for this request. With cuts at other '
        "layers than the server's it waits until those before it have ended.",
    )
    turbo: str | Literal[False] | None = Field(
        default=None,
        description='Merging in the vision encoder, such as "share=0.5" or "off", for this request.',
    )
    reduce: str | Literal[False] | None = Field(
        default=None,
        description='Fewer visual tokens before the language model, such as "pool,window=2" or "off", for this request.',
    )
    fastv_details: bool | None = Field(default=None, description="Report which visual tokens were kept.")
    n: int | None = Field(default=None, description="Only 1.")
    logit_bias: Any = Field(default=None, description="Not supported.")

    def check_supported(self) -> None:
        """Raises ApiError for what OpenAI has and this server has not, where ignoring it would change the answer."""
        if self.n is not None and self.n != 1:
            raise invalid(f"n must be 1: one answer a request; got {self.n}", "n", "unsupported")
        for name in self._refused():
            if getattr(self, name):
                raise invalid(f"{name} is not supported by this server: leave it out", name, "unsupported")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options needs stream: true", "stream_options")

    def _refused(self) -> tuple[str, ...]:
        return ("logit_bias",)


class ChatRequest(_Generation):
    """``POST /v1/chat/completions``"""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_INT32_MAX)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Any = Field(default=None, description="Not supported.")
    functions: Any = Field(default=None, description="Not supported.")
    tool_choice: Any = Field(default=None, description="Not supported, but for none and auto.")
    modalities: Any = Field(default=None, description="Only text.")
    audio: Any = Field(default=None, description="Not supported.")
    web_search_options: Any = Field(default=None, description="Not supported.")

    def check_supported(self) -> None:
        super().check_supported()
        if self.tool_choice not in (None, "none", "auto"):
            raise invalid(
                "tool_choice is not supported by this server: leave it out", "tool_choice", "unsupported"
            )
        if self.modalities not in (None, ["text"]):
            raise invalid("modalities: this server answers in text only", "modalities", "unsupported")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")

    def _refused(self) -> tuple[str, ...]:
        return (*super()._refused(), "tools", "functions", "audio", "web_search_options")

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def n_probs(self) -> int:
        """Alternatives wanted for each token; at least 1 where probabilities are wanted at all."""
        return max(1, self.top_logprobs or 0) if self.logprobs else 0


def _as_prompt(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return value


class CompletionRequest(_Generation):
    """``POST /v1/completions``: text goes on, without a chat template and without pictures."""

    prompt: Annotated[
        str,
        Field(min_length=1),
        BeforeValidator(
            _as_prompt,
            json_schema_input_type=str | Annotated[list[str], Field(min_length=1, max_length=1)],
        ),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: Any = Field(default=None, description="Not supported.")
    suffix: Any = Field(default=None, description="Not supported.")
    best_of: int | None = Field(default=None, description="Only 1.")

    def check_supported(self) -> None:
        super().check_supported()
        if self.best_of not in (None, 1):
            raise invalid(f"best_of must be 1; got {self.best_of}", "best_of", "unsupported")

    def _refused(self) -> tuple[str, ...]:
        return (*super()._refused(), "echo", "suffix")

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def n_probs(self) -> int:
        """Alternatives wanted for each token; at least 1 where probabilities are wanted at all."""
        return 0 if self.logprobs is None else max(1, self.logprobs)

"""What a request asks of the model, whatever its protocol: the fields, as OpenAI has them, and the one request that they
become. What a client may send beside these fields is ignored, unless it would change the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from .._checks import INT32_MAX, integer
from ..engine.job_pool import JobPool
from ..engine.sampling import Sampling
from ..inputs.budget import Budget
from ..settings.schedule import Cut, Schedule
from ..settings.setting import SETTING_OPTIONS, Setting, SettingOptions
from .constraints import Constrained, check_unknown
from .errors import invalid
from .model import Model
from .settings import Settings

__all__ = ["INT32_MAX", "Generation", "Wanted"]

_INT64 = 2**63
_SEEDS = 2**32 - 1
_STOP_CHARACTERS = 2**16  # of all stop strings of a request
_BANNED = -1e9


class StreamOptions(Model):
    """Of a streamed answer."""

    include_usage: bool | None = None


def _as_stops(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        return [one for one in value if one != ""]
    return [] if value is None else value


Stop = Annotated[str, StringConstraints(max_length=1024)]


def _as_biases(value: Any) -> Any:
    """OpenAI's object, or llama-server's list of pairs, where false is a token that never comes."""
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        value = {str(token): bias for token, bias in value}
    if isinstance(value, dict):
        return {token: _BANNED if bias is False else bias for token, bias in value.items()}
    return value


class ScheduleFields(Model):
    """One cut: what the same fields are as text. ``k`` and ``drop`` alone are of the recommended rule."""

    k: int | str = 2
    drop: float = 0.5
    score: str | None = None
    pick: str | None = None
    weigh: bool | None = None
    merge: bool | None = None
    recall: float | None = None
    cells: int | str | None = None


@dataclass(frozen=True)
class Wanted:
    """A request of any protocol: of the model, and of the form of its answer."""

    sampling: Sampling
    failure: Callable[[str], str | None] | None
    """Of a finished answer: what it does not follow; see :class:`pyfastv.constraints.grammar.Grammar`."""
    setting: Setting
    budget: Budget
    """Of each picture."""
    n: int
    """Answers to each prompt."""
    n_probs: int
    details: bool
    stream: bool
    include_usage: bool
    progress: bool
    """Of the prompt, in events of a stream."""
    timings: bool = False
    """In every chunk of a stream."""
    cache_prompt: bool = True
    """What slots hold of the prompt is used."""

    def keywords(self, answer: int = 0) -> dict[str, Any]:
        """Of :meth:`pyfastv.engine.job_pool.JobPool.submit`, for one of several answers: each has another seed."""
        sampling = self.sampling
        if answer and sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + answer) % _SEEDS)
        return {
            "sampling": sampling,
            "n_probs": self.n_probs,
            "details": self.details,
            "reports": self.timings,
            "budget": self.budget,
            "cache_prompt": self.cache_prompt,
            **self.setting.options(),
        }


class Generation(Constrained):
    """What requests of every protocol have. None is as good as left out."""

    model_config = ConfigDict(extra="allow")  # what is not known is looked through once more

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=-1, description="-1: no limit but the context.")
    max_completion_tokens: int | None = Field(default=None, ge=-1)
    n_predict: int | None = Field(default=None, ge=-2, description="max_tokens, as llama-server has it.")
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    repetition_penalty: float | None = Field(
        default=None, gt=0, le=100, description="repeat_penalty, as vLLM has it."
    )
    repeat_last_n: int | None = Field(default=None, ge=-1, le=INT32_MAX)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: Annotated[
        list[Stop], BeforeValidator(_as_stops, json_schema_input_type=str | list[Stop] | None)
    ] = Field(default_factory=list)
    logit_bias: Annotated[
        dict[str, float] | None,
        BeforeValidator(
            _as_biases, json_schema_input_type=dict[str, float] | list[tuple[int, float | bool]] | None
        ),
    ] = Field(default=None, description="What is added to the logits of tokens, by their numbers.")
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(
        default=None,
        description="False: control tokens are text of the answer, but for the one that ends it.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = Field(
        default=None, description="Tell how far the prompt is read, in chunks with `prompt_progress`."
    )
    timings_per_token: bool | None = Field(
        default=None, description="`timings` in every chunk of a stream, as llama-server has it."
    )
    cache_prompt: bool | None = Field(
        default=None, description="False: the whole prompt is computed, whatever slots hold of it."
    )
    fastv: str | Literal[False] | ScheduleFields | None = Field(
        default=None,
        description='A schedule for this request, such as "k=2,drop=0.5", "fastv,k=2,drop=0.5", "pyramiddrop" or "off". '
        "With cuts at other layers than the server's it waits until those before it have ended.",
    )
    turbo: str | Literal[False] | None = Field(
        default=None,
        description='Merging in the vision encoder, such as "share=0.5" or "off", for this request.',
    )
    reduce: str | Literal[False] | None = Field(
        default=None,
        description='Fewer visual tokens before the language model, such as "pool,window=2" or "off", for this request.',
    )
    skip: str | Literal[False] | None = Field(
        default=None,
        description='Patches that their neighbours predict are not encoded, such as "tau=8" or "off", for this request.',
    )
    image_tokens: int | list[int] | None = Field(
        default=None,
        description="Most visual tokens of a picture, or the least and the most: it is scaled for that.",
    )
    image_min_tokens: int | None = Field(default=None, description="The least, as llama.cpp has it.")
    image_max_tokens: int | None = Field(default=None, description="The most, as llama.cpp has it.")
    enlarge: bool | None = Field(
        default=None,
        description="May a model that scales every picture to one size enlarge it? Left out: unless there is a budget.",
    )
    fastv_details: bool | None = Field(default=None, description="Report which visual tokens were kept.")
    n: int | None = Field(default=None, ge=1, le=128, description="Answers to each prompt.")

    def check_supported(self) -> None:
        """Raises ApiError for what OpenAI has and this server has not, where ignoring it would change the answer."""
        for name in self._refused():
            if getattr(self, name):
                raise invalid(f"{name} is not supported by this server: leave it out", name, "unsupported")
        check_unknown(self.model_extra or {})
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options needs stream: true", "stream_options")
        if sum(map(len, self.stop)) > _STOP_CHARACTERS:
            raise invalid(
                f"stop: more than {_STOP_CHARACTERS:,} characters together", "stop", "invalid_value"
            )

    def _refused(self) -> tuple[str, ...]:
        return ()

    def wanted(self, pool: JobPool, settings: Settings) -> Wanted:
        """What it asks for. It may take a while. Raises ApiError, OptionError."""
        self.check_supported()
        usage = self.stream_options is not None and bool(self.stream_options.include_usage)
        grammar = self.constraint()
        return Wanted(
            sampling=self._sampling(pool.n_ctx, settings, None if grammar is None else grammar.text),
            failure=None if grammar is None else grammar.failure,
            setting=pool.setting.but(**self._setting_options()),
            budget=Budget.of(self._image_tokens(), self.enlarge, pool.budget),
            n=self.n or 1,
            n_probs=self.n_probs,
            details=bool(self.fastv_details),
            stream=bool(self.stream),
            include_usage=usage,
            progress=bool(self.return_progress),
            timings=bool(self.timings_per_token and self.stream),
            cache_prompt=self.cache_prompt is not False,
        )

    @property
    def most_tokens(self) -> int | None:
        """Of the answer; None or -1: no limit."""
        names = ("max_completion_tokens", "max_tokens", "n_predict")
        return next((most for name in names if (most := getattr(self, name)) is not None), None)

    @property
    def n_probs(self) -> int:
        """Alternatives wanted for each token; at least 1 where probabilities are wanted at all."""
        return 0

    def _sampling(self, n_ctx: int, settings: Settings, grammar: str | None) -> Sampling:
        defaults = settings.sampling
        return Sampling(
            max_tokens=self._most_tokens(n_ctx, settings),
            temperature=_or(self.temperature, defaults.temperature),
            # -1 is what other servers take for all
            top_k=max(0, int(_or(self.top_k, defaults.top_k))),
            top_p=_or(self.top_p, defaults.top_p),
            min_p=_or(self.min_p, defaults.min_p),
            typical_p=_or(self.typical_p, 1.0),
            repeat_penalty=_or(self.repeat_penalty, _or(self.repetition_penalty, 1.0)),
            repeat_last_n=_or(self.repeat_last_n, 64),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            # OpenAI's seeds are signed and of 64 bits; -1 is llama-server's for none
            seed=None if self.seed in (None, -1) else int(self.seed or 0) % _SEEDS,
            stop=tuple(self.stop),
            grammar=grammar,
            ignore_eos=bool(self.ignore_eos),
            skip_special_tokens=self.skip_special_tokens is not False,
            logit_bias=tuple((self.logit_bias or {}).items()),  # type: ignore[arg-type]
        )

    def _most_tokens(self, n_ctx: int, settings: Settings) -> int | None:
        """As in llama-server, more than there can be is as much as there can be."""
        limit = n_ctx if settings.max_tokens is None else settings.max_tokens
        wanted = self.most_tokens
        return settings.max_tokens if wanted is None or wanted < 0 else min(wanted, limit)

    def _image_tokens(self) -> int | list[int] | None:
        """By our name or by llama.cpp's. Raises ApiError, OptionError."""
        theirs = {
            name: value
            for name in ("image_min_tokens", "image_max_tokens")
            if (value := getattr(self, name)) is not None
        }
        for name, value in theirs.items():
            if self.image_tokens is not None:
                raise invalid(f"image_tokens and {name} say the same: leave one out", name)
            integer(name, value, 1)
        if not theirs:
            return self.image_tokens
        return [theirs.get("image_min_tokens", 1), theirs.get("image_max_tokens", INT32_MAX)]

    def _setting_options(self) -> SettingOptions:
        """What it says of the setting; false is off."""
        given = {name: value for name in SETTING_OPTIONS if (value := getattr(self, name)) is not None}
        return cast(SettingOptions, {name: _setting_option(value) for name, value in given.items()})


def _setting_option(value: str | bool | ScheduleFields) -> Schedule | str | None:
    if isinstance(value, ScheduleFields):
        given = value.model_dump(exclude_none=True, exclude={"k", "recall", "cells"})
        shared = value.model_dump(exclude_none=True, include={"recall", "cells"})
        return Schedule([Cut(value.k, **given)], **shared)
    return None if value is False else str(value)


def _or(value: float | None, default: float) -> Any:
    return default if value is None else value

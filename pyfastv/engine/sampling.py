"""The options of a request: plain values, checked once when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

from .._checks import INT32_MAX, integer, real, shown, utf8, whole
from ..errors import OptionError
from ..inputs.budget import PICTURE_OPTIONS, PictureOptions
from ..inputs.template_options import TEMPLATE_OPTIONS, TemplateOptions
from ..settings.setting import SETTING_OPTIONS, Setting, SettingOptions
from .reply import REPLY_OPTIONS, ReplyOptions

__all__ = ["RequestOptions", "Sampling", "SamplingOptions", "of_request"]

_MAX_BIAS = 1e9


class SamplingOptions(TypedDict, total=False):
    """The sampling keywords of :meth:`pyfastv.Runner.ask` and its siblings; see :class:`Sampling`."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    repeat_last_n: int
    frequency_penalty: float
    presence_penalty: float
    seed: int | None
    stop: Sequence[str] | None
    grammar: str | None
    logit_bias: Mapping[int, float] | None
    ignore_eos: bool
    skip_special_tokens: bool


class RequestOptions(
    SamplingOptions, SettingOptions, PictureOptions, TemplateOptions, ReplyOptions, total=False
):
    """The keywords of :meth:`pyfastv.Runner.ask` and its siblings: those of sampling, and

    ``fastv``: the schedule of this one request, in place of the runner's; with cuts at other layers, or other ``cells``,
    the context is allocated anew. ``turbo``, ``reduce``, ``skip``: the merging in the vision encoder, the reducer and
    what is left out of pictures, of this one request. Otherwise what the context holds stays. ``image_tokens``,
    ``enlarge``: how large its pictures are seen, see :class:`pyfastv.inputs.budget.PictureOptions`.
    ``chat_template_kwargs``, ``reasoning_effort``: see :class:`pyfastv.inputs.template_options.TemplateOptions`;
    ``response_format``, ``logprobs``, ``top_logprobs``: see :class:`pyfastv.engine.reply.ReplyOptions`."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked. Names are those of llama.cpp, defaults those of llama-cpp-python's chat.

    The exception is ``temperature``: 0 here, so that the same question about the same picture has the same
    answer. Raises OptionError.
    """

    max_tokens: int | None = None
    """Most tokens to generate, as far as there is room; None or -1: until the model ends or the context is full; 0:
    none, an empty answer with its report."""
    temperature: float = 0.0
    """0: always the likeliest token; higher is more random."""
    top_k: int = 40
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Only the likeliest tokens that together have this probability; 1: all."""
    min_p: float = 0.05
    """Only tokens at least this fraction as likely as the likeliest; 0: all."""
    typical_p: float = 1.0
    """Locally typical sampling; 1: off."""
    repeat_penalty: float = 1.0
    """Divides the logits of recent tokens; 1: off."""
    repeat_last_n: int = 64
    """How many recent tokens the penalties look at; 0: none, -1: the whole context."""
    frequency_penalty: float = 0.0
    """Subtracted from a recent token's logit for each time that it occurred; 0: off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of a token that occurred recently; 0: off."""
    seed: int | None = None
    """Seed of the random generator, 0 to 2**32 - 1; None: the runner's, or a new one for each request."""
    stop: Sequence[str] | None = ()
    """The answer ends before the first of these strings; one string or several, kept as a tuple."""
    grammar: str | None = None
    """A GBNF grammar that the answer has to follow."""
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None = ()
    """What is added to the logits of tokens, from -1e9 to 1e9, by their numbers; kept as a tuple of pairs."""
    ignore_eos: bool = False
    """No token ends the answer: only ``max_tokens``, a stop string, the grammar or the context."""
    skip_special_tokens: bool = True
    """Control tokens are no text of an answer; False: they are there by their names, but for the one that ends it."""

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "max_tokens": self._max_tokens(),
            "temperature": real("temperature", self.temperature, "0 or more", 0.0),
            "top_k": integer("top_k", self.top_k, 0),
            "top_p": real("top_p", self.top_p, "a probability in [0, 1]", 0.0, 1.0),
            "min_p": real("min_p", self.min_p, "a probability in [0, 1]", 0.0, 1.0),
            "typical_p": real("typical_p", self.typical_p, "a probability in [0, 1]", 0.0, 1.0),
            "repeat_penalty": real("repeat_penalty", self.repeat_penalty, "above 0; 1 is off", 0.0),
            "repeat_last_n": integer("repeat_last_n", self.repeat_last_n, -1),
            "frequency_penalty": real("frequency_penalty", self.frequency_penalty, "a finite number"),
            "presence_penalty": real("presence_penalty", self.presence_penalty, "a finite number"),
            "seed": None if self.seed is None else integer("seed", self.seed, 0, 2**32 - 1),
            "stop": self._stop(),
            "logit_bias": self._logit_bias(),
        }
        if checked["repeat_penalty"] == 0.0:
            raise OptionError(f"repeat_penalty must be above 0; 1 is off; got {self.repeat_penalty!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.grammar is not None and (not isinstance(self.grammar, str) or not self.grammar.strip()):
            raise OptionError(f"grammar must be GBNF text; leave it out for none; got {shown(self.grammar)}")
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} must be True or False; got {shown(getattr(self, name))}")
        if "\0" in utf8("grammar", self.grammar or ""):
            raise OptionError("grammar has a NUL character: write it as \\x00")

    def _max_tokens(self) -> int | None:
        most = whole(self.max_tokens)
        if most is None or (most == -1 and not isinstance(most, bool)):
            return None
        # no context holds more
        return integer(
            "max_tokens (None: no limit)", min(most, INT32_MAX) if isinstance(most, int) else most, 0
        )

    def _stop(self) -> tuple[str, ...]:
        stop = self.stop
        if stop is None or isinstance(stop, str):
            stop = () if stop is None else (stop,)
        if not isinstance(stop, Sequence) or not all(isinstance(one, str) and one for one in stop):
            raise OptionError(
                f"stop must be one string or several, and none of them empty; got {shown(stop)}"
            )
        return tuple(utf8(f"stop[{i}]", one) for i, one in enumerate(stop))

    def _logit_bias(self) -> tuple[tuple[int, float], ...]:
        given = self.logit_bias
        pairs = given.items() if isinstance(given, Mapping) else given or ()
        try:
            biases = [(token, bias) for token, bias in pairs]
        except (TypeError, ValueError):
            raise OptionError(f"logit_bias must map tokens to numbers; got {shown(given)}") from None
        return tuple(
            (
                integer("logit_bias: a token", int(token) if _is_digits(token) else token, 0),
                real("logit_bias", bias, "a number from -1e9 to 1e9", -_MAX_BIAS, _MAX_BIAS),
            )
            for token, bias in biases
        )


def of_request(options: RequestOptions, default: Setting) -> tuple[Setting, Sampling]:
    """What the keywords of a request say; ``default`` is the setting where they are silent. Raises OptionError."""
    given = {name: value for name, value in options.items() if name in SETTING_OPTIONS}
    others = (*SETTING_OPTIONS, *PICTURE_OPTIONS, *TEMPLATE_OPTIONS, *REPLY_OPTIONS)
    rest = {name: value for name, value in options.items() if name not in others}
    return default.but(**cast(SettingOptions, given)), Sampling(**cast(SamplingOptions, rest))


def _is_digits(token: object) -> bool:
    """JSON's objects have texts for keys."""
    return isinstance(token, str) and token.isascii() and token.isdecimal() and len(token) < 20

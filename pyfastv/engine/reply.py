"""What a request says of the form of its answer: a schema that it follows, and how likely its tokens were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

from .._checks import integer, shown
from ..constraints.grammar import Grammar
from ..constraints.response_format import response_grammar
from ..errors import OptionError

if TYPE_CHECKING:
    from .sampling import Sampling

__all__ = ["REPLY_OPTIONS", "Reply", "ReplyOptions", "reply_of"]

_MOST_TOP = 20  # as in OpenAI's API


class ReplyOptions(TypedDict, total=False):
    """Keywords of :meth:`pyfastv.Runner.ask` and its siblings."""

    response_format: Mapping[str, Any] | None
    """In OpenAI's shape: ``{"type": "json_object"}``, or ``{"type": "json_schema", "json_schema": {"schema": ...}}``."""
    logprobs: bool | None
    """Tell how likely each token was."""
    top_logprobs: int | None
    """With ``logprobs``: and that many of the likeliest in its place, 0 to 20."""


REPLY_OPTIONS = tuple(ReplyOptions.__annotations__)


@dataclass(frozen=True)
class Reply:
    """What an answer has to be, and what is told of it."""

    grammar: Grammar | None = None
    logprobs: bool = False
    n_top: int = 0
    """Likeliest tokens that are told in the place of each."""

    @property
    def n_probs(self) -> int:
        """As the engine takes it: at least 1 where probabilities are wanted at all."""
        return max(1, self.n_top) if self.logprobs else 0

    def constrained(self, sampling: Sampling) -> Sampling:
        """So that the answer follows. Raises OptionError: it has to follow something else already."""
        if self.grammar is None:
            return sampling
        if sampling.grammar is not None:
            raise OptionError("grammar and response_format: an answer can follow one of them")
        return replace(sampling, grammar=self.grammar.text)

    def failure(self, text: str) -> str | None:
        """What a finished answer does not follow, because a grammar cannot say it; None: nothing."""
        check = None if self.grammar is None else self.grammar.failure
        return None if check is None else check(text)


def reply_of(options: Mapping[str, Any]) -> Reply:
    """What the keywords of a request say, among others. Raises OptionError."""
    given = cast(ReplyOptions, options)
    asked, top = given.get("logprobs"), given.get("top_logprobs")
    if asked is not None and not isinstance(asked, bool):
        raise OptionError(f"logprobs must be True or False; got {shown(asked)}")
    if top is not None and not asked:
        raise OptionError(f"top_logprobs needs logprobs=True; got top_logprobs={shown(top)}")
    n_top = 0 if top is None else integer("top_logprobs", top, 0, _MOST_TOP)
    return Reply(response_grammar(given.get("response_format")), bool(asked), n_top)

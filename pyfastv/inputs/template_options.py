"""What a request says to the model's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from .._checks import shown
from ..errors import OptionError

__all__ = ["EFFORTS", "TEMPLATE_OPTIONS", "TemplateOptions", "template_variables"]

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_NO_THOUGHT = ("none", "minimal")

# What a template is not told by a request: other arguments and the model say it.
_RESERVED = ("messages", "tools", "bos_token", "eos_token")


class TemplateOptions(TypedDict, total=False):
    """Keywords of :meth:`pyfastv.Runner.ask` and its siblings."""

    chat_template_kwargs: Mapping[str, Any] | None
    """Variables of the model's chat template, such as ``{"enable_thinking": False}``."""
    reasoning_effort: str | None
    """How much a model thinks before it answers, if its template knows: one of :data:`EFFORTS`. "none" and "minimal" are
    ``enable_thinking`` (and ``thinking``) False, the others True, and ``reasoning_effort`` for templates with levels."""


TEMPLATE_OPTIONS = tuple(TemplateOptions.__annotations__)


def template_variables(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a request says, among other options; ``chat_template_kwargs`` has the last word. Raises OptionError."""
    given = cast(TemplateOptions, options)
    variables: dict[str, Any] = {}
    effort = given.get("reasoning_effort")
    if effort is not None:
        if effort not in EFFORTS:
            raise OptionError(f"reasoning_effort must be one of {', '.join(EFFORTS)}; got {shown(effort)}")
        thinks = effort not in _NO_THOUGHT
        variables = {"enable_thinking": thinks, "thinking": thinks}
        if effort != "none":
            variables["reasoning_effort"] = effort
    more = given.get("chat_template_kwargs")
    if more is None:
        return variables
    if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
        raise OptionError(
            f"chat_template_kwargs must be names and values of the template's variables; got {shown(more)}"
        )
    for name in _RESERVED:
        if name in more:
            raise OptionError(f"chat_template_kwargs: {name} is set by the request and the model")
    return {**variables, **more}

"""The arguments of llama-cpp-python's ``create_chat_completion``: honoured, or refused by their names."""

from __future__ import annotations

from typing import Any, cast

from .._checks import shown, utf8, whole
from ..errors import OptionError
from .sampling import RequestOptions, SamplingOptions

__all__ = ["CompletionOptions", "as_ours"]


class CompletionOptions(RequestOptions, total=False):
    """The keywords of :meth:`pyfastv.Runner.create_chat_completion`: those of :meth:`pyfastv.Runner.ask`, and

    ``model``: the name that the completion tells. What follows is there for scripts that were written for
    llama-cpp-python; a value that would change the answer and cannot be had is an OptionError.

    As there, None is as good as left out, ``top_k=-1`` is all tokens, ``seed=-1`` a new seed, and ``grammar`` may be a
    LlamaGrammar."""

    model: str | None
    functions: Any
    function_call: Any
    tfs_z: float | None
    mirostat_mode: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    logits_processor: Any


# values that ask for nothing, and what to do in place of the others
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": ((None, [], ()), "pass tools"),
    "function_call": ((None, "none", "auto"), "leave it out"),
    "tfs_z": ((None, 1), "llama.cpp has no tail-free sampling any more: leave it out, or use min_p"),
    "mirostat_mode": ((None, 0), "use temperature, top_p and min_p"),
    "logits_processor": ((None, [], ()), "use grammar, response_format or logit_bias"),
}
_OF_MIROSTAT = ("mirostat_tau", "mirostat_eta")  # which is off


def as_ours(options: CompletionOptions, name: str) -> tuple[RequestOptions, str]:
    """What they are as options of a request, and the model's name in the completion. ``name``: where they have none.

    Raises OptionError: one that is not supported has a value that would change the answer."""
    given: dict[str, Any] = dict(options)
    for refused, (neutral, instead) in _REFUSED.items():
        value = given.pop(refused, None)
        if not any(_equals(value, one) for one in neutral):
            raise OptionError(f"{refused} is not supported: {instead}; got {shown(value)}")
    for unused in _OF_MIROSTAT:
        given.pop(unused, None)
    model = given.pop("model", None)
    ours = SamplingOptions.__annotations__
    asked = {key: value for key, value in given.items() if value is not None or key not in ours}
    if whole(asked.get("top_k")) == -1:
        asked["top_k"] = 0
    if whole(asked.get("seed")) == -1:
        del asked["seed"]
    grammar = getattr(asked.get("grammar"), "_grammar", None)
    if isinstance(grammar, str):
        asked["grammar"] = grammar
    return cast(RequestOptions, asked), name if model is None else utf8("model", model)


def _equals(value: Any, other: Any) -> bool:
    """Of any value: an array's comparison has no truth."""
    return value is other or (isinstance(value, (str, int, float, list, tuple)) and bool(value == other))

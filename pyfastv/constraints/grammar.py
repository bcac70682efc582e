"""What an answer has to look like: JSON schemas, choices and regular expressions to GBNF grammars, the first with
llama.cpp's own converter."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .. import _native
from .._checks import shown
from ..errors import OptionError
from . import patterns
from .following import failures
from .gbnf import literal
from .schemas import Prepared

__all__ = [
    "Grammar",
    "choice_grammar",
    "json_grammar",
    "of_schema",
    "pattern_grammar",
    "schema_grammar",
    "with_rules",
]


@dataclass(frozen=True)
class Grammar:
    """That an answer follows."""

    text: str
    """GBNF."""
    failure: Callable[[str], str | None] | None = None
    """Of an answer that has come to its end: what the grammar could not say and it does not follow; None: nothing. None
    in place of the function: there is no such thing."""


@cache
def json_grammar() -> str:
    """Any JSON object."""
    return schema_grammar({"type": "object"})


def schema_grammar(schema: Any) -> str:
    """The text of :func:`of_schema`."""
    return of_schema(schema).text


def of_schema(schema: Any) -> Grammar:
    """The grammar of JSON values that a JSON schema allows.

    ``schema``: an object, as from JSON. What only describes is left out; ``uniqueItems``, lengths beyond what grammars
    count, are for :attr:`Grammar.failure` to find; other keywords that a grammar cannot express are refused. Raises
    OptionError, with the place in the schema.
    """
    if not isinstance(schema, Mapping):
        raise OptionError(f"a JSON schema must be an object; got {shown(schema)}")
    try:
        prepared = Prepared(schema)
        text = _convert(json.dumps(prepared.schema, allow_nan=False))
    except OptionError:
        raise
    except RecursionError:
        raise OptionError("the JSON schema is too deep, or its parts lead back to each other") from None
    except (TypeError, ValueError) as error:
        raise OptionError(f"the JSON schema is not JSON: {error}") from None
    text = with_rules(text, prepared.rules)

    def failure(answer: str) -> str | None:
        try:
            value = json.loads(answer)
        except ValueError as error:
            return f"not JSON: {error}"
        return next(failures(schema, value, schema), None)

    return Grammar(text, failure if prepared.checked else None)


def with_rules(grammar: str, rules: Sequence[str]) -> str:
    """A grammar that was made of prepared schemas, with the rules of their strings."""
    for number, rule in enumerate(rules):
        grammar = grammar.replace(f'"\\"" ("pyfastv{number}") "\\""', f"({rule})")
    return grammar


def _convert(schema: str) -> str:
    try:
        return _native.json_schema_to_gbnf(schema)
    except OptionError as error:
        raise OptionError(str(error).replace("\n", " ")) from None


def choice_grammar(choices: Sequence[str]) -> str:
    """One of some texts. Raises OptionError: there is none."""
    if not choices:
        raise OptionError("a choice needs at least one text")
    return f"root ::= {' | '.join(map(literal, choices))}"


def pattern_grammar(pattern: str) -> str:
    """A text that a regular expression matches as a whole. Raises OptionError."""
    try:
        return f"root ::= {patterns.text(pattern)}"
    except patterns.Unsupported as error:
        raise OptionError(f"this regular expression is not supported ({error}): {pattern!r:.100}") from None

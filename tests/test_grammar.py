"""response_format to grammars, and what they make of answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyfastv import OptionError, Runner
from pyfastv.models import bundled_examples
from pyfastv.serve.grammar import grammar_of_format, grammar_of_schema

CLOCK = bundled_examples()[0]
SCHEMA = {
    "type": "object",
    "properties": {"hour": {"type": "integer", "minimum": 1, "maximum": 12}, "kind": {"enum": ["a", "b"]}},
    "required": ["hour", "kind"],
    "additionalProperties": False,
}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize("response_format", [None, {"type": "text"}])
def test_text_needs_no_grammar(response_format: Any) -> None:
    assert grammar_of_format(response_format) is None


def test_answers_follow_a_schema(runner: Runner) -> None:
    grammar = grammar_of_format({"type": "json_schema", "json_schema": {"name": "time", "schema": SCHEMA}})
    answer = json.loads(runner.ask(CLOCK.picture, CLOCK.question, grammar=grammar, max_tokens=60).text)
    assert set(answer) == {"hour", "kind"}
    assert 1 <= answer["hour"] <= 12
    assert answer["kind"] in ("a", "b")


def test_json_object_is_any_object(runner: Runner) -> None:
    grammar = grammar_of_format({"type": "json_object"})
    assert grammar is not None
    text = runner.ask(None, "Hello", grammar=grammar, max_tokens=30).text
    assert text.lstrip().startswith("{")
    assert grammar_of_format({"type": "json_object", "schema": SCHEMA}) == grammar_of_schema(SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
            "$ref": "#/$defs/node",
        },
        {"type": ["string", "null"], "maxLength": 5},
        {"anyOf": [{"const": 1}, {"type": "string", "pattern": "^[a-z]{2,3}$"}]},
        {
            "type": "object",
            "properties": {"not": {"type": "string"}, "if": {"type": "integer", "exclusiveMinimum": 0}},
        },
        {"enum": [{"not": 1}]},
        {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4},
    ],
)
def test_schemas_that_llama_cpp_knows(schema: dict[str, Any], runner: Runner) -> None:
    assert runner.ask(None, "Hello", grammar=grammar_of_schema(schema), max_tokens=4).text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "'not'"),
        ({"type": "array", "items": {"type": "integer", "multipleOf": 3}}, "'multipleOf'"),
        ({"type": "number", "minimum": 3}, "integers only"),
        ({"allOf": [{"patternProperties": {}}]}, "'patternProperties'"),
        ({"type": "string", "pattern": "(?<=a)b"}, "pattern"),
        ({"$ref": "http://localhost/schema.json"}, "only references into the same document"),
        ({"type": "nothing"}, "nothing"),
        (nested(100), "levels deep"),
        ({"enum": ["x" * 2000]}, "1000 characters"),
        ({"x" * 2000: 1}, "1000 characters"),
        ({"enum": list(range(10000))}, "5000 parts"),
        ({"const": float("nan")}, "not JSON"),
        ("no schema", "must be an object"),
    ],
)
def test_other_schemas_are_refused_with_the_reason(schema: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        grammar_of_schema(schema)


@pytest.mark.parametrize(
    "response_format",
    [
        "json",
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a"}},
    ],
)
def test_other_formats_are_refused(response_format: Any) -> None:
    with pytest.raises(OptionError, match="response_format"):
        grammar_of_format(response_format)

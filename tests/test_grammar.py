"""response_format to grammars, and what they make of answers."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest

from pyfastv import OptionError, Runner
from pyfastv.constraints.grammar import schema_grammar
from pyfastv.models import bundled_examples

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


def test_answers_follow_a_schema(runner: Runner) -> None:
    grammar = schema_grammar(SCHEMA)
    answer = json.loads(runner.ask(CLOCK.picture, CLOCK.question, grammar=grammar, max_tokens=60).text)
    assert set(answer) == {"hour", "kind"}
    assert 1 <= answer["hour"] <= 12
    assert answer["kind"] in ("a", "b")


def test_json_is_an_object(runner: Runner) -> None:
    grammar = schema_grammar({"type": "object"})
    assert runner.ask(None, "Hello", grammar=grammar, max_tokens=30).text.lstrip().startswith("{")


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
    assert runner.ask(None, "Hello", grammar=schema_grammar(schema), max_tokens=4).text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "'not'"),
        ({"type": "array", "items": {"type": "integer", "multipleOf": 3}}, "'multipleOf'"),
        ({"type": "number", "minimum": 3, "maximum": 2}, "no value can follow it"),
        ({"allOf": [{"patternProperties": {}}]}, "'patternProperties'"),
        ({"type": "string", "pattern": "(?<=a)b"}, "this 'pattern' is not supported"),
        (
            {"type": "string", "pattern": "^" + "(" * 240 + "a" + ")" * 240 + "$"},
            "this 'pattern' is not supported",
        ),
        ({"type": "integer", "minimum": 1e300}, "10\\^15"),
        ({"type": "array", "items": {"type": "string", "maxLength": -1}}, "#/items: 'maxLength'"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            "back to itself",
        ),
        ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}, "JSON schema"),
        ({"$ref": "http://localhost/schema.json"}, "only references into the same document"),
        ({"type": "nothing"}, "nothing"),
        (nested(100), "levels deep"),
        ({"enum": ["x" * 501]}, "500 characters"),
        ({"properties": {"x" * 501: {}}}, "500 characters"),
        ({"enum": list(range(10000))}, "2500 parts"),
        ({"const": float("nan")}, "not JSON"),
        ("no schema", "must be an object"),
    ],
)
def test_other_schemas_are_refused_with_the_reason(schema: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        schema_grammar(schema)


def test_many_optional_properties_take_no_minutes() -> None:
    schema = {"type": "object", "properties": {f"name{i}": {"type": "string"} for i in range(400)}}
    begin = time.perf_counter()
    schema_grammar(schema)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("pattern", ["((a{1,900}){1,900}){1,900}", "(a|a)*" * 80])
def test_patterns_that_grow_are_no_burden(pattern: str, runner: Runner) -> None:
    grammar = schema_grammar({"type": "string", "pattern": f"^{pattern}$"})
    begin = time.perf_counter()
    with contextlib.suppress(OptionError):
        runner.ask(None, "Hello", grammar=grammar, max_tokens=2)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('root ::= "a', "unexpected end of input"),
        ("root ::= other", "other"),
        ('other ::= "a"', "root"),
        ("root ::= root", "left recursion"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_told_to_who_sent_it_alone(
    runner: Runner, capfd: pytest.CaptureFixture[str], grammar: str, reason: str
) -> None:
    with pytest.raises(OptionError, match=f"the grammar is not valid GBNF: .*{reason}"):
        runner.ask(None, "Hello", grammar=grammar)
    assert capfd.readouterr().err == ""

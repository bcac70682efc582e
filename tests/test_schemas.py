"""JSON schemas as pydantic makes them of ordinary classes: their grammars take what follows them, and nothing else."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("pydantic", reason="needs the extra serve")

from pyfastv import OptionError, Runner
from pyfastv.constraints import patterns
from pyfastv.constraints.gbnf import number
from pyfastv.constraints.grammar import choice_grammar, of_schema, pattern_grammar, schema_grammar

from gbnf_matcher import follows

LONG = "A long description, which is for people and models. " * 200

# the class; its schema, as pydantic 2 writes it; values that follow it; values that do not
CLASSES: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "str, bounded int, Optional with a default": (
        {
            "properties": {
                "name": {"title": "Name", "type": "string", "description": LONG},
                "age": {"maximum": 150, "minimum": 0, "title": "Age", "type": "integer"},
                "mail": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Mail"},
            },
            "required": ["name", "age"],
            "title": "Person",
            "type": "object",
            "description": LONG,
            "$comment": LONG,
            "examples": [
                {"name": LONG, "age": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}
            ],
        },
        [
            {"name": "A", "age": 0},
            {"name": "", "age": 150, "mail": None},
            {"name": "A", "age": 3, "mail": "b"},
        ],
        [{"name": "A", "age": 151}, {"name": "A", "age": -1}, {"age": 3}, {"name": 1, "age": 3}, [], "A"],
    ),
    "float with gt, lt": (
        {"exclusiveMaximum": 1.0, "exclusiveMinimum": 0.0, "type": "number"},
        [0.5, 0.001, 0.999999, 0.1],
        [0, 1, 0.0, 1.0, -0.5, 1.5, 10, "0.5"],
    ),
    "float with ge, le": (
        {"maximum": 90, "minimum": -90.5, "type": "number"},
        [0, -90.5, 90, 90.0, 89.99, -90.49, 5, 42.125],
        [90.01, -90.51, 91, -91, 900, 100],
    ),
    "float with gt alone": (
        {"exclusiveMinimum": 2.5, "type": "number"},
        [2.51, 3, 1000.5, 25],
        [2.5, 2, 0, -3],
    ),
    "float with le alone": ({"maximum": -0.25, "type": "number"}, [-0.25, -1, -1000.5], [-0.2, 0, 0.5, 1]),
    "int with gt, lt": (
        {"exclusiveMaximum": 10, "exclusiveMinimum": 0, "type": "integer"},
        [1, 9, 5],
        [0, 10, 11, -1, 1.5],
    ),
    "int with bounds that no integer reaches": (
        {"maximum": 10**400, "minimum": -1e300, "type": "integer"},
        [0, -5, 10**15],
        [1.5],
    ),
    "Decimal": (
        {"anyOf": [{"type": "number"}, {"pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "type": "string"}]},
        [1, 2.5, -3],
        ["x", None],
    ),
    "Decimal with decimal_places": (
        {"type": "number", "multipleOf": 0.01, "minimum": 0},
        [0, 0.25, 3, 12.5],
        [0.125, -1],
    ),
    "str with lengths": ({"maxLength": 3, "minLength": 1, "type": "string"}, ["a", "abc", '"'], ["", "abcd"]),
    "str with an unanchored pattern": (
        {"pattern": "\\d{3}-\\w+", "type": "string"},
        ["123-a", "call 123-abc now", '"123-a"', "123-_"],
        ["12-a", "123-", "123 a"],
    ),
    "str with a pattern at its beginning": ({"pattern": "^ab?", "type": "string"}, ["a", "abc"], ["ba", ""]),
    "str with a pattern at its end": ({"pattern": "(a|b)$", "type": "string"}, ["a", "cb"], ["ac", ""]),
    "str with a pattern of alternatives": (
        {"pattern": "^a$|^b+$", "type": "string"},
        ["a", "bb"],
        ["aa", "ab"],
    ),
    "str with a pattern of spaces and others": (
        {"pattern": "^\\S+\\s\\D\\W$", "type": "string"},
        ["ab -!", "x\ny ", 'a" b?'],
        ["ab 1!", "ab -a"],
    ),
    "str with a pattern of what JSON escapes": (
        {"pattern": '^["\\\\\\n]+[^a]$', "type": "string"},
        ['"b', '\\"\n"', "\\\\"],
        ["b", '"a', "\\"],
    ),
    "list with bounds": (
        {"items": {"type": "integer"}, "maxItems": 3, "minItems": 1, "type": "array"},
        [[1], [1, 2, 3]],
        [[], [1, 2, 3, 4], ["a"]],
    ),
    "set": (
        {"items": {"enum": ["a", "b"], "type": "string"}, "type": "array", "uniqueItems": True},
        [[], ["a"], ["b", "a"]],
        [["c"]],
    ),
    "tuple": (
        {
            "maxItems": 2,
            "minItems": 2,
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "type": "array",
        },
        [[1, "a"]],
        [[1], ["a", 1], [1, "a", 2]],
    ),
    "empty tuple": ({"maxItems": 0, "minItems": 0, "type": "array"}, [[]], [[1]]),
    "tuple that goes on": (
        {"prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "minItems": 3, "type": "array"},
        [[1, "a", "b"]],
        [[1], [1, 2, 3]],
    ),
    "dict": (
        {"additionalProperties": {"type": "integer"}, "type": "object"},
        [{}, {"a": 1, "b": 2}],
        [{"a": "b"}],
    ),
    "dict of an Enum": (
        {
            "$defs": {"Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"}},
            "additionalProperties": {"type": "integer"},
            "propertyNames": {"$ref": "#/$defs/Color"},
            "type": "object",
        },
        [{}, {"red": 1}, {"red": 1, "blue": 2}],
        [{"green": 1}, {"red": "a"}],
    ),
    "Any, and lists of it": (
        {
            "properties": {"a": {"title": "A"}, "b": {"items": {}, "type": "array"}, "c": True},
            "required": ["a", "b", "c"],
            "type": "object",
        },
        [{"a": 1, "b": [], "c": None}, {"a": {"x": [1]}, "b": [1, "a"], "c": "d"}],
        [{"a": 1, "b": 2, "c": 3}],
    ),
    "extra: allow": (
        {
            "additionalProperties": True,
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "type": "object",
        },
        [{"a": 1}, {"a": 1, "b": "c"}],
        [{"b": 1}],
    ),
    "a required field that is not described": (
        {"properties": {"a": {"type": "integer"}}, "required": ["a", "b"], "type": "object"},
        [{"a": 1, "b": "x"}],
        [{"a": 1}],
    ),
    "no fields": ({"properties": {}, "title": "Empty", "type": "object"}, [{}], [[]]),
    "Enum, Literal, nested models, lists of them": (
        {
            "$defs": {
                "Color": {"description": LONG, "enum": ["red", "blue"], "title": "Color", "type": "string"},
                "Box": {
                    "properties": {
                        "color": {"$ref": "#/$defs/Color", "default": "red", "description": LONG},
                        "kind": {"const": "box", "title": "Kind", "type": "string"},
                        "level": {"enum": [1, 2, None], "title": "Level"},
                    },
                    "required": ["kind", "level"],
                    "title": "Box",
                    "type": "object",
                },
            },
            "properties": {"boxes": {"items": {"$ref": "#/$defs/Box"}, "title": "Boxes", "type": "array"}},
            "required": ["boxes"],
            "title": "Boxes",
            "type": "object",
        },
        [
            {"boxes": []},
            {"boxes": [{"kind": "box", "level": 2, "color": "blue"}, {"kind": "box", "level": None}]},
        ],
        [
            {"boxes": [{"color": "green", "kind": "box", "level": 2}]},
            {"boxes": [{"kind": "bag", "level": 1}]},
        ],
    ),
    "recursive model": (
        {
            "$defs": {
                "Node": {
                    "properties": {
                        "value": {"title": "Value", "type": "integer"},
                        "children": {"default": [], "items": {"$ref": "#/$defs/Node"}, "type": "array"},
                    },
                    "required": ["value"],
                    "title": "Node",
                    "type": "object",
                }
            },
            "$ref": "#/$defs/Node",
        },
        [{"value": 1}, {"value": 1, "children": [{"value": 2, "children": []}]}],
        [{"value": 1, "children": [2]}],
    ),
    "a reference to all of it": (
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
        [{}, {"next": None}, {"next": {"next": {}}}],
        [{"next": 1}],
    ),
    "discriminated union": (
        {
            "$defs": {
                "Cat": {
                    "properties": {"kind": {"const": "cat", "type": "string"}, "lives": {"type": "integer"}},
                    "required": ["kind", "lives"],
                    "type": "object",
                },
                "Dog": {
                    "properties": {"kind": {"const": "dog", "type": "string"}},
                    "required": ["kind"],
                    "type": "object",
                },
            },
            "discriminator": {
                "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
                "propertyName": "kind",
            },
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        },
        [{"kind": "cat", "lives": 9}, {"kind": "dog"}],
        [{"kind": "dog", "lives": 9}, {"kind": "cow"}],
    ),
    "a default of another model, as pydantic 2.0 writes it": (
        {
            "$defs": {"Color": {"enum": ["red", "blue"], "type": "string"}},
            "properties": {"color": {"allOf": [{"$ref": "#/$defs/Color"}], "default": "red"}},
            "type": "object",
        },
        [{}, {"color": "blue"}],
        [{"color": "green"}],
    ),
    "a derived class in two parts": (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": "number", "minimum": 1}}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": 2.5}],
        [{"a": 1}, {"a": 1, "b": 0.5}],
    ),
    "datetime, date, UUID": (
        {
            "properties": {
                "at": {"format": "date-time", "type": "string"},
                "on": {"format": "date", "type": "string"},
                "id": {"format": "uuid", "type": "string"},
            },
            "required": ["at", "on", "id"],
            "type": "object",
        },
        [{"at": "2026-01-31T10:00:00Z", "on": "2026-01-31", "id": "0f0e0d0c-0b0a-4908-8706-050403020100"}],
        [{"at": "now", "on": "2026-01-31", "id": "0f0e0d0c-0b0a-4908-8706-050403020100"}],
    ),
    "EmailStr": ({"format": "email", "type": "string"}, ["a.b+c@mail.example.org"], ["a", "a@b", "@b.de"]),
    "HttpUrl": (
        {"format": "uri", "maxLength": 2083, "minLength": 1, "type": "string"},
        ["https://example.org/a?b=c#d"],
        ["example", "https://a b"],
    ),
    "IPv4Address": (
        {"format": "ipv4", "type": "string"},
        ["127.0.0.1", "255.1.20.3"],
        ["256.1.1.1", "1.2.3"],
    ),
    "timedelta": ({"format": "duration", "type": "string"}, ["PT1H", "P3DT2H", "PT1M30S"], ["1 hour", "P"]),
    "bytes, Path, SecretStr, Json": (
        {
            "items": {
                "anyOf": [
                    {"format": "binary", "type": "string"},
                    {"format": "path", "type": "string"},
                    {"format": "password", "type": "string", "writeOnly": True},
                    {"contentMediaType": "application/json", "contentSchema": {"not": {}}, "type": "string"},
                ]
            },
            "type": "array",
        },
        [["a", "/b"]],
        [[1]],
    ),
    "several types": ({"type": ["string", "null"], "maxLength": 2}, ["ab", None], ["abc", 1]),
    "Literal of a long text": ({"const": 'a "b" \\ \n ü', "type": "string"}, ['a "b" \\ \n ü'], ["a"]),
}


@pytest.mark.parametrize("name", CLASSES)
def test_grammars_take_what_follows_a_schema_and_nothing_else(name: str) -> None:
    schema, right, wrong = CLASSES[name]
    grammar = schema_grammar(schema)
    for value in right:
        assert follows(grammar, json.dumps(value, ensure_ascii=False)), value
    for value in wrong:
        assert not follows(grammar, json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize("name", CLASSES)
def test_llama_cpp_reads_these_grammars(runner: Runner, name: str) -> None:
    runner.ask(None, "Hello", grammar=schema_grammar(CLASSES[name][0]), max_tokens=1)  # or an OptionError


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "array", "uniqueItems": True}, [[1, True, "1", [1]], []], [[1, 1], [{"a": 1}, {"a": 1}]]),
        (
            {"anyOf": [{"type": "array", "uniqueItems": True}, {"type": "integer"}]},
            [10**400, [1]],
            [[1, 1]],
        ),
        ({"type": "string", "maxLength": 5000}, ["a" * 5000], ["a" * 5001]),
        ({"type": "string", "minLength": 1500}, ["a" * 1500], ["a" * 1200]),
        ({"type": "array", "maxItems": 1200}, [[1] * 1200], [[1] * 1201]),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ["aaa"], ["aaaa"]),
        (
            {"$defs": {"a": {"type": "array", "uniqueItems": True}}, "anyOf": [{"$ref": "#/$defs/a"}]},
            [[1, 2]],
            [[1, 1]],
        ),
        (
            {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
            [{"a": ["x"]}, {}],
            [{"a": ["x", "x"]}],
        ),
        (
            {"anyOf": [{"type": "array", "uniqueItems": True}, {"type": "number", "multipleOf": 0.01}]},
            [0.25, -3, 1e300, 10**400],
            [0.125, 1e-300, [1, 1]],
        ),
        (
            {
                "anyOf": [
                    {"type": "array", "uniqueItems": True},
                    {"type": "number", "multipleOf": 0},  # is none of what may be answered
                    {"type": "number", "minimum": 1},
                ]
            },
            [1e300, 2.5],
            [0.5, [1, 1]],
        ),
    ],
)
def test_what_a_grammar_cannot_say_is_found_in_the_answer(
    schema: dict[str, Any], right: list[Any], wrong: list[Any]
) -> None:
    grammar = of_schema(schema)
    assert grammar.failure is not None
    for value in right:
        assert grammar.failure(json.dumps(value)) is None
    for value in wrong:
        assert "#" in str(grammar.failure(json.dumps(value)))
    assert grammar.failure("[") is not None


def test_a_number_beyond_all_is_no_multiple() -> None:
    schema = {"type": "array", "items": {"type": "number", "multipleOf": 0.1}, "uniqueItems": True}
    failure = of_schema(schema).failure
    assert failure is not None
    assert "multipleOf" in str(failure("[1e999]"))


def test_what_a_grammar_says_is_not_looked_for() -> None:
    for schema, _, _ in CLASSES.values():
        if "uniqueItems" not in json.dumps(schema) and "maxLength" not in json.dumps(schema):
            assert of_schema(schema).failure is None


def test_mistakes_are_no_alternatives() -> None:
    for part in (
        {"$ref": "#/nowhere"},
        {"type": "nothing"},
        {"enum": 5},
        {"minLength": "a", "type": "string"},
    ):
        with pytest.raises(OptionError, match=r"^JSON schema, "):
            schema_grammar({"anyOf": [part, {"type": "null"}]})


bounds = st.decimals(-1200, 1200, places=2) | st.integers(-1200, 1200).map(Decimal)


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@example(Decimal("-0.5"), Decimal("0.5"), True, True, [Decimal("-0.5"), Decimal("0"), Decimal("0.49")])
@example(Decimal("9.99"), Decimal("100"), False, True, [Decimal("99.99"), Decimal("100"), Decimal("9.99")])
@given(bounds | st.none(), bounds | st.none(), st.booleans(), st.booleans(), st.lists(bounds, max_size=8))
def test_numbers_are_within_their_bounds(
    low: Decimal | None, high: Decimal | None, low_open: bool, high_open: bool, values: list[Decimal]
) -> None:
    rule = number(low, high, low_open=low_open, high_open=high_open)
    edges = [
        edge + step
        for edge in (low, high)
        if edge is not None
        for step in map(Decimal, ("-0.01", "0", "0.01"))
    ]
    for value in [*values, *edges]:
        above = low is None or value > low or (value == low and not low_open)
        below = high is None or value < high or (value == high and not high_open)
        text = format(value, "f").replace("-0.00", "0.00")
        found = rule is not None and follows(f"root ::= {rule}", text)
        assert found == (above and below), (text, rule)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "",
            "a",
            "^a",
            "a$",
            "^a$",
            "^$",
            "^(a|bc)+$",
            "^(?:ab){2,3}$",
            "a{2}",
            "^.{2}$",
            "^[^a-c]$",
            "[a-c]-",
        ),
        *(
            r"\d",
            r"^\D$",
            r"\w\s",
            r"^\W\S$",
            r"^[\w.-]+@[\w-]+\.\w+$",
            r"^\"",
            r"\\",
            r"^[\"\\]$",
            r"^[^\"]$",
        ),
        *(
            r"\n",
            r"^\x41\u00e9$",
            "^é+$",
            "^[à-ü]$",
            r"^\.\*$",
            "^a+?b*?$",
            "(?<name>a)b",
            "^a|b$",
            "(^a|b$)",
            "x|",
        ),
    ],
)
def test_patterns_are_found_where_python_finds_them(pattern: str) -> None:
    grammar = f"root ::= {patterns.json_string(pattern)}"
    # Python's $ is before a last line break, too
    expression = re.compile(pattern.replace("(?<", "(?P<").replace("$", r"\Z"), re.ASCII)
    texts = [
        "",
        "a",
        "b",
        "ab",
        "abc",
        "bca",
        "aa",
        "abab",
        "ababab",
        "bcbc",
        "1",
        "a1 _",
        "-",
        ".",
        " ",
        "\n",
        "é",
    ]
    texts += ["Aé", '"', "\\", '"\\', "a\nb", "m.n-o@mail.org", ".*", "b-", "ü", "x", "☀", "a☀", '"a"', "\ta"]
    for text in texts:
        found = follows(grammar, json.dumps(text, ensure_ascii=False))
        assert found == (expression.search(text) is not None), text


NO_GRAMMAR = ["(?=a)b", "(?<!a)b", r"(a)\1", r"\bab", "(?i)a", "a{2000}", "(" * 100 + ")" * 100, "["]


@pytest.mark.parametrize("pattern", NO_GRAMMAR)
def test_patterns_without_a_grammar_are_refused_by_name(pattern: str) -> None:
    with pytest.raises(OptionError, match="this 'pattern' is not supported"):
        schema_grammar({"type": "string", "pattern": pattern})
    with pytest.raises(OptionError, match="this regular expression is not supported"):
        pattern_grammar(pattern)


def test_choices_and_patterns_of_plain_text() -> None:
    grammar = choice_grammar(['a "b"\\', "ü\n", ""])
    assert [follows(grammar, text) for text in ('a "b"\\', "ü\n", "", "a", "ü")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    grammar = pattern_grammar(r"\d+ (km|mi)")
    assert [follows(grammar, text) for text in ("12 km", "12 mi", "12 kmx", "a 12 km")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(OptionError, match="at least one"):
        choice_grammar([])

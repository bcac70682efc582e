"""Tools that a request offers to a model, and the form in which the model writes calls of them: what llama.cpp's chat
library finds in its chat template, or JSON that it is told of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .. import _native
from .._checks import shown, utf8
from ..errors import ModelError, OptionError
from .gbnf import literal
from .grammar import with_rules
from .schemas import Prepared, Unsayable

__all__ = ["CallFormat", "CallFormats", "ToolUse"]

_MOST_TOOLS = 128  # as OpenAI
_MOST_PARTS = 10_000  # of the schemas of all
_MOST_KEPT = 32  # formats
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class ToolUse:
    """What a request says of tools; made by :meth:`of`."""

    tools: tuple[dict[str, Any], ...]
    """In OpenAI's shape."""
    choice: str
    """"none", "auto", "required"; or the name of the one to call, behind a colon (":clock")."""
    parallel: bool | None
    """May an answer have several calls? None: where the template takes several."""

    @classmethod
    def of(
        cls, tools: object, tool_choice: object = None, parallel_tool_calls: object = None
    ) -> ToolUse | None:
        """``tools``, ``tool_choice``, ``parallel_tool_calls``: as in OpenAI's requests; None: no tools. Raises
        OptionError, which begins with the name of the one that is wrong."""
        if parallel_tool_calls is not None and not isinstance(parallel_tool_calls, bool):
            raise OptionError(f"parallel_tool_calls must be true or false; got {shown(parallel_tool_calls)}")
        found = _checked(tools)
        choice = _choice(tool_choice, [tool["function"]["name"] for tool in found])
        if not found:
            return None
        use = cls(tuple(found), choice, parallel_tool_calls)
        if use.offers:
            use._schemas  # noqa: B018 - they are checked
        return use

    @property
    def offers(self) -> bool:
        """May the answer call one?"""
        return self.choice != "none"

    @property
    def required(self) -> bool:
        """Must it?"""
        return self.choice not in ("none", "auto")

    @property
    def names(self) -> list[str]:
        """Of all."""
        return [tool["function"]["name"] for tool in self.tools]

    @cached_property
    def _schemas(self) -> tuple[str, list[str]]:
        """Those that the answer may call, for the library, in JSON; and the rules of their strings."""
        offered, rules, parts = [], list[str](), 0
        for tool in self.tools:
            function = tool["function"]
            name = function["name"]
            if self.choice[:1] == ":" and name != self.choice[1:]:
                continue
            try:
                prepared = _prepared(_parameters(function), len(rules))
                parts += prepared.size
                if parts > _MOST_PARTS:
                    raise OptionError(f"the schemas of all have more than {_MOST_PARTS} parts")
                json.dumps([function, prepared.schema], allow_nan=False)
            except OptionError as error:
                raise OptionError(f"tools: {name}: parameters: {error}") from None
            except (TypeError, ValueError, RecursionError) as error:
                raise OptionError(f"tools: {name} is not JSON: {error}") from None
            rules += prepared.rules
            # the form of a call does not depend on what is said of it
            told = {"name": name, "description": "", "parameters": prepared.schema}
            offered.append({"type": "function", "function": told})
        return json.dumps(offered), rules

    @property
    def json(self) -> str:
        """Those that the answer may call, with schemas as llama.cpp's converter takes them."""
        return self._schemas[0]

    @property
    def rules(self) -> list[str]:
        """See :func:`pyfastv.constraints.grammar.with_rules`."""
        return self._schemas[1]

    def instructions(self) -> str:
        """What a model is told whose template knows no tools."""
        tools = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self.tools)
        if self.choice[:1] == ":":
            when = f"Call the function {self.choice[1:]}"
        else:
            when = "Call a function" if self.required else "If a function helps to answer, call it"
        return (
            f"You can call functions:\n{tools}\n\n{when}: answer only with JSON, in this form:\n"
            '{"tool_calls": [{"name": <name of the function>, "arguments": <object with its arguments>}]}'
        )


def _checked(tools: object) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise OptionError(f"tools must be a list; got {shown(tools)}")
    if len(tools) > _MOST_TOOLS:
        raise OptionError(f"tools: {len(tools)} of them; at most {_MOST_TOOLS} are taken")
    rules: dict[str, str] = {}  # as llama.cpp names them in grammars
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise OptionError(
                "tools must be a list of {'type': 'function', 'function': {'name': ..., ...}}; "
                f"tools[{number}] is {shown(tool)}"
            )
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise OptionError(
                f"tools: the name of a function is 1 to 64 letters, digits, '_', '-', '.', ':' and '/'; got {shown(name)}"
            )
        plain = re.sub("[^a-zA-Z0-9-]+", "-", name)
        if plain in rules:
            raise OptionError(f"tools: {rules[plain]!r} and {name!r} are one name, but for signs: rename one")
        rules[plain] = name
    return [dict(tool) for tool in tools]


def _choice(given: object, names: Sequence[str]) -> str:
    if given is None:
        return "auto"
    if isinstance(given, str) and given in _CHOICES:
        if given == "required" and not names:
            raise OptionError("tool_choice: 'required' needs tools")
        return given
    function = given.get("function") if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(given, Mapping) or given.get("type") != "function" or not isinstance(name, str):
        raise OptionError(
            f"tool_choice must be 'none', 'auto', 'required' or {{'type': 'function', 'function': {{'name': ...}}}}; "
            f"got {shown(given)}"
        )
    if name not in names:
        raise OptionError(f"tool_choice: no tool has the name {shown(name)}")
    return f":{name}"


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of an object; none, or one that says nothing: of an empty one."""
    schema = function.get("parameters")
    if not schema:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping):
        raise OptionError(f"they must be a JSON schema; got {shown(schema)}")
    if schema.get("type", "object") != "object":
        raise OptionError(f"they must be an object; their type is {shown(schema['type'])}")
    return {"type": "object", **schema}


def _prepared(schema: Mapping[str, Any], first: int) -> Prepared:
    """Where a grammar cannot say it all, the names of parameters."""
    try:
        return Prepared(schema, first)
    except Unsayable:
        properties = schema.get("properties")
        names = list(properties) if isinstance(properties, Mapping) else []
        required = schema.get("required")
        told = [name for name in required if name in names] if isinstance(required, list) else []
        loose = {"properties": {name: {} for name in names}, "required": told} if names else {}
        return Prepared({"type": "object", **loose}, first)


@dataclass(frozen=True)
class CallFormat:
    """How the answer to a request has its calls."""

    native: _native.ToolFormat
    grammar: str
    """Of calls alone; empty: there is none."""
    required: bool
    instructions: str = ""
    """What the model is told of it; empty: its template tells it."""

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return self.native.stops

    def sampling(self, open_thought: str) -> dict[str, Any]:
        """Keywords of :class:`pyfastv._native.SamplingOptions`. ``open_thought``: the tag that ends the thought in which
        the answer begins; empty: in none."""
        options: dict[str, Any] = {"preserved": self.native.preserved}
        if not self.grammar:
            return options
        if self.required and open_thought:
            # what comes behind the thought is a call
            behind = re.sub("(?m)^root ::=", "behind-thought ::=", self.grammar)
            grammar = f"root ::= {literal(open_thought)} [ \\t\\n]{{0,8}} behind-thought\n{behind}"
            return {**options, "grammar": grammar, "grammar_triggers": [re.escape(open_thought)]}
        return {**options, "grammar": self.grammar, "grammar_triggers": self.native.triggers}


class CallFormats:
    """Of one chat template. Any thread may ask it."""

    def __init__(
        self, source: str | None, bos_token: str, eos_token: str, thought_tags: Sequence[str] = ()
    ) -> None:
        """``source``: Jinja2 text, None: a template that knows no tools. ``thought_tags``: what begins thoughts that the
        caller takes out of answers."""
        self._source, self._bos_token, self._eos_token = source, bos_token, eos_token
        self._tags = list(thought_tags)
        self._kept: dict[tuple[object, ...], CallFormat | None] = {}

    @cached_property
    def _template(self) -> _native.ToolTemplate | None:
        if self._source is None:
            return None
        try:
            return _native.ToolTemplate(self._source, self._bos_token, self._eos_token)
        except ModelError:
            return None

    def of_template(self, use: ToolUse, variables: Mapping[str, Any] | None = None) -> CallFormat | None:
        """None: the template knows no tools, or the library cannot read it. ``variables``: of the template. Raises
        OptionError for the tools."""
        if self._template is None:
            return None
        thinks = (variables or {}).get("enable_thinking", True) is not False
        told = _as_json(variables or {})
        key = (use.json, use.required, use.parallel, thinks, told)
        if key not in self._kept:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = self._find(use, thinks, told)
        return self._kept[key]

    def _find(self, use: ToolUse, thinks: bool, variables: str) -> CallFormat | None:
        template = self._template
        assert template is not None
        parallel = template.parallel if use.parallel is None else use.parallel
        try:
            found = template.format(use.json, use.required, parallel, thinks, variables, self._tags)
        except ModelError:
            return None
        return None if found is None else _made(found, use)

    def generic(self, use: ToolUse) -> CallFormat:
        """For a template that knows no tools. Raises OptionError for the tools."""
        native = _native.generic_tool_format(use.json, use.required, bool(use.parallel))
        return replace(_made(native, use), instructions=use.instructions())


def _made(native: _native.ToolFormat, use: ToolUse) -> CallFormat:
    return CallFormat(native, with_rules(native.grammar, use.rules), use.required)


def _as_json(variables: Mapping[str, Any]) -> str:
    """As far as they are JSON."""
    told = {}
    for name, value in variables.items():
        try:
            told[utf8("the name of a variable", name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            continue
    return json.dumps(told)

"""Calls of tools: told from answers in the forms of several templates, and forced by grammars."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import tool_templates as templates

import pyfastv
from pyfastv import _native
from pyfastv.constraints.calls import CallReader, joined
from pyfastv.constraints.tools import CallFormat, CallFormats, ToolUse
from pyfastv.engine.told import AnswerReader, as_message
from pyfastv.errors import ModelError, OptionError
from pyfastv.inputs.chat import ChatTemplate
from pyfastv.inputs.named_templates import NAMED
from pyfastv.inputs.thinking import THOUGHT_TAGS

from gbnf_matcher import follows
from serving import CHAT, CLOCK, Server, question


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


READ = function("read_clock", place={"type": "string"}, hours={"type": "integer"})
WEATHER = function("weather", city={"type": "string"})
TOOLS = [READ, WEATHER]

# whose calls a model of any size can only write in a few tokens
POINT = function(
    "point", hand={"enum": ["hour", "minute"]}, at={"type": "integer", "minimum": 1, "maximum": 12}
)
RING = function("ring", times={"enum": [1, 2, 3]})


def form_of(
    template: str | None, tools: Sequence[dict[str, Any]] = TOOLS, choice: object = None
) -> CallFormat:
    use = ToolUse.of(tools, choice, True)
    assert use is not None
    formats = CallFormats(template, "<s>", "</s>", tuple(THOUGHT_TAGS))
    return formats.of_template(use) or formats.generic(use)


def told(form: CallFormat, answer: str, size: int | None = None) -> dict[str, Any]:
    """The message; with ``size``, of pieces of as many characters."""
    reader = CallReader(form)
    pieces = [answer] if size is None else [answer[at : at + size] for at in range(0, len(answer), size)]
    all_told = [*(reader.feed(piece) for piece in pieces), reader.finish()]
    return as_message(sum(all_told[1:], all_told[0]))


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", [])
    ]


ARGUMENTS = {"place": "the hall", "hours": 12}
READ_JSON = json.dumps(ARGUMENTS)
CALL = ("read_clock", ARGUMENTS)
OTHER = ("weather", {"city": 'Köln "Mitte"'})
OTHER_JSON = json.dumps(OTHER[1], ensure_ascii=False)

# template, answer, content, calls
ANSWERS = {
    "hermes": (
        templates.HERMES,
        f'Let me see.\n<tool_call>\n{{"name": "read_clock", "arguments": {READ_JSON}}}\n</tool_call>',
        "Let me see.",
        [CALL],
    ),
    "hermes, two": (
        templates.HERMES,
        f'<tool_call>\n{{"name": "read_clock", "arguments": {READ_JSON}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "weather", "arguments": {OTHER_JSON}}}\n</tool_call>',
        None,
        [CALL, OTHER],
    ),
    "llama 3": (
        templates.LLAMA3,
        f'{{"name": "read_clock", "parameters": {READ_JSON}}}',
        None,
        [CALL],
    ),
    "mistral nemo": (
        templates.NEMO,
        f'[TOOL_CALLS][{{"name": "read_clock", "arguments": {READ_JSON}, "id": "abcdefghi"}}, '
        f'{{"name": "weather", "arguments": {OTHER_JSON}, "id": "abcdefghj"}}]',
        None,
        [CALL, OTHER],
    ),
    "ministral": (
        templates.MINISTRAL,
        f"[TOOL_CALLS]read_clock[ARGS]{READ_JSON}[TOOL_CALLS]weather[ARGS]{OTHER_JSON}",
        None,
        [CALL, OTHER],
    ),
    "functionary": (templates.FUNCTIONARY, f"read_clock\n{READ_JSON}", None, [CALL]),
    "qwen 3 coder": (
        templates.QWEN3_CODER,
        "<tool_call>\n<function=read_clock>\n<parameter=place>\nthe hall\n</parameter>\n"
        "<parameter=hours>\n12\n</parameter>\n</function>\n</tool_call>",
        None,
        [CALL],
    ),
    "gemma 4": (
        templates.GEMMA4,
        '<|tool_call>call:read_clock{place:<|"|>the hall<|"|>,hours:12}<tool_call|>',
        None,
        [CALL],
    ),
    "no tools": (
        NAMED["chatml"],
        f'One moment. {{"tool_calls": [{{"name": "read_clock", "arguments": {READ_JSON}}}]}}',
        "One moment.",
        [CALL],
    ),
    "no template": (
        None,
        f'{{"tool_calls": [{{"name": "weather", "arguments": {OTHER_JSON}}}, '
        f'{{"name": "read_clock", "arguments": {READ_JSON}}}]}}',
        None,
        [OTHER, CALL],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_calls_are_told_from_an_answer_in_the_form_of_its_template(name: str) -> None:
    template, answer, content, calls = ANSWERS[name]
    form = form_of(template)
    assert bool(form.instructions) == name.startswith("no ")
    message = told(form, answer)
    assert (message["content"], calls_of(message)) == (content, calls)
    assert [call["type"] for call in message["tool_calls"]] == ["function"] * len(calls)
    ids = [call["id"] for call in message["tool_calls"]]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    for size in (1, 5):  # as it is streamed
        message = told(form, answer, size)
        assert (message["content"], calls_of(message)) == (content, calls)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_without_calls_is_its_text(name: str) -> None:
    form = form_of(ANSWERS[name][0])
    # with what may be the beginning of a call at its end
    text = "It is <b>9:10</b> {or so}, [see].\n\nReally. <"
    answer = f"all\n{text}" if name == "functionary" else text
    for size in (None, 1, 7):
        assert told(form, answer, size) == {"role": "assistant", "content": text}


def test_pieces_of_calls_are_those_of_openai() -> None:
    answer = ANSWERS["hermes, two"][1]
    reader = CallReader(form_of(templates.HERMES))
    pieces = [piece for sign in answer for piece in reader.feed(sign).calls] + reader.finish().calls
    first = {piece["index"]: piece for piece in reversed(pieces)}
    assert [first[index]["function"]["name"] for index in (0, 1)] == ["read_clock", "weather"]
    assert [first[index]["function"]["arguments"] for index in (0, 1)] == ["", ""]
    later = [piece for piece in pieces if "id" not in piece]
    assert len(later) > 20
    assert all(
        set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in later
    )
    assert [json.loads(call["function"]["arguments"]) for call in joined(pieces)] == [CALL[1], OTHER[1]]


def test_half_a_call_is_told_as_far_as_it_came() -> None:
    message = told(
        form_of(templates.HERMES), '<tool_call>\n{"name": "read_clock", "arguments": {"place": "the ha'
    )
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "read_clock", "arguments": '{"place": "the ha'}


def test_a_thought_comes_apart_from_content_and_calls() -> None:
    call = f'<tool_call>\n{{"name": "read_clock", "arguments": {READ_JSON}}}\n</tool_call>'
    for template, opened, answer in (
        (templates.HERMES, "", f"<think>\nHm, <tool_call>?\n</think>\n\n{call}"),
        (templates.THINKING, "</think>", f"Hm, <tool_call>?\n</think>\n\n{call}"),
    ):
        for size in (1, len(answer)):
            reader = AnswerReader(opened, form_of(template))
            pieces = [reader.feed(answer[at : at + size]) for at in range(0, len(answer), size)]
            whole = sum([*pieces[1:], reader.finish()], pieces[0])
            assert (whole.thought, whole.content) == ("Hm, <tool_call>?", "")
            assert calls_of(as_message(whole)) == [CALL]
            assert [reader.reason(why) for why in ("stop", "length")] == ["tool_calls", "length"]


# grammars


@pytest.mark.parametrize("name", ["hermes", "llama 3", "mistral nemo", "no tools"])
def test_a_grammar_of_calls_holds_to_the_schemas(name: str) -> None:
    def call(tool: str, arguments: str) -> str:
        return {
            "hermes": f'<tool_call>\n{{"name": "{tool}", "arguments": {arguments}}}\n</tool_call>',
            "llama 3": f'{{"name": "{tool}", "parameters": {arguments}}}',
            "mistral nemo": f'[TOOL_CALLS][{{"name": "{tool}", "arguments": {arguments}, "id": "a"}}]',
            "no tools": f'{{"tool_calls": [{{"name": "{tool}", "arguments": {arguments}}}]}}',
        }[name]

    template = ANSWERS[name][0]
    pattern = function("code", digits={"type": "string", "pattern": "^\\d{3}$"})
    grammar = form_of(template, [POINT, pattern, RING], "required").grammar
    assert follows(grammar, call("point", '{"hand": "hour", "at": 12}'))
    assert follows(grammar, call("code", '{"digits": "123"}'))
    for wrong in (
        call("point", '{"hand": "second", "at": 12}'),
        call("point", '{"hand": "hour", "at": 13}'),
        call("code", '{"digits": "12"}'),
        call("ring", '{"times": 4}'),
        call("sing", "{}"),
        "It is 9:10.",
        "",
    ):
        assert not follows(grammar, wrong)
    named = form_of(template, [POINT, RING], {"type": "function", "function": {"name": "ring"}}).grammar
    assert follows(named, call("ring", '{"times": 2}'))
    assert not follows(named, call("point", '{"hand": "hour", "at": 12}'))


def test_of_parameters_that_no_grammar_can_say_the_names_hold() -> None:
    odd = function("odd", x={"not": {"type": "string"}}, y={"type": "integer"})
    grammar = form_of(None, [odd], "required").grammar
    assert follows(grammar, '{"tool_calls": [{"name": "odd", "arguments": {"x": [1], "y": null}}]}')
    assert not follows(grammar, '{"tool_calls": [{"name": "odd", "arguments": {"z": 1}}]}')


def test_a_call_that_is_required_comes_behind_the_thought_that_is_open() -> None:
    form = form_of(templates.THINKING, [RING], "required")
    options = form.sampling("</think>")
    assert options["grammar_triggers"] == ["</think>"]
    assert follows(
        options["grammar"],
        '</think>\n\n<tool_call>\n{"name": "ring", "arguments": {"times": 2}}\n</tool_call>',
    )
    assert form.sampling("")["grammar_triggers"] == []


# the bundled model, which has seen no tools


def forced(runner: pyfastv.Runner, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Ring."}]
    return runner.create_chat_completion(messages, max_tokens=120, tools=[POINT, RING], **options)


def check_call(message: dict[str, Any], name: str | None = None) -> None:
    ((called, arguments),) = calls_of(message)
    assert called == (name or called)
    if called == "point":
        assert set(arguments) == {"hand", "at"}
        assert arguments["hand"] in ("hour", "minute")
        assert 1 <= arguments["at"] <= 12
    else:
        assert called == "ring"
        assert arguments["times"] in (1, 2, 3)
        assert len(arguments) == 1


def test_a_runner_calls_what_it_must(runner: pyfastv.Runner) -> None:
    ring = {"type": "function", "function": {"name": "ring"}}
    for choice, name in (("required", None), (ring, "ring")):
        answer = forced(runner, tool_choice=choice, parallel_tool_calls=False)
        (one,) = answer["choices"]
        assert (one["finish_reason"], one["message"]["content"]) == ("tool_calls", None)
        check_call(one["message"], name)
    *chunks, last = forced(runner, tool_choice=ring, parallel_tool_calls=False, stream=True)
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    deltas = [chunk["choices"][0]["delta"] for chunk in [*chunks, last]]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    check_call({"tool_calls": joined(pieces)}, "ring")
    answer = forced(runner, tool_choice="none", stop=["."])
    assert set(answer["choices"][0]["message"]) == {"role", "content"}
    with pytest.raises(OptionError, match="grammar and tools"):
        forced(runner, grammar='root ::= "a"')


@pytest.mark.parametrize("template", ["HERMES", "LLAMA3", "MINISTRAL"])
def test_a_template_s_own_form_is_forced(
    runner: pyfastv.Runner, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    source = getattr(templates, template)
    formats = CallFormats(source, "<s>", "</s>", tuple(THOUGHT_TAGS))
    monkeypatch.setitem(runner._model.__dict__, "template", ChatTemplate(source, bos_token="<s>"))
    monkeypatch.setitem(runner._model.__dict__, "_call_formats", formats)
    answer = runner.create_chat_completion(
        [{"role": "user", "content": "Ring."}],
        max_tokens=120,
        tools=[RING],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (one,) = answer["choices"]
    assert one["finish_reason"] == "tool_calls"
    ((called, arguments),) = calls_of(one["message"])
    assert called == "ring"
    assert arguments["times"] in (1, 2, 3)


def lazily(runner: pyfastv.Runner, monkeypatch: pytest.MonkeyPatch, grammar: str, trigger: str) -> str:
    options = runner._model.sampling_options

    def with_trigger(sampling: Any) -> dict[str, Any]:
        return {**options(sampling), "grammar": grammar, "grammar_triggers": [trigger]}

    with monkeypatch.context() as patch:
        patch.setattr(runner._model, "sampling_options", with_trigger)
        return runner.ask(CLOCK.picture, CLOCK.question, max_tokens=20).text


def test_a_grammar_holds_from_what_triggers_it(
    runner: pyfastv.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lazily(runner, monkeypatch, 'root ::= "is noon"', "is") == "It is noon"
    assert lazily(runner, monkeypatch, 'root ::= "noon"', "<tool_call>") == "It is 9:10."
    # what triggers it does not follow it: the answer goes on as text
    assert lazily(runner, monkeypatch, 'root ::= "noon"', "is") == "It is 9:10."
    with pytest.raises(OptionError, match="regular expression"):
        lazily(runner, monkeypatch, 'root ::= "noon"', "(")


# the server


def test_openai_s_client_reads_calls(server: Server) -> None:
    openai = pytest.importorskip("openai")
    options: dict[str, Any] = {
        "model": "any",
        "messages": [question("Ring.")],
        "tools": [POINT, RING],
        "temperature": 0,
        "max_tokens": 120,
    }
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        ring: Any = {"type": "function", "function": {"name": "ring"}}
        answer = client.chat.completions.create(**options, tool_choice=ring, parallel_tool_calls=False)
        (choice,) = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls
        assert call.function.name == "ring"
        assert json.loads(call.function.arguments)["times"] in (1, 2, 3)
        with client.chat.completions.stream(
            **options, tool_choice="required", parallel_tool_calls=False
        ) as stream:
            final = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls"
        (call,) = final.message.tool_calls
        assert call.function.name in ("point", "ring")
        assert json.loads(call.function.arguments)
        # the agent goes on
        options["messages"] += [
            answer.choices[0].message,
            {"role": "tool", "tool_call_id": answer.choices[0].message.tool_calls[0].id, "content": "done"},
        ]
        answer = client.chat.completions.create(**{**options, "max_tokens": 4}, tool_choice="none")
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.choices[0].message.tool_calls is None


def test_a_call_that_was_cut_off_ends_by_length(server: Server) -> None:
    answer = server.chat([question("Ring.")], tools=[RING], tool_choice="required", max_tokens=12)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "what"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "tools must be a list"),
        ({"tools": [function("two words")]}, "tools", "letters, digits"),
        ({"tools": [function("a_b"), function("a-b")]}, "tools", "rename"),
        ({"tools": [function(f"f{i}") for i in range(129)]}, "tools", "at most 128"),
        ({"tools": [function("f", x={"type": "text"})]}, "tools", "unrecognized type"),
        ({"tools": [function("f", x={"enum": [*range(3000)]})]}, "tools", "parts"),
        ({"tools": [RING], "tool_choice": "any"}, "tool_choice", "must be 'none'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        (
            {"tools": [RING], "tool_choice": {"type": "function", "function": {"name": "sing"}}},
            "tool_choice",
            "no tool has the name",
        ),
        ({"tools": [RING], "response_format": {"type": "json_object"}}, "tools", "exclude"),
        ({"functions": [RING["function"]]}, "functions", "not supported"),
    ],
)
def test_tools_that_cannot_be_offered_are_refused_by_name(
    server: Server, fields: dict[str, Any], param: str, what: str
) -> None:
    status, _, data = server.request("POST", CHAT, {"messages": [question("Q")], **fields})
    error = json.loads(data)["error"]
    assert (status, error["param"]) == (400, param)
    assert what in error["message"]


def test_schemas_of_parameters_are_bounded() -> None:
    with pytest.raises(OptionError, match=r"tools: f: parameters: .* levels deep"):
        ToolUse.of([function("f", x=deep(40))])
    many = {f"p{i}": {"type": "string"} for i in range(1000)}
    with pytest.raises(OptionError, match="schemas of all have more than"):
        ToolUse.of([function(f"f{i}", **many) for i in range(8)])


# templates that are up to no good

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
    "a long text": "{{ 'ab' * 1000000000000 }}",
    "a text that doubles": "{% set n = namespace(s='ab') %}{% for i in range(70) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(l=[1]) %}{% for i in range(70) %}{% set n.l = n.l + n.l %}{% endfor %}",
    "tuples that double": "{% set ns = namespace(t=(1, 2)) %}"
    "{% for i in range(70) %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"
    "{{ {ns.t: 1} }}",
    "a long range": "{{ range(100000000000) }}",
    "a macro in itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "an object in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | string }}",
    "an object in itself, in JSON": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}",
    "a list in itself": "{% set l = [] %}{% set a = l.append(l) %}{{ l | string }}{{ l == l }}",
    "a long chain": "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}",
    "brackets": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}",
    "operators": "{{ " + " + ".join(["1"] * 60000) + " }}",
    "signs": "{{ " + "- " * 100000 + "1 }}",
    "conditions": "{% if a %}" + "{% elif a %}" * 15000 + "{% endif %}",
    "blocks": "{% if 1 %}" * 10000 + "{% endif %}" * 10000,
    "many parts": "{% set s = 'a ' * 200000 %}{% for i in range(1000) %}{{ s.split(' ') | length }}{% endfor %}",
    "many replacements": "{% set s = 'a' * 200000 %}{{ s.replace('a', s) | length }}",
    "many marks": "{{ '<>' * 3000000 }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "a large source": "{# " + "a" * 300000 + " #}",
}
HARMLESS = {
    "a division by zero": "{{ 1 is divisibleby 0 }}{{ 1 % 0 }}",
    "numbers without an order": "{{ [1, 'a', none, 0.5, '0', [], 2] | sort }}",
    "an indentation": "{{ 'a'.replace('a', 'b') | indent(1000000000000, true) }}{{ [[1]] | tojson(indent=2000000000) }}",
    "no template": "{% nonsense %}",
    "half a template": "{% if",
    "nothing": "",
}


def test_hostile_templates_are_an_error() -> None:
    """In a process of its own: such a template may not end it."""
    code = (
        "import json, sys\n"
        "from pyfastv import _native\n"
        "from pyfastv.errors import ModelError\n"
        f"tools = {json.dumps([RING])!r}\n"
        "for name, source in json.load(sys.stdin).items():\n"
        "    try:\n"
        "        _native.ToolTemplate(source).format(tools, False, True, True, '{}', [])\n"
        "        print('fine')\n"
        "    except ModelError as error:\n"
        "        print(str(error).replace('\\n', ' '))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({**HOSTILE, **HARMLESS}),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    said = dict(zip([*HOSTILE, *HARMLESS], result.stdout.splitlines(), strict=True))
    assert [name for name in HOSTILE if "chat template" not in said[name]] == []


def test_a_template_that_the_library_cannot_read_has_the_general_form() -> None:
    assert form_of("{% nonsense %}").instructions
    assert form_of(HOSTILE["loops"]).instructions
    with pytest.raises(ModelError, match=r"steps|half a second"):
        _native.ToolTemplate(HOSTILE["loops"]).format("[]", False, True, True, "{}", [])


def test_an_answer_in_any_depth_does_not_end_the_process() -> None:
    free = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    begin = '<tool_call>\n{"name": "f", "arguments": {"a": '
    message = told(form_of(templates.HERMES, [free]), begin + "[" * 50000)
    assert message["content"] or message["tool_calls"]

"""Chat templates as models have them: nothing of a message is lost, whatever forms of it a template knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyfastv import ModelError, OptionError, Runner
from pyfastv.inputs.chat import ChatTemplate
from pyfastv.inputs.named_templates import NAMED
from pyfastv.inputs.template import find_template

from serving import CHAT, CLOCK, Server, data_uri, question

MARKER = "<__media_5fc1b1d0__>"
IMAGE = {"type": "image", "image": "a.png"}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [_text(p) if isinstance(p, str) else p for p in parts]}


def answer(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def render(source: str | None, *messages: dict[str, Any], **options: Any) -> str:
    prompt = ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages, MARKER, **options)
    return prompt.text.replace(MARKER, "[PICTURE]")


# what transformers adds to Jinja2

# llava-hf/llava-1.5-7b-hf
LLAVA_HF = """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{%- if message['role'] != 'assistant' %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}
{%- else %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}
{%- generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def test_the_body_of_a_generation_block_is_printed() -> None:
    assert render(LLAVA_HF, user(IMAGE, "Q"), answer("A"), user("R")) == (
        "USER: [PICTURE]\nQ ASSISTANT: A USER: R ASSISTANT:"
    )
    inside = "{% for m in messages %}{% generation %}{% if loop.first %}{{ m.content }}{% endif %}{% endgeneration %}"
    assert render(inside + "{% endfor %}", user("Q"), answer("A"), user("R")) == "Q"


def test_a_generation_block_has_variables_of_its_own() -> None:
    """As in transformers, where it is a macro."""
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}{{ messages[0].content }}"
    assert render(source, user("Q")) == "21Q"


@pytest.mark.parametrize("source", ["{% generation %}", "{% endgeneration %}"])
def test_a_generation_block_that_is_not_whole_does_not_parse(source: str) -> None:
    with pytest.raises(ModelError, match="does not parse"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("call", "options"),
    [
        ("tojson", {}),
        ("tojson(true)", {"ensure_ascii": True}),
        ("tojson(false, 2)", {"indent": 2}),
        ("tojson(indent=4)", {"indent": 4}),
        ("tojson(separators=(',', ':'))", {"separators": (",", ":")}),
        ("tojson(false, none, (';', '='), true)", {"separators": (";", "="), "sort_keys": True}),
    ],
)
def test_tojson_takes_what_that_of_transformers_takes(call: str, options: dict[str, Any]) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ {'b': '<é>', 'a': [1]} | " + call + " }}"
    expected = json.dumps({"b": "<é>", "a": [1]}, **{"ensure_ascii": False, **options})
    assert render(source, user("Q")) == "Q" + expected


# the shape of content, by role

# the user's parts are walked over, all else is printed as it is
PARTS_OF_USER_ONLY = """\
{% for m in messages %}<{{ m.role }}>
{%- if m.role == 'user' %}{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}
{%- else %}{{ m.content }}{% endif %}{% endfor %}<assistant>"""

# the other way round
STRINGS_OF_USER_ONLY = """\
{% for m in messages %}<{{ m.role }}>
{%- if m.role == 'user' %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}
{%- endfor %}<assistant>"""


@pytest.mark.parametrize("source", [PARTS_OF_USER_ONLY, STRINGS_OF_USER_ONLY])
@pytest.mark.parametrize("content", ["A", [_text("A")]])
def test_each_role_gets_the_content_that_its_branch_takes(source: str, content: Any) -> None:
    shown = render(source, SYSTEM, user("Q"), answer(content), user("R"))
    assert shown == "<system>Be brief.<user>Q<assistant>A<user>R<assistant>"


def test_an_answer_of_several_parts_is_no_list_in_the_prompt() -> None:
    shown = render(PARTS_OF_USER_ONLY, user(IMAGE, "Q"), answer([_text("A"), _text("B")]), user("R"))
    assert shown == "<user>[PICTURE]Q<assistant>A\nB<user>R<assistant>"


# one text of a message
LAST_TEXT = """\
{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}
{%- for p in m.content if p.type == 'image' %}<image>{% endfor %}
{{- m.content[-1].text }}{% endif %}{% endfor %}<assistant>"""


def test_a_label_before_a_picture_stays_where_a_template_prints_one_text() -> None:
    shown = render(LAST_TEXT, user("Picture 1: ", IMAGE, "Picture 2: ", IMAGE, "Which?"))
    assert shown == "<user>Picture 1: \n[PICTURE]\nPicture 2: \n[PICTURE]\nWhich?<assistant>"
    assert render(LAST_TEXT, user(IMAGE, "Which?")) == "<user>[PICTURE]Which?<assistant>"


def test_a_label_that_the_template_prints_before_a_picture_stays() -> None:
    labelled = """\
{% set ns = namespace(n=0) %}{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}
{%- set ns.n = ns.n + 1 %}Picture {{ ns.n }}: <|img|>
{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"""
    assert render(labelled, user(IMAGE, IMAGE, "Q")) == "Picture 1: [PICTURE]\nPicture 2: [PICTURE]\nQ"


# system messages

BODY = """\
{% for m in rest %}<{{ m.role }}>{% if loop.first %}{{ pre }}{% endif %}{% if m.content is string %}{{ m.content }}
{%- else %}{% for p in m.content %}{% if p.type == 'image' %}<img>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}
{%- endfor %}<assistant>"""
HEAD = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set pre = PRE %}"
    "{% else %}{% set rest = messages %}{% set pre = '' %}{% endif %}"
)


@pytest.mark.parametrize(
    ("pre", "shown"),
    [
        ("messages[0].content[0].text + ' '", "<user>Be brief. [PICTURE]What?<assistant>"),
        ("messages[0].content[0].text", "<user>Be brief.[PICTURE]What?<assistant>"),
        ("messages[0].content + ' '", "<user>Be brief. [PICTURE]What?<assistant>"),
        # no system role: refused, or left out without a word
        ("raise_exception('System role not supported')", "<user>[PICTURE]Be brief.\n\nWhat?<assistant>"),
        ("''", "<user>[PICTURE]Be brief.\n\nWhat?<assistant>"),
    ],
)
def test_a_system_message_reaches_the_model(pre: str, shown: str) -> None:
    source = HEAD.replace("PRE", pre) + BODY
    assert render(source, SYSTEM, user(IMAGE, "What?")) == shown
    assert render(source, {**SYSTEM, "role": "developer"}, user(IMAGE, "What?")) == shown


NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)


def test_a_system_message_without_a_question_is_the_users() -> None:
    assert render(NO_SYSTEM, SYSTEM) == "<user>Be brief.<assistant>"
    assert render(NO_SYSTEM, user("Q"), answer("A"), SYSTEM) == (
        "<user>Q<assistant>A<user>Be brief.<assistant>"
    )


FIRST_SYSTEM = """\
{% for m in messages %}{% if m.role == 'system' and not loop.first %}
{{- raise_exception('system comes first') }}{% endif %}
{{- '<' + m.role + '>' + m.content }}{% endfor %}<assistant>"""


def test_a_late_system_message_is_the_users_and_the_first_one_stays() -> None:
    late = {"role": "system", "content": "Be polite."}
    assert (
        render(FIRST_SYSTEM, SYSTEM, late, user("Q")) == "<system>Be brief.\n\nBe polite.<user>Q<assistant>"
    )
    assert render(FIRST_SYSTEM, SYSTEM, user("Q"), answer("A"), late, user("R")) == (
        "<system>Be brief.<user>Q<assistant>A<user>Be polite.\n\nR<assistant>"
    )


def test_pictures_stay_in_the_order_of_their_places() -> None:
    """Also where a system message with one moves behind an answer."""
    source = "{% for m in messages %}" + (
        "{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    first, second = ({"type": "image", "image": name} for name in ("first", "second"))
    messages = [{"role": "system", "content": [first, _text("S")]}, answer([second, _text("A")]), user("Q")]
    prompt = ChatTemplate(source).render(messages, MARKER)
    assert prompt.text.replace(MARKER, "*") == "<assistant>*\nA<user>*\nS\n\nQ"
    assert prompt.pictures == ("second", "first")


# turns

ALTERNATING = """\
{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>
{%- if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}
{{- '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}{% endfor %}<assistant>"""

FIRST_OF_A_TURN = """\
{% for m in messages %}{% if loop.first or m.role != messages[loop.index0 - 1].role %}<{{ m.role }}>{{ m.content }}
{%- endif %}{% endfor %}<assistant>"""


def test_neighbours_of_one_role_are_one_turn_where_the_template_wants_that() -> None:
    assert render(ALTERNATING, user("a"), user("b")) == "<user>a\n\nb<assistant>"
    assert (
        render(ALTERNATING, user(IMAGE, "a"), user(IMAGE), user("b"))
        == "<user>[PICTURE]a[PICTURE]b<assistant>"
    )
    assert render(ALTERNATING, user("a"), answer("b"), answer("c"), user("d")) == (
        "<user>a<assistant>b\n\nc<user>d<assistant>"
    )
    assert render(FIRST_OF_A_TURN, user("a"), user("b")) == "<user>a\n\nb<assistant>"


def test_turns_stay_apart_where_the_template_takes_them() -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert render(source, SYSTEM, SYSTEM, user("a"), user("b")) == (
        "<system>Be brief.<system>Be brief.<user>a<user>b<assistant>"
    )


def test_a_refusal_that_no_form_avoids_is_told() -> None:
    with pytest.raises(OptionError, match="refuses these messages: never"):
        render("{{ raise_exception('never') }}", SYSTEM, user("a"), user("b"))


# tools

CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "<UTC>"}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "9:10"}

OBJECTS = """\
{% if tools %}{{ tools | map(attribute='function') | map(attribute='name') | join }}{% endif %}
{%- for m in messages %}<{{ m.role }}{{ ' ' + m.name if m.name }}>{{ m.content }}
{%- for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}
{%- endfor %}<assistant>"""
TEXTS = OBJECTS.replace("c.function.arguments | tojson", "'' + c.function.arguments")
NO_TOOLS = "{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize("source", [OBJECTS, TEXTS])
def test_calls_and_results_are_rendered_by_the_template(source: str) -> None:
    shown = render(source, user("Q"), CALL, RESULT, answer("A"), user("R"))
    assert shown == (
        '<user>Q<assistant>[clock {"zone": "<UTC>"}]<tool clock>9:10<assistant>A<user>R<assistant>'
    )


def test_tools_are_offered_to_the_template() -> None:
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    assert render(OBJECTS, user("Q"), tools=tools) == "clock<user>Q<assistant>"
    with pytest.raises(OptionError, match="tools must be a list"):
        render(OBJECTS, user("Q"), tools=[{"name": "clock"}])


def test_a_template_without_tools_shows_them_as_text() -> None:
    shown = render(NO_TOOLS, user("Q"), CALL, RESULT)
    assert shown == (
        '<user>Q<assistant>{"tool_calls": [{"name": "clock", "arguments": {"zone": "<UTC>"}, "id": "call_1"}]}'
        '<user>{"tool_response": {"tool": "clock", "tool_call_id": "call_1", "content": "9:10"}}<assistant>'
    )


def test_ids_of_calls_are_those_that_the_template_takes() -> None:
    """Mistral's."""
    checks = "{% if c.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}{{ c.id }} "
    source = OBJECTS.replace("[{{ c.function.name", "[" + checks + "{{ c.function.name").replace(
        "}}>{{ m.content }}", "}}>{{ m.tool_call_id }}{{ m.content }}"
    )
    shown = render(source, user("Q"), CALL, RESULT)
    assert shown == (
        '<user>Q<assistant>[call00100 clock {"zone": "<UTC>"}]<tool clock>call001009:10<assistant>'
    )


@pytest.mark.parametrize("source", [OBJECTS, NO_TOOLS, ALTERNATING])
def test_a_picture_in_a_result_is_one_of_the_prompt(source: str) -> None:
    result = {**RESULT, "content": [_text("a photo"), IMAGE]}
    shown = render(source, user(IMAGE, "Q"), CALL, result)
    assert shown.count("[PICTURE]") == 2
    assert "a photo" in shown
    assert "clock" in shown


def test_functions_are_tools_under_an_older_name() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}}
    shown = render(OBJECTS, user("Q"), call, {"role": "function", "name": "clock", "content": "9:10"})
    assert shown == "<user>Q<assistant>[clock {}]<tool clock>9:10<assistant>"


@pytest.mark.parametrize(
    "calls",
    [
        "clock",
        [5],
        [{}],
        [{"function": {"name": 5}}],
        [{"function": {"name": "f", "arguments": 5}}],
        [{"function": {"name": "f", "arguments": "\ud800"}}],
    ],
)
def test_calls_of_another_shape_are_refused(calls: Any) -> None:
    with pytest.raises(OptionError, match=r"messages\[1\]"):
        render(OBJECTS, user("Q"), {**CALL, "tool_calls": calls})


# which template


def test_a_template_is_found_by_text_name_and_file(tmp_path: Path) -> None:
    source = "{{ messages[0].content }}!"
    assert find_template(source) == source
    assert find_template("chatml") == NAMED["chatml"]
    assert find_template(None) is None
    file = tmp_path / "template.jinja"
    file.write_text(source)
    assert find_template(file) == find_template(str(file)) == source
    for content in ({"chat_template": source}, {"chat_template": [{"name": "default", "template": source}]}):
        file.write_text(json.dumps(content))
        assert find_template(file) == source


def test_a_template_that_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    for content, told in (
        ("{% for %}", "does not parse"),
        ('{"a": 1}', "without a chat_template"),
        (b"\xff", "not UTF-8"),
    ):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(OptionError, match=told):
            find_template(file)
    with pytest.raises(OptionError, match="is no name of a template: vicuna, chatml"):
        find_template("chatlm")
    with pytest.raises(OptionError, match="does not parse"):
        find_template("{{ messages")
    with pytest.raises(OptionError, match="its name or a file; got 5"):
        find_template(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_print_everything(name: str) -> None:
    asked = [user(IMAGE, "Asked."), CALL, RESULT, answer("Answered."), user("Once more."), user("Well?")]
    shown = render(NAMED[name], SYSTEM, *asked)
    words = ["Be brief.", "[PICTURE]", "Asked.", "clock", "9:10", "Answered.", "Once more.", "Well?"]
    assert [word for word in words if word not in shown] == []


def test_a_runner_takes_another_template(fake_engine: list[Any]) -> None:
    with Runner("model.gguf", fastv=None, chat_template="chatml") as runner:
        runner.ask(None, "Q")
    (prompt,) = (call["prompt"] for name, call in fake_engine[0].calls if name == "prefill")
    assert prompt == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(OptionError, match="is no name of a template"):
        Runner("model.gguf", fastv=None, chat_template="chatlm")
    assert len(fake_engine) == 1  # nothing was loaded


# agents


TOOLS = [
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
]


def test_a_runner_shows_tools_to_the_model_by_its_template_or_in_a_system_message(
    fake_engine: list[Any],
) -> None:
    messages = [user("Q")]
    with Runner("model.gguf", fastv=None, chat_template=OBJECTS) as runner:
        runner.create_chat_completion(messages, tools=TOOLS, tool_choice="none")
    (prompt,) = (call["prompt"] for name, call in fake_engine[0].calls if name == "prefill")
    assert prompt == "clock<user>Q<assistant>"
    with Runner("model.gguf", fastv=None, chat_template="chatml") as runner:
        runner.create_chat_completion(messages, tools=TOOLS)
    (prompt,) = (call["prompt"] for name, call in fake_engine[1].calls if name == "prefill")
    system, question, _ = prompt.split("<|im_end|>\n")
    assert system.startswith("<|im_start|>system\n")
    assert json.dumps(TOOLS[0]["function"]) in system
    assert question == "<|im_start|>user\nQ"


def test_the_server_takes_the_history_of_an_agent(server: Server) -> None:
    photo = {"type": "image_url", "image_url": {"url": data_uri(CLOCK.picture)}}
    messages = [question("Read the clock."), CALL, {**RESULT, "content": [_text("a photo"), photo]}]
    told = server.chat(messages, max_tokens=1)["usage"]
    assert told["visual_tokens"] == 576
    shorter = [
        messages[0],
        {**CALL, "tool_calls": None, "content": ""},
        question("a photo", photo["image_url"]["url"]),
    ]
    assert told["prompt_tokens"] > server.chat(shorter, max_tokens=1)["usage"]["prompt_tokens"] + 10
    server.chat(messages, max_tokens=1, tools=TOOLS, tool_choice="none")
    server.chat(messages, max_tokens=1, tools=TOOLS)
    broken = [messages[0], {**CALL, "tool_calls": [{"function": {}}]}]
    status, _, data = server.request("POST", CHAT, {"messages": broken})
    assert (status, json.loads(data)["error"]["param"]) == (400, "messages.1.tool_calls.0.function.name")

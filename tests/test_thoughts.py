"""Models that think: whether they do is said by the request, and their thoughts come apart from their answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfastv import OptionError, Runner
from pyfastv.engine.thoughts import ThoughtReader
from pyfastv.inputs.chat import ChatTemplate
from pyfastv.inputs.template_options import template_variables
from pyfastv.inputs.thinking import open_thought

from serving import CHAT, Server, question, serving

# the bundled model's, as of one that thinks unless it is told not to
THINKING = """\
{%- for m in messages -%}
{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{{ m.content.split('</think>')[-1] }}{{ ' ' }}
{%- endfor -%}
{{ 'ASSISTANT:' }}{% if enable_thinking is not defined or enable_thinking %}{{ ' <think>\\n' }}{% endif %}
{%- if reasoning_effort %}{{ ' ' + reasoning_effort }}{% endif %}"""


def read(*pieces: str, closing: str = "") -> tuple[str, str]:
    reader = ThoughtReader(closing)
    told = [*(reader.feed(piece) for piece in pieces), reader.finish()]
    return "".join(thought for thought, _ in told), "".join(answer for _, answer in told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<think>\nHm, 9.\n</think>\n\nIt is 9.", ("Hm, 9.", "It is 9.")),
        ("\n<think>a  b</think>c</think> ", ("a  b", "c</think> ")),
        ("[THINK]a[/THINK]b", ("a", "b")),
        ("<think>\n\n</think>\n\nb", ("", "b")),
        ("<think> never ends </th", ("never ends </th", "")),
        # answers
        (" <b>no thought</b>\n", ("", " <b>no thought</b>\n")),
        ("It is <think>not</think> so", ("", "It is <think>not</think> so")),
        ("<thin", ("", "<thin")),
        ("</think>a", ("", "</think>a")),
        ("\n", ("", "\n")),
        ("", ("", "")),
    ],
)
def test_a_thought_is_told_from_its_answer(text: str, told: tuple[str, str]) -> None:
    assert read(text) == read(*text) == told


def test_a_thought_that_the_prompt_has_opened_ends_at_its_tag() -> None:
    assert [open_thought(prompt) for prompt in ("a <think>\n", "[THINK]", "<think>\n\n</think>\n\n", "a")] == [
        "</think>", "[/THINK]", "", "",
    ]  # fmt: skip
    assert read("\nHm.\n</think>\n\nYes.", closing="</think>") == ("Hm.", "Yes.")
    assert read("Hm", closing="</think>") == ("Hm", "")


@given(st.text("<think>/ \nab", max_size=40), st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_pieces_make_no_difference(text: str, cuts: list[int], opened: bool) -> None:
    text = text if opened else f"<think>{text}"
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    closing = "</think>" if opened else ""
    whole = read(text, closing=closing)
    assert read(*pieces, closing=closing) == whole
    # by the whole text: what stands before the first tag, and behind it
    thought, found, answer = text.removeprefix("" if opened else "<think>").partition("</think>")
    assert whole == (thought.strip(), answer.lstrip() if found else "")


# what the template is told


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ({}, {}),
        ({"chat_template_kwargs": None, "reasoning_effort": None}, {}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False, "thinking": False}),
        (
            {"reasoning_effort": "high"},
            {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True, "x": 1}},
            {"enable_thinking": False, "thinking": True, "x": 1},
        ),
    ],
)
def test_options_are_variables_of_the_template(options: dict[str, Any], variables: dict[str, Any]) -> None:
    assert template_variables(options) == variables


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reasoning_effort": "much"}, "reasoning_effort must be one of none, minimal, low"),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs must be names and values"),
        ({"chat_template_kwargs": {5: 5}}, "chat_template_kwargs must be names and values"),
        ({"chat_template_kwargs": {"messages": []}}, "messages is set by the request"),
    ],
)
def test_other_options_are_refused(fake_runner: Runner, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        fake_runner.ask(None, "Q", **options)


def test_a_runner_and_a_session_tell_the_template(fake_engine: list[Any]) -> None:
    with Runner("model.gguf", fastv=None, chat_template=THINKING) as runner:
        runner.ask(None, "Q")
        runner.ask(None, "Q", chat_template_kwargs={"enable_thinking": False})
        runner.create_chat_completion([{"role": "user", "content": "Q"}], reasoning_effort="low")
        with runner.session(reasoning_effort="none") as chat:
            chat.ask("Q")
    prompts = [call["prompt"] for name, call in fake_engine[0].calls if name == "prefill"]
    asked = "USER: Q ASSISTANT:"
    assert prompts == [f"{asked} <think>\n", asked, f"{asked} <think>\n low", asked]


def test_a_thought_that_a_template_always_opens_is_closed_where_there_is_to_be_none() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}{{ '<think>\\n' }}")
    asked = [{"role": "user", "content": "Q"}]
    assert template.render(asked, "*").text == "Q<think>\n"
    assert template.render(asked, "*", variables={"enable_thinking": True}).text == "Q<think>\n"
    closed = template.render(asked, "*", variables={"enable_thinking": False})
    assert closed.text == "Q<think>\n\n</think>\n\n"


# the server


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    file: Path = tmp_path_factory.mktemp("thinking") / "template.jinja"
    file.write_text(THINKING)
    with serving("--n-ctx", "512", "--threads", "1", "--chat-template", str(file)) as server:
        yield server


ASKED = [question("Hello")]
NOT = {"chat_template_kwargs": {"enable_thinking": False}}
# words at random: of itself the model has nothing to say there
ANY: dict[str, Any] = {
    "max_tokens": 12, "temperature": 100, "min_p": 0, "top_p": 1, "top_k": 0, "seed": 1,
}  # fmt: skip


def streamed(server: Server, **options: Any) -> dict[str, str]:
    body = {"messages": ASKED, "stream": True, **ANY, **options}
    status, _, data = server.request("POST", CHAT, body)
    assert status == 200, data
    told: dict[str, str] = {}
    for line in data.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                for name, text in choice["delta"].items():
                    told[name] = told.get(name, "") + text
    return told


def test_thoughts_come_apart(thinking: Server) -> None:
    message = thinking.chat(ASKED, **ANY)["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning_content"]
    assert streamed(thinking) == {
        "role": "assistant", "content": "", "reasoning_content": message["reasoning_content"],
    }  # fmt: skip


def test_a_request_says_that_there_is_to_be_no_thought(thinking: Server) -> None:
    plain = thinking.chat(ASKED, **ANY, **NOT)
    message = plain["choices"][0]["message"]
    assert message["content"]
    assert "reasoning_content" not in message
    assert streamed(thinking, **NOT) == {"role": "assistant", "content": message["content"]}
    effort = thinking.chat(ASKED, **ANY, reasoning_effort="none")
    assert effort["choices"][0]["message"] == message
    thought = thinking.chat(ASKED, **ANY)
    assert thought["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_thoughts_stay_in_the_content_on_request(thinking: Server) -> None:
    apart = thinking.chat(ASKED, **ANY)["choices"][0]["message"]["reasoning_content"]
    message = thinking.chat(ASKED, **ANY, reasoning_format="none")["choices"][0]["message"]
    assert "reasoning_content" not in message
    assert message["content"].strip() == apart


def test_what_a_schema_makes_is_an_answer(thinking: Server) -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
    message = thinking.chat(ASKED, response_format=schema)["choices"][0]["message"]
    assert json.loads(message["content"]) in ("yes", "no")
    assert "reasoning_content" not in message


@pytest.mark.parametrize(
    "options",
    [{"chat_template_kwargs": 5}, {"chat_template_kwargs": {"messages": 1}}, {"reasoning_effort": "much"}],
)
def test_the_server_refuses_other_options_by_name(thinking: Server, options: dict[str, Any]) -> None:
    status, _, data = thinking.request("POST", CHAT, {"messages": ASKED, **options})
    assert status == 400
    assert next(iter(options)) in json.loads(data)["error"]["message"]

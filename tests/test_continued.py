"""Prompts that end within an answer."""

from __future__ import annotations

from typing import Any

import pytest

from pyfastv import OptionError
from pyfastv.inputs.chat import ChatTemplate
from pyfastv.inputs.continued import render_continued

MARKER = "<__media_1__>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}").replace(
    "{{ p.text }}", "{{ p.text | trim }}"
)
FORGETFUL = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}")


def user(text: str, *pictures: object) -> dict[str, Any]:
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (CHATML, "<|im_start|>assistant\nIt is "),
        (TRIMMING, "<|im_start|>assistant\nIt is "),
        (None, "ASSISTANT: It is "),
    ],
)
def test_the_prompt_ends_where_the_last_answer_does(source: str | None, end: str) -> None:
    template = ChatTemplate(source)
    prompt = render_continued(template, [user("What is it?", "a.png"), assistant("It is ")], MARKER)
    assert prompt.text.endswith(end)
    assert prompt.text.count(MARKER) == 1
    assert prompt.pictures == ("a.png",)


def test_earlier_answers_are_known_the_open_one_is_none_of_them() -> None:
    messages = [user("What is it?", "a.png"), assistant("A clock."), user("Is it?"), assistant("It is")]
    prompt = render_continued(ChatTemplate(CHATML), messages, MARKER)
    data = prompt.text.encode()
    assert [data[begin:end].decode() for begin, end in prompt.answers] == ["A clock."]


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        (CHATML, [user("Hello")]),
        (CHATML, [user("Hello"), assistant("")]),
        (CHATML, [user("Hello"), {"role": "assistant", "content": None}]),
        (CHATML, []),
        (FORGETFUL, [user("Hello"), assistant("It is")]),
    ],
)
def test_what_cannot_go_on_is_told(source: str, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(OptionError, match="continue_final_message: "):
        render_continued(ChatTemplate(source), messages, MARKER)

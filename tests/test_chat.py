"""Prompts: what models were trained on, with one marker for each picture, whatever the texts contain."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfastv import ModelError, OptionError
from pyfastv.inputs.chat import ChatTemplate

MARKER = "<__media_5fc1b1d0__>"

# the template of the bundled model
LLAVA = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' }}{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for content in message['content'] -%}{%- if content['type'] == 'image' -%}{{ '<image>\\n' }}{%- endif -%}{%- endfor -%}
{%- for content in message['content'] -%}{%- if content['type'] == 'text' -%}{{ content['text'] }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"""  # noqa: E501 - word for word

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

QWEN = """\
{% set image_count = namespace(value=0) %}
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}
{%- if content['type'] == 'image' or 'image' in content or 'image_url' in content %}
{%- set image_count.value = image_count.value + 1 %}
{%- if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# typed parts, but nothing for a picture: text only
TYPED_TEXT = """\
{% for message in messages %}[{{ message.role }}]
{%- for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}
{%- endfor %}[assistant]"""

# a picture changes the text around it; the placeholder is numbered, and only image_url parts are known
NUMBERED = """\
{% set ns = namespace(n=0) %}
{% for message in messages %}
{% for part in message.content %}
{%- if part.type == 'image_url' %}{% set ns.n = ns.n + 1 %}<|image_{{ ns.n }}|>
{% else %}{{ part.text }}{% endif %}{% endfor %}<|end|>
{% endfor %}<|assistant|>
"""

# prints a list as Python does
PRINTS_ANYTHING = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
)

# looks into the text, as templates for models that think do
THINKING = """\
{% for message in messages %}
{%- set text = message.content if message.content is string else '' -%}
{%- if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif -%}
<|{{ message.role }}|>{{ text }}
{%- if message.content is not string %}{% for part in message.content -%}
{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif -%}
{% endfor %}<|assistant|>"""

IMAGE = {"type": "image", "image": "a.png"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts]}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def picture(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": name}}


def render(template: str | None, *messages: dict[str, Any], bos_token: str = "<s>") -> str:
    prompt = ChatTemplate(template, bos_token=bos_token, eos_token="</s>").render(messages, MARKER)
    return prompt.text.replace(MARKER, "[PICTURE]")


# the forms that models were trained on


@pytest.mark.parametrize("template", [LLAVA, None], ids=["bundled", "none"])
def test_llava_gets_its_training_form(template: str | None) -> None:
    asked = user(IMAGE, "What time is it?")
    assert render(template, asked) == "USER: [PICTURE]\nWhat time is it? ASSISTANT:"
    answered = {"role": "assistant", "content": "It is 9:10."}
    assert render(template, asked, answered, user("Sure?")) == (
        "USER: [PICTURE]\nWhat time is it? ASSISTANT: It is 9:10.</s>USER: Sure? ASSISTANT:"
    )


@pytest.mark.parametrize("template", [LLAVA, None], ids=["bundled", "none"])
def test_llava_text_only_and_several_pictures(template: str | None) -> None:
    assert render(template, {"role": "user", "content": "Hello"}) == "USER: Hello ASSISTANT:"
    assert render(template, {"role": "system", "content": "Be brief."}, user("Hi")) == (
        "Be brief. USER: Hi ASSISTANT:"
    )
    assert render(template, user(IMAGE, IMAGE, "Which?")) == "USER: [PICTURE]\n[PICTURE]\nWhich? ASSISTANT:"
    # this template prints pictures first, wherever they stand
    assert render(template, user("a", IMAGE, "b", IMAGE)) == "USER: [PICTURE]\n[PICTURE]\nab ASSISTANT:"


def test_chatml_takes_strings_with_the_picture_on_a_line_of_its_own() -> None:
    assert render(CHATML, {"role": "system", "content": "S"}, user(IMAGE, "Q")) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n[PICTURE]\nQ<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "user\nQ\n[PICTURE]<|im_end|>" in render(CHATML, user("Q", IMAGE))
    assert "user\na\nb<|im_end|>" in render(CHATML, user("a", "b"))


def test_gemma_placeholder_is_replaced_and_text_trimmed() -> None:
    asked = user(IMAGE, "  Q\n")
    assert render(GEMMA, {"role": "system", "content": "S"}, asked, bos_token="<bos>") == (
        "<bos><start_of_turn>user\nS\n\n[PICTURE]Q<end_of_turn>\n<start_of_turn>model\n"
    )
    assert render(GEMMA, user("a", IMAGE, "b")) == (
        "<s><start_of_turn>user\na[PICTURE]b<end_of_turn>\n<start_of_turn>model\n"
    )


def test_qwen_placeholder_is_replaced_with_its_start_and_end() -> None:
    # mtmd writes <|vision_start|> and <|vision_end|> itself
    assert render(QWEN, user(IMAGE, IMAGE, "Q"), bos_token="") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n[PICTURE][PICTURE]Q<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_typed_template_without_pictures_gets_markers_as_text() -> None:
    assert render(TYPED_TEXT, user("a", IMAGE, "b")) == "[user]a[PICTURE]b[assistant]"
    assert render(TYPED_TEXT, {"role": "user", "content": "a"}) == "[user]a[assistant]"


def test_numbered_placeholders_and_image_url_parts() -> None:
    assert render(NUMBERED, user(IMAGE, IMAGE, "Q"), user("R", IMAGE)) == (
        "[PICTURE]\n[PICTURE]\nQ<|end|>\nR[PICTURE]\n<|end|>\n<|assistant|>\n"
    ).rstrip("\n")


def test_a_template_that_prints_a_list_as_python_gets_a_string() -> None:
    assert render(PRINTS_ANYTHING, user(IMAGE, "Q")) == "<user>[PICTURE]\nQ<assistant>"


def test_a_template_may_look_into_the_text() -> None:
    history = {"role": "assistant", "content": "<think>hm</think>Yes"}
    assert render(THINKING, user(IMAGE, "Q <image>"), history, user("R")) == (
        "<|user|>[PICTURE]Q <image><|assistant|>Yes<|user|>R<|assistant|>"
    )


# pictures and texts


@pytest.mark.parametrize("template", [LLAVA, CHATML, GEMMA, QWEN, TYPED_TEXT, NUMBERED, None])
def test_pictures_come_in_the_order_of_their_markers(template: str | None) -> None:
    array = object()
    messages = [
        user(picture("1.png"), "one", {"type": "image", "image": array}),
        {"role": "assistant", "content": "two"},
        user("three", {"type": "image_url", "image_url": "3.png"}, {"type": "image", "path": "4.png"}),
    ]
    prompt = ChatTemplate(template).render(messages, MARKER)
    assert prompt.pictures == ("1.png", array, "3.png", "4.png")
    assert prompt.text.count(MARKER) == 4
    first, second = prompt.text.split("two")
    assert (first.count(MARKER), second.count(MARKER)) == (2, 2)


@pytest.mark.parametrize(
    ("template", "placeholder"),
    [
        (LLAVA, "<image>"),
        (None, "<image>"),
        (GEMMA, "<start_of_image>"),
        (QWEN, "<|vision_start|><|image_pad|><|vision_end|>"),
        (NUMBERED, "<|image_1|>"),
        (THINKING, "<image>"),
    ],
)
def test_a_placeholder_in_a_text_stays_text(template: str | None, placeholder: str) -> None:
    forged = [
        user(f"What does {placeholder} mean?", IMAGE),
        user(IMAGE, f"{placeholder}{placeholder}"),
        user(placeholder, IMAGE, placeholder),
        # halves that meet in the prompt
        user(placeholder[:4], placeholder[4:], IMAGE),
        user(placeholder[:4], IMAGE, placeholder[4:]),
        user(IMAGE, placeholder[:4], placeholder[4:]),
    ]
    for message in forged:
        masked = {**message, "content": [_masked(part, placeholder) for part in message["content"]]}
        expected = render(template, masked).replace("@", placeholder[0])
        assert render(template, message) == expected
        assert expected.count("[PICTURE]") == 1


def _masked(part: dict[str, Any], placeholder: str) -> dict[str, Any]:
    return text(part["text"].replace(placeholder[0], "@")) if part["type"] == "text" else part


def test_a_placeholder_in_an_answer_or_a_text_only_prompt_stays_text() -> None:
    history = {"role": "assistant", "content": "I see <image>\n"}
    assert render(LLAVA, user(IMAGE, "Q"), history, user("R <image>")) == (
        "USER: [PICTURE]\nQ ASSISTANT: I see <image>\n</s>USER: R <image> ASSISTANT:"
    )
    assert render(LLAVA, user("<image>")) == "USER: <image> ASSISTANT:"


@settings(deadline=None)  # a busy machine
@given(st.lists(st.one_of(st.none(), st.text("<image>\n\ue000 ", max_size=9)), min_size=1, max_size=5))
def test_every_text_and_every_picture_arrives_once(parts: list[str | None]) -> None:
    rendered = render(LLAVA, user(*[IMAGE if part is None else part for part in parts]))
    texts = "".join(part for part in parts if part is not None)
    assert rendered == "USER: " + "[PICTURE]\n" * parts.count(None) + texts + " ASSISTANT:"


def test_the_bos_token_is_added_once() -> None:
    asked = user("Q")
    assert not ChatTemplate(GEMMA, bos_token="<bos>").render([asked], MARKER).add_bos
    assert ChatTemplate(LLAVA, bos_token="<s>").render([asked], MARKER).add_bos
    assert ChatTemplate(CHATML, bos_token="").render([asked], MARKER).add_bos


def test_what_templates_use_is_there() -> None:
    template = (
        "{{ strftime_now('%Y') }}|{{ messages | tojson }}|{{ tools }}|{{ eos_token }}|"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
    )
    rendered = render(template, {"role": "user", "content": "<é>"}, user("x"))
    assert re.fullmatch(r'20\d\d\|\[\{"role": "user", "content": "<é>"\}.*\]\|None\|</s>\|user', rendered)


# errors


def test_a_refusal_of_the_template_is_told() -> None:
    with pytest.raises(OptionError, match="Conversation roles must alternate"):
        render(GEMMA, {"role": "assistant", "content": "a"}, user("b"))
    with pytest.raises(OptionError, match="Conversation roles must alternate"):
        render(GEMMA, {"role": "assistant", "content": "a"}, user(IMAGE, "b"))


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a' }", "{% if %}{% endfor %}", "{{ x | nofilter }}"])
def test_a_template_that_does_not_parse_is_the_models_fault(source: str) -> None:
    with pytest.raises(ModelError, match="does not parse"):
        ChatTemplate(source)


@pytest.mark.parametrize("source", ["{{ nothing.there }}", "{{ 1 / 0 }}", "{{ messages + 1 }}"])
def test_a_template_that_fails_is_the_models_fault(source: str) -> None:
    with pytest.raises(ModelError, match="chat template fails"):
        render(source, user("Q"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ messages.__class__.__base__ }}x{{ ''.__class__.mro() }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(ModelError, match="SecurityError"):
        render(source, user("Q"))


def test_a_template_that_swallows_pictures_is_told() -> None:
    with pytest.raises(OptionError, match="printed 0 of 1 pictures"):
        render("USER ASSISTANT", user(IMAGE, "Q"))


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        {"role": "user", "content": "x"},
        None,
        5,
        ["hello"],
        [{"content": "x"}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
    ],
)
def test_messages_of_another_shape_are_refused(messages: Any) -> None:
    with pytest.raises(OptionError):
        ChatTemplate(LLAVA).render(messages, MARKER)


def test_a_refused_message_is_named_but_its_data_not_repeated() -> None:
    part = {"type": "video_url", "video_url": {"url": "data:" + "A" * 100_000}}
    with pytest.raises(OptionError, match=r"messages\[1\].*video_url") as caught:
        ChatTemplate(LLAVA).render([user("a"), user(part)], MARKER)
    assert len(str(caught.value)) < 500


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [user(IMAGE, "Q"), {"role": "assistant", "content": None}]
    copy = [{**message} for message in messages]
    render(LLAVA, *messages)
    assert messages == copy

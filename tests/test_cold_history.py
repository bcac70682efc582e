"""A conversation whose history is computed anew keeps the visual tokens that it kept when it was asked turn by turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfastv import Recommended, Runner, Sampling, Schedule
from pyfastv.engine.job_pool import Job, JobPool
from pyfastv.inputs.chat import ChatTemplate, assistant_message, user_message
from pyfastv.models import bundled_examples

import random_mmproj

CLOCK = bundled_examples()[0]
QUESTIONS = ("What is it?", "And which of them is left of the other one?", "Why so?")
# of a random model every byte may come
WORD: dict[str, Any] = {"grammar": "root ::= [a-z ] root", "max_tokens": 7}
OPTIONS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, "flash_attn": False}
RECALL = "score=question-max,recall=0.1"
PICTURE = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)

# The first layer where a cut can be: plain KV, sliding windows, M-RoPE, deepstack, rows with ends, slices.
FAMILIES = {"LLaVA": 2, "Gemma 3": 6, "Qwen2-VL": 2, "Qwen3-VL": 3, "Pixtral": 2, "SmolVLM": 2}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    return request.param, *random_mmproj.write_pair(tmp_path_factory.mktemp("pair"), request.param)


def state_of(runner: Runner) -> tuple[list[list[int]], int]:
    """What every cut kept, and how many rows the engine keeps for later turns."""
    engine = runner._engine
    report = engine.report()
    kept = [engine.kept(cut).tolist() for cut in range(len(report.first_layers) - 1)]
    return kept, report.archive_bytes


def asked_anew(runner: Runner, messages: list[dict[str, Any]], **options: Any) -> str:
    runner.set_fastv(runner.fastv)  # nothing is held
    completion = runner.create_chat_completion(messages, **options)
    assert completion["pyfastv"]["cached_tokens"] == 0
    return str(completion["choices"][0]["message"]["content"])


def test_a_history_is_cut_at_its_turns(pair: tuple[str, Path, Path]) -> None:
    name, model, mmproj = pair
    rules = f"k={FAMILIES[name]},drop=0.5,{RECALL}"
    if name != "Gemma 3":  # behind the first, only layer 11 sees everything
        rules += f";k={FAMILIES[name] + 1},drop=0.75,score=question-max"
    with Runner(model, mmproj, fastv=rules, **OPTIONS) as runner, runner.session() as chat:
        for turn, question in enumerate(QUESTIONS):
            answer = chat.ask(question, PICTURE if turn == 0 else None, **WORD)
            # on the first turn both are the same computation
            messages = chat.messages[:-1]
            warm = (*state_of(runner), answer.text, answer.report.recalled_tokens)
            assert answer.report.cached_tokens > 0 or turn == 0
            assert answer.report.recalled_tokens > 0 or turn == 0 or name == "Gemma 3"  # forgets
            text = asked_anew(runner, messages, **WORD)
            assert (*state_of(runner), text, runner._engine.report().recalled_tokens) == warm


def test_a_pool_does_alike(pair: tuple[str, Path, Path]) -> None:
    name, model, mmproj = pair
    rules = f"k={FAMILIES[name]},drop=0.5,{RECALL}"
    with JobPool(model, mmproj, slots=2, fastv=rules, **OPTIONS) as pool:

        def ask(messages: list[dict[str, Any]]) -> tuple[Job, str]:
            job = pool.submit(messages, Sampling(**WORD), details=True)
            return job, job.read()

        messages = [user_message(QUESTIONS[0], PICTURE)]
        for question in QUESTIONS[1:]:
            _, text = ask(messages)
            messages += [assistant_message(text), user_message(question)]
        warm, said = ask(messages)
        pool._slots.reset()
        cold, again = ask(messages)
    assert warm.report is not None
    assert cold.report is not None
    assert warm.report.cached_tokens > 0 == cold.report.cached_tokens
    assert warm.details is not None
    assert cold.details is not None
    assert (said, warm.details["kept"]) == (again, cold.details["kept"])
    assert warm.report.recalled_tokens == cold.report.recalled_tokens


@pytest.mark.parametrize("rule", [Recommended(2, 0.75), Schedule.parse(f"k=2,drop=0.9,{RECALL}")], ids=str)
def test_answers_of_the_bundled_model_are_the_same(exact: Runner, rule: Schedule) -> None:
    """In f32: rounding decides nothing."""
    exact.set_fastv(rule)
    with exact.session() as chat:
        for turn, question in enumerate((CLOCK.question, "Is it analog?", "Background color?")):
            answer = chat.ask(question, CLOCK.picture if turn == 0 else None)
            if turn == 0:  # both are the same computation
                continue
            warm = state_of(exact)
            messages = chat.messages[:-1]
            assert asked_anew(exact, messages) == answer.text
            assert state_of(exact) == warm


def test_an_answer_that_a_program_has_changed_is_no_question(pair: tuple[str, Path, Path]) -> None:
    """The slot holds the picture, the first question, and another answer."""
    name, model, mmproj = pair
    with Runner(model, mmproj, fastv=f"k={FAMILIES[name]},drop=0.5,{RECALL}", **OPTIONS) as runner:
        first = [user_message(QUESTIONS[0], PICTURE)]
        runner.create_chat_completion(first, **WORD)
        messages = [*first, assistant_message("another one, of several words"), user_message(QUESTIONS[1])]
        report = runner.create_chat_completion(messages, **WORD)["pyfastv"]
        warm = state_of(runner)
        # what the windows have forgotten is computed anew
        assert report["cached_tokens"] > 0 or name == "Gemma 3"
        asked_anew(runner, messages, **WORD)
        assert state_of(runner) == warm


# A prompt that ends otherwise than the answer begins that is over, as of models that think first.
THINKING = """\
{%- for message in messages -%}
{{ message.role }}: {% for part in message.content if part.type == 'image' %}<image>{% endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%};
{%- endfor -%}
{%- if add_generation_prompt -%}assistant: (thinks){%- endif -%}
"""


def test_a_prompt_that_is_shorter_in_its_history_chooses_alike(pair: tuple[str, Path, Path]) -> None:
    name, model, mmproj = pair
    with Runner(model, mmproj, fastv=f"k={FAMILIES[name]},drop=0.5,{RECALL}", **OPTIONS) as runner:
        runner._model.__dict__["template"] = ChatTemplate(THINKING)
        with runner.session() as chat:
            chat.ask(QUESTIONS[0], PICTURE, **WORD)
            answer = chat.ask(QUESTIONS[1], **WORD)
            warm = (*state_of(runner), answer.text)
            text = asked_anew(runner, chat.messages[:-1], **WORD)
            assert (*state_of(runner), text) == warm


def test_without_a_schedule_turns_make_no_difference(pair: tuple[str, Path, Path]) -> None:
    """To the bit: one batch, as without them."""
    _, model, mmproj = pair
    with Runner(model, mmproj, fastv=None, **OPTIONS) as runner:
        engine = runner._engine
        messages = [user_message("A?", PICTURE), assistant_message("b c"), user_message("D?")]
        prompt = runner._model.render(messages)
        assert prompt.answers
        logits = []
        for answers in ((), prompt.answers):
            engine.reset()
            engine.prefill(prompt.text, [PICTURE], ["p"], None, True, 1, answers=answers)
            logits.append(engine.logits())
        np.testing.assert_array_equal(*logits)


# where answers are in a prompt

CHATML = """\
{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content -%}
{%- if part.type == 'image' %}<|image|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

ANSWERS = ["Zwölf", " It is <|image|>, \n", "12"]


@pytest.mark.parametrize("source", [None, CHATML, THINKING], ids=["vicuna", "chatml", "thinking"])
def test_answers_begin_where_the_prompt_of_their_turn_ended(source: str | None) -> None:
    template = ChatTemplate(source)
    messages: list[dict[str, Any]] = [user_message("Spät?", PICTURE)]
    for answer in ANSWERS:
        messages += [assistant_message(answer), user_message("Sure?", PICTURE)]
    prompt = template.render(messages, "*")
    data = prompt.text.encode()
    assert len(prompt.answers) == len(ANSWERS)
    for turn, ((begin, end), answer) in enumerate(zip(prompt.answers, ANSWERS, strict=True)):
        asked = template.render(messages[: 2 * turn + 1], "*").text.encode()
        assert data[:begin] == asked.removesuffix(b"(thinks)")
        assert data[begin:end].decode().strip() == answer.strip()


def test_an_answer_that_the_template_changes_is_not_looked_for() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content | upper | truncate(9) }}{% endfor %}")
    messages = [user_message("x", PICTURE), assistant_message("a long answer"), user_message("y")]
    assert template.render([user_message("x")], "*").answers == ()
    assert ChatTemplate(None).render([*messages[:1], user_message("y")], "*").answers == ()
    assert ChatTemplate(None).render([assistant_message("x")], "*").answers == ()
    template = ChatTemplate(
        "{% for m in messages %}{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text if m.role == 'user' else p.text[:4] }}"
        "{% endfor %}{% endfor %}"
    )
    assert template.render(messages, "*").answers == ()

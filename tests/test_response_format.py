"""What a runner is asked about the form of an answer: schemas, probabilities, special tokens; and the tokens of texts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pyfastv import AnswerError, OptionError, Runner, TokenProb
from pyfastv.models import bundled_examples, bundled_model

CLOCK = bundled_examples()[0]
KIND: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["digital", "analog"]}},
    "required": ["kind"],
    "additionalProperties": False,
}
# a grammar allows nothing but [1, 1], and cannot say that this is wrong
TWICE = {"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}


def schema(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": of, "strict": True}}


# schemas


@pytest.mark.parametrize(
    "form", [schema(KIND), {"type": "json_object", "schema": KIND}], ids=["openai", "llama"]
)
def test_an_answer_follows_the_schema(runner: Runner, form: dict[str, Any]) -> None:
    plain = runner.ask(CLOCK.picture, "Is the clock digital or analog?").text
    answer = runner.ask(CLOCK.picture, "Is the clock digital or analog?", response_format=form)
    assert answer.text != plain
    assert json.loads(answer.text)["kind"] in KIND["properties"]["kind"]["enum"]
    assert answer.finish_reason == "stop"


def test_completions_and_streams_follow_it_too(runner: Runner) -> None:
    messages = [{"role": "user", "content": "Is a clock digital or analog?"}]
    whole = runner.create_chat_completion(messages, response_format=schema(KIND))
    text = whole["choices"][0]["message"]["content"]
    chunks = runner.create_chat_completion(messages, response_format=schema(KIND), stream=True)
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == text
    assert set(json.loads(text)) == {"kind"}


def test_a_session_may_have_a_form_for_all_its_answers(runner: Runner) -> None:
    with runner.session(response_format=schema(KIND)) as chat:
        assert set(json.loads(chat.ask("Is a clock digital or analog?").text)) == {"kind"}
        assert chat.ask("Say something.", response_format=None, max_tokens=4).text[:1] != "{"


def test_what_a_grammar_cannot_say_is_looked_for_in_the_answer(runner: Runner) -> None:
    with pytest.raises(AnswerError, match="the same item twice") as caught:
        runner.ask("Two numbers?", response_format=schema(TWICE))
    assert json.loads(caught.value.text) == [1, 1]
    stream = runner.stream("Two numbers?", response_format=schema(TWICE))
    pieces: list[str] = []
    with pytest.raises(AnswerError):
        pieces.extend(stream)
    assert json.loads("".join(pieces)) == json.loads(stream.answer.text) == [1, 1]


def test_an_answer_that_was_cut_off_is_not_looked_at(runner: Runner) -> None:
    answer = runner.ask("Two numbers?", response_format=schema(TWICE), max_tokens=1)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("form", [None, {"type": "text"}])
def test_text_is_any_text(fake_runner: Runner, form: Any) -> None:
    fake_runner.ask("Q", response_format=form)
    assert dict(fake_runner._engine.calls)["start"]["grammar"] is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"response_format": "json_object"}, "response_format must be"),
        ({"response_format": {"type": "yaml"}}, "got 'yaml'"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "json_schema"),
        ({"response_format": schema({"not": {}})}, "'not' is not supported"),
        ({"response_format": schema(KIND), "grammar": 'root ::= "a"'}, "one of them"),
        ({"logprobs": 5}, "logprobs must be True or False; got 5"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs=True"),
        ({"logprobs": True, "top_logprobs": 21}, "from 0 to 20; got 21"),
        ({"logprobs": True, "top_logprobs": -1}, "got -1"),
        ({"skip_special_tokens": None}, "skip_special_tokens must be True or False; got None"),
    ],
)
def test_what_cannot_be_asked_for_touches_no_engine(
    fake_runner: Runner, options: dict[str, Any], words: str
) -> None:
    before = list(fake_runner._engine.calls)  # type: ignore[attr-defined]
    for ask in (fake_runner.ask, fake_runner.stream):
        with pytest.raises(OptionError, match=words):
            ask("Q", **options)
    assert fake_runner._engine.calls == before  # type: ignore[attr-defined]


# probabilities


def test_logprobs_are_the_softmax_of_the_logits(runner: Runner) -> None:
    (first, *others) = (
        runner.ask(CLOCK.picture, CLOCK.question, max_tokens=1, logprobs=True, top_logprobs=5).logprobs or ()
    )
    logits = runner._engine.logits().astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    likeliest = np.argsort(-logits, kind="stable")[:5]
    assert others == []
    assert [prob.id for prob in first.top] == likeliest.tolist()
    assert [prob.logprob for prob in first.top] == pytest.approx(expected[likeliest].tolist(), abs=1e-4)
    assert (first.id, first.logprob) == (first.top[0].id, first.top[0].logprob)


def test_tokens_with_logprobs_spell_the_answer(runner: Runner) -> None:
    plain = runner.ask(CLOCK.picture, CLOCK.question)
    answer = runner.ask(CLOCK.picture, CLOCK.question, logprobs=True)
    assert plain.logprobs is None
    assert answer.logprobs is not None
    assert "".join(prob.token for prob in answer.logprobs).lstrip() == answer.text == plain.text
    assert len(answer.logprobs) == answer.report.generated_tokens
    assert all(prob.logprob <= 0 and prob.top == () for prob in answer.logprobs)


def test_a_stop_string_has_no_logprobs(fake_runner: Runner) -> None:
    stream = fake_runner.stream("Q", logprobs=True, stop=".")
    assert stream.logprobs == ()
    answer = stream.read()
    assert answer.text == "It is 9:10"
    assert [prob.token for prob in answer.logprobs or ()] == [" It is ", "9:10"]


def test_completions_tell_logprobs_as_openai_does(fake_runner: Runner) -> None:
    messages = [{"role": "user", "content": "Q"}]
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 1}
    whole = fake_runner.create_chat_completion(messages, **asked)["choices"][0]["logprobs"]
    assert whole is not None
    assert [entry["token"] for entry in whole["content"]] == [" It is ", "9:10", ".", " Yes."]
    assert whole["content"][1] == {
        "token": "9:10",
        "logprob": -0.5,
        "bytes": list(b"9:10"),
        "top_logprobs": [{"token": "9:10", "logprob": -0.5, "bytes": list(b"9:10")}],
    }
    chunks = list(fake_runner.create_chat_completion(messages, stream=True, **asked))
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [one["content"][0] for one in told if one is not None] == whole["content"]
    assert len(told) == 6  # the role, four tokens, the end


def test_an_answer_with_logprobs_is_json(fake_runner: Runner) -> None:
    answer = fake_runner.ask("Q", logprobs=True, top_logprobs=2)
    made = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert made == answer.to_dict()
    assert [entry["token"] for entry in made["logprobs"][0]["top_logprobs"]] == [" It is ", "other"]
    assert "logprobs" not in fake_runner.ask("Q").to_dict()
    assert isinstance((answer.logprobs or ())[0], TokenProb)


# special tokens


def test_special_tokens_are_text_on_request(runner: Runner) -> None:
    asked: dict[str, Any] = {"logit_bias": {1: 100.0}, "max_tokens": 3}  # <s>, which ends nothing
    assert runner.ask("Hello", **asked).text == ""
    shown = runner.ask("Hello", **asked, skip_special_tokens=False, logprobs=True)
    assert shown.text == "<s><s><s>"
    assert [prob.token for prob in shown.logprobs or ()] == ["<s>"] * 3


def test_the_token_that_ends_an_answer_is_no_text_of_it(runner: Runner) -> None:
    shown = runner.ask(CLOCK.picture, CLOCK.question, skip_special_tokens=False)
    assert shown.text == runner.ask(CLOCK.picture, CLOCK.question).text


# tokens of texts


def test_tokens_are_those_of_the_vocabulary(runner: Runner) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra bench")
    field = gguf.GGUFReader(bundled_model()).fields["tokenizer.ggml.tokens"]
    spelt = [bytes(field.parts[part]).decode() for part in field.data]
    tokens = runner.tokenize("Read the clock.")
    assert len(tokens) > 1
    assert "".join(spelt[token] for token in tokens).replace("\u2581", " ").lstrip() == "Read the clock."
    assert runner.detokenize(tokens).lstrip() == "Read the clock."
    assert runner.tokenize("Read the clock.", add_special=True) == [spelt.index("<s>"), *tokens]


def test_the_spelling_of_a_special_token_may_be_text(runner: Runner) -> None:
    assert 2 in runner.tokenize("a</s>")
    assert 2 not in runner.tokenize("a</s>", parse_special=False)
    assert runner.detokenize([2]) == "</s>"


def test_half_a_character_is_told_as_such(runner: Runner) -> None:
    tokens = runner.tokenize("\U0001f986")
    assert len(tokens) > 1
    assert runner.detokenize(tokens).lstrip() == "\U0001f986"
    assert "\ufffd" in runner.detokenize(tokens[-1:])


@pytest.mark.parametrize(
    ("tokens", "words"), [([-1], "tokens\\[0\\]"), ([5, "a"], "tokens\\[1\\]"), ([10**9], "10+")]
)
def test_what_is_no_token_is_refused(runner: Runner, tokens: list[Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        runner.detokenize(tokens)


def test_text_that_is_not_utf8_has_no_tokens(runner: Runner) -> None:
    with pytest.raises(OptionError, match="surrogate"):
        runner.tokenize("\ud800")

"""The official openai package against a server of the bundled model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import pytest

openai = pytest.importorskip("openai", reason="needs openai")

from pyfastv import Runner  # noqa: E402
from pyfastv.models import bundled_examples  # noqa: E402

from serving import CLOCK, Server, data_uri, question  # noqa: E402

MODEL = "tiny-llava-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize("example", bundled_examples()[::4], ids=lambda e: e.picture.stem)
def test_questions_about_pictures_are_answered(client: openai.OpenAI, example) -> None:
    messages = [question(example.question, data_uri(example.picture))]
    answer = client.chat.completions.create(model="any", messages=messages, temperature=0)
    assert answer.choices[0].message.content == example.answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL


def test_usage_tells_visual_tokens_and_kept_ones(client: openai.OpenAI) -> None:
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, extra_body={"fastv": "k=2,drop=0.75"}
    )
    assert answer.usage.visual_tokens == 576
    assert answer.usage.visual_tokens_kept == 144
    assert answer.usage.prompt_tokens > 576
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_a_whole_answer_says(client: openai.OpenAI) -> None:
    messages = [question("Describe the image.", data_uri(CLOCK.picture))]
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    with client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        whole.choices[0].message.content
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_no_usage_unless_it_is_asked_for(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=[question("Hello")], temperature=0, max_tokens=3, stream=True
    ) as stream:
        chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert chunks[-1].timings["predicted_n"] == 3


def test_later_turns_build_on_earlier_ones(client: openai.OpenAI) -> None:
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    first = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Is the clock digital or analog?"},
    ]
    second = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert "analog" in second.choices[0].message.content.lower()
    assert second.usage.prompt_tokens_details.cached_tokens > 576
    assert second.timings["pictures_encoded"] == 0


def test_logprobs_are_of_the_answers_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[question(CLOCK.question, data_uri(CLOCK.picture))],
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    tokens = answer.choices[0].logprobs.content
    text = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert text.strip() == CLOCK.answer
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        probs = [other.logprob for other in token.top_logprobs]
        assert len(probs) == 3
        assert probs == sorted(probs, reverse=True)
        assert sum(map(math.exp, probs)) <= 1 + 1e-6
        assert token.logprob == pytest.approx(probs[0], abs=1e-5)  # greedy


def test_without_top_logprobs_there_are_no_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[question("Hello")], temperature=0, max_tokens=2, logprobs=True
    )
    assert [token.top_logprobs for token in answer.choices[0].logprobs.content] == [[], []]


def test_an_answer_follows_a_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["digital", "analog"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[question("Is the clock digital or analog?", data_uri(CLOCK.picture))],
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "clock", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content) in ({"kind": "analog"}, {"kind": "digital"})


def test_an_answer_can_be_any_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[question("Describe the image.", data_uri(CLOCK.picture))],
        temperature=0,
        max_tokens=200,
        response_format={"type": "json_object"},
    )
    text = answer.choices[0].message.content
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_stop_strings_end_an_answer(client: openai.OpenAI) -> None:
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stop=["9", "~"])
    assert answer.choices[0].message.content == "It is "
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_ends_an_answer(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[question("Describe the image.")], temperature=0, **{name: 2}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("most", [-1, None, 10**9, 2**70])
def test_no_limit_and_more_than_there_can_be_are_as_much_as_there_is(
    client: openai.OpenAI, name: str, most: int | None
) -> None:
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, extra_body={name: most}
    )
    assert answer.choices[0].message.content == CLOCK.answer
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_no_tokens_are_an_empty_answer_with_its_usage(client: openai.OpenAI, name: str) -> None:
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    answer = client.chat.completions.create(model=MODEL, messages=messages, extra_body={name: 0})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "length")
    assert answer.usage.prompt_tokens > answer.usage.visual_tokens == 576
    assert answer.usage.completion_tokens == 0
    with client.chat.completions.create(
        model=MODEL,
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={name: 0},
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ""
    assert chunks[-1].usage.completion_tokens == 0


def test_whole_numbers_may_be_written_as_floats(client: openai.OpenAI) -> None:
    def say(number: type) -> str:
        fields = {"max_tokens": 12, "top_k": 40, "seed": 42, "top_logprobs": 2, "n": 1}
        body = {**{name: number(value) for name, value in fields.items()}, "logprobs": True}
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[question("Describe the image.", data_uri(CLOCK.picture))],
            temperature=1,
            extra_body={**body, "fastv": {"k": number(3), "drop": 0.5}, "fastv_details": True},
        )
        assert answer.fastv_details["first_layers"] == [0, 3]
        assert all(len(token.top_logprobs) == 2 for token in answer.choices[0].logprobs.content)
        return answer.choices[0].message.content

    say(int)  # what is in the context already is not computed again, and rounds otherwise
    assert say(float) == say(int)


def test_a_seed_makes_an_answer_come_again(client: openai.OpenAI) -> None:
    def say(seed: int) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=[question("Tell me something.")], temperature=2, seed=seed, max_tokens=12
        )
        return answer.choices[0].message.content

    say(-7)  # what is in the context already is not computed again, and rounds otherwise
    assert say(-7) == say(-7)
    assert len({say(seed) for seed in range(4)}) > 1


def test_text_goes_on_without_a_template(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="USER: What color is the sky? ASSISTANT:", temperature=0, max_tokens=5, logprobs=2
    )
    choice = answer.choices[0]
    assert choice.text
    assert (
        len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == answer.usage.completion_tokens
    )
    with client.completions.create(
        model=MODEL,
        prompt=["USER: What color is the sky? ASSISTANT:"],
        temperature=0,
        max_tokens=5,
        stream=True,
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == choice.text


PROMPT = "USER: What color is the sky? ASSISTANT:"


def test_a_text_that_goes_on_keeps_its_space_and_tells_where_its_tokens_are(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "logprobs": 1}
    choice = client.completions.create(**options).choices[0]
    assert choice.text.startswith(" ")
    assert choice.text == "".join(choice.logprobs.tokens)
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    with client.completions.create(**options, stream=True) as stream:
        told = [chunk.choices[0].logprobs for chunk in stream]
    offsets = [offset for logprobs in told if logprobs is not None for offset in logprobs.text_offset]
    assert offsets == choice.logprobs.text_offset


def test_probabilities_that_are_asked_for_are_told_of_no_text_too(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, logprobs=1).choices[0]
    assert (text.text, text.logprobs.tokens, text.logprobs.text_offset) == ("", [], [])
    chat = client.chat.completions.create(
        model=MODEL, messages=[question("Hello")], max_tokens=0, logprobs=True
    )
    assert chat.choices[0].logprobs.content == []


def test_several_answers_to_one_question(client: openai.OpenAI) -> None:
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    one = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    three = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert {choice.message.content for choice in three.choices} == {one.choices[0].message.content}
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.visual_tokens == 576
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens

    options = {
        "model": MODEL,
        "messages": [question("Tell me something.")],
        "temperature": 2,
        "max_tokens": 12,
    }
    said = client.chat.completions.create(**options, n=4, seed=7)
    assert len({choice.message.content for choice in said.choices}) > 1

    with client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, n=2, stream=True, logprobs=True
    ) as stream:
        chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for index in (0, 1):
        of_one = [choice for choice in choices if choice.index == index]
        assert of_one[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in of_one) == one.choices[0].message.content
        assert [choice.finish_reason for choice in of_one if choice.finish_reason] == ["stop"]


def test_several_prompts_and_prompts_of_tokens(client: openai.OpenAI, runner: Runner) -> None:
    prompts = [PROMPT, "USER: Is fire cold? ASSISTANT:"]
    options = {"model": MODEL, "temperature": 0, "max_tokens": 5}
    alone = [client.completions.create(prompt=prompt, **options) for prompt in prompts]
    texts = [answer.choices[0].text for answer in alone]
    together = client.completions.create(prompt=prompts, n=2, **options)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in together.choices] == [texts[0], texts[0], texts[1], texts[1]]
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)

    tokens = [runner._engine.tokenize(prompt, True, True) for prompt in prompts]
    assert client.completions.create(prompt=tokens[0], **options).choices[0].text == texts[0]
    of_tokens = client.completions.create(prompt=tokens, **options)
    assert [choice.text for choice in of_tokens.choices] == texts
    assert of_tokens.usage.prompt_tokens == sum(map(len, tokens))


def test_logit_bias_bans_tokens_and_forces_them(client: openai.OpenAI, runner: Runner) -> None:
    seven = runner._engine.tokenize("7", False, False)[-1]
    for bias in ({str(seven): 100}, [[seven, 100.0]]):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[question("Hello")],
            temperature=0,
            max_tokens=3,
            extra_body={"logit_bias": bias},
        )
        sevens = (3 * runner._engine.detokenize([seven])).decode().lstrip()
        assert answer.choices[0].message.content == sevens
    banned = [[seven, False], *([token, -100] for token in runner._engine.tokenize("It is", False, False))]
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[question(CLOCK.question, data_uri(CLOCK.picture))],
        temperature=0,
        extra_body={"logit_bias": banned},
    )
    assert not answer.choices[0].message.content.startswith("It is")


def test_stop_strings_may_be_many_and_empty_ones_stop_nothing(client: openai.OpenAI) -> None:
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    stops = ["", *(f"<{i}>" for i in range(1000)), "9", ""]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stop=stops)
    assert answer.choices[0].message.content == "It is "


def say(client: openai.OpenAI, text: str = CLOCK.question, **fields: object) -> str:
    """The answer to a question about the clock, greedy, with fields that OpenAI's API has not."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[question(text, data_uri(CLOCK.picture))],
        temperature=0,
        extra_body={"max_tokens": 40, **fields},
    )
    return str(answer.choices[0].message.content)


SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["analog"]}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"grammar": ""}, r"It is 9:10\."),
        ({"json_schema": SCHEMA}, r'\{\s*"kind"\s*:\s*"analog"\s*\}'),
        ({"guided_json": SCHEMA}, r'\{\s*"kind"\s*:\s*"analog"\s*\}'),
        ({"guided_json": json.dumps(SCHEMA)}, r'\{\s*"kind"\s*:\s*"analog"\s*\}'),
        ({"guided_choice": ["nine\n", 'a "b"']}, 'nine\n|a "b"'),
        ({"guided_regex": r"\d{2}:\d{2} (AM|PM)"}, r"\d{2}:\d{2} (AM|PM)"),
        ({"guided_grammar": 'root ::= "yes"'}, "yes"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"json": SCHEMA}}, r'\{\s*"kind"\s*:\s*"analog"\s*\}'),
        ({"structured_outputs": {"regex": "^a+b$"}}, "a+b?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_an_answer_has_to_look_like_is_honoured_by_every_name(
    client: openai.OpenAI, fields: dict[str, object], expected: str
) -> None:
    assert re.fullmatch(expected, say(client, **fields))


def test_a_text_that_goes_on_follows_a_schema_too(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    for fields in ({"response_format": form}, {"json_schema": SCHEMA}):
        answer = client.completions.create(model=MODEL, prompt="Say:", max_tokens=40, extra_body=fields)
        assert json.loads(answer.choices[0].text) == {"kind": "analog"}


def test_names_of_other_servers_for_what_there_is(client: openai.OpenAI) -> None:
    assert say(client, max_tokens=None, n_predict=2) == say(client, max_tokens=2)
    ended = client.chat.completions.create(
        model=MODEL,
        messages=[question("Hello")],
        temperature=0,
        extra_body={"max_tokens": 40, "ignore_eos": True},
    )
    assert (ended.usage.completion_tokens, ended.choices[0].finish_reason) == (40, "length")
    letters = {"grammar": 'root ::= ("a" | "b") root', "max_tokens": 8}
    plain = say(client, **letters)
    for fields in ({"repetition_penalty": 3.0}, {"repeat_penalty": 3.0}):
        assert say(client, **letters, **fields) != plain
    # nothing to look back at
    assert say(client, **letters, repeat_penalty=3.0, repeat_last_n=0) == plain


NEUTRAL = {
    **dict.fromkeys(("mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range", "min_tokens"), 0),
    **{"top_n_sigma": -1, "length_penalty": 1.0, "tfs_z": 1.0, "truncate_prompt_tokens": -1, "top_a": 0.0},
    **{name: [] for name in ("stop_token_ids", "bad_words", "samplers", "lora", "logits_processors")},
    **{"skip_special_tokens": True, "spaces_between_special_tokens": True, "do_sample": True},
    **{"use_beam_search": False, "add_generation_prompt": True, "chat_template": None, "mirostat_tau": 5.0},
}
ASKING = {
    **{
        "mirostat": 2,
        "dry_multiplier": 0.8,
        "xtc_probability": 0.5,
        "dynatemp_range": 0.3,
        "top_n_sigma": 1.0,
    },
    **{"samplers": ["top_k"], "lora": [{"id": 0, "scale": 1}], "t_max_predict_ms": 5, "n_probs": 3},
    **{
        "min_tokens": 3,
        "stop_token_ids": [2],
        "bad_words": ["x"],
        "use_beam_search": True,
        "length_penalty": 2,
    },
    **{"skip_special_tokens": False, "include_stop_str_in_output": True, "prompt_logprobs": 1},
    **{"allowed_token_ids": [5], "chat_template": "{{ messages }}", "max_new_tokens": 5, "do_sample": False},
    **{"add_generation_prompt": False, "tfs_z": 0.5, "logits_processors": ["x"], "num_beams": 4},
}


def test_fields_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    assert say(client, **NEUTRAL) == CLOCK.answer


@pytest.mark.parametrize("field", ASKING)
def test_fields_that_would_change_the_answer_are_refused_by_name(client: openai.OpenAI, field: str) -> None:
    with pytest.raises(openai.BadRequestError, match=field) as caught:
        say(client, **{field: ASKING[field]})
    assert caught.value.param == field
    assert caught.value.code == "unsupported"


def test_an_answer_follows_one_thing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="grammar and guided_choice: an answer can follow one"):
        say(client, grammar='root ::= "a"', guided_choice=["a"])
    for fields in ({"guided_choice": []}, {"guided_regex": "(?=a)b"}, {"guided_json": "{"}, {"grammar": "x"}):
        with pytest.raises(openai.BadRequestError):
            say(client, **fields)


def test_an_answer_that_was_begun_goes_on(client: openai.OpenAI) -> None:
    for begun, rest in (("It is 9", ":10."), ("It is", " 9:10.")):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[
                question(CLOCK.question, data_uri(CLOCK.picture)),
                {"role": "assistant", "content": begun},
            ],
            temperature=0,
            extra_body={"continue_final_message": True, "add_generation_prompt": False},
        )
        assert answer.choices[0].message.content == rest
    for messages in ([question("Hello")], [question("Hello"), {"role": "assistant", "content": ""}]):
        with pytest.raises(openai.BadRequestError, match="continue_final_message"):
            client.chat.completions.create(
                model=MODEL, messages=messages, extra_body={"continue_final_message": True}
            )


def test_ignored_fields_do_no_harm(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "developer", "content": "Be brief."}, question("Hello")],
        max_tokens=2,
        user="me",
        store=False,
        metadata={"a": "b"},
        parallel_tool_calls=True,
        service_tier="auto",
        tool_choice="auto",
        tools=[],
        n=1,
    )
    assert answer.usage.completion_tokens <= 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_choice", "required"),
        ("modalities", ["audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[question("Hello")], extra_body={field: value})
    assert caught.value.param == field
    assert field in caught.value.message


def test_pruning_is_told_in_detail_on_request(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[question(CLOCK.question, data_uri(CLOCK.picture))],
        temperature=0,
        extra_body={"fastv": {"k": 3, "drop": 0.5}, "fastv_details": True},
    )
    told = answer.fastv_details
    assert told["fastv"].startswith("k=3,drop=0.5")
    assert told["grids"] == [[[24, 24]]]
    assert told["first_layers"] == [0, 3]
    assert [len(kept) for kept in told["kept"]] == [288] == told["visual_tokens_in_stage"][1:]
    assert set(told["kept"][0]) < set(range(576))
    # 3 of 12 layers saw everything
    expected = answer.timings["full_ms"] + 4 * answer.timings["stage0_ms"]
    assert told["unpruned_prefill_ms_estimate"] == pytest.approx(expected)


def test_a_request_brings_its_own_turbo_and_reducer(client: openai.OpenAI) -> None:
    for extra, tokens in (
        ({"turbo": "share=0.5"}, 288),
        ({"reduce": "pool,window=2"}, 144),
        ({"turbo": "share=0.25", "reduce": "merge,keep=0.5"}, 216),
        ({"turbo": False, "reduce": False}, 576),
    ):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[question(CLOCK.question, data_uri(CLOCK.picture))],
            temperature=0,
            extra_body={**extra, "fastv": "k=2,drop=0.5", "fastv_details": True},
        )
        usage = answer.usage
        assert (usage.visual_patches, usage.visual_tokens) == (576, tokens)
        assert usage.visual_tokens_kept == tokens // 2
        assert (answer.timings["reduce_ms"] > 0) == bool(extra.get("reduce"))
        ((slice_,),) = answer.fastv_details["pictures"]
        assert len(slice_["places"]) == tokens


def test_off_is_off(client: openai.OpenAI) -> None:
    for off in (False, "off"):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[question(CLOCK.question, data_uri(CLOCK.picture))],
            temperature=0,
            extra_body={"fastv": off, "fastv_details": True},
        )
        assert answer.usage.visual_tokens_kept == 576
        assert answer.fastv_details["unpruned_prefill_ms_estimate"] is None

"""llama-server's own completions, and what it tells beside OpenAI's: ``timings_per_token``, slots, capabilities."""

from __future__ import annotations

import base64
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from pyfastv import Runner
from pyfastv.models import bundled_model
from pyfastv.models.facts import model_facts
from pyfastv.serve.addresses import address
from pyfastv.serve.inspection import listed_model

from serving import CHAT, CLOCK, Server, data_uri, question, send, serving
from test_serve_process import endless, health, wait_for

PROMPT = "USER: What color is the sky? ASSISTANT:"
GREEDY = {"temperature": 0}
CLOCK_BASE64 = base64.b64encode(CLOCK.picture.read_bytes()).decode()
SHOWN = {
    "prompt_string": f"USER: <__media__>\n{CLOCK.question} ASSISTANT:",
    "multimodal_data": [CLOCK_BASE64],
}
TIMINGS = {"cache_n", "prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms"}


def complete(server: Server, prompt: Any, **fields: Any) -> Any:
    status, _, data = server.request("POST", "/completion", {"prompt": prompt, **GREEDY, **fields})
    assert status == 200, data
    return json.loads(data)


def events(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    status, headers, data = server.request("POST", path, {**GREEDY, **body, "stream": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), data
    lines = [line for line in data.decode().split("\n\n") if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


def text_completion(server: Server, prompt: Any, **fields: Any) -> dict[str, Any]:
    """OpenAI's."""
    body = {"prompt": prompt, **GREEDY, **fields}
    answer: dict[str, Any] = json.loads(server.request("POST", "/v1/completions", body)[2])
    return answer


def test_a_text_goes_on_as_openais_does(server: Server) -> None:
    answer = complete(server, PROMPT, n_predict=2)
    openai = text_completion(server, PROMPT, max_tokens=2)
    assert answer["content"] == openai["choices"][0]["text"]
    assert answer["tokens_evaluated"] == openai["usage"]["prompt_tokens"]
    assert (answer["tokens_predicted"], answer["stop"], answer["stop_type"]) == (2, True, "limit")
    assert (answer["prompt"], answer["model"]) == (PROMPT, openai["model"])
    assert (answer["tokens"], answer["truncated"], answer["has_new_line"]) == ([], False, False)
    assert answer["id_slot"] in range(4)
    asked = answer["generation_settings"]
    assert (asked["n_ctx"], asked["n_predict"], asked["temperature"], asked["top_k"]) == (2048, 2, 0, 40)
    assert set(answer["timings"]) >= TIMINGS
    assert answer["timings"]["cache_n"] == answer["tokens_cached"]


def test_the_same_prompt_in_every_shape(server: Server, runner: Runner) -> None:
    tokens = runner._engine.tokenize(PROMPT, True, True)
    text = complete(server, PROMPT, n_predict=5)["content"]
    begin, rest = "USER: What color", " is the sky? ASSISTANT:"
    joined = runner._engine.tokenize(begin, True, True) + runner._engine.tokenize(rest, False, True)
    mixed = complete(server, [begin, *runner._engine.tokenize(rest, False, True)], n_predict=5)
    assert mixed["content"] == complete(server, joined, n_predict=5)["content"]
    assert mixed["tokens_evaluated"] == len(joined)
    for prompt in (tokens, [PROMPT], [tokens], {"prompt_string": PROMPT}, [{"prompt_string": PROMPT}]):
        answer = complete(server, prompt, n_predict=5)
        assert answer["content"] == text
        assert answer["tokens_evaluated"] == len(tokens)
    assert complete(server, tokens, n_predict=0)["prompt"] == runner._engine.detokenize(tokens).decode()


def test_several_prompts_have_a_list_of_answers(server: Server) -> None:
    other = "USER: Is fire cold? ASSISTANT:"
    texts = [complete(server, prompt, n_predict=5)["content"] for prompt in (PROMPT, other)]
    answers = complete(server, [PROMPT, {"prompt_string": other}], n_predict=5)
    assert [answer["index"] for answer in answers] == [0, 1]
    assert [answer["content"] for answer in answers] == texts
    assert [answer["prompt"] for answer in answers] == [PROMPT, other]
    answers = complete(server, PROMPT, n_predict=5, n_cmpl=2)
    assert [answer["content"] for answer in answers] == [texts[0]] * 2
    told = events(server, "/completion", {"prompt": [PROMPT, other], "n_predict": 5})
    for index in (0, 1):
        of_one = [one for one in told if one["index"] == index]
        assert "".join(one["content"] for one in of_one) == texts[index]
        assert [one["stop"] for one in of_one] == [False] * (len(of_one) - 1) + [True]


def test_a_prompt_has_pictures(server: Server) -> None:
    answer = complete(server, SHOWN)
    assert answer["content"].strip() == CLOCK.answer
    assert answer["stop_type"] == "eos"
    assert answer["usage"]["visual_tokens"] == 576
    assert answer["prompt"] == SHOWN["prompt_string"]
    uri = {**SHOWN, "multimodal_data": [data_uri(CLOCK.picture)]}
    answer = complete(server, uri, fastv="k=2,drop=0.75", fastv_details=True)
    assert answer["usage"]["visual_tokens_kept"] == 144
    assert [len(kept) for kept in answer["fastv_details"]["kept"]] == [144]


def test_a_mark_without_a_picture_is_text(server: Server) -> None:
    spelt = complete(server, "a <__media__> b", n_predict=1)
    assert spelt["usage"]["visual_tokens"] == 0
    assert spelt["tokens_evaluated"] > 5


def test_why_an_answer_ended(server: Server) -> None:
    for stop, word in ((["~", "9"], "9"), (["10.", "9:"], "9:"), (["~"], "")):
        answer = complete(server, SHOWN, stop=stop)
        assert answer["stopping_word"] == word
        assert answer["stop_type"] == ("word" if word else "eos")
        assert word not in answer["content"] or not word
    lines = complete(server, PROMPT, grammar='root ::= "a\\nb"', n_predict=20)
    assert (lines["content"], lines["has_new_line"]) == ("a\nb", True)


def test_a_stream_is_pieces_and_then_all_that_is_known(server: Server) -> None:
    whole = complete(server, SHOWN, return_tokens=True)
    told = events(server, "/completion", {"prompt": SHOWN})
    assert "".join(one["content"] for one in told) == whole["content"]
    assert [token for one in told for token in one["tokens"]] == whole["tokens"]
    assert len(whole["tokens"]) == whole["tokens_predicted"]
    assert all(one["tokens"] and not one["stop"] for one in told[:-1])
    assert told[-1]["content"] == ""
    predicted = [one["tokens_predicted"] for one in told]
    assert predicted == sorted(predicted)
    assert predicted[-1] == whole["tokens_predicted"]
    assert {one["tokens_evaluated"] for one in told} == {whole["tokens_evaluated"]}
    assert set(told[-1]) == set(whole)
    assert len({one["id_slot"] for one in told}) == 1


def test_probabilities_and_tokens_are_told(server: Server, runner: Runner) -> None:
    answer = complete(server, PROMPT, n_predict=4, n_probs=3, ignore_eos=True)
    assert answer["tokens"] == []
    probs = answer["completion_probabilities"]
    assert len(probs) == 4
    text = runner._engine.detokenize([one["id"] for one in probs]).decode()
    assert text.strip() == answer["content"].strip()
    for one in probs:
        assert one["token"].encode() == bytes(one["bytes"])
        assert len(one["top_logprobs"]) == 3
        # the end may be likelier, which is ignored
        (same,) = (top["logprob"] for top in one["top_logprobs"] if top["id"] == one["id"])
        assert same == pytest.approx(one["logprob"], abs=1e-5)
    told = events(server, "/completion", {"prompt": PROMPT, "n_predict": 4, "n_probs": 1, "ignore_eos": True})
    ids = [one["id"] for chunk in told for one in chunk.get("completion_probabilities", ())]
    assert ids == [one["id"] for one in probs]


def test_only_the_fields_that_are_asked_for(server: Server) -> None:
    fields = ["content", "generation_settings/n_predict", "timings/predicted_n", "nothing", "content/more"]
    answer = complete(server, PROMPT, n_predict=2, response_fields=fields)
    assert set(answer) == {"content", "generation_settings/n_predict", "timings/predicted_n"}
    assert (answer["generation_settings/n_predict"], answer["timings/predicted_n"]) == (2, 2)


def test_the_progress_of_a_prompt_is_told(server: Server) -> None:
    shown = {**SHOWN, "prompt_string": f"USER: <__media__>\nHow far? {CLOCK.question} ASSISTANT:"}
    told = events(server, "/completion", {"prompt": shown, "return_progress": True, "n_predict": 1})
    read = [one["prompt_progress"] for one in told if "prompt_progress" in one]
    assert read
    assert {one["total"] for one in read} == {told[-1]["tokens_evaluated"]}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/completion"])
@pytest.mark.parametrize("wanted", [True, False])
def test_timings_are_in_every_chunk_on_request(server: Server, path: str, wanted: bool) -> None:
    asked = {"messages": [question("Hello")]} if path == CHAT else {"prompt": PROMPT}
    body = {**asked, "n_predict": 6, "ignore_eos": True, "timings_per_token": wanted}
    told = events(server, path, body)
    timings = [one["timings"] for one in told if "timings" in one]
    if not wanted:
        assert len(timings) == 1
        return
    assert all(set(one) >= TIMINGS for one in timings)
    counts = [one["predicted_n"] for one in timings]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert counts[-1] == 6
    assert {(one["cache_n"], one["prompt_n"]) for one in timings} == {
        (timings[-1]["cache_n"], timings[-1]["prompt_n"])
    }
    assert [one["predicted_ms"] for one in timings] == sorted(one["predicted_ms"] for one in timings)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [10**6]}, "out of range"),
        ({"prompt": [[1, "a"], 5]}, "prompt"),
        ({"prompt": {"prompt_string": "<__media__>"}, "n_predict": "many"}, "n_predict"),
        ({"prompt": {**SHOWN, "prompt_string": "no mark"}}, "<__media__> 0 times, for 1 pictures"),
        ({"prompt": {**SHOWN, "multimodal_data": [CLOCK_BASE64] * 2}}, "<__media__> 1 times, for 2 pictures"),
        ({"prompt": {**SHOWN, "multimodal_data": ["@@@"]}}, "prompt.0.multimodal_data.0: .*base64"),
        ({"prompt": "a", "n_indent": 4}, "n_indent is not supported"),
        ({"prompt": "a", "post_sampling_probs": True}, "post_sampling_probs is not supported"),
        ({"prompt": "a", "mirostat": 2}, "mirostat is not supported"),
        ({"prompt": ["a"] * 37}, "room for 36"),
    ],
)
def test_what_is_wrong_is_told(server: Server, body: dict[str, Any], words: str) -> None:
    status, _, data = server.request("POST", "/completion", body)
    assert status == 400, data
    error = json.loads(data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(words, error["message"])


def test_fields_without_an_effect_are_taken(server: Server) -> None:
    fields = {"id_slot": 0, "n_keep": 5, "n_probs": 0, "samplers": [], "n_indent": 0}
    assert (
        complete(server, PROMPT, n_predict=5, **fields)["content"]
        == complete(server, PROMPT, n_predict=5)["content"]
    )


def test_a_prompt_is_computed_anew_on_request(server: Server) -> None:
    complete(server, SHOWN)  # a slot holds it
    for fields, held in (({}, True), ({"cache_prompt": False}, False), ({"cache_prompt": True}, True)):
        answer = complete(server, SHOWN, **fields)
        assert answer["content"].strip() == CLOCK.answer
        assert (answer["tokens_cached"] > 576) == held
        assert answer["tokens_cached"] == 0 or held
    answers = complete(server, SHOWN, n_cmpl=2, cache_prompt=False)
    assert [answer["tokens_cached"] for answer in answers] == [0, 0]

    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]
    server.chat(messages)
    for fields, held in (({}, True), ({"cache_prompt": False}, False)):
        cached = server.chat(messages, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached > 576, cached > 0) == (held, held)


def test_what_a_client_looks_for_before_it_sends_pictures(server: Server) -> None:
    listed = json.loads(server.request("GET", "/v1/models")[2])
    (model,), (meta,) = listed["models"], [one["meta"] for one in listed["data"]]
    assert model["capabilities"] == ["completion", "multimodal"]
    assert (meta["n_ctx"], meta["n_embd"]) == (2048, model["details"]["embedding_length"])
    assert meta["n_ctx_train"] >= 2048
    assert meta["n_params"] > 10**7
    props = json.loads(server.request("GET", "/props")[2])
    assert props["media_marker"] == "<__media__>"
    assert props["default_generation_settings"]["params"]["typical_p"] == 1.0


def test_a_model_without_an_encoder_takes_no_pictures() -> None:
    facts = model_facts(bundled_model())
    pool = SimpleNamespace(name="clock", sees=False)
    model = listed_model(pool, facts)  # type: ignore[arg-type]
    assert model["capabilities"] == ["completion"]
    assert model["details"]["families"] == [facts.family]
    assert facts.vision_metadata is None


def test_a_context_that_is_full_and_slots_that_are_taken() -> None:
    with serving("--n-ctx", "256", "--slots", "1") as server:
        full = complete(server, "a", ignore_eos=True, grammar='root ::= "a" root')
        assert (full["stop_type"], full["truncated"]) == ("limit", True)
        assert full["tokens_evaluated"] + full["tokens_predicted"] >= 256
        connection = send(server, endless(stream=True))
        wait_for(lambda: health(server)["active"] == 1)
        assert server.request("GET", "/slots?fail_on_no_slot=1")[0] == 503
        assert server.request("GET", "/slots?fail_on_no_slot=0")[0] == 200
        connection.close()
        wait_for(lambda: health(server)["active"] == 0)
        assert server.request("GET", "/slots?fail_on_no_slot=1")[0] == 200


@pytest.mark.parametrize("path", ["/v1/health", "/livez", "/readyz", "/ping/", "//health/ready"])
def test_health_has_the_addresses_that_are_asked_for(path: str) -> None:
    assert address(path) == "/health"

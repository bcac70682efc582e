"""``create_chat_completion`` takes what llama-cpp-python's takes: each argument is honoured, or refused by its name."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pyfastv import OptionError, Runner, types

MESSAGES = [{"role": "user", "content": "Q"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {}}}


def arguments() -> dict[str, Any]:
    """With their defaults. From the source: importing it would load its libraries."""
    found = find_spec("llama_cpp")
    if found is None or found.origin is None:
        pytest.skip("llama-cpp-python is not installed")
    source = ast.parse((Path(found.origin).parent / "llama.py").read_text("utf-8"))
    (method,) = [
        node
        for node in ast.walk(source)
        if isinstance(node, ast.FunctionDef) and node.name == "create_chat_completion"
    ]
    names = [argument.arg for argument in method.args.args][2:]  # behind self and messages
    return dict(zip(names, map(ast.literal_eval, method.args.defaults), strict=True))


def started(runner: Runner) -> dict[str, Any]:
    """Keywords of the last start of a fake engine."""
    engine: Any = runner._engine
    return [call for name, call in engine.calls if name == "start"][-1]


def sampled(name: str, value: Any, seen: Any = None) -> tuple[Any, Callable[[Any, Runner], bool]]:
    """``seen``: by the engine, if it is not the value."""
    return value, lambda made, runner: started(runner)[name] == (value if seen is None else seen)


class OtherGrammar:
    """As llama-cpp-python's LlamaGrammar is."""

    _grammar = 'root ::= "a"'


# a value, and whether it was honoured
HONOURED: dict[str, tuple[Any, Callable[[Any, Runner], bool]]] = {
    **{name: sampled(name, 0.5) for name in ("temperature", "top_p", "min_p", "typical_p")},
    **{name: sampled(name, 1.5) for name in ("presence_penalty", "frequency_penalty", "repeat_penalty")},
    **{name: sampled(name, 3) for name in ("top_k", "seed", "max_tokens")},
    "logit_bias": sampled("logit_bias", {5: 1.5}, [(5, 1.5)]),
    "grammar": sampled("grammar", OtherGrammar(), OtherGrammar._grammar),
    "stop": (["."], lambda made, _: made["choices"][0]["message"]["content"] == "It is 9:10"),
    "stream": (True, lambda made, _: [*made][-1]["object"] == "chat.completion.chunk"),
    "model": ("mine", lambda made, _: made["model"] == "mine"),
    "response_format": (
        {"type": "json_object"},
        lambda made, runner: "root ::=" in started(runner)["grammar"],
    ),
    "logprobs": (True, lambda made, _: len(made["choices"][0]["logprobs"]["content"]) == 4),
    "tools": ([TOOL], lambda made, runner: "look" in started(runner)["grammar"]),
}
REFUSED: dict[str, Any] = {
    "functions": [TOOL["function"]],
    "function_call": {"name": "look_up"},
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "tfs_z": 0.5,
    "mirostat_mode": 2,
    "logits_processor": [print],
    "top_logprobs": 2,  # without logprobs
}
UNUSED = {"mirostat_tau": 3.0, "mirostat_eta": 0.5}  # as there, where mirostat_mode is 0


def test_every_argument_is_honoured_or_refused() -> None:
    assert {*HONOURED, *REFUSED, *UNUSED} == arguments().keys()


def test_all_of_its_defaults_are_taken(fake_runner: Runner) -> None:
    plain = fake_runner.create_chat_completion(MESSAGES, temperature=0.2)
    before = started(fake_runner)
    made = fake_runner.create_chat_completion(MESSAGES, **arguments())
    assert made["choices"] == plain["choices"]
    assert started(fake_runner) == before


@pytest.mark.parametrize("name", HONOURED)
def test_an_argument_is_honoured(fake_runner: Runner, name: str) -> None:
    value, is_honoured = HONOURED[name]
    assert is_honoured(fake_runner.create_chat_completion(MESSAGES, **{name: value}), fake_runner)


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_is_refused_by_its_name(fake_runner: Runner, name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name}"):
        fake_runner.create_chat_completion(MESSAGES, **{name: REFUSED[name]})


def test_numbers_of_mirostat_change_nothing_without_it(fake_runner: Runner) -> None:
    fake_runner.create_chat_completion(MESSAGES)
    before = started(fake_runner)
    fake_runner.create_chat_completion(MESSAGES, mirostat_mode=0, **UNUSED)
    assert started(fake_runner) == before


@pytest.mark.parametrize(
    ("given", "as_without"),
    [
        ({"seed": -1}, {}),
        ({"temperature": None, "top_p": None, "top_k": None, "repeat_penalty": None}, {}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"max_tokens": -1, "logit_bias": None, "grammar": None}, {}),
    ],
)
def test_values_that_mean_nothing_there(
    fake_runner: Runner, given: dict[str, Any], as_without: dict[str, Any]
) -> None:
    fake_runner.create_chat_completion(MESSAGES, **as_without)
    before = started(fake_runner)
    fake_runner.create_chat_completion(MESSAGES, **given)
    assert started(fake_runner) == before


def test_they_are_of_this_method_alone(fake_runner: Runner) -> None:
    with pytest.raises(TypeError, match="mirostat_mode"):
        fake_runner.ask("Q", mirostat_mode=0)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="top_k"):
        fake_runner.ask("Q", top_k=-1)


def test_completions_have_the_keys_of_their_types(fake_runner: Runner) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 1}

    def keys(value: Any, of: Any) -> None:
        assert value.keys() == of.__annotations__.keys()

    made = fake_runner.create_chat_completion(MESSAGES, **asked)
    keys(made, types.ChatCompletion)
    keys(made["usage"], types.Usage)
    (choice,) = made["choices"]
    keys(choice, types.Choice)
    keys(choice["message"], types.ResponseMessage)
    keys(choice["logprobs"], types.ChoiceLogprobs)
    keys(choice["logprobs"]["content"][0], types.TokenLogprob)  # type: ignore[index]

    first, *_, last = fake_runner.create_chat_completion(MESSAGES, stream=True)
    keys(last, types.ChatCompletionChunk)
    assert first.keys() == types.ChatCompletionChunk.__required_keys__
    keys(first["choices"][0], types.ChunkChoice)
    assert first["choices"][0]["delta"].keys() <= types.Delta.__annotations__.keys()

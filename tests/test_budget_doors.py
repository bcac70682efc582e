"""Everything that takes a schedule takes a budget of visual tokens. The bundled model makes 576 of every picture: a
budget below is an error that has the number, wherever it was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyfastv import OptionError, Runner, types
from pyfastv.commands.main import main
from pyfastv.engine.job_pool import JobPool
from pyfastv.engine.sampling import Sampling
from pyfastv.inputs.budget import Budget
from pyfastv.inputs.chat import user_message
from pyfastv.models import bundled_examples

from serving import CHAT, Server, data_uri, question
from test_llama_cpp_handler import script

CLOCK = bundled_examples()[0]
TOLD = r"at most 100 tokens.*336 x 336.*at least 576"
OPTIONS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1}
MESSAGES = [user_message(CLOCK.question, [CLOCK.picture])]


def of_a_runner(_: Runner) -> None:
    with Runner(image_tokens=100, **OPTIONS) as runner:
        runner.ask(CLOCK.picture, CLOCK.question)


def of_a_request(runner: Runner) -> None:
    runner.ask(CLOCK.picture, CLOCK.question, image_tokens=100)


def of_a_stream(runner: Runner) -> None:
    runner.stream(CLOCK.picture, CLOCK.question, image_tokens="1-100")


def of_a_session(runner: Runner) -> None:
    with runner.session(image_tokens=(1, 100)) as session:
        session.ask(CLOCK.picture, CLOCK.question)


def of_a_chat_completion(runner: Runner) -> None:
    runner.create_chat_completion(MESSAGES, image_tokens=100)


def of_a_pool(_: Runner) -> None:
    with JobPool(slots=1, image_tokens=100, **OPTIONS) as pool:
        pool.submit(MESSAGES, Sampling())


def of_a_job(_: Runner) -> None:
    with JobPool(slots=1, **OPTIONS) as pool:
        pool.submit(MESSAGES, Sampling(), budget=Budget.of(100))


@pytest.mark.parametrize(
    "door",
    [of_a_runner, of_a_request, of_a_stream, of_a_session, of_a_chat_completion, of_a_pool, of_a_job],
)
def test_a_budget_comes_to_the_model(door: Callable[[Runner], None], runner: Runner) -> None:
    with pytest.raises(OptionError, match=TOLD):
        door(runner)


def test_a_budget_comes_to_the_model_from_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["ask", str(CLOCK.picture), CLOCK.question, "-c", "1024", "-n", "1", "--json"]
    assert main([*arguments, "--image-tokens", "100"]) != 0
    assert "at least 576" in capfd.readouterr().err
    assert main([*arguments, "--image-tokens", "100-600"]) == 0
    (seen,) = json.loads(capfd.readouterr().out)["report"]["pictures"]
    expected = {"size": [336, 336], "scaled": [336, 336], "tiles": 1, "tile": [336, 336], "tokens": 576}
    assert seen == expected


def test_a_wrong_budget_is_told_before_a_model_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "many", "9-3", "-4"):
        assert (
            main(["ask", str(CLOCK.picture), "What?", "-m", "nowhere.gguf", f"--image-tokens={wrong}"]) == 2
        )
        assert "image_tokens" in capfd.readouterr().err.replace("--image-tokens'", "")


@pytest.mark.parametrize(
    "fields", [{"image_tokens": 100}, {"image_tokens": [1, 100]}, {"image_max_tokens": 100}]
)
def test_a_budget_comes_to_the_model_from_a_client(server: Server, fields: dict[str, Any]) -> None:
    shown = question(CLOCK.question, data_uri(CLOCK.picture))
    asked = {"messages": [shown], "max_tokens": 1, **fields}
    status, _, data = server.request("POST", CHAT, asked)
    assert (status, "at least 576" in json.loads(data)["error"]["message"]) == (400, True)
    ollama = {
        "messages": [{"role": "user", "content": "Read.", "images": [data_uri(CLOCK.picture)]}],
        "options": {"num_predict": 1, **fields},
    }
    status, _, data = server.request("POST", "/api/chat", {**ollama, "stream": False})
    assert (status, b"at least 576" in data) == (400, True)


def test_two_names_for_one_budget_are_refused(server: Server) -> None:
    asked = {"messages": [question("Hello")], "image_tokens": 600, "image_max_tokens": 600}
    status, _, data = server.request("POST", CHAT, asked)
    assert (status, json.loads(data)["error"]["param"]) == (400, "image_max_tokens")


@pytest.mark.parametrize("wrong", [0, -1, True, "many", [1], [5, 4], [1, 2, 3], 10**30, 1.5, {}])
def test_what_is_no_budget_is_refused_by_the_server(server: Server, wrong: Any) -> None:
    for name in ("image_tokens", "image_min_tokens", "image_max_tokens"):
        asked = {"messages": [question("Hello")], "max_tokens": 1, name: wrong}
        status, _, data = server.request("POST", CHAT, asked)
        assert (status, name.split("_")[0] in json.loads(data)["error"]["message"]) == (400, True), data


def test_usage_tells_what_was_encoded_in_every_protocol(server: Server) -> None:
    expected = {"size": [336, 336], "scaled": [336, 336], "tiles": 1, "tile": [336, 336], "tokens": 576}
    # the model cannot have as few as "low" asks for
    shown = question(CLOCK.question, data_uri(CLOCK.picture))
    shown["content"][0]["image_url"]["detail"] = "low"
    usage = server.chat([shown], max_tokens=1)["usage"]
    assert usage["visual_pictures"] == [expected]
    assert "visual_pictures" not in server.chat([question("Hello")], max_tokens=1)["usage"]
    image = {"type": "input_image", "image_url": data_uri(CLOCK.picture), "detail": "low"}
    asked = {"input": [{"role": "user", "content": [image]}], "max_output_tokens": 16}
    status, _, data = server.request("POST", "/v1/responses", asked)
    assert (status, json.loads(data)["usage"]["visual_pictures"]) == (200, [expected])


def test_a_budget_comes_to_the_model_in_llama_cpp_python(tmp_path: Path) -> None:
    made = script(
        tmp_path,
        """
llm = load(image_tokens=100)
try:
    ask(llm, user("Read the clock.", CLOCK), max_tokens=1)
except Exception as error:
    made["error"] = str(error)
llm = load(image_tokens=600)
ask(llm, user("Read the clock.", CLOCK), max_tokens=1)
made["pictures"] = [str(picture) for picture in llm.chat_handler.report.pictures]
""",
    )
    assert "at least 576" in made["error"]
    assert made["pictures"] == ["336 x 336, encoded as 336 x 336, 576 tokens"]


def test_a_budget_comes_to_the_model_from_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = pytest.importorskip("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    from pyfastv.llm_plugin import PyfastvModel

    model = PyfastvModel("pyfastv")
    shown = [llm.Attachment(path=str(CLOCK.picture))]
    with pytest.raises(OptionError, match=TOLD):
        model.prompt(CLOCK.question, attachments=shown, image_tokens=100, n_ctx=1024).text()
    with pytest.raises(ValueError, match="image_tokens"):
        model.prompt(CLOCK.question, attachments=shown, image_tokens="0")


def test_a_saved_conversation_keeps_its_budget(runner: Runner, tmp_path: Path) -> None:
    with runner.session(image_tokens=(64, 600)) as session:
        session.ask(CLOCK.picture, CLOCK.question, max_tokens=1)
        session.save(tmp_path / "a.session")
    with runner.session(restore=tmp_path / "a.session") as session:
        assert Budget.of_options(session._options, Budget()) == Budget(64, 600, False)
        assert session.ask("Is it?", max_tokens=1).report.cached_tokens > 576


def test_public_picture_details_are_typed() -> None:
    assert types.ImageUrl.__optional_keys__ == {"detail"}

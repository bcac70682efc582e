"""The plugin, through llm's own command line and its Python API."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import llm
import pytest
from click.testing import CliRunner, Result
from llm.cli import cli
from llm.plugins import pm

import pyfastv
from pyfastv import Recommended, llm_plugin
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model

ROOT = Path(__file__).parents[1]
CLOCK, DICE = bundled_examples()[0], next(e for e in bundled_examples() if e.picture.stem == "dice")

Llm = Callable[..., Result]
Logged = Callable[[], dict[str, object]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """llm's folder, with the plugin registered as its entry point does where pyfastv is installed."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    registered = pm.get_plugin("pyfastv") or pm.register(llm_plugin, "pyfastv")
    yield tmp_path
    if registered == "pyfastv":
        pm.unregister(name="pyfastv")


@pytest.fixture
def run(folder: Path) -> Llm:
    def call(*arguments: object, input: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=input)

    return call


@pytest.fixture
def logged(run: Llm) -> Logged:
    """The report of the last answer, from llm's log."""

    def read() -> dict[str, object]:
        logs = json.loads(run("logs", "-n", "1", "--json").stdout)
        found = logs[0]["response_json"]
        report: dict[str, object] = (json.loads(found) if isinstance(found, str) else found)["pyfastv"]
        return report

    return read


def test_the_entry_point_names_the_plugin() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '[project.entry-points.llm]\npyfastv = "pyfastv.llm_plugin"\n' in text
    assert EntryPoint("pyfastv", "pyfastv.llm_plugin", "llm").load() is llm_plugin


def test_models_lists_it_with_its_options(run: Llm) -> None:
    assert "pyfastv: pyfastv" in run("models").output.splitlines()
    shown = run("models", "--options", "-m", "pyfastv").output
    for name in ("max_tokens", "temperature", "fastv", "mmproj", "n_ctx", "threads"):
        assert f"{name}: " in shown
    assert "image/png" in shown


@pytest.mark.parametrize("stream", [[], ["--no-stream"]])
def test_a_question_about_a_picture(run: Llm, logged: Logged, stream: list[str]) -> None:
    done = run("-m", "pyfastv", "-a", CLOCK.picture, CLOCK.question, *stream)
    assert (done.exit_code, done.stdout.strip()) == (0, CLOCK.answer)
    report = logged()
    assert (report["visual_tokens"], report["visual_tokens_kept"]) == (576, 288)


def test_options_reach_the_runner(run: Llm, logged: Logged) -> None:
    options = ["-o", "fastv", "fastv,k=4,drop=0.75", "-o", "max_tokens", "2", "-o", "n_ctx", "1024"]
    done = run("-m", "pyfastv", "-a", CLOCK.picture, CLOCK.question, *options)
    assert CLOCK.answer.startswith(done.stdout.strip())
    report = logged()
    assert (report["fastv"], report["visual_tokens_kept"], report["generated_tokens"]) == (
        "fastv,k=4,drop=0.75",
        144,
        2,
    )
    run("-m", "pyfastv", "-a", CLOCK.picture, CLOCK.question, "-o", "fastv", "off")
    assert logged()["visual_tokens_kept"] == 576
    cheaper = ["-o", "turbo", "share=0.25", "-o", "reduce", "stride,keep=200"]
    run("-m", "pyfastv", "-a", CLOCK.picture, CLOCK.question, *cheaper)
    report = logged()
    assert (report["patches"], report["encoded_tokens"], report["visual_tokens"]) == (576, 432, 200)


def test_a_conversation_goes_on(run: Llm, logged: Logged) -> None:
    run("-m", "pyfastv", "-a", CLOCK.picture, CLOCK.question)
    done = run("-c", "Is the clock digital or analog?")
    with pyfastv.Runner() as runner, runner.session() as session:
        session.ask(CLOCK.question, CLOCK.picture)
        expected = session.ask("Is the clock digital or analog?").text
    assert done.stdout.strip() == expected
    assert logged()["visual_tokens"] == 576


def test_several_attachments_as_files_bytes_and_addresses(
    run: Llm, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from a pipe, and in Python; llm fetches what is an address."""
    question = "What color are the dice?"
    done = run("-m", "pyfastv", "-a", "-", "-a", CLOCK.picture, question, input=DICE.picture.read_bytes())
    assert done.exit_code == 0, done.output
    assert logged()["visual_tokens"] == 1152

    model = llm.get_model("pyfastv")
    given = [
        llm.Attachment(path=str(DICE.picture)),
        llm.Attachment(content=DICE.picture.read_bytes()),
        llm.Attachment(url="https://example.org/dice.png", type="image/png"),
    ]
    monkeypatch.setattr(
        llm.Attachment, "content_bytes", lambda self: self.content or DICE.picture.read_bytes()
    )
    answers = {model.prompt(question, attachments=[attachment]).text() for attachment in given}
    assert len(answers) == 1


def test_a_prompt_of_python_keeps_its_model_loaded(folder: Path) -> None:
    model = llm.get_model("pyfastv")
    conversation = model.conversation()
    first = conversation.prompt(CLOCK.question, attachments=[llm.Attachment(path=str(CLOCK.picture))])
    assert first.text() == CLOCK.answer
    second = conversation.prompt("Is the clock digital or analog?")
    second.text()
    report = second.response_json["pyfastv"]
    assert report["cached_tokens"] > 576  # the picture is not evaluated again
    assert second.input_tokens == report["prompt_tokens"]


def test_more_models_by_a_file(
    run: Llm, logged: Logged, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair = tmp_path_factory.mktemp("pair")
    shutil.copy(bundled_model(), pair / "m.gguf")
    shutil.copy(bundled_mmproj(), pair / "mmproj-m.gguf")
    (folder / "pyfastv.yaml").write_text(
        f"- model_id: mine\n  model: {pair / 'm.gguf'}\n  fastv: k=2,drop=0.75\n  reduce: stride,keep=0.5\n"
        "  n_ctx: 1024\n  aliases: [my]\n"
    )
    assert "pyfastv: mine (aliases: my)" in run("models").output.splitlines()
    done = run("-m", "my", "-a", CLOCK.picture, CLOCK.question)
    assert done.exit_code == 0, done.output
    report = logged()
    assert (report["fastv"], report["visual_tokens_kept"]) == (Recommended(2, 0.75).spec(), 72)


def test_threads_are_the_option_s_or_the_file_s(
    run: Llm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def record(*files: Any, **options: Any) -> None:
        made.append(options["n_threads"])
        raise pyfastv.ModelError("that is enough")

    monkeypatch.setattr(llm_plugin, "Runner", record)
    (folder / "pyfastv.yaml").write_text("- {model_id: mine, model: m.gguf, mmproj: p.gguf, threads: 3}\n")
    for arguments in (
        ["-m", "mine", "Q?"],
        ["-m", "mine", "Q?", "-o", "threads", "2"],
        ["-m", "pyfastv", "Q?"],
    ):
        run(*arguments)
    assert made == [3, 2, None]
    (folder / "pyfastv.yaml").write_text("- {model_id: mine, model: m.gguf, threads: many}\n")
    assert "threads must be a number" in run("models").output


def test_names_of_the_commands_are_models_here_too(
    run: Llm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pyfastv").mkdir()
    (folder / "pyfastv" / "models.yaml").write_text(
        "- {model_id: shared, model: s.gguf, mmproj: p.gguf, aliases: [s], n_ctx: 512}\n"
        "- {model_id: mine, model: not-this.gguf}\n"
    )
    (folder / "pyfastv.yaml").write_text("- {model_id: mine, model: m.gguf, mmproj: p.gguf}\n")
    listed = run("models").output.splitlines()
    assert "pyfastv: shared (aliases: s)" in listed
    assert listed.count("pyfastv: mine") == 1
    made = []

    def record(model: str, mmproj: str, **options: Any) -> None:
        made.append((Path(model).name, Path(mmproj).name, options["n_ctx"]))
        raise pyfastv.ModelError("that is enough")

    monkeypatch.setattr(llm_plugin, "Runner", record)
    run("-m", "s", "Q?")
    run("-m", "mine", "Q?")
    run("-m", "pyfastv", "Q?", "-o", "model", "shared")
    monkeypatch.setenv("PYFASTV_MODEL", "shared")
    run("-m", "pyfastv", "Q?", "-o", "n_ctx", "256")
    assert made == [
        ("s.gguf", "p.gguf", 512),
        ("m.gguf", "p.gguf", None),
        ("s.gguf", "p.gguf", 512),
        ("s.gguf", "p.gguf", 256),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "while parsing"),
        ("model_id: x", "must be a list"),
        ("- model_id: x", "needs model_id and model"),
        ("- {model_id: x, model: y, speed: 11}", "speed is none of"),
        ("- {model_id: x, model: y, fastv: k=two}", "k=two"),
        ("- {model_id: x, model: y, turbo: share=3}", "share"),
        ("- {model_id: x, model: 7}", "must be text"),
        ("- {model_id: x, model: y, n_ctx: many}", "n_ctx must be a number"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(run: Llm, folder: Path, text: str, words: str) -> None:
    (folder / "pyfastv.yaml").write_text(text)
    done = run("models")
    assert done.exit_code == 1
    assert words in done.output
    assert "pyfastv.yaml" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "fastv", "k=2,drop=2"], "0 <= drop <= 1"),
        (["-o", "temperature", "-1"], "temperature must be"),
        (["-o", "max_tokens", "-2"], "max_tokens"),
        (["-o", "model", "nowhere.gguf"], "nowhere.gguf"),
        (["-a", str(ROOT / "pyproject.toml")], "does not support attachments"),
    ],
)
def test_what_is_wrong_is_told(run: Llm, arguments: list[str], words: str) -> None:
    done = run("-m", "pyfastv", *arguments, "What is it?")
    assert done.exit_code != 0
    assert words in done.output


def test_an_older_llm_is_told_of_only_when_it_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm.parts", None)
    model = llm.get_model("pyfastv")
    with pytest.raises(pyfastv.Error, match=r"needs llm 0\.36"):
        llm_plugin._messages(llm.Prompt("Hello", model))

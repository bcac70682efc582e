"""The command line: what goes to stdout and to stderr, and the exit status."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pyfastv
from pyfastv import FastV, PyramidDrop, Recommended, Schedule, _native
from pyfastv.commands import demo
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model, info, named

CLOCK = bundled_examples()[0]
PICTURE = str(CLOCK.picture)


# the real thing


def test_ask_prints_the_answer_and_on_request_reports_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    asked = ["ask", PICTURE, CLOCK.question]
    assert main([*asked, "--report"]) == 0
    printed = capfd.readouterr()
    assert printed.out == CLOCK.answer + "\n"
    assert f"576, 288 kept ({Recommended()})" in printed.err
    assert main([*asked, "-v"]) == 0
    printed = capfd.readouterr()
    assert printed.out == CLOCK.answer + "\n"
    assert printed.err.startswith("576 visual tokens, 288 kept; first token after ")
    assert printed.err.count("\n") == 1
    assert main(asked) == 0
    assert capfd.readouterr() == (CLOCK.answer + "\n", "")


def test_ask_json_prints_exactly_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", PICTURE, CLOCK.question, "--json", "--k", "4", "--drop", "0.25"]) == 0
    printed = capfd.readouterr()
    made = json.loads(printed.out)
    assert set(made) == {"model", "picture", "question", "answer", "finish_reason", "report"}
    assert made["model"] == "tiny-llava-Q4_K_M.gguf"
    assert (made["picture"], made["question"]) == (PICTURE, CLOCK.question)
    assert made["finish_reason"] == "stop"
    assert made["answer"] == CLOCK.answer
    assert made["report"]["fastv"] == Recommended(4, 0.25).spec()
    assert made["report"]["visual_tokens_kept"] == 432
    assert printed.err == ""


def test_demo_shows_the_counts_and_a_right_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    out = capfd.readouterr().out
    assert all(word in out for word in (CLOCK.question, CLOCK.answer, "576", "288", "yes", "ms"))
    assert "no " not in out


def test_info_tells_the_build(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capfd.readouterr().out
    assert pyfastv.__version__ in out
    assert _native.system_info().strip() in out
    assert f"kernels         {_native.kernels()['chosen'] or 'llama.cpp'}" in out
    assert main(["info", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert set(facts) == {
        "version",
        "build",
        "system_info",
        "backends",
        "kernels",
        "model",
        "vision",
        "encoder",
    }


def test_info_is_about_the_bundled_model_unless_told_otherwise(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["model"]["n_layer"], facts["vision"]["visual_tokens"]) == (12, 576)

    alone = tmp_path / "model.gguf"
    shutil.copy(bundled_model(), alone)
    assert main(["info", str(alone), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["vision"] is None

    shutil.copy(bundled_mmproj(), tmp_path / "mmproj-model.gguf")
    assert main(["info", str(alone)]) == 0
    assert "576 a picture" in capfd.readouterr().out


def test_info_tells_whether_a_model_can_be_pruned(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundled_model())]) == 0
    out = capfd.readouterr().out
    assert "possible, k = 1-11" in out
    assert "llama" in out
    assert main(["info", str(bundled_model()), "--json"]) == 0
    model = json.loads(capfd.readouterr().out)["model"]
    assert (model["n_layer"], model["unsupported_reason"]) == (12, None)
    assert model["cut_layers"] == list(range(1, 12))


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (range(1, 12), "1-11"),
        ([6, 12, 18], "6, 12, 18"),
        ([4, 5, 7, 8, 9], "4, 5, 7-9"),
        ([3], "3"),
        ([], ""),
    ],
)
def test_layers_are_told_compactly(layers: Sequence[int], text: str) -> None:
    assert info.compact(layers) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cut_layers": [6, 12]}, "possible, k = 6, 12"),
        ({"cut_layers": []}, "only by rules without attention"),
        ({"unsupported_reason": "it is recurrent", "cut_layers": []}, "not possible: it is recurrent"),
    ],
)
def test_info_tells_from_which_layer_or_why_not(changes: dict[str, Any], text: str) -> None:
    facts = info.gather(None, None)
    facts["model"] |= {"unsupported_reason": None, **changes}
    assert text in info.describe(facts)


def test_info_of_no_model_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    for path in (tmp_path / "text.gguf", tmp_path / "missing.gguf"):
        assert main(["info", str(path)]) == 1
        printed = capfd.readouterr()
        assert printed.out == ""
        assert path.name in printed.err
        assert printed.err.count("\n") == 1


def test_lib_path_is_the_folder_of_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lib-path"]) == 0
    folder = Path(capsys.readouterr().out.rstrip("\n"))
    assert folder == pyfastv.lib_path()
    assert list(folder.glob("libllama.*"))
    assert list(folder.glob("libmtmd.*"))


def test_ctrl_c_exits_with_130() -> None:
    # the package is found where this process found it; a parent may have made SIGINT ignored
    code = (
        f"import signal, sys; sys.path[:] = {sys.path!r}; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pyfastv.commands.main import main; sys.exit(main(sys.argv[1:]))"
    )
    endless = ["--temp", "9", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ask", PICTURE, "Describe the image.", *endless],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


# what is passed on


def test_options_reach_the_engine(fake_engine: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "--model": "model.gguf",
        "--mmproj": "mmproj.gguf",
        "--seed": "7",
        "--temp": "0.5",
        "--top-k": "5",
        "--top-p": "0.6",
        "--min-p": "0.1",
        "--max-tokens": "3",
        "--n-ctx": "1000",
        "--threads": "2",
        "--n-gpu-layers": "0",
        "--flash-attn": "off",
        "--system": "Be brief.",
    }
    arguments = [word for option in options.items() for word in option]
    assert main(["ask", PICTURE, PICTURE, "Q?", "--off", "--verbose", "--no-progress", *arguments]) == 0
    assert capsys.readouterr().out == "It is 9:10.\n"
    (engine,) = fake_engine
    loading = {
        "model_path": "model.gguf",
        "mmproj_path": "mmproj.gguf",
        "n_ctx": 1000,
        "n_threads": 2,
        "n_gpu_layers": 0,
        "flash_attn": "off",
        "verbose": True,
    }
    assert loading.items() <= engine.options.items()
    calls = dict(engine.calls)
    assert "set_fastv" not in calls
    assert len(calls["prefill"]["images"]) == 2
    assert calls["prefill"]["prompt"].startswith("Be brief. USER: ")
    sampling = {
        "seed": 7,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.6,
        "min_p": 0.1,
        "max_tokens": 3,
    }
    assert sampling.items() <= calls["start"].items()
    assert engine.closed


def test_a_model_by_its_hugging_face_name(
    fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def from_hub(name: str) -> tuple[Path, Path]:
        asked.append(name)
        return Path("a.gguf"), Path("mmproj-a.gguf")

    monkeypatch.setattr(named, "from_hub", from_hub)
    for option in ("-hf", "--hf-repo"):
        assert main(["ask", option, "owner/llava:Q8_0", PICTURE, "Q?"]) == 0
    assert asked == ["owner/llava:Q8_0"] * 2
    assert fake_engine[0].options["model_path"] == "a.gguf"
    assert fake_engine[0].options["mmproj_path"] == "mmproj-a.gguf"
    assert main(["ask", "-hf", "owner/llava", "--mmproj", "other.gguf", PICTURE, "Q?"]) == 0
    assert fake_engine[-1].options["mmproj_path"] == "other.gguf"


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ([], Recommended().spec()),
        (["--k", "4", "--drop", "0.75"], Recommended(4, 0.75).spec()),
        (["--k", "25%"], Recommended("25%").spec()),
        (["--score", "last", "--pick", "top-k", "--no-weigh"], FastV().spec()),
        (["--no-weigh"], "k=2,drop=0.5,score=question-max,pick=cover"),
        (["--recall", "0", "--cells", "auto"], f"{Recommended().spec()},recall=0,cells=auto"),
        (["--schedule", "k=4,drop=0.75"], Recommended(4, 0.75).spec()),
        (["--schedule", "fastv,k=4,drop=0.75"], FastV(4, 0.75).spec()),
        (["--schedule", "k=2,merge;k=6,drop=0.75,score=last"], "k=2,drop=0.5,merge;k=6,drop=0.75,score=last"),
        (["--schedule", "pyramiddrop", "--cells", "2048"], f"{PyramidDrop().spec()},cells=2048"),
        (["--schedule", "off"], None),
        (["--off"], None),
    ],
)
def test_the_schedule_asked_for(
    options: list[str], spec: str | None, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", PICTURE, "Q?", "--json", *options]) == 0
    assert dict(fake_engine[0].calls).get("set_fastv") == spec
    assert json.loads(capsys.readouterr().out)["report"]["fastv"] == spec
    assert spec is None or Schedule.parse(spec).spec() == spec


# what is refused


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask"],
        ["ask", PICTURE],
        ["ask", PICTURE, "Q", "--drop", "half"],
        ["ask", PICTURE, "Q", "--flash-attn", "maybe"],
        ["ask", PICTURE, "Q", "--nothing"],
        ["ask", PICTURE, "Q", "--off", "--k", "2"],
        ["ask", PICTURE, "Q", "--schedule", "off", "--k", "2"],
        ["ask", PICTURE, "Q", "--schedule", "vtw", "--off"],
        ["chat", "--nothing"],
        ["ask", PICTURE, "Q", "--model", "a.gguf"],
        ["ask", PICTURE, "Q", "--model", "a.gguf", "-hf", "owner/llava"],
        ["nothing"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Usage: pyfastv" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "nothing.png", "Q"], "nothing.png: no such file"),
        (
            ["ask", PICTURE, "Q", "--k", "0"],
            "k, the layer of a cut, must be an integer, at least 1, or a share",
        ),
        (["ask", PICTURE, "Q", "--k", "two"], "got 'two'"),
        (["ask", PICTURE, "Q", "--drop", "1.5"], "drop = 1.5 is out of range: 0 <= drop <= 1"),
        (["ask", PICTURE, "Q", "--score", "best"], 'score = "best" is not understood; one of: last, '),
        (["ask", PICTURE, "Q", "--schedule", "best"], '"best" is no schedule'),
        (["ask", PICTURE, "Q", "--schedule", "k=2;speed=9"], '"speed=9" is none of k='),
        (["ask", PICTURE, "Q", "--cells", "many"], "cells"),
        (["chat", "nothing.png"], "nothing.png: no such file"),
        (["ask", PICTURE, "Q", "--drop", "nan"], "drop must be"),
        (["ask", PICTURE, "Q", "--temp", "-1"], "temperature must be"),
        (["ask", "http://example.org/a.png", "Q"], "not fetched"),
    ],
)
def test_errors_are_one_line_and_exit_with_1(
    arguments: list[str], words: str, fake_engine: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pyfastv: ")
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert all(engine.closed for engine in fake_engine)


def test_a_missing_model_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", PICTURE, "Q", "--model", "missing.gguf", "--mmproj", str(bundled_mmproj())]) == 1
    assert "missing.gguf" in capfd.readouterr().err


def test_a_wrong_answer_fails_the_demo(fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # the machine itself is right: the test above has asked
    monkeypatch.setattr(demo, "check_machine", lambda: SimpleNamespace(right=True))
    assert main(["demo"]) == 1  # the fake answers "It is 9:10. Yes."
    monkeypatch.setattr(demo, "same_answer", lambda given, expected: True)
    assert main(["demo"]) == 0


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("It is 9:10.", "it is 9:10", True),
        (" It  is 9:10", "It is 9:10.", True),
        ("It is 9:11.", "It is 9:10.", False),
        ("", "It is 9:10.", False),
    ],
)
def test_answers_are_compared_without_case_and_punctuation(given: str, expected: str, same: bool) -> None:
    assert demo.same_answer(given, expected) is same


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyfastv {pyfastv.__version__}\n"
    for command in ([], ["ask"], ["chat"], ["info"], ["demo"], ["lib-path"]):
        assert main([*command, "--help"]) == 0
        assert "Usage: pyfastv" in capsys.readouterr().out

"""Turbo's options in Python: values and text, requests, the report, the command line; and in unmodified programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyfastv
from pyfastv import OptionError, Turbo
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples

from test_environment import COMPARED, EXAMPLE, answer


@pytest.mark.parametrize(
    ("turbo", "spec"),
    [
        (Turbo(), "share=0.5,alpha=0.05"),
        (Turbo(share=0.25, alpha=0), "share=0.25,alpha=0"),
        (Turbo(r=16, alpha=0.3, layers=(2, 20)), "r=16,alpha=0.3,layers=2-20"),
        (Turbo(0.66, once=True, renumber=True), "share=0.66,alpha=0.05,once,renumber"),
        (Turbo(r=2, restore=True), "r=2,alpha=0.05,restore"),
        (Turbo(renumber=True, restore=False), "share=0.5,alpha=0.05,renumber,restore=off"),
    ],
)
def test_text_and_values_are_the_same(turbo: Turbo, spec: str) -> None:
    assert turbo.spec() == spec
    assert Turbo.parse(spec) == turbo
    assert Turbo.parse(f" {spec.replace(',', ' , ')} ") == turbo


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"share": 1.0}, "share = 1 is out of range; 0 < share < 1"),
        ({"share": 0}, "share = 0 is out of range; 0 < share < 1"),
        ({"share": "half"}, "share must be"),
        ({"share": 0.5, "r": 3}, "exclude each other"),
        ({"r": 0}, "r = 0 is out of range; r >= 1"),
        ({"alpha": -0.1}, "alpha = -0.1 is out of range; alpha >= 0"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"layers": (3, 2)}, "layers = 3-2 is out of range; 0 <= first <= last"),
        ({"layers": (-1, 2)}, "the first block"),
        ({"layers": "2-3"}, "layers must be"),
        ({"layers": (1, 2), "once": True}, "excludes layers"),
        ({"renumber": 1}, "renumber must be True or False"),
        ({"restore": 1}, "restore must be True, False or None; got 1"),
        (
            {"restore": True, "renumber": True},
            "restore gives every patch its token back, and excludes renumber",
        ),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], wrong: str) -> None:
    with pytest.raises(OptionError, match=wrong):
        Turbo(**values)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", '"" is none of'),
        ("speed=11", '"speed=11" is none of'),
        ("share", '"share" is none of'),
        ("once=1", '"once=1" is none of'),
        ("share=x", 'share = "x" is not understood; a number'),
        ("r=1.5", 'r = "1.5" is not understood; a number'),
        ("r=1_6", 'r = "1_6" is not understood; a number'),
        ("r=١٦", "is not understood; a number"),
        ("layers=2", 'layers = "2" is not understood; the first and the last block'),
        ("once,once", "given twice"),
        ("restore=1", 'restore = "1" is not understood; restore, or restore=off'),
        ("restore,restore=off", "given twice"),
    ],
)
def test_wrong_text_is_named(text: str, wrong: str) -> None:
    with pytest.raises(OptionError, match=wrong):
        Turbo.parse(text)


def test_anything_else_is_refused(fake_runner: pyfastv.Runner) -> None:
    with pytest.raises(OptionError, match="turbo must be a Turbo"):
        fake_runner.ask(None, "What?", turbo=0.5)  # type: ignore[arg-type]


def test_a_request_s_merging_is_its_own(fake_runner: pyfastv.Runner) -> None:
    engine = fake_runner._engine
    fake_runner.ask(None, "one", turbo="share=0.25")
    fake_runner.ask(None, "two", turbo=Turbo(share=0.25))
    fake_runner.ask(None, "three")
    fake_runner.set_turbo("r=9,alpha=0")
    fake_runner.ask(None, "four")
    fake_runner.ask(None, "five", turbo="off")
    calls = engine.calls  # type: ignore[attr-defined]
    assert [arguments["turbo"] for name, arguments in calls if name == "prefill"] == [
        "share=0.25,alpha=0.05",
        "share=0.25,alpha=0.05",
        "",
        "r=9,alpha=0",
        "",
    ]
    assert [call for call in calls if "turbo" in call[0]] == [("set_turbo", "r=9,alpha=0")]
    assert fake_runner.turbo == Turbo(r=9, alpha=0)


def test_refused_merging_leaves_the_runner_as_it_was(runner: pyfastv.Runner) -> None:
    example = bundled_examples()[-1]
    expected = runner.ask(example.picture, example.question).text
    with pytest.raises(OptionError, match="runs 7 blocks"):
        runner.ask(example.picture, example.question, turbo="layers=3-9")
    with pytest.raises(OptionError, match="runs 7 blocks"):
        runner.set_turbo("layers=3-9")
    answer = runner.ask(example.picture, example.question)
    assert (answer.text, answer.report.visual_tokens, runner.turbo) == (expected, 576, None)


def test_the_report_tells_what_was_merged(runner: pyfastv.Runner) -> None:
    example = bundled_examples()[-1]
    for fastv, kept in ((None, 288), ("fastv,k=2,drop=0.5", 144)):
        report = runner.ask(example.picture, "What?", turbo="share=0.5", fastv=fastv, max_tokens=1).report
        assert (report.patches, report.visual_tokens, report.visual_tokens_kept) == (576, 288, kept)
        assert "288 of 576" in str(report)
        assert report.to_dict()["patches"] == 576


def test_the_encoder_s_cache_knows_the_merging(runner: pyfastv.Runner) -> None:
    """And brings the places back: a picture from the cache is answered as the first time."""
    runner._engine.reset()
    picture, logits = bundled_examples()[0].picture, {}
    for turbo in ("share=0.5", "share=0.4", "share=0.5", "off"):
        runner.ask(bundled_examples()[-1].picture, "What?", turbo=turbo, max_tokens=1, fastv=None)
        made = runner.ask(picture, "What?", turbo=turbo, max_tokens=1, fastv=None)
        assert made.report.visual_tokens == {"share=0.5": 288, "share=0.4": 346, "off": 576}[turbo]
        if turbo in logits:
            assert made.report.pictures_from_cache == 1
            assert (runner._engine.logits() == logits[turbo]).all()
        logits[turbo] = runner._engine.logits()


def test_a_conversation_goes_on_behind_a_merged_picture(runner: pyfastv.Runner) -> None:
    """The positions behind the picture are those of all its patches."""
    example = bundled_examples()[-1]
    with runner.session(turbo="share=0.5") as session:
        first = session.ask(example.question, example.picture)
        second = session.ask(example.question)
    assert first.text == example.answer
    assert second.report.cached_tokens > 288
    assert second.text


def test_the_command_line_merges(capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(EXAMPLE.picture)
    assert main(["ask", picture, "What?", "--turbo", "share=0.25", "-n", "1", "--json", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["visual_tokens"] == 432
    assert main(["ask", picture, "What?", "--turbo", "share=2", "--no-progress"]) == 1
    assert "share = 2 is out of range; 0 < share < 1" in capsys.readouterr().err


def test_an_unmodified_program_merges(
    runner: pyfastv.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question, setting = "Describe the image.", "share=0.8,alpha=0,layers=0-1"
    expected = {
        turbo: runner.ask(EXAMPLE.picture, question, turbo=turbo, fastv=None, max_tokens=64).text[:COMPARED]
        for turbo in (setting, f"{setting},renumber", None)
    }
    assert len(set(expected.values())) == 3  # or nothing is shown
    for turbo in (setting, f"{setting},renumber"):
        monkeypatch.setenv("LLAMA_TURBO", turbo)
        assert answer(tmp_path, "llava15", None, question)[0][:COMPARED] == expected[turbo]


@pytest.mark.parametrize("setting", ["share=2", "layers=0-99", "speed=11"])
def test_a_malformed_setting_is_one_line_and_no_merging(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    """One line in a process, however many contexts it makes."""
    monkeypatch.setenv("LLAMA_TURBO", setting)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    program = (
        "from c_api import Model; from vision_api import Encoder; from pyfastv.models import bundled_mmproj\n"
        "import numpy as np; model = Model()\n"
        "for encoder in [Encoder(model, bundled_mmproj()) for _ in range(2)]:\n"
        "    print(encoder.encode(np.zeros((336, 336, 3), np.uint8)).n_tokens)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = [line for line in done.stderr.splitlines() if "LLAMA_TURBO" in line]
    assert len(lines) == 1
    assert f"LLAMA_TURBO={setting}: nothing is merged: " in lines[0]
    assert done.stdout.split() == ["576", "576"]

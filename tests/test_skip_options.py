"""What is not encoded, by all doors: the bundled model counts the units that a coder of pictures leaves."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyfastv
from pyfastv import Skip
from pyfastv.commands.main import main
from pyfastv.engine.job_pool import JobPool
from pyfastv.engine.sampling import Sampling
from pyfastv.inputs.chat import user_message
from pyfastv.models import bundled_examples
from pyfastv.settings.profile import Profile, model_identity
from pyfastv.settings.setting import Setting, SettingOptions
from pyfastv.show import trace

from serving import Server
from test_environment import COMPARED, EXAMPLE, answer
from test_skip import kept_of

CHART = bundled_examples()[1]
TAU = "tau=4"
PATCHES = 576


@pytest.fixture(scope="module")
def kept(runner: pyfastv.Runner) -> list[int]:
    [pixels] = runner._engine.pixels(pyfastv.load_image(CHART.picture))
    found = kept_of(pixels, 14, 4)
    assert 0 < len(found) < 0.9 * PATCHES  # or nothing is shown
    return found


def asked(runner: pyfastv.Runner, **options: Any) -> pyfastv.Report:
    return runner.ask(CHART.picture, "What?", max_tokens=1, **{"fastv": None, **options}).report


def test_a_request_and_a_conversation(runner: pyfastv.Runner, kept: list[int]) -> None:
    report = asked(runner, skip=TAU)
    assert (report.patches, report.skipped_tokens) == (PATCHES, PATCHES - len(kept))
    assert (report.encoded_tokens, report.visual_tokens) == (len(kept), len(kept))
    assert runner._engine.places().tolist() == kept
    assert report.skip == Skip(4)
    assert report.to_dict()["skip"] == TAU
    assert f"{len(kept)} of {PATCHES}" in str(report)
    assert asked(runner).skipped_tokens == 0
    with runner.session(skip=Skip(4), fastv="k=2,drop=0.5") as session:
        first = session.ask(CHART.picture, CHART.question, max_tokens=2).report
        second = session.ask(CHART.question, max_tokens=2).report
    assert first.visual_tokens == len(kept)
    assert first.visual_tokens_kept == round(len(kept) / 2)
    assert second.cached_tokens > len(kept)


def test_a_chat_completion_and_what_is_shown(runner: pyfastv.Runner, kept: list[int]) -> None:
    messages = [user_message("What?", [CHART.picture])]
    completion = runner.create_chat_completion(messages, max_tokens=1, skip=TAU)
    assert completion["pyfastv"]["skipped_tokens"] == PATCHES - len(kept)
    shown = trace(runner, CHART.picture, ["What?"], {"rule": f"skip:{TAU} + k=2,drop=0.5"}, {"max_tokens": 1})
    assert shown.rules[0].places.tolist() == kept
    assert len(shown.canvas.boxes) == PATCHES


def test_a_runner_its_setter_and_a_pool(kept: list[int]) -> None:
    with pyfastv.Runner(n_ctx=1024, n_threads=1, fastv=None, skip=TAU) as runner:
        assert runner.skip == Skip(4)
        report = runner.ask(CHART.picture, "What?", max_tokens=1).report
        assert report.visual_tokens == len(kept)
        runner.set_skip(None)
        assert runner.ask(CHART.picture, "What?", max_tokens=1).report.visual_tokens == PATCHES
    with JobPool(slots=1, n_ctx=1024, n_threads=1, skip=TAU) as pool:
        counts = []
        wanted: list[SettingOptions] = [{}, {"skip": None}, {"skip": "tau=255"}]
        for options in wanted:
            job = pool.submit([user_message("What?", [CHART.picture])], Sampling(max_tokens=1), **options)
            job.wait()
            counts.append(job.report.visual_tokens)
    assert counts == [len(kept), PATCHES, 1]


def test_the_server(server: Server, kept: list[int]) -> None:
    url = "data:image/png;base64," + base64.b64encode(CHART.picture.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    for skip, n in ((TAU, len(kept)), ("off", PATCHES), (False, PATCHES)):
        made = server.chat([{"role": "user", "content": content}], max_tokens=1, skip=skip)
        assert made["usage"]["visual_tokens"] == n
        assert made["usage"]["visual_patches"] == PATCHES


def test_the_command_line(capsys: pytest.CaptureFixture[str], kept: list[int]) -> None:
    ask = ["ask", str(CHART.picture), "What?", "-n", "1", "--no-progress", "--skip"]
    assert main([*ask, TAU, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["skipped_tokens"] == PATCHES - len(kept)
    assert main([*ask, "tau=-1"]) == 1
    assert "tau = -1 is out of range; 0 <= tau <= 255" in capsys.readouterr().err
    assert main(["plan", "--settings", "skip"]) == 1
    assert "how much is left out depends on the picture" in capsys.readouterr().err


def test_turbo_merges_what_is_left(runner: pyfastv.Runner, kept: list[int]) -> None:
    report = asked(runner, skip=TAU, turbo="share=0.5")
    left = len(kept) - round(len(kept) / 2)
    assert (report.patches, report.skipped_tokens, report.visual_tokens) == (
        PATCHES,
        PATCHES - len(kept),
        left,
    )
    assert set(runner._engine.places().tolist()) < set(kept)


def test_an_unmodified_program_leaves_out(
    runner: pyfastv.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Describe the image."
    expected = {
        skip: runner.ask(EXAMPLE.picture, question, skip=skip, fastv=None, max_tokens=64).text[:COMPARED]
        for skip in ("tau=60", None)
    }
    assert len(set(expected.values())) == 2  # or nothing is shown
    monkeypatch.setenv("LLAMA_SKIP", "tau=60")
    assert answer(tmp_path, "llava15", None, question)[0][:COMPARED] == expected["tau=60"]


@pytest.mark.parametrize("setting", ["tau=256", "speed=11"])
def test_a_malformed_setting_is_one_line_and_nothing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    """One line in a process, however many contexts it makes."""
    monkeypatch.setenv("LLAMA_SKIP", setting)
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
    lines = [line for line in done.stderr.splitlines() if "LLAMA_SKIP" in line]
    assert len(lines) == 1
    assert f"LLAMA_SKIP={setting}: nothing is left out: " in lines[0]
    assert done.stdout.split() == ["576", "576"]


def test_the_runner_s_own_setting_is_in_force(monkeypatch: pytest.MonkeyPatch, kept: list[int]) -> None:
    """Whatever the environment says to programs that cannot be asked."""
    monkeypatch.setenv("LLAMA_SKIP", "tau=255")
    with pyfastv.Runner(n_ctx=1024, n_threads=1, fastv=None) as runner:
        assert asked(runner).visual_tokens == PATCHES
        assert asked(runner, skip=TAU).visual_tokens == len(kept)


def test_the_text_of_a_setting() -> None:
    assert Setting.parse("skip").skip == Skip()
    assert Setting.parse("skip:tau=8 + turbo:share=0.5 + k=2,drop=0.5").skip == Skip(8)
    whole = Setting.of(fastv="k=2,drop=0.5", reduce="pool,window=2", skip="tau=8")
    assert Setting.parse(whole.spec()) == whole
    assert Setting.parse("skip:off").is_off
    for text, wrong in (("skip + skip", "skip is given twice"), ("skip:tau=-1", "skip: tau = -1")):
        with pytest.raises(pyfastv.OptionError, match=wrong):
            Setting.parse(text)


def test_a_profile_keeps_it_and_older_readers_refuse_it(tmp_path: Path) -> None:
    profile = Profile(None, model_identity(), skip=Skip(8))
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json").setting == Setting(skip=Skip(8))
    assert json.loads((tmp_path / "profile.json").read_text())["version"] == 3

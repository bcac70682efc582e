"""Profiles: kept as they were written, refused for another model, and taken by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyfastv import DataError, OptionError, Profile, Recommended
from pyfastv.cli import main
from pyfastv.models import bundled_examples, bundled_model
from pyfastv.profile import model_identity

PICTURE, QUESTION, _ = bundled_examples()[0]


@pytest.fixture
def profile() -> Profile:
    return Profile(Recommended(4, 0.75), model_identity(), {"kl_target": 0.05})


def write(folder: Path, profile: Profile, **changed: Any) -> str:
    file = folder / "profile.json"
    file.write_text(json.dumps({**profile.to_dict(), **changed}))
    return str(file)


@pytest.mark.parametrize("schedule", [Recommended(4, 0.75), None])
def test_a_profile_is_read_as_it_was_written(tmp_path: Path, schedule: Recommended | None) -> None:
    profile = Profile(schedule, model_identity(), {"kl_target": 0.05, "tried": [{"setting": "a"}]})
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


def test_it_knows_its_model_in_any_quantization(profile: Profile) -> None:
    assert profile.model["architecture"] == "llama"
    profile.check()
    profile.check(bundled_model())
    Profile(None, {**profile.model, "description": "llama ?B F16", "n_params": 1}).check()


@pytest.mark.parametrize(("key", "value"), [("architecture", "qwen2vl"), ("n_layer", 32), ("n_embd", 4096)])
def test_another_model_is_refused_with_what_differs(profile: Profile, key: str, value: object) -> None:
    other = Profile(None, {**profile.model, key: value, "description": "another 7B"})
    with pytest.raises(OptionError, match=f"made for another 7B .*: {value}.*run pyfastv tune on it"):
        other.check()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "other"}, "is not a profile: pyfastv tune writes one"),
        ({"version": 2}, "is a profile of version 2, and 1 is known"),
        ({"model": {}}, "does not say which model"),
        ({"schedule": None}, "has no schedule"),
    ],
)
def test_what_is_no_profile_is_told(
    tmp_path: Path, profile: Profile, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Profile.load(write(tmp_path, profile, **changed))


def test_files_that_cannot_be_read_or_written_are_told(tmp_path: Path, profile: Profile) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Profile.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("k=2")
    with pytest.raises(DataError, match=r"text\.json: is not a profile"):
        Profile.load(tmp_path / "text.json")
    with pytest.raises(DataError, match="cannot be written"):
        profile.save(tmp_path / "none" / "profile.json")
    with pytest.raises(OptionError):
        Profile.load(write(tmp_path, profile, schedule="k=0"))


def test_commands_take_a_profile(
    tmp_path: Path, profile: Profile, fake_engine: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(PICTURE), QUESTION, "--profile", write(tmp_path, profile)]) == 0
    assert ("set_fastv", Recommended(4, 0.75).spec()) in fake_engine[-1].calls
    assert main(["ask", str(PICTURE), QUESTION, "--profile", write(tmp_path, profile), "--recall", "0"]) == 0
    assert ("set_fastv", Recommended(4, 0.75, recall=0).spec()) in fake_engine[-1].calls
    assert main(["ask", str(PICTURE), QUESTION, "--profile", write(tmp_path, profile, schedule="off")]) == 0
    assert "set_fastv" not in [name for name, _ in fake_engine[-1].calls]


def test_commands_refuse_a_profile_of_another_model_before_loading(
    tmp_path: Path, profile: Profile, fake_engine: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path, profile, model={**profile.model, "n_layer": 32})
    assert main(["ask", str(PICTURE), QUESTION, "--profile", other]) == 1
    assert "(layers: 32)" in capfd.readouterr().err
    assert fake_engine == []


@pytest.mark.parametrize("more", [["--k", "2"], ["--off"], ["--schedule", "fastv"]])
def test_a_profile_excludes_a_schedule(
    tmp_path: Path, profile: Profile, capfd: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert main(["ask", str(PICTURE), QUESTION, "--profile", write(tmp_path, profile), *more]) == 2
    assert f"--profile excludes {more[0]}" in capfd.readouterr().err

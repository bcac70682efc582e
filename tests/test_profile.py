"""Profiles: kept as they were written, refused for another model, and taken by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyfastv import DataError, DivPrune, OptionError, Profile, Recommended, Stride, Turbo, model_identity
from pyfastv.commands.main import main
from pyfastv.commands.options import to_setting
from pyfastv.commands.serve import serve
from pyfastv.models import bundled_examples, bundled_model
from pyfastv.settings.setting import Setting

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


@pytest.mark.parametrize(
    ("turbo", "reduce"),
    [(Turbo(share=0.25), None), (None, DivPrune(0.5)), (Turbo(r=9, layers=(0, 2)), DivPrune(288))],
)
@pytest.mark.parametrize("schedule", [Recommended(4, 0.75), None])
def test_what_readers_of_version_1_do_not_know_makes_it_version_2(
    tmp_path: Path, schedule: Recommended | None, turbo: Turbo | None, reduce: DivPrune | None
) -> None:
    """They refuse it, and would leave Turbo out silently if they did not."""
    profile = Profile(schedule, model_identity(), turbo=turbo, reduce=reduce)
    profile.save(tmp_path / "profile.json")
    assert json.loads((tmp_path / "profile.json").read_text())["version"] == 2
    assert Profile.load(tmp_path / "profile.json") == profile


def test_a_file_of_version_1_is_read(tmp_path: Path, profile: Profile) -> None:
    old = profile.to_dict()
    assert old["version"] == 1  # so that it is read by versions that know no other
    del old["turbo"], old["reduce"]
    (tmp_path / "profile.json").write_text(json.dumps(old))
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
        ({"version": 4}, "is a profile of version 4, and 1 to 3 are known"),
        ({"turbo": 0.5}, "turbo must be text or null; got 0.5"),
        ({"reduce": ["pool"]}, "reduce must be text or null; got"),
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
    with pytest.raises(OptionError, match="share = 2 is out of range"):
        Profile.load(write(tmp_path, profile, turbo="share=2"))
    with pytest.raises(OptionError, match="is no reducer"):
        Profile.load(write(tmp_path, profile, reduce="half"))


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


def test_a_profile_puts_turbo_and_reducer_in_force(
    tmp_path: Path, profile: Profile, capfd: pytest.CaptureFixture[str]
) -> None:
    """On the model: 432 of 576 tokens leave the encoder, half of them enter the language model, half are kept."""
    file = write(
        tmp_path, profile, version=2, schedule="k=2,drop=0.5", turbo="share=0.25", reduce="stride,keep=0.5"
    )
    assert main(["ask", str(PICTURE), QUESTION, "--profile", file, "--json", "-c", "1024", "-n", "1"]) == 0
    report = json.loads(capfd.readouterr().out)["report"]
    tokens = [report[name] for name in ("patches", "encoded_tokens", "visual_tokens", "visual_tokens_kept")]
    assert tokens == [576, 432, 216, 108]


def test_the_server_takes_what_the_profile_says(tmp_path: Path, profile: Profile) -> None:
    file = write(tmp_path, profile, version=2, turbo="share=0.25", reduce="stride,keep=0.5")
    with serve.make_context("serve", ["--profile", file, "--recall", "0"]) as context:
        assert to_setting(context.params) == Setting.of(
            Recommended(4, 0.75, recall=0), Turbo(share=0.25), Stride(0.5)
        )


def test_the_server_loads_its_model_with_the_turbo_of_the_profile(
    tmp_path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from pyfastv.engine import job_pool

    loaded: dict[str, Any] = {}

    def load(**options: Any) -> None:
        loaded.update(options)
        raise DataError("enough")

    monkeypatch.setattr(job_pool, "JobPool", load)
    file = write(tmp_path, profile, version=2, turbo="share=0.25")
    assert main(["serve", "--port", "0", "--no-progress", "--profile", file]) == 1
    assert "enough" in capfd.readouterr().err
    assert (loaded["fastv"], loaded["turbo"]) == (Recommended(4, 0.75), Turbo(share=0.25))


@pytest.mark.parametrize(
    "more",
    [
        ["--k", "2"],
        ["--off"],
        ["--schedule", "fastv"],
        ["--turbo", "off"],
        ["--reduce", "pool"],
        ["--reduce", "off"],
    ],
)
def test_a_profile_excludes_what_it_says(
    tmp_path: Path, profile: Profile, capfd: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert main(["ask", str(PICTURE), QUESTION, "--profile", write(tmp_path, profile), *more]) == 2
    assert f"--profile excludes {more[0]}" in capfd.readouterr().err

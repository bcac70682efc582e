"""Which files somebody means: names for models, PYFASTV_MODEL, and what is in the hub's cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from pyfastv import DataError, FastV, ModelError, Recommended
from pyfastv.commands.main import main
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model, named
from pyfastv.models.named import NamedModel, find_files, named_models, wanted

PICTURE = str(bundled_examples()[0].picture)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the user's file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.chdir(tmp_path)

    def call(text: str) -> Path:
        path = named.names_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return call


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "HfApi", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's, with one pair in it."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    repository = folder / "models--owner--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copy(bundled_model(), snapshot / "tiny-Q4_K_M.gguf")
    shutil.copy(bundled_mmproj(), snapshot / "mmproj-tiny-f16.gguf")
    return snapshot


TWO = """
- model_id: llava
  model: llava.gguf
  mmproj: ~/mmproj.gguf
  fastv: k=4,drop=0.75
  turbo: share=0.25
  n_ctx: 1000
  threads: 3
  aliases: [l, best]
- {model_id: small, hf: owner/tiny, fastv: off}
"""


# the file


def test_entries_of_the_file(write: Write) -> None:
    path = write(TWO)
    llava, small = named_models()
    assert llava == NamedModel(
        "llava",
        model=str(path.parent / "llava.gguf"),
        mmproj=str(Path("~/mmproj.gguf").expanduser()),
        fastv="k=4,drop=0.75",
        turbo="share=0.25",
        n_ctx=1000,
        threads=3,
        aliases=("l", "best"),
    )
    assert small == NamedModel("small", hf="owner/tiny", fastv="off")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "while parsing"),
        ("model_id: x", "must be a list"),
        ("- model_id: x", "needs model_id and model, or hf"),
        ("- {model_id: x, model: y, hf: a/b}", "needs model_id and model, or hf"),
        ("- {model_id: x, model: y, speed: 11}", "speed is none of"),
        ("- {model_id: x, hf: 7}", "must be text"),
        ("- {model_id: x, model: y, threads: many}", "threads must be a number"),
        ("- {model_id: x, model: y, aliases: z}", "aliases must be a list"),
        ("- {model_id: bundled, model: y}", "bundled is the name of"),
        ("- {model_id: x, model: y, reduce: half}", "is no reducer"),
    ],
)
def test_a_wrong_file_is_told_with_its_name(write: Write, text: str, words: str) -> None:
    path = write(text)
    with pytest.raises(DataError, match=words) as caught:
        named_models()
    assert str(caught.value).startswith(f"{path}: ")


# who is meant


def test_a_name_an_alias_or_a_file(write: Write, tmp_path: Path) -> None:
    write(TWO)
    assert wanted("best", None) == wanted("llava", None) == named_models()[0]
    assert wanted(None, "owner/x:Q8_0") == NamedModel("owner/x:Q8_0", hf="owner/x:Q8_0")
    assert wanted(None, None) is wanted("bundled", None) is None
    (tmp_path / "llava").touch()  # a file comes before a name
    for path in ("llava", "missing.gguf", "some/folder", str(tmp_path)):
        assert wanted(path, None) == NamedModel(path, path)
    (tmp_path / "small").mkdir()  # a folder is no model
    assert wanted("small", None) == named_models()[1]


def test_what_is_neither_is_told_with_the_names(write: Write) -> None:
    write(TWO)
    message = r"nobody: is no file, and no name in .*models\.yaml; names are bundled, llava, small$"
    with pytest.raises(ModelError, match=message):
        wanted("nobody", None)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("small", NamedModel("small", hf="owner/tiny", fastv="off")),
        ("a.gguf", NamedModel("a.gguf", "a.gguf")),
        ("models/a.gguf", NamedModel("models/a.gguf", "models/a.gguf")),
        ("owner/x:Q8_0", NamedModel("owner/x:Q8_0", hf="owner/x:Q8_0")),
        ("bundled", None),
        ("", None),
    ],
)
def test_the_variable_is_for_who_says_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch, variable: str, meant: NamedModel | None
) -> None:
    write(TWO)
    monkeypatch.setenv("PYFASTV_MODEL", variable)
    assert wanted(None, None) == meant
    assert wanted("bundled", None) is None
    assert wanted(None, "owner/other") == NamedModel("owner/other", hf="owner/other")
    monkeypatch.setenv("PYFASTV_MODEL", "nobody")
    with pytest.raises(ModelError, match="PYFASTV_MODEL=nobody: is no file"):
        wanted(None, None)


# the commands


def asked(fake_engine: list[Any], *arguments: str) -> dict[str, Any]:
    assert main(["ask", PICTURE, "Q?", *arguments]) == 0
    engine = fake_engine[-1]
    return {**engine.options, "fastv": dict(engine.calls).get("set_fastv")}


def test_a_name_brings_its_settings_and_options_change_them(write: Write, fake_engine: list[Any]) -> None:
    path = write(TWO.replace("~/mmproj.gguf", "mmproj.gguf"))
    made = asked(fake_engine, "-m", "l")
    assert (made["model_path"], made["mmproj_path"]) == (
        str(path.parent / "llava.gguf"),
        str(path.parent / "mmproj.gguf"),
    )
    assert (made["n_ctx"], made["n_threads"], made["fastv"]) == (1000, 3, Recommended(4, 0.75).spec())
    made = asked(fake_engine, "-m", "l", "-c", "0", "-t", "1", "--schedule", "fastv", "--mmproj", "p.gguf")
    assert (made["n_ctx"], made["n_threads"], made["fastv"]) == (0, 1, FastV().spec())
    assert made["mmproj_path"] == "p.gguf"
    assert asked(fake_engine, "-m", "l", "--off")["fastv"] == ""  # Turbo stays
    assert asked(fake_engine, "-m", "l", "--turbo", "off")["fastv"] == Recommended(4, 0.75).spec()
    assert asked(fake_engine, "-m", "bundled")["fastv"] == Recommended().spec()


def test_the_variable_names_the_commands_model(
    write: Write, fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(TWO.replace("~/mmproj.gguf", "mmproj.gguf"))
    monkeypatch.setenv("PYFASTV_MODEL", "llava")
    assert asked(fake_engine)["n_ctx"] == 1000
    assert asked(fake_engine, "-m", "bundled")["n_ctx"] == 0


@pytest.mark.usefixtures("no_network")
def test_what_is_in_the_cache_is_taken_without_the_network(
    write: Write, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(TWO)
    assert find_files(wanted("small", None)) == (
        str(cache / "tiny-Q4_K_M.gguf"),
        str(cache / "mmproj-tiny-f16.gguf"),
    )
    for name in ("owner/tiny", "owner/tiny:q4_k_m"):
        assert main(["info", "-hf", name, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["model"]["n_layer"], facts["vision"]["visual_tokens"]) == (12, 576)
    assert main(["plan", "-hf", "owner/tiny", "--no-measure", "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["models"]
    assert planned["visual_tokens"] == 576
    assert main(["plan", "--against", "small", "--no-measure", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2


@pytest.mark.usefixtures("no_network", "cache")
def test_bench_takes_a_repository_and_a_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyfastv.commands import bench

    write(TWO)
    made: list[tuple[str, str]] = []

    def stop(plan: Any) -> Any:
        made.append((Path(plan.model).name, Path(plan.mmproj).name))
        raise ModelError("that is enough")

    monkeypatch.setattr(bench, "_measure", stop)
    for arguments in (["-hf", "owner/tiny"], ["small"], ["bundled"]):
        assert main(["bench", *arguments]) == 1
    pair = ("tiny-Q4_K_M.gguf", "mmproj-tiny-f16.gguf")
    assert made == [pair, pair, (bundled_model().name, bundled_mmproj().name)]


@pytest.mark.parametrize("command", [["info"], ["plan", "--no-measure"], ["bench"]])
def test_a_model_and_a_repository_exclude_each_other(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "a.gguf", "-hf", "owner/tiny"]) == 2
    assert "MODEL and --hf-repo exclude each other" in capsys.readouterr().err


def test_info_tells_of_a_name_that_there_is_not(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nobody"]) == 1
    assert "names are bundled" in capsys.readouterr().err


# pull and list


def test_pull_downloads_repositories_and_names(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyfastv.commands import pull

    write(TWO)
    pulled: list[str] = []

    def pull_from_hub(name: str) -> tuple[Path, Path]:
        pulled.append(name)
        return Path("m.gguf"), Path("p.gguf")

    monkeypatch.setattr(pull, "pull_from_hub", pull_from_hub)
    assert main(["pull", "small", "owner/x:Q8_0"]) == 0
    assert pulled == ["owner/tiny", "owner/x:Q8_0"]
    assert capsys.readouterr().out == "m.gguf\np.gguf\n" * 2
    assert main(["pull", "llava"]) == 1
    assert "there is nothing to download" in capsys.readouterr().err


@pytest.mark.usefixtures("no_network")
def test_list_tells_names_and_what_is_cached(
    write: Write, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(TWO)
    assert main(["list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["model_id"] for entry in told["named"]] == ["llava", "small"]
    size = bundled_model().stat().st_size
    path = str(cache / "tiny-Q4_K_M.gguf")
    assert told["cached"] == [
        {"repository": "owner/tiny", "file": "tiny-Q4_K_M.gguf", "bytes": size, "path": path}
    ]
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "-m bundled",
        "-m llava, l, best",
        "-m small",
        "-hf owner/tiny",
    ]

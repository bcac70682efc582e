"""Files of the bundled model, and the choice among the files of a Hugging Face repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from pyfastv import ModelError, from_hub
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model

FILES = [
    ".gitattributes",
    "README.md",
    "llava-F16.gguf",
    "llava-Q4_K_M.gguf",
    "llava-Q4_K_S.gguf",
    "llava-Q8_0.gguf",
    "llava-UD-Q4_K_M.gguf",
    "mmproj-llava-Q8_0.gguf",
    "mmproj-llava-bf16.gguf",
    "mmproj-llava-f16.gguf",
]


class Hub:
    """Stands for Hugging Face: repositories as lists of files."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.files: dict[str, list[str]] = {}
        self.downloaded: list[str] = []
        self.offline = False

    def list_repo_files(self, repository: str) -> list[str]:
        if self.offline or repository not in self.files:
            raise ConnectionError(f"404 for {repository}\nRequest ID: 1234")
        return self.files[repository]

    def hf_hub_download(self, repository: str, file: str) -> str:
        if file.startswith("gone"):
            raise ConnectionError("no such file")
        self.downloaded.append(file)
        return str(self.folder / repository / file)

    def snapshot_download(self, repository: str, **options: Any) -> str:
        assert options == {"allow_patterns": ["*.gguf"], "local_files_only": True}
        if repository != "owner/cached":
            raise FileNotFoundError(repository)
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    fake = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    fake.files["owner/llava"] = FILES
    return fake


def chosen(hub: Hub, name: str) -> tuple[str, str]:
    model, mmproj = from_hub(name)
    repository = hub.folder / name.partition(":")[0]
    return model.relative_to(repository).as_posix(), mmproj.relative_to(repository).as_posix()


def test_the_bundled_files_are_there() -> None:
    for path in (bundled_model(), bundled_mmproj()):
        with path.open("rb") as file:
            assert file.read(4) == b"GGUF"
    assert {example.picture.name for example in bundled_examples()} == {
        *("clock.png", "chart.png", "dice.png", "scene.png")
    }
    assert all(example.picture.is_file() for example in bundled_examples())


@pytest.mark.parametrize(
    ("quant", "model"),
    [
        ("", "llava-Q4_K_M.gguf"),
        (":Q8_0", "llava-Q8_0.gguf"),
        (":q8_0", "llava-Q8_0.gguf"),
        (":q4_k_s", "llava-Q4_K_S.gguf"),
        (":UD-Q4_K_M", "llava-UD-Q4_K_M.gguf"),
        (":f16", "llava-F16.gguf"),
    ],
)
def test_the_quant_chooses_the_model(hub: Hub, quant: str, model: str) -> None:
    assert chosen(hub, f"owner/llava{quant}") == (model, "mmproj-llava-f16.gguf")
    assert hub.downloaded == [model, "mmproj-llava-f16.gguf"]


def test_without_q4_k_m_the_first_model(hub: Hub) -> None:
    hub.files["owner/llava"] = ["b-Q6_K.gguf", "a-Q5_K.gguf", "mmproj-x.gguf"]
    assert chosen(hub, "owner/llava") == ("a-Q5_K.gguf", "mmproj-x.gguf")


def test_a_quant_is_a_whole_word(hub: Hub) -> None:
    hub.files["owner/llava"] = ["a-bf16.gguf", "a_q4_k_m.gguf", "a.Q4_K.gguf", "mmproj.gguf"]
    assert chosen(hub, "owner/llava:Q4_K")[0] == "a.Q4_K.gguf"
    assert chosen(hub, "owner/llava:Q4_K_M")[0] == "a_q4_k_m.gguf"
    with pytest.raises(ModelError, match=r"no model of type f16; found .*a-bf16\.gguf"):
        from_hub("owner/llava:f16")


def test_a_split_model_is_fetched_whole(hub: Hub) -> None:
    parts = [f"Q4_K_M/llava-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    hub.files["owner/llava"] = [*reversed(parts), "Q4_K_M/mmproj-f16.gguf", "mmproj-f16.gguf"]
    assert chosen(hub, "owner/llava") == (parts[0], "Q4_K_M/mmproj-f16.gguf")
    assert hub.downloaded == [*parts, "Q4_K_M/mmproj-f16.gguf"]
    hub.files["owner/llava"].remove(parts[1])
    with pytest.raises(ModelError, match=r"lacks its parts Q4_K_M/llava-00002-of-00003\.gguf"):
        from_hub("owner/llava")


def test_what_is_missing_is_told_with_what_was_found(hub: Hub) -> None:
    with pytest.raises(ModelError, match=r"type Q2_K; found llava-F16\.gguf, llava-Q4_K_M\.gguf"):
        from_hub("owner/llava:Q2_K")
    hub.files["owner/text"] = ["a-Q4_K_M.gguf"]
    with pytest.raises(ModelError, match=r"no mmproj file.*found a-Q4_K_M\.gguf"):
        from_hub("owner/text")
    hub.files["owner/other"] = ["model.safetensors"]
    with pytest.raises(ModelError, match="no GGUF model; found no GGUF file"):
        from_hub("owner/other")
    hub.files["owner/vision"] = ["mmproj.gguf"]
    with pytest.raises(ModelError, match=r"no GGUF model; found mmproj\.gguf"):
        from_hub("owner/vision")


def test_what_the_hub_says_comes_through_in_one_line(hub: Hub) -> None:
    with pytest.raises(ModelError, match=r"owner/nothing: .*404 for owner/nothing$"):
        from_hub("owner/nothing")
    hub.files["owner/gone"] = ["gone-Q4_K_M.gguf", "mmproj.gguf"]
    with pytest.raises(ModelError, match=r"gone-Q4_K_M\.gguf cannot be downloaded: no such file"):
        from_hub("owner/gone")


def test_without_a_network_the_cache_is_used(hub: Hub) -> None:
    hub.offline = True
    for name in ("llava-Q4_K_M.gguf", "mmproj-f16.gguf"):
        (hub.folder / name).touch()
    assert chosen(hub, "owner/cached") == ("llava-Q4_K_M.gguf", "mmproj-f16.gguf")

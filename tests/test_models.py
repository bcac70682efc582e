"""Files of the bundled model, and the choice among the files of a Hugging Face repository."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from pyfastv import ModelError, from_hub
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model
from pyfastv.models.hub import cached_models, pull

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
        self.listed: list[str] = []
        self.offline = False

    def list_repo_files(self, repository: str) -> list[str]:
        self.listed.append(repository)
        if self.offline or repository not in self.files:
            raise ConnectionError(f"404 for {repository}\nRequest ID: 1234")
        return self.files[repository]

    def hf_hub_download(self, repository: str, file: str) -> str:
        if file.startswith("gone"):
            raise ConnectionError("no such file")
        self.downloaded.append(file)
        return str(self.folder / repository / file)

    def cache(self, repository: str, files: list[str], revision: str = "a" * 40, main: bool = True) -> Path:
        """The files in the cache, a byte each, as links to blobs; returns the revision's folder."""
        folder = self.folder / "cache" / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / revision
        for file in files:
            blob = folder / "blobs" / f"{revision[:4]}-{file.replace('/', '-')}"
            for path in (blob, snapshot / file):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_text("x")
            (snapshot / file).symlink_to(blob)
        if main:
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / "main").write_text(revision)
        return snapshot


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    fake = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
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


# the cache


MMPROJ = "mmproj-llava-f16.gguf"


@pytest.mark.parametrize(
    ("cached", "quant", "model"),
    [
        (["llava-Q4_K_M.gguf", "llava-Q8_0.gguf"], "", "llava-Q4_K_M.gguf"),
        (["llava-Q4_K_M.gguf", "llava-Q8_0.gguf"], ":q8_0", "llava-Q8_0.gguf"),
        (["llava-Q8_0.gguf"], "", "llava-Q8_0.gguf"),
        (["llava-UD-Q4_K_M.gguf"], ":UD-Q4_K_M", "llava-UD-Q4_K_M.gguf"),
        (["deep/llava-Q4_K_M.gguf"], "", "deep/llava-Q4_K_M.gguf"),
    ],
)
def test_what_is_in_the_cache_is_taken_without_asking(
    hub: Hub, cached: list[str], quant: str, model: str
) -> None:
    snapshot = hub.cache("owner/llava", [*cached, MMPROJ])
    assert from_hub(f"owner/llava{quant}") == (snapshot / model, snapshot / MMPROJ)
    assert hub.listed == hub.downloaded == []


@pytest.mark.parametrize(
    ("cached", "quant", "downloaded"),
    [
        ([MMPROJ], "", "llava-Q4_K_M.gguf"),
        (["llava-Q4_K_M.gguf"], "", "llava-Q4_K_M.gguf"),  # without its vision encoder
        (["llava-Q8_0.gguf", MMPROJ], ":Q4_K_M", "llava-Q4_K_M.gguf"),
        (["llava-UD-Q4_K_M.gguf", MMPROJ], ":Q4_K_M", "llava-Q4_K_M.gguf"),  # the hub has both
        (["llava-F16.gguf", "llava-Q8_0.gguf", MMPROJ], "", "llava-Q4_K_M.gguf"),  # which of the two?
    ],
)
def test_what_the_cache_does_not_have_is_downloaded(
    hub: Hub, cached: list[str], quant: str, downloaded: str
) -> None:
    hub.cache("owner/llava", cached)
    from_hub(f"owner/llava{quant}")
    assert hub.downloaded == [downloaded, MMPROJ]


def test_a_split_model_in_the_cache_needs_all_its_parts(hub: Hub) -> None:
    parts = [f"llava-Q4_K_M-{number:05}-of-00002.gguf" for number in (1, 2)]
    hub.files["owner/llava"] = [*parts, MMPROJ]
    hub.cache("owner/llava", [parts[0], MMPROJ])
    from_hub("owner/llava")
    assert hub.downloaded == [*parts, MMPROJ]
    snapshot = hub.cache("owner/whole", [*parts, MMPROJ])
    assert from_hub("owner/whole") == (snapshot / parts[0], snapshot / MMPROJ)


def test_a_link_to_a_blob_that_is_gone_is_no_file(hub: Hub) -> None:
    snapshot = hub.cache("owner/llava", ["llava-Q4_K_M.gguf", MMPROJ])
    (snapshot / "llava-Q4_K_M.gguf").resolve().unlink()
    from_hub("owner/llava")
    assert hub.downloaded == ["llava-Q4_K_M.gguf", MMPROJ]


def test_an_older_revision_serves_where_the_newest_is_not_whole(hub: Hub) -> None:
    hub.offline = True
    older = hub.cache("owner/llava", ["llava-Q4_K_M.gguf", MMPROJ], "b" * 40)
    hub.cache("owner/llava", [MMPROJ], "c" * 40)
    assert from_hub("owner/llava")[0] == older / "llava-Q4_K_M.gguf"


def test_without_a_network_any_model_that_fits_is_used(hub: Hub) -> None:
    hub.offline = True
    snapshot = hub.cache("owner/llava", ["llava-F16.gguf", "llava-Q8_0.gguf", MMPROJ])
    assert from_hub("owner/llava")[0] == snapshot / "llava-F16.gguf"
    with pytest.raises(ModelError, match="cannot be listed on the hub: 404"):
        from_hub("owner/llava:Q4_K_M")


def test_pull_asks_the_hub_though_all_is_there(hub: Hub) -> None:
    hub.cache("owner/llava", ["llava-Q4_K_M.gguf", MMPROJ])
    pull("owner/llava")
    assert (hub.listed, hub.downloaded) == (["owner/llava"], ["llava-Q4_K_M.gguf", MMPROJ])
    hub.offline = True
    with pytest.raises(ModelError, match="cannot be listed"):
        pull("owner/llava")


def test_models_of_the_cache(hub: Hub) -> None:
    assert list(cached_models()) == []
    parts = [f"big-{number:05}-of-00002.gguf" for number in (1, 2)]
    snapshot = hub.cache("owner/llava", ["llava-Q8_0.gguf", *parts, "half-00001-of-00002.gguf", MMPROJ])
    hub.cache("owner/llava", ["llava-Q8_0.gguf"], "b" * 40, main=False)
    hub.cache("other/text", ["README.md"])
    found = [(model.repository, model.file, model.bytes, model.path) for model in cached_models()]
    assert found == [
        ("owner/llava", parts[0], 2, snapshot / parts[0]),
        ("owner/llava", "llava-Q8_0.gguf", 1, snapshot / "llava-Q8_0.gguf"),
    ]


@pytest.mark.parametrize("name", ["", "..", "../../etc", "owner/../x", "a\0b", "owner/llava/more"])
def test_a_name_that_is_no_repository_looks_nowhere(hub: Hub, name: str) -> None:
    with pytest.raises(ModelError, match="cannot be listed"):
        from_hub(name)

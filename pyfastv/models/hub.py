"""Models from Hugging Face, and what lies beside a model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import constants

from ..errors import ModelError
from .split import part_names, part_number

__all__ = ["CachedModel", "cached_models", "from_hub", "mmproj_beside", "pull"]

_DEFAULT_QUANT = "Q4_K_M"
_FOLDER = "models--"  # of a repository, in the hub's cache
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DYNAMIC = re.compile(r"(?<![a-z0-9])ud-", re.IGNORECASE)


def mmproj_beside(model: str | os.PathLike[str]) -> str | None:
    """The mmproj*.gguf in the folder of a model, if there is exactly one."""
    found = sorted(Path(os.fsdecode(model)).parent.glob("mmproj*.gguf"))
    return str(found[0]) if len(found) == 1 else None


def from_hub(name: str) -> tuple[Path, Path]:
    """Paths of a model and its mmproj from Hugging Face, downloaded into the hub's cache unless there. Where they are
    there, the network is left alone; :func:`pull` looks for newer ones.

    ``name``: ``owner/repository`` or ``owner/repository:quant``, as llama.cpp's ``-hf`` takes it. ``quant``
    is looked for in the file names, regardless of case; without it Q4_K_M, else the only one in the cache, else the
    repository's first model.
    Of several mmproj files the f16 one. Raises ModelError, naming what was found.
    """
    repository, _, quant = name.partition(":")
    found = _from_cache(repository, quant)
    if found is not None:
        return found
    try:
        return pull(name)
    except ModelError:
        found = _from_cache(repository, quant, any_model=True)
        if found is None:
            raise
        return found


def pull(name: str) -> tuple[Path, Path]:
    """As :func:`from_hub`, from the network: what is there and is the newest is not downloaded again."""
    repository, _, quant = name.partition(":")
    files = _list_files(repository)
    model = _choose_model(files, quant, repository)
    mmproj = _choose_mmproj(files, model, repository)
    parts = [_download(repository, part) for part in _parts(files, model, repository)]
    return parts[0], _download(repository, mmproj)


@dataclass(frozen=True)
class CachedModel:
    """A model in the hub's cache."""

    repository: str
    file: str
    """Its path in the repository; of a split model the first part's."""
    bytes: int
    """Of all parts."""
    path: Path


def cached_models() -> Iterator[CachedModel]:
    """Models that :func:`from_hub` finds without a network, by repository."""
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob(f"{_FOLDER}*--*")):
        repository = folder.name.removeprefix(_FOLDER).replace("--", "/", 1)
        told: set[str] = set()
        for snapshot in _snapshots(repository):
            files = _files_in(snapshot)
            for model in _models(files):
                with suppress(ModelError):  # a part is missing
                    parts = _parts(files, model, repository)
                    if model not in told:
                        size = sum((snapshot / part).stat().st_size for part in parts)
                        yield CachedModel(repository, model, size, snapshot / model)
                        told.add(model)


def _list_files(repository: str) -> list[str]:
    try:
        files = huggingface_hub.HfApi().list_repo_files(repository)
    except Exception as error:  # whatever its version's HTTP library raises
        raise ModelError(f"{repository}: cannot be listed on the hub: {_first_line(error)}") from error
    return sorted(file for file in files if file.lower().endswith(".gguf"))


def _from_cache(repository: str, quant: str, *, any_model: bool = False) -> tuple[Path, Path] | None:
    """A pair of one revision, if it is the one that would be downloaded, as far as that can be told without the list of
    all files; without a quant the only model. ``any_model``: else the first that fits."""
    for snapshot in _snapshots(repository):
        files = _files_in(snapshot)
        with suppress(ModelError):  # something is missing
            model = _choose_model(files, quant, repository)
            # the repository of "UD-Q4_K_M" may have a "Q4_K_M", too
            same_kind = (_DYNAMIC.search(model) is not None) == quant.lower().startswith("ud-")
            named = same_kind and _has_quant(model, quant or _DEFAULT_QUANT)
            if any_model or named or (not quant and len(_models(files)) == 1):
                parts = _parts(files, model, repository)
                return snapshot / parts[0], snapshot / _choose_mmproj(files, model, repository)
    return None


def _snapshots(repository: str) -> list[Path]:
    """Folders of the revisions in the cache: that of the main branch, as it was last seen, then the others."""
    if not _REPOSITORY.fullmatch(repository):
        return []
    folder = Path(constants.HF_HUB_CACHE) / (_FOLDER + repository.replace("/", "--"))
    main = ""
    with suppress(OSError, ValueError):
        main = (folder / "refs" / "main").read_text("utf-8").strip()
    found = sorted((folder / "snapshots").glob("*"))
    return sorted(found, key=lambda snapshot: snapshot.name != main)


def _files_in(snapshot: Path) -> list[str]:
    """The GGUF files of a revision, as far as they are there."""
    files = (file for file in snapshot.rglob("*") if file.suffix.lower() == ".gguf" and file.is_file())
    return sorted(file.relative_to(snapshot).as_posix() for file in files)


def _download(repository: str, file: str) -> Path:
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # whatever its version's HTTP library raises
        raise ModelError(f"{repository}: {file} cannot be downloaded: {_first_line(error)}") from error


def _models(files: Sequence[str]) -> list[str]:
    """Of split ones the first part."""
    return [file for file in files if not _is_mmproj(file) and part_number(file) in (None, 1)]


def _choose_model(files: Sequence[str], quant: str, repository: str) -> str:
    models = _models(files)
    if not models:
        raise ModelError(f"{repository}: has no GGUF model; found {_listed(files)}")
    wanted = [file for file in models if _has_quant(file, quant or _DEFAULT_QUANT)]
    if quant and not wanted:
        raise ModelError(f"{repository}: has no model of type {quant}; found {_listed(models)}")
    # the shortest name: "x-Q4_K_M.gguf" before "x-UD-Q4_K_M.gguf"
    return min(wanted, key=lambda file: (len(file), file)) if wanted else models[0]


def _choose_mmproj(files: Sequence[str], model: str, repository: str) -> str:
    found = [file for file in files if _is_mmproj(file)]
    if not found:
        raise ModelError(
            f"{repository}: has no mmproj file, so no vision encoder; found {_listed(files)}: "
            "pass the mmproj of this model from elsewhere, or take a repository that has it"
        )
    folder = PurePosixPath(model).parent
    return min(found, key=lambda f: (PurePosixPath(f).parent != folder, not _has_quant(f, "f16"), f))


def _parts(files: Sequence[str], model: str, repository: str) -> list[str]:
    """The model's files: one, or all parts of a split model in order."""
    parts = part_names(model)
    missing = [part for part in parts if part not in files]
    if missing:
        raise ModelError(f"{repository}: {model} lacks its parts {_listed(missing)}")
    return parts


def _is_mmproj(file: str) -> bool:
    return "mmproj" in PurePosixPath(file).name.lower()


def _has_quant(file: str, quant: str) -> bool:
    # a whole word, so that Q4_K does not find Q4_K_M, nor f16 bf16
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", file, re.IGNORECASE) is not None


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - 20} more" if len(files) > 20 else ""
    return ", ".join(files[:20]) + more or "no GGUF file"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""Models from Hugging Face, and what lies beside a model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import huggingface_hub

from ..errors import ModelError

__all__ = ["from_hub", "mmproj_beside"]

_DEFAULT_QUANT = "Q4_K_M"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


def mmproj_beside(model: str | os.PathLike[str]) -> str | None:
    """The mmproj*.gguf in the folder of a model, if there is exactly one."""
    found = sorted(Path(os.fsdecode(model)).parent.glob("mmproj*.gguf"))
    return str(found[0]) if len(found) == 1 else None


def from_hub(name: str) -> tuple[Path, Path]:
    """Paths of a model and its mmproj from Hugging Face, downloaded into the hub's cache unless there.

    ``name``: ``owner/repository`` or ``owner/repository:quant``, as llama.cpp's ``-hf`` takes it. ``quant``
    is looked for in the file names, regardless of case; without it Q4_K_M, else the repository's first model.
    Of several mmproj files the f16 one. Raises ModelError, naming what was found.
    """
    repository, _, quant = name.partition(":")
    files = _list_files(repository)
    model = _choose_model(files, quant, repository)
    mmproj = _choose_mmproj(files, model, repository)
    parts = [_download(repository, part) for part in _parts(files, model, repository)]
    return parts[0], _download(repository, mmproj)


def _list_files(repository: str) -> list[str]:
    try:
        files = huggingface_hub.HfApi().list_repo_files(repository)
    except Exception as error:  # whatever its version's HTTP library raises
        cached = _list_cached(repository)
        if not cached:
            raise ModelError(f"{repository}: cannot be listed on the hub: {_first_line(error)}") from error
        files = cached
    return sorted(file for file in files if file.lower().endswith(".gguf"))


def _list_cached(repository: str) -> list[str]:
    """What an earlier download left, for work without a network."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=["*.gguf"], local_files_only=True)
        )
    except Exception:  # not in the cache, or not a repository name
        return []
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]


def _download(repository: str, file: str) -> Path:
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # whatever its version's HTTP library raises
        raise ModelError(f"{repository}: {file} cannot be downloaded: {_first_line(error)}") from error


def _choose_model(files: Sequence[str], quant: str, repository: str) -> str:
    models = [file for file in files if not _is_mmproj(file) and _split_number(file) in (None, 1)]
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
    split = _SPLIT.search(model)
    if split is None:
        return [model]
    stem, count = model[: split.start()], int(split[2])
    parts = [f"{stem}-{number:05}-of-{count:05}{model[split.end(2) :]}" for number in range(1, count + 1)]
    missing = [part for part in parts if part not in files]
    if missing:
        raise ModelError(f"{repository}: {model} lacks its parts {_listed(missing)}")
    return parts


def _split_number(file: str) -> int | None:
    split = _SPLIT.search(file)
    return int(split[1]) if split else None


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

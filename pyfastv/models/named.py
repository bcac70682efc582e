"""Names for models, in one file that the commands, the server and llm share; and which files somebody means."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]

from .._folders import user_folder
from ..errors import DataError, ModelError, OptionError
from ..settings.setting import SETTING_OPTIONS, Setting, SettingOptions
from .hub import from_hub, mmproj_beside

__all__ = ["BUNDLED", "NamedModel", "find_files", "named_models", "names_file", "read_models", "wanted"]

BUNDLED = "bundled"
"""The name of the model that comes with the package."""

_TEXTS = ("model_id", "model", "hf", "mmproj", *SETTING_OPTIONS)
_NUMBERS = ("n_ctx", "threads")
_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class NamedModel:
    """An entry of the file. None: it does not say."""

    model_id: str
    """Its name."""
    model: str | None = None
    """Path of a GGUF file."""
    hf: str | None = None
    """In place of the path: ``owner/repository:quant``, as ``-hf`` takes it."""
    mmproj: str | None = None
    fastv: str | None = None
    turbo: str | None = None
    reduce: str | None = None
    skip: str | None = None
    n_ctx: int | None = None
    threads: int | None = None
    aliases: tuple[str, ...] = ()

    def options(self) -> SettingOptions:
        """What it says of the setting, as keywords."""
        said = {name: getattr(self, name) for name in SETTING_OPTIONS}
        return cast(SettingOptions, {name: text for name, text in said.items() if text is not None})


_KEYS = {field.name for field in fields(NamedModel)}


def names_file() -> Path:
    """models.yaml in the user's folder for settings; it need not exist."""
    return user_folder("XDG_CONFIG_HOME", "~/.config", "~/Library/Application Support") / "models.yaml"


def named_models() -> list[NamedModel]:
    """Of the user's file. Raises DataError."""
    return read_models(names_file())


def wanted(model: str | None, hf: str | None) -> NamedModel | None:
    """What ``--model`` (a path or a name) and ``--hf-repo`` say, and, where both are silent, ``PYFASTV_MODEL``, which
    takes all three; with the settings that a name brings. None: the bundled model.

    Raises DataError; ModelError: there is neither a file nor a name.
    """
    source = "" if model is not None else "PYFASTV_MODEL="
    if model is None and hf is None:
        model = os.environ.get("PYFASTV_MODEL", "").strip() or None
        if model is not None and _ON_THE_HUB.fullmatch(model) and not _is_file(model):
            model, hf = None, model
    if hf is not None:
        return NamedModel(hf, hf=hf)
    if model is None or model == BUNDLED:
        return None
    if _is_file(model) or os.path.basename(model) != model:
        return NamedModel(model, model)
    models = named_models()
    found = next((entry for entry in models if model in (entry.model_id, *entry.aliases)), None)
    if found is None:
        known = ", ".join([BUNDLED, *(entry.model_id for entry in models)])
        raise ModelError(f"{source}{model}: is no file, and no name in {names_file()}; names are {known}")
    return found


def _is_file(text: str) -> bool:
    """Or meant to be one."""
    return (
        "\0" in text or text.lower().endswith(".gguf") or (os.path.exists(text) and not os.path.isdir(text))
    )


def find_files(model: NamedModel | None, mmproj: str | None = None) -> tuple[str | None, str | None]:
    """Paths of a model and of its vision encoder, ``mmproj`` if it is given; None: the bundled ones, and none beside it.

    Downloads what is on the hub and not in the cache. Raises ModelError."""
    if model is None:
        return None, mmproj
    mmproj = mmproj or model.mmproj
    if model.hf is not None:
        path, beside = from_hub(model.hf)
        return str(path), mmproj or str(beside)
    return model.model, mmproj or mmproj_beside(str(model.model))


def read_models(path: Path) -> list[NamedModel]:
    """The entries of a file; none if it does not exist. Raises DataError, which names the file and the entry."""
    if not path.exists():
        return []
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a list of models, each with model_id and model")
    return [_checked(path, entry) for entry in entries]


def _checked(path: Path, entry: Any) -> NamedModel:
    if isinstance(entry, Mapping):
        # YAML reads "off" as false
        entry = {
            key: "off" if key in SETTING_OPTIONS and value is False else value for key, value in entry.items()
        }
    if wrong := _wrong(entry):
        raise DataError(f"{path}: {wrong}; got {entry!r}")
    # a path is one from the file's folder
    files = {
        name: os.path.join(path.parent, os.path.expanduser(entry[name]))
        for name in ("model", "mmproj")
        if name in entry
    }
    return NamedModel(**{**entry, **files, "aliases": tuple(entry.get("aliases", ()))})


def _wrong(entry: Any) -> str | None:
    if not isinstance(entry, Mapping) or "model_id" not in entry or ("model" in entry) == ("hf" in entry):
        return "a model needs model_id and model, or hf in place of model"
    if unknown := sorted(map(str, set(entry) - _KEYS)):
        return f"{', '.join(unknown)} is none of {', '.join(sorted(_KEYS))}"
    if not all(isinstance(entry.get(name, ""), str) for name in _TEXTS):
        return f"all but {', '.join(_NUMBERS)} and aliases must be text"
    for name in _NUMBERS:
        if not isinstance(entry.get(name, 0), int):
            return f"{name} must be a number"
    aliases = entry.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        return "aliases must be a list of names"
    if BUNDLED in (entry["model_id"], *aliases):
        return f"{BUNDLED} is the name of the model that comes with pyfastv"
    try:
        Setting.of(*(entry.get(name) for name in SETTING_OPTIONS))
    except OptionError as error:
        return str(error)
    return None

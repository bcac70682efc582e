"""Profiles: the setting that ``pyfastv tune`` found for a model, with what was measured, in a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _native
from .._about import __version__
from ..errors import DataError, OptionError
from ..models import bundled_model
from ..output import Output
from .reduce import Reducer
from .schedule import Schedule
from .setting import Setting
from .skip import Skip
from .turbo import Turbo

__all__ = ["Profile", "model_identity"]

# Readers of version 1 know the schedule alone, those of version 2 no skip: what they would leave out silently is
# written as a later version.
_FORMAT, _VERSIONS = "pyfastv-profile", (1, 2, 3)
_SCHEDULE_ALONE, _WITHOUT_SKIP, _VERSION = _VERSIONS
# what a schedule depends on; the same model in another quantization has the same
_COMPARED = {"architecture": "architecture", "n_layer": "layers", "n_embd": "width"}
_IDENTITY = (*_COMPARED, "description", "n_params")


@dataclass(frozen=True)
class Profile:
    """A setting for one model: a schedule, Turbo, a reducer, what is skipped, each or none.

    >>> profile = Profile.load("profile.json")
    >>> profile.check("model.gguf")
    >>> in_force = {"fastv": profile.schedule, "turbo": profile.turbo, "reduce": profile.reduce}
    >>> runner = Runner("model.gguf", "mmproj.gguf", **in_force)
    """

    schedule: Schedule | None
    """None: the language model is not pruned. All None: nothing else than stock was good enough."""
    model: Mapping[str, Any]
    """``architecture``, ``n_layer``, ``n_embd``, ``description``, ``n_params`` of the model that it was found for."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, and what was measured; docs/tune.md names the entries."""
    turbo: Turbo | None = field(default=None, kw_only=True)
    reduce: Reducer | None = field(default=None, kw_only=True)
    skip: Skip | None = field(default=None, kw_only=True)

    @property
    def setting(self) -> Setting:
        """All of them."""
        return Setting(self.schedule, self.turbo, self.reduce, self.skip)

    def check(self, model: str | os.PathLike[str] | None = None) -> None:
        """Raises OptionError where ``model``, a GGUF file (None: the bundled one), is another model; ModelError."""
        found = model_identity(model)
        for key, name in _COMPARED.items():
            if found[key] != self.model[key]:
                raise OptionError(
                    f"this profile was made for {self.model['description']} ({name}: {self.model[key]}), and this "
                    f"model is {found['description']} ({name}: {found[key]}): run pyfastv tune on it, or leave the "
                    "profile out"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Raises DataError: the file cannot be written."""
        Output(path).write(json.dumps(self.to_dict(), indent=2) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """What is in the file."""
        specs = self.setting.specs()
        version = _SCHEDULE_ALONE if self.turbo is None and self.reduce is None else _WITHOUT_SKIP
        if self.skip is None:
            del specs["skip"]
        else:
            version = _VERSION
        return {
            "format": _FORMAT,
            "version": version,
            "pyfastv": __version__,
            "schedule": specs.pop("fastv") or "off",
            **specs,
            "model": dict(self.model),
            "measured": dict(self.measured),
        }

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Profile:
        """Raises DataError: the file is not a profile, or of a later version; OptionError: what it says is no schedule,
        no Turbo or no reducer."""
        name = os.fsdecode(path)
        try:
            values = json.loads(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: is not a profile: {error}") from None
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise DataError(f"{name}: is not a profile: pyfastv tune writes one")
        if values.get("version") not in _VERSIONS:
            raise DataError(
                f"{name}: is a profile of version {values.get('version')!r}, and 1 to {_VERSION} are known: "
                "make it again with pyfastv tune"
            )
        model, measured = values.get("model"), values.get("measured", {})
        if not isinstance(model, dict) or not set(_IDENTITY) <= set(model) or not isinstance(measured, dict):
            raise DataError(
                f"{name}: does not say which model it was made for: make it again with pyfastv tune"
            )
        if not isinstance(values.get("schedule"), str):
            raise DataError(f"{name}: has no schedule: make it again with pyfastv tune")
        for key in ("turbo", "reduce", "skip"):
            if not isinstance(values.get(key), str | None):
                raise DataError(f"{name}: {key} must be text or null; got {values[key]!r}")
        found = Setting.of(values["schedule"], *(values.get(key) for key in ("turbo", "reduce", "skip")))
        return Profile(found.fastv, model, measured, turbo=found.turbo, reduce=found.reduce, skip=found.skip)


def model_identity(model: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What a profile knows a GGUF file by (None: the bundled one), from its header. Raises ModelError."""
    facts = _native.model_info(bundled_model() if model is None else model)
    return {name: facts[name] for name in _IDENTITY}

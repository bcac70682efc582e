"""Profiles: the schedule that ``pyfastv tune`` found for a model, with what was measured, in a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import _native
from .errors import DataError, OptionError
from .models import bundled_model
from .presets import to_schedule
from .schedule import Schedule

__all__ = ["Profile", "model_identity"]

_FORMAT, _VERSION = "pyfastv-profile", 1
# what a schedule depends on; the same model in another quantization has the same
_COMPARED = {"architecture": "architecture", "n_layer": "layers", "n_embd": "width"}
_IDENTITY = (*_COMPARED, "description", "n_params")


@dataclass(frozen=True)
class Profile:
    """A schedule for one model.

    >>> profile = Profile.load("profile.json")
    >>> profile.check("model.gguf")
    >>> runner = Runner("model.gguf", "mmproj.gguf", fastv=profile.schedule)
    """

    schedule: Schedule | None
    """None: nothing but not pruning was good enough."""
    model: Mapping[str, Any]
    """``architecture``, ``n_layer``, ``n_embd``, ``description``, ``n_params`` of the model that it was found for."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, and what was measured; docs/tune.md names the entries."""

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
        try:
            Path(os.fsdecode(path)).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{os.fsdecode(path)}: cannot be written: {error.strerror}") from None

    def to_dict(self) -> dict[str, Any]:
        """What is in the file."""
        from . import __version__  # of a package that imports this module

        return {
            "format": _FORMAT,
            "version": _VERSION,
            "pyfastv": __version__,
            "schedule": "off" if self.schedule is None else self.schedule.spec(),
            "model": dict(self.model),
            "measured": dict(self.measured),
        }

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Profile:
        """Raises DataError: the file is not a profile, or of a later version; OptionError: its schedule is none."""
        name = os.fsdecode(path)
        try:
            values = json.loads(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"{name}: is not a profile: {error}") from None
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise DataError(f"{name}: is not a profile: pyfastv tune writes one")
        if values.get("version") != _VERSION:
            raise DataError(
                f"{name}: is a profile of version {values.get('version')!r}, and {_VERSION} is known: "
                "make it again with pyfastv tune"
            )
        model, measured = values.get("model"), values.get("measured", {})
        if not isinstance(model, dict) or not set(_IDENTITY) <= set(model) or not isinstance(measured, dict):
            raise DataError(
                f"{name}: does not say which model it was made for: make it again with pyfastv tune"
            )
        if not isinstance(values.get("schedule"), str):
            raise DataError(f"{name}: has no schedule: make it again with pyfastv tune")
        return Profile(to_schedule(values["schedule"]), model, measured)


def model_identity(model: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What a profile knows a GGUF file by (None: the bundled one), from its header. Raises ModelError."""
    facts = _native.model_info(str(bundled_model()) if model is None else os.fsdecode(model))
    return {name: facts[name] for name in _IDENTITY}

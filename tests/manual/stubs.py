"""Runs modules of a program's public sources without the program: what they import of its other parts, and of packages
that are not installed, stands in as empty names. The modules themselves are executed as they are."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class _Name(type):
    """A class whose attributes are their own names, as the members of an enumeration of texts are."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(name, (Exception,) if name.endswith("Error") else (), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, stubbed: Sequence[str], executed: Sequence[str], folder: Path) -> None:
        self._stubbed, self._executed, self._folder = stubbed, executed, folder

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if _within(name, self._executed) or not _within(name, self._stubbed):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        if any(name.startswith(f"{spec.name}.") for name in self._executed):
            # on the way to a module that is executed
            spec.submodule_search_locations.append(str(self._folder.joinpath(*spec.name.split(".")[1:])))
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def package_of(folder: Path, name: str, *, executed: Sequence[str], stubbed: Sequence[str]) -> None:
    """Makes ``folder`` importable as the package ``name``, whose own ``__init__.py`` is not run. Of it and of ``stubbed``
    packages only the modules within ``executed`` are real."""
    if not folder.is_dir():
        sys.exit(f"{folder}: no such folder: SOURCE_DIR is a checkout of the program's public sources")
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    missing = [one for one in stubbed if importlib.util.find_spec(one) is None]
    sys.meta_path.insert(0, _Finder([name, *missing], executed, folder))

"""Importing from a copy of the repository: its folder hides the package that was installed from it, and has no native
module. That of the installed package is taken then."""

from __future__ import annotations

import sys
from collections.abc import MutableSequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

__all__: list[str] = []

_PACKAGE = str(__package__)


def _find_native(folders: MutableSequence[str]) -> None:
    """Adds the installed package to the folders where modules of this one are looked for. Raises ImportError."""
    if find_spec(f"{_PACKAGE}._native") is not None:
        return
    for entry in sys.path:
        folder = str(Path(entry).resolve() / _PACKAGE)
        if PathFinder.find_spec(f"{_PACKAGE}._native", [folder]) is not None:
            folders.append(folder)
            return
    raise ImportError(
        f"{folders[0]} is the source of pyfastv, which has to be built: run `make demo` and use .venv/bin/python, or "
        "`pip install .`; or, if it is installed for this Python already, leave the folder of the repository"
    )


_find_native(sys.modules[_PACKAGE].__path__)

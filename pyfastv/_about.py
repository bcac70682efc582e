"""What this package is, and where its libraries lie."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import _native

__all__ = ["__version__", "lib_path"]

try:
    __version__ = version("pyfastv")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+source"


def lib_path() -> Path:
    """Folder of the patched libllama and libmtmd, for programs that load them in place of the stock ones."""
    return Path(str(_native.__file__)).parent / "lib"

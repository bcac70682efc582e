"""The user's folders for files of this package, by the platform's rule; they need not exist."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["user_folder"]


def user_folder(variable: str, otherwise: str, on_macos: str) -> Path:
    """In the folder that an environment variable names, else in ``otherwise``; on macOS in ``on_macos``."""
    if sys.platform == "darwin":
        base = Path(on_macos).expanduser()
    else:
        named = os.environ.get(variable, "").strip()
        base = Path(named) if named else Path(otherwise).expanduser()
    return base / "pyfastv"

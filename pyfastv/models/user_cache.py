"""The user's folder for files that can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """Of this package; it need not exist. By the platform's rule: ``XDG_CACHE_HOME``, else ``~/.cache``; on macOS
    ``~/Library/Caches``."""
    if sys.platform == "darwin":
        base = Path("~/Library/Caches").expanduser()
    else:
        named = os.environ.get("XDG_CACHE_HOME", "").strip()
        base = Path(named) if named else Path("~/.cache").expanduser()
    return base / "pyfastv"

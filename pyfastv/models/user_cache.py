"""The user's folder for files that can be made again."""

from __future__ import annotations

from pathlib import Path

from .._folders import user_folder

__all__ = ["user_cache"]


def user_cache() -> Path:
    """``pyfastv`` in ``XDG_CACHE_HOME``, else in ``~/.cache``; on macOS in ``~/Library/Caches``."""
    return user_folder("XDG_CACHE_HOME", "~/.cache", "~/Library/Caches")

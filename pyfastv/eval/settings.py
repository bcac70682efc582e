"""Settings as text, as :meth:`pyfastv.settings.setting.Setting.parse` takes them."""

from __future__ import annotations

from functools import lru_cache

from ..errors import OptionError
from ..settings.setting import Setting

__all__ = ["OFF", "check_settings", "same_as"]

OFF = "off"


@lru_cache(maxsize=4096)
def same_as(setting: str) -> str:
    """One text for all texts that mean the same; raises OptionError where it means nothing."""
    return Setting.parse(setting).spec()


def check_settings(settings: tuple[str, ...] | list[str]) -> list[str]:
    """As they were given, "off" first, which the others are compared with. Raises OptionError."""
    if not settings:
        raise OptionError("settings must be one or more; got none")
    named: dict[str, str] = {OFF: OFF}
    for setting in settings:
        named.setdefault(same_as(setting), setting)
    return list(named.values())

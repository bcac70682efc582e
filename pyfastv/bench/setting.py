"""A setting to measure: a schedule, Turbo in the encoder, a reducer behind it, each or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import OptionError
from ..presets import to_schedule
from ..schedule import Schedule

__all__ = ["Setting", "parse_settings"]


_HALF = "share=0.5"


@dataclass(frozen=True)
class Setting:
    """What is done to the picture; all None: nothing, as in stock llama.cpp."""

    name: str
    """As in tables: the text it was made from."""
    fastv: Schedule | None = None
    turbo: str | None = None
    """Text behind "turbo:", by default half of the tokens."""
    reduce: str | None = None
    """Text behind "reduce:"."""

    @property
    def is_off(self) -> bool:
        return self.fastv is None and self.turbo is None and self.reduce is None

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From text: "off", a schedule ("k=2,drop=0.5", "recommended"), "turbo:share=0.5", "reduce:pool=2", or several of
        these joined by "+". Raises OptionError."""
        fastv: Schedule | None = None
        others: dict[str, str] = {}
        parts = [part.strip() for part in text.split("+")]
        seen: set[str] = set()
        for part in parts:
            kind, _, spec = part.partition(":")
            kind = kind.strip().lower()
            is_other = kind in ("turbo", "reduce")
            name = kind if is_other else "a schedule"
            if not part:
                raise OptionError(f"{text!r}: there is nothing on one side of a '+'")
            if name in seen:
                raise OptionError(f"{text!r}: {name} is given twice")
            seen.add(name)
            if not is_other:
                fastv = to_schedule(part)
            elif kind == "reduce" and not spec.strip():
                raise OptionError(f"{text!r}: reduce: needs the reducer's name behind the colon")
            else:
                others[kind] = spec.strip() or _HALF
        return cls(" + ".join(parts), fastv, others.get("turbo"), others.get("reduce"))


def parse_settings(texts: Sequence[str]) -> list[Setting]:
    """Each once, "off" in front: it is what the others are compared with. Raises OptionError."""
    settings = [Setting.parse(text) for text in texts]
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"the setting {name!r} is given twice")
    given_off = [setting for setting in settings if setting.is_off]
    return [*(given_off[:1] or [Setting("off")]), *(s for s in settings if not s.is_off)]

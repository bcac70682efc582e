"""A setting to measure: a schedule, Turbo in the encoder, a reducer behind it, each or none. As text it is one string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import OptionError
from .presets import to_schedule
from .reduce import Reducer, to_reducer
from .schedule import Schedule
from .turbo import Turbo, to_turbo

if TYPE_CHECKING:
    from .runner import Runner

__all__ = ["Setting", "parse_settings"]


_HALF = "share=0.5"


@dataclass(frozen=True)
class Setting:
    """What is done to the picture; all None: nothing, as in stock llama.cpp."""

    name: str
    """As in tables: the text it was made from."""
    fastv: Schedule | None = None
    turbo: Turbo | None = None
    """Behind "turbo:", by default half of the tokens."""
    reduce: Reducer | None = None
    """Behind "reduce:"."""

    @property
    def is_off(self) -> bool:
        return self.fastv is None and self.turbo is None and self.reduce is None

    @classmethod
    def of(
        cls, fastv: Schedule | None = None, turbo: Turbo | None = None, reduce: Reducer | None = None
    ) -> Setting:
        """Named by what it is."""
        unnamed = cls("", fastv, turbo, reduce)
        return replace(unnamed, name=unnamed.spec())

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From text: "off", a schedule ("k=2,drop=0.5", "recommended"), "turbo:share=0.5", "reduce:pool,window=2", or
        several of these joined by "+". Raises OptionError."""
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
        return cls(" + ".join(parts), fastv, to_turbo(others.get("turbo")), to_reducer(others.get("reduce")))

    def spec(self) -> str:
        """One text for all that mean the same; :meth:`parse` takes it."""
        parts = [
            None if self.turbo is None else f"turbo:{self.turbo.spec()}",
            None if self.reduce is None else f"reduce:{self.reduce.spec()}",
            None if self.fastv is None else self.fastv.spec(),
        ]
        return " + ".join(part for part in parts if part is not None) or "off"

    def put_in_force(self, runner: Runner) -> None:
        """What requests that bring nothing of their own get from now on. Clears the context. Raises as the setters do."""
        runner.set_turbo(self.turbo)
        runner.set_reduce(self.reduce)
        runner.set_fastv(self.fastv)


def parse_settings(texts: Sequence[str]) -> list[Setting]:
    """Each once, "off" in front: it is what the others are compared with. Raises OptionError."""
    settings = [Setting.parse(text) for text in texts]
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"the setting {name!r} is given twice")
    given_off = [setting for setting in settings if setting.is_off]
    return [*(given_off[:1] or [Setting("off")]), *(s for s in settings if not s.is_off)]

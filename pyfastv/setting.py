"""A setting to measure: a schedule, Turbo in the encoder, a reducer behind it, each or none. As text it is one string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import _native
from .errors import OptionError
from .presets import preset_or_schedule
from .reduce import Reducer, reducer_of
from .schedule import Schedule
from .turbo import Turbo, turbo_of

if TYPE_CHECKING:
    from .runner import Runner

__all__ = ["Setting", "parse_settings"]


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
        found = _native.parse_setting(text)
        return cls(
            found["name"],
            None if found["fastv"] is None else preset_or_schedule(found["fastv"]),
            turbo_of(found["turbo"]),
            reducer_of(found["reduce"]),
        )

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

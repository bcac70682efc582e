"""What is done to pictures, as one value: what ``fastv=``, ``turbo=``, ``reduce=`` and ``skip=`` say becomes a Setting
at once, and behind that first line nothing else travels. As text it is one string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from .. import _native
from ..errors import OptionError
from .presets import preset_or_schedule, to_schedule
from .reduce import Reducer, reducer_of, to_reducer
from .schedule import Schedule
from .skip import Skip, skip_of, to_skip
from .turbo import Turbo, to_turbo, turbo_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SETTING_OPTIONS", "InForce", "Setting", "SettingOptions", "parse_settings"]


class SettingOptions(TypedDict, total=False):
    """What may be said of a setting: each part as a value, as text, or None or "off"."""

    fastv: Schedule | str | None
    turbo: Turbo | str | None
    reduce: Reducer | str | None
    skip: Skip | str | None


@dataclass(frozen=True)
class Setting:
    """What is done to pictures: a schedule, Turbo in the encoder, a reducer behind it, patches left out before it, each
    or none. All None: nothing, as in stock llama.cpp."""

    fastv: Schedule | None = None
    turbo: Turbo | None = None
    """Behind "turbo:", by default half of the tokens."""
    reduce: Reducer | None = None
    """Behind "reduce:"."""
    skip: Skip | None = None
    """Behind "skip:", by default what is the same."""

    @classmethod
    def of(
        cls,
        fastv: Schedule | str | None = None,
        turbo: Turbo | str | None = None,
        reduce: Reducer | str | None = None,
        skip: Skip | str | None = None,
    ) -> Setting:
        """What users say. Raises OptionError."""
        return cls().but(fastv=fastv, turbo=turbo, reduce=reduce, skip=skip)

    def but(self, **given: Unpack[SettingOptions]) -> Setting:
        """With what is given in place of its own. Raises OptionError."""
        return replace(self, **{name: _READ[name](value) for name, value in given.items()})

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From text: "off", a schedule ("k=2,drop=0.5", "recommended"), "turbo:share=0.5", "reduce:pool,window=2",
        "skip:tau=8", or several of these joined by "+". Raises OptionError."""
        found = _native.parse_setting(text)
        return cls(
            None if found["fastv"] is None else preset_or_schedule(found["fastv"]),
            turbo_of(found["turbo"]),
            reducer_of(found["reduce"]),
            skip_of(found["skip"]),
        )

    @property
    def is_off(self) -> bool:
        return self == Setting()

    def spec(self) -> str:
        """One text for all that mean the same; :meth:`parse` takes it."""
        parts = [
            None if self.skip is None else f"skip:{self.skip.spec()}",
            None if self.turbo is None else f"turbo:{self.turbo.spec()}",
            None if self.reduce is None else f"reduce:{self.reduce.spec()}",
            None if self.fastv is None else self.fastv.spec(),
        ]
        return " + ".join(part for part in parts if part is not None) or "off"

    def options(self) -> SettingOptions:
        """The keywords that say it."""
        return {"fastv": self.fastv, "turbo": self.turbo, "reduce": self.reduce, "skip": self.skip}

    def specs(self) -> dict[str, str | None]:
        """``fastv``, ``turbo``, ``reduce`` and ``skip`` as text, None: none."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: None if part is None else part.spec() for name, part in parts.items()}

    def __str__(self) -> str:
        parts = [
            None if self.skip is None else f"Skip {self.skip}",
            None if self.turbo is None else f"Turbo {self.turbo}",
            None if self.reduce is None else str(self.reduce),
            None if self.fastv is None else str(self.fastv),
        ]
        return " + ".join(part for part in parts if part is not None) or "off"


SETTING_OPTIONS = tuple(part.name for part in fields(Setting))

_READ: dict[str, Callable[[Any], Any]] = {
    "fastv": to_schedule,
    "turbo": to_turbo,
    "reduce": to_reducer,
    "skip": to_skip,
}


class InForce:
    """The parts of a ``setting`` by themselves."""

    setting: Setting

    @property
    def fastv(self) -> Schedule | None:
        """The schedule; None: every layer sees every visual token."""
        return self.setting.fastv

    @property
    def turbo(self) -> Turbo | None:
        """The merging in the vision encoder; None: it makes a token of every patch."""
        return self.setting.turbo

    @property
    def reduce(self) -> Reducer | None:
        """The reducer; None: every token that the encoder makes enters the language model."""
        return self.setting.reduce

    @property
    def skip(self) -> Skip | None:
        """What is left out of pictures before the encoder; None: it sees every patch."""
        return self.setting.skip


def parse_settings(texts: Sequence[str]) -> dict[str, Setting]:
    """By name, which is the text; "off" in front: it is what the others are compared with. Raises OptionError."""
    named: dict[str, Setting] = {}
    for text in texts:
        setting = Setting.parse(text)
        name = " + ".join(part.strip() for part in text.split("+"))
        if name in named:
            raise OptionError(f"the setting {name!r} is given twice")
        named[name] = setting
    off = [name for name, setting in named.items() if setting.is_off][:1] or ["off"]
    return {off[0]: Setting()} | {name: setting for name, setting in named.items() if not setting.is_off}

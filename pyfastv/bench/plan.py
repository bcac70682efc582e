"""What a model would cost with and without pruning, before it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import _native
from .._checks import integer
from ..errors import OptionError
from ..models.header import ModelFiles
from ..settings.presets import PRESETS, Recommended
from ..settings.schedule import fitted
from ..settings.setting import Setting
from ..theory import Encoder, entering_tokens, flops, kv_bytes, paper_flops, rows_by_layer, visual_by_layer
from .speed import Speed, prefill_ms

__all__ = ["Cost", "Plan", "Prompt", "compare", "default_settings", "in_force", "plan_model"]

Settings = Mapping[str, Setting]

OFF = "off"


@dataclass(frozen=True)
class Prompt:
    """What is asked: pictures of so many tokens each, and tokens of text. Raises OptionError."""

    visual_tokens: int
    text_tokens: int = 32
    pictures: int = 1

    def __post_init__(self) -> None:
        integer("visual_tokens", self.visual_tokens, 1)
        integer("text_tokens", self.text_tokens, 1)
        integer("pictures", self.pictures, 1)

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens of every picture."""
        return (self.visual_tokens,) * self.pictures


@dataclass(frozen=True)
class Cost:
    """What a prompt costs with one setting. The language model alone, but for ``first_token_ms``."""

    setting: str
    schedule: str | None
    """As text; None: no pruning."""
    turbo: str | None
    reduce: str | None
    """As text; None: none."""
    visual_tokens: int
    """Of a picture, as they enter the language model."""
    retained_share: float
    """Share of the visual tokens, of those that there are without Turbo and reducer, that a layer sees, mean over the
    layers."""
    encoder_flops: int | None
    """Of all pictures; None without an mmproj."""
    paper_flops: int
    """By the formula of FastV's paper."""
    flops: int
    """What is computed."""
    kv_bytes: int
    """KV cache that the prompt fills, in f16."""
    prefill_ms: float | None
    """Predicted; None without a measurement."""
    first_token_ms: float | None
    """Predicted, vision encoder included."""


@dataclass(frozen=True)
class Plan:
    """The costs of one model, off first."""

    files: ModelFiles
    prompt: Prompt
    speed: Speed | None
    costs: tuple[Cost, ...]
    unmeasured: str | None = None
    """Why there is no speed."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        speed = self.speed
        return {
            "model": self.files.name,
            "mmproj": self.files.mmproj,
            "description": self.files.description,
            "weight_bytes": self.files.weight_bytes,
            "mmproj_bytes": self.files.mmproj_bytes,
            "encoder_flops": self.costs[0].encoder_flops,
            "measured": None if speed is None else asdict(speed),
            "unmeasured": self.unmeasured,
            "settings": [asdict(cost) for cost in self.costs],
        }


def default_settings(n_layer: int, cut_layers: Sequence[int] = ()) -> dict[str, Setting]:
    """Off, K in 2, 3, 4 with drop 0.25 to 0.9, and the presets, as far as a model has so many layers. ``cut_layers``:
    where it can be cut: the first three of these from 2 on."""
    settings = {OFF: Setting()}
    for k in [layer for layer in cut_layers or (2, 3, 4) if layer >= 2][:3]:
        if k < n_layer:
            cuts = {f"K={k} drop {drop:g}": Recommended(k, drop) for drop in (0.25, 0.5, 0.75, 0.9)}
            settings |= {name: Setting(schedule) for name, schedule in cuts.items()}
    # those with one cut at a share cost what a row above costs
    for name in ("pyramiddrop", "feather", "vtw", "zipvl"):
        settings[name] = Setting(PRESETS[name]())
    return settings


def in_force(files: ModelFiles, settings: Settings) -> dict[str, Setting]:
    """With every cut at a layer where the model can be cut, of which a LayerWarning tells, as where it runs. A layer that
    it has not is :func:`plan_model`'s to tell."""
    specs = [setting.specs()["fastv"] or "" for setting in settings.values()]
    try:
        layers = _native.fit_layers(files.paths[0], specs)
    except OptionError:
        return dict(settings)
    return {
        name: setting
        if setting.fastv is None
        else replace(setting, fastv=fitted(setting.fastv, of_cuts, files.name))
        for (name, setting), of_cuts in zip(settings.items(), layers, strict=True)
    }


def measured_lengths(settings: Settings, files: ModelFiles, prompt: Prompt) -> list[int]:
    """Prompt lengths that a measurement should cover: the shortest and the longest stage, and some between."""
    rows: set[int] = set()
    for setting in settings.values():
        counts = _entering(setting, files.encoder, prompt)
        rows |= {*rows_by_layer(setting.fastv, files.decoder.n_layer, counts, prompt.text_tokens)}
    low, high = max(16, min(rows)), max(16, *rows)
    # a rate changes fast where a matrix has few rows
    return sorted({low, *(round(low * (high / low) ** share) for share in (1 / 3, 2 / 3)), high})


def _entering(setting: Setting, encoder: Encoder | None, prompt: Prompt) -> list[int]:
    """Visual tokens of every picture that enter the language model."""
    return [entering_tokens(setting, encoder, n) for n in prompt.counts]


def plan_model(
    files: ModelFiles,
    settings: Settings,
    prompt: Prompt,
    speed: Speed | None = None,
    unmeasured: str | None = None,
) -> Plan:
    """Costs of a prompt for each setting; off comes first, whether given or not.

    Raises OptionError for a setting that the model cannot have."""
    decoder, encoder = files.decoder, files.encoder
    costs = []
    for name, setting in ({OFF: Setting()} | dict(settings)).items():
        try:
            counts = _entering(setting, encoder, prompt)
            visual = visual_by_layer(setting.fastv, decoder.n_layer, counts)
            of_picture = None if encoder is None else encoder.flops(prompt.visual_tokens, turbo=setting.turbo)
        except OptionError as error:
            raise OptionError(f"{files.name}, setting {name!r}: {error}") from error
        rows = [prompt.text_tokens + n for n in visual]
        prefill = None if speed is None else prefill_ms(decoder, rows, speed)
        encode_ms = None if speed is None else speed.encode_ms_of(setting.turbo)
        first = None
        if prefill is not None and encode_ms is not None:
            first = prefill + prompt.pictures * encode_ms
        specs = setting.specs()
        costs.append(
            Cost(
                setting=name,
                schedule=specs["fastv"],
                turbo=specs["turbo"],
                reduce=specs["reduce"],
                visual_tokens=counts[0],
                encoder_flops=None if of_picture is None else prompt.pictures * of_picture,
                retained_share=sum(visual) / (sum(prompt.counts) * decoder.n_layer),
                paper_flops=paper_flops(decoder, rows),
                flops=flops(decoder, rows),
                kv_bytes=kv_bytes(decoder, rows),
                prefill_ms=prefill,
                first_token_ms=first,
            )
        )
    return Plan(files, prompt, speed, tuple(costs), unmeasured)


def total_flops(cost: Cost) -> int:
    """Language model and vision encoder."""
    return cost.flops + (cost.encoder_flops or 0)


def time_ms(cost: Cost) -> float | None:
    """To the first token where the encoder was measured, else the language model's prefill."""
    return cost.prefill_ms if cost.first_token_ms is None else cost.first_token_ms


def compare(first: Plan, second: Plan) -> dict[str, Any]:
    """The paper's question: is the larger of two models, pruned, cheaper than the smaller one without pruning?

    ``larger``, ``smaller`` (names), ``settings``: for each setting of the larger one its ``flops``, ``paper_flops``,
    ``kv_bytes``, ``time`` (None without a measurement) as ratios to the smaller one without pruning, below 1 cheaper; and
    ``more_weight_bytes``, which pruning does not change.
    """
    large, small = sorted((first, second), key=lambda plan: plan.costs[0].flops, reverse=True)
    off = small.costs[0]

    def ratio(value: float | None, base: float | None) -> float | None:
        return value / base if value is not None and base else None

    return {
        "larger": large.files.name,
        "smaller": small.files.name,
        "more_weight_bytes": _all_bytes(large) - _all_bytes(small),
        "settings": [
            {
                "setting": cost.setting,
                "paper_flops": ratio(cost.paper_flops, off.paper_flops),
                "flops": ratio(total_flops(cost), total_flops(off)),
                "kv_bytes": ratio(cost.kv_bytes, off.kv_bytes),
                "time": ratio(time_ms(cost), time_ms(off)),
            }
            for cost in large.costs
        ],
    }


def _all_bytes(plan: Plan) -> int:
    return plan.files.weight_bytes + plan.files.mmproj_bytes


def cheaper(settings: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """The settings whose ratio is below 1."""
    return [entry["setting"] for entry in settings if entry[key] is not None and entry[key] < 1.0]

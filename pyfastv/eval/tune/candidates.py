"""What is tried: rules, layers and shares, and Turbo, as far as model and vision encoder allow them."""

from __future__ import annotations

from collections.abc import Sequence

from ... import _native
from ...engine.runner import Runner
from ...errors import UnsupportedModelError
from ...settings.presets import FastV, PyramidDrop, Recommended
from ...settings.schedule import Cut, Schedule
from ...settings.turbo import Turbo

__all__ = ["candidates", "turbo_candidates", "why_no_turbo"]

_DROPS = (0.5, 0.75, 0.875)
_LAYERS = (0.0625, 0.125, 0.25, 0.5)  # shares of all; the first is FastV's 2 of 32
_WINDOW = Cut(2, 0.5, "question-max", "window4")
_RULES = (Recommended().cuts[0], FastV().cuts[0], _WINDOW)
_WITHOUT_ATTENTION = (Cut(2, 0.5, "none", "cover", weigh=True),)
_TURBO = (0.125, 0.25, 0.5)  # shares
_LAYERS_WITH_TURBO = 2


def candidates(model: str) -> list[str]:
    """Schedules to try on a GGUF file, as text.

    The recommended rule, FastV's, and the question's votes in windows, cut at 1/16 (at least 2), 1/8, 1/4 and 1/2 of the
    layers, or the next layer that can be cut, each with a half, three quarters and seven eighths dropped; and
    PyramidDrop. Where no layer's attention can be read, cover without a score. Raises ModelError, UnsupportedModelError.
    """
    n_layer, allowed = _depth(model)
    schedules = _grid(_rules(allowed), _layers(n_layer, allowed))
    if {n_layer * part // 4 for part in (1, 2, 3)} <= set(allowed):
        schedules.append(PyramidDrop())
    return [schedule.spec() for schedule in schedules]


def turbo_candidates(model: str) -> list[str]:
    """Settings with Turbo to try on a GGUF file, as text.

    An eighth, a quarter and a half of the tokens merged in the encoder: alone, and with the first rule of
    :func:`candidates` at the first two of its layers with each of its shares. Raises as it does.
    """
    n_layer, allowed = _depth(model)
    schedules = _grid(_rules(allowed)[:1], _layers(n_layer, allowed)[:_LAYERS_WITH_TURBO])
    with_schedule = ("", *(f" + {schedule.spec()}" for schedule in schedules))
    return [f"turbo:share={share:g}{schedule}" for share in _TURBO for schedule in with_schedule]


def why_no_turbo(runner: Runner) -> str | None:
    """Why Turbo cannot make the language model's rows fewer; None: it can. Clears the context."""
    if runner.info["mmproj"] is None:
        return "there is no vision encoder"
    before = runner.turbo
    try:
        runner.set_turbo(Turbo(_TURBO[0]))
    except UnsupportedModelError as error:
        return str(error).removeprefix("turbo: ")
    runner.set_turbo(before)
    if _native.vision_info(str(runner._model.mmproj))["needs_grid"]:
        return (
            "this encoder gives every patch a token again, so that it alone gets faster, and what is compared here is "
            "the number of the language model's rows"
        )
    return None


def _depth(model: str) -> tuple[int, Sequence[int]]:
    """How many layers there are, and at which attention can be read."""
    facts = _native.model_info(model)
    if facts["unsupported_reason"] is not None:
        raise UnsupportedModelError(f"this model cannot be pruned: {facts['unsupported_reason']}")
    return facts["n_layer"], facts["cut_layers"]


def _rules(allowed: Sequence[int]) -> Sequence[Cut]:
    return _RULES if allowed else _WITHOUT_ATTENTION


def _grid(rules: Sequence[Cut], layers: Sequence[int]) -> list[Schedule]:
    return [
        Schedule([Cut(layer, drop, rule.score, rule.pick, rule.weigh, rule.merge)])
        for rule in rules
        for layer in layers
        for drop in _DROPS
    ]


def _layers(n_layer: int, allowed: Sequence[int]) -> list[int]:
    allowed = allowed or range(1, n_layer)
    wanted = [max(2, round(share * n_layer)) for share in _LAYERS]
    found = (next((layer for layer in allowed if layer >= first), None) for first in wanted)
    return sorted({layer for layer in found if layer is not None})

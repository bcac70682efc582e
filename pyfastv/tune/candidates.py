"""What is tried: rules, layers and shares, as far as the model allows them."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _native
from ..errors import UnsupportedModelError
from ..presets import FastV, PyramidDrop, Recommended
from ..schedule import Cut, Schedule

__all__ = ["candidates"]

_DROPS = (0.5, 0.75, 0.875)
_LAYERS = (0.0625, 0.125, 0.25, 0.5)  # shares of all; the first is FastV's 2 of 32
_WINDOW = Cut(2, 0.5, "question-max", "window4")
_RULES = (Recommended().cuts[0], FastV().cuts[0], _WINDOW)
_WITHOUT_ATTENTION = (Cut(2, 0.5, "none", "cover", weigh=True),)


def candidates(model: str) -> list[str]:
    """Settings to try on a GGUF file, as text.

    The recommended rule, FastV's, and the question's votes in windows, cut at 1/16 (at least 2), 1/8, 1/4 and 1/2 of the
    layers, or the next layer that can be cut, each with a half, three quarters and seven eighths dropped; and
    PyramidDrop. Where no layer's attention can be read, cover without a score. Raises ModelError, UnsupportedModelError.
    """
    facts = _native.model_info(model)
    if facts["unsupported_reason"] is not None:
        raise UnsupportedModelError(f"this model cannot be pruned: {facts['unsupported_reason']}")
    n_layer, allowed = facts["n_layer"], facts["cut_layers"]
    rules = _RULES if allowed else _WITHOUT_ATTENTION
    layers = _layers(n_layer, allowed or range(1, n_layer))
    schedules = [
        Schedule([Cut(layer, drop, rule.score, rule.pick, rule.weigh, rule.merge)])
        for rule in rules
        for layer in layers
        for drop in _DROPS
    ]
    pyramid = PyramidDrop()
    if {n_layer * part // 4 for part in (1, 2, 3)} <= set(allowed):
        schedules.append(pyramid)
    return [schedule.spec() for schedule in schedules]


def _layers(n_layer: int, allowed: Sequence[int]) -> list[int]:
    wanted = [max(2, round(share * n_layer)) for share in _LAYERS]
    found = (next((layer for layer in allowed if layer >= first), None) for first in wanted)
    return sorted({layer for layer in found if layer is not None})

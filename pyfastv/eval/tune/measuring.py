"""The search on a model: references once a picture, every setting beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...engine.runner import Runner
from ...settings.setting import Setting
from ..asking import Asking
from ..question import Question
from .distribution import Reference, compare, refer
from .search import Sample

__all__ = ["Measuring"]


class Measuring:
    """What :func:`pyfastv.eval.tune.search` calls: settings on one picture's questions, picture by picture."""

    def __init__(self, runner: Runner, questions: Sequence[Question], asking: Asking, positions: int) -> None:
        """``positions``: tokens of an answer that are compared."""
        self._runner, self._asking, self._positions = runner, asking, positions
        by_picture: dict[Path | str, list[Question]] = {}
        for question in questions:
            by_picture.setdefault(question.image, []).append(question)
        self._pictures = list(by_picture.values())
        self._references: dict[str, Reference] = {}

    @property
    def n_pictures(self) -> int:
        return len(self._pictures)

    @property
    def n_positions(self) -> int:
        """Of all references so far."""
        return sum(len(reference.likeliest) for reference in self._references.values())

    def __call__(self, picture: int, settings: Sequence[str]) -> Mapping[str, list[Sample]]:
        """The encoder sees the picture once for each Turbo, stage 0 once for each setting."""
        questions = self._pictures[picture]
        for question in questions:
            if question.id not in self._references:
                self._references[question.id] = refer(
                    self._runner,
                    question,
                    self._asking.text(question),
                    self._asking.system,
                    self._positions,
                )
        # settings of one Turbo together: with a small cache of the encoder's outputs, too, each is made once
        parsed = {text: Setting.parse(text) for text in settings}
        in_order = sorted(settings, key=lambda text: str(parsed[text].turbo or ""))
        return {text: [self._sample(parsed[text], question) for question in questions] for text in in_order}

    def _sample(self, setting: Setting, question: Question) -> Sample:
        found = compare(
            self._runner,
            setting,
            self._references[question.id],
            question,
            self._asking.text(question),
            self._asking.system,
        )
        return Sample(float(found.kl.mean()), float(found.changed.mean()), found.cost)

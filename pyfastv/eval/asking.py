"""Asking every question with every setting, in one process or several, and going on where a run was interrupted."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeAlias, cast

from ..engine.answer import Report
from ..engine.runner import Runner
from ..errors import Error
from ..inputs.template import find_template
from ..models import bundled_mmproj, bundled_model
from ..settings.setting import Setting
from .answers import AnswerFile, Given
from .question import Question

__all__ = ["Asking", "ask_all"]

Job: TypeAlias = (
    "list[tuple[tuple[str, ...], Question]]"  # the settings that each question of a picture still needs
)
Progress: TypeAlias = "Callable[[int, int], object]"


@dataclass(frozen=True)
class Asking:
    """How questions are asked: greedily, one conversation each."""

    runner: dict[str, Any] = field(default_factory=dict)
    """Keywords of :class:`pyfastv.Runner`."""
    instruction: str = ""
    """Appended to every question, on a line of its own."""
    system: str | None = None
    max_tokens: int = 96
    processes: int = 1
    """Each loads the model. With several, give each its share of the threads (``n_threads`` of the runner)."""
    fingerprints: bool = True
    """Answers say how they were asked, and a file of answers that were asked otherwise is refused."""

    def text(self, question: Question) -> str:
        """The question with the instruction behind it."""
        return f"{question.text}\n{self.instruction}" if self.instruction else question.text

    def fingerprint(self, question: Question) -> str | None:
        """A few digits that differ where model, text or options do."""
        if not self.fingerprints:
            return None
        model = self.runner.get("model_path")
        files = (model, self.runner.get("mmproj_path")) if model else (bundled_model(), bundled_mmproj())
        sizes = [
            (Path(file).name, Path(file).stat().st_size) for file in files if file and Path(file).is_file()
        ]
        known = [sizes, self.text(question), self.system, self.max_tokens]
        if self.runner.get("encoder_type", "auto") != "auto":
            known.append(self.runner["encoder_type"])
        types = [self.runner.get(name, "f16") for name in ("type_k", "type_v")]
        if types != ["f16", "f16"]:
            known.append(types)
        if self.runner.get("chat_template") is not None:
            known.append(_template(self.runner["chat_template"]))
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=4).hexdigest()


@cache  # asked for with every question
def _template(given: str | os.PathLike[str]) -> str | None:
    return find_template(given)


def ask_all(
    questions: Sequence[Question],
    settings: Sequence[str],
    answers: AnswerFile,
    asking: Asking,
    progress: Progress | None = None,
) -> dict[str, list[Given]]:
    """The answers by setting, in the order of the questions; what is in ``answers`` is not asked again.

    ``progress``: called with (answers so far, answers wanted). An error ends it; what was answered is in ``answers``.
    """
    pictures: dict[Path | str, Job] = {}
    for question in questions:
        asked = asking.fingerprint(question)
        missing = tuple(setting for setting in settings if answers.find(setting, question.id, asked) is None)
        if missing:
            pictures.setdefault(question.image, []).append((missing, question))

    total = len(questions) * len(settings)
    done = total - sum(len(missing) for job in pictures.values() for missing, _ in job)
    for given in _run(list(pictures.values()), asking):
        answers.add(given)
        done += len(given)
        if progress is not None:
            progress(done, total)

    found = {setting: [answers.find(setting, question.id) for question in questions] for setting in settings}
    return {setting: [given for given in all_given if given] for setting, all_given in found.items()}


def _run(jobs: list[Job], asking: Asking) -> Iterator[list[Given]]:
    if not jobs:
        return
    if asking.processes == 1:
        with Runner(**{"fastv": None, **asking.runner}) as runner:
            for job in jobs:
                yield _answer(runner, job, asking)
        return
    yield from _run_in_processes(jobs, asking)


def _run_in_processes(jobs: list[Job], asking: Asking) -> Iterator[list[Given]]:
    """Over pipes alone: multiprocessing's queues and pools need semaphores, which not every container has."""
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    processes: list[SpawnProcess] = []
    busy: list[Connection] = []
    try:
        for _ in range(min(asking.processes, len(jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer_all, args=(theirs, asking), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()  # so that its end is seen
            busy.append(ours)
            ours.send(waiting.popleft())
        while busy:
            for pipe in cast("list[Connection]", wait(busy)):
                made = pipe.recv()
                if isinstance(made, Exception):
                    raise made
                yield made
                if waiting:
                    pipe.send(waiting.popleft())
                else:
                    busy.remove(pipe)
    except (EOFError, ConnectionError):
        raise Error(
            f"one of {asking.processes} processes was ended, by a lack of memory perhaps: use fewer processes"
        ) from None
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _answer(runner: Runner, job: Job, asking: Asking) -> list[Given]:
    """All questions about one picture, setting by setting: the encoder sees it once, stage 0 once for each setting."""
    given = []
    for setting in dict.fromkeys(setting for settings, _ in job for setting in settings):
        runner._use(Setting.parse(setting))
        for settings, question in job:
            if setting in settings:
                try:
                    made = runner.ask(
                        question.image,
                        asking.text(question),
                        system=asking.system,
                        max_tokens=asking.max_tokens,
                    )
                except Error as error:
                    raise type(error)(f"question {question.id}, setting {setting}: {error}") from error
                given.append(
                    Given(
                        setting,
                        question.id,
                        made.text,
                        _retained_share(made.report),
                        asking.fingerprint(question),
                        made.report.visual_tokens,
                    )
                )
    return given


def _retained_share(report: Report) -> float | None:
    """Of what the encoder would make; Turbo and the reducers count for every layer."""
    if report.retained_share is None:
        return None
    return report.retained_share * report.visual_tokens / report.patches


def _answer_all(pipe: Connection, asking: Asking) -> None:
    """What a process does: jobs come over the pipe, and their answers go, or what was raised."""
    # Ctrl-C goes to all processes, and the first one tells of it
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        runner = Runner(**{"fastv": None, **asking.runner})
        while True:
            pipe.send(_answer(runner, pipe.recv(), asking))
    except (EOFError, ConnectionError):  # the other end is gone
        return
    except Exception as error:
        pipe.send(error)
        if not isinstance(error, Error):  # with its traceback
            raise

"""The terminal: progress bars on stderr, where somebody looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

__all__ = ["Update", "bar"]


class Update(Protocol):
    """Moves a bar to ``done`` of ``total``."""

    def __call__(self, done: float, total: float = 1.0) -> None: ...


@contextmanager
def bar(title: str, enabled: bool = True) -> Iterator[Update | None]:
    """A bar that vanishes when done; gives the function that moves it, or None where none is shown."""
    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def update(done: float, total: float = 1.0) -> None:
            progress.update(task, completed=done, total=total)

        yield update

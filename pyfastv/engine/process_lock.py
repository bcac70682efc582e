"""A lock that is told apart from its copy in a child of a fork."""

from __future__ import annotations

import threading
from typing import Any

from .. import _native
from ..errors import ClosedError

__all__ = ["ProcessLock"]


class ProcessLock(threading.Condition):
    """A reentrant lock, also a condition, for the process that made it.

    A child of a fork has a copy in the state of that moment: held for ever, if by a thread, because threads stay in the
    parent. So it raises ClosedError there.
    """

    def __init__(self, owner: str) -> None:
        """``owner``: what the lock is of, for messages: "runner"."""
        super().__init__()
        self._owner = owner
        self._made = _native.n_forks()

    @property
    def inherited(self) -> bool:
        """This process is a child of the one that made it."""
        return _native.n_forks() != self._made

    def refuse_inherited(self) -> None:
        """Raises ClosedError in a child."""
        if self.inherited:
            raise ClosedError(
                f"this {self._owner} was made before this process was forked, and its threads are in the parent: make "
                "one in the child, or start processes with multiprocessing's spawn"
            )

    def __enter__(self) -> bool:
        self.refuse_inherited()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)

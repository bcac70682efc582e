"""Files that take a result: looked at before the work, then written as a whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import DataError

__all__ = ["Output"]

_READER_SECONDS = 5.0  # that a pipe may wait for somebody who reads from it
_STANDARD = (1, 2)  # stdout, stderr


class Output:
    """Where a result goes. A regular file, also at the end of a link, is replaced when all is written; a pipe or a device
    is written to. Folders are not made.

    >>> output = Output("profile.json")  # raises before the work, not behind it
    >>> output.write(text)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises DataError: a file cannot be written there."""
        self.path = os.fsdecode(path)
        """As given."""
        with self._errors_told():
            self._look()

    def write(self, data: str | bytes) -> None:
        """All there is; text as UTF-8. Raises DataError, and a file that was there before is still there then."""
        content = data.encode() if isinstance(data, str) else data
        with self._errors_told():
            target = self._replaceable()
            part = None if target is None else _new_file_beside(target)
            if target is None or part is None:
                with self._opened() as file:
                    file.write(content)
                return
            try:
                part.write_bytes(content)
                self._put_in_place(part, target)
            finally:
                with suppress(OSError):
                    part.unlink()

    @contextmanager
    def part(self) -> Iterator[Path]:
        """For what writes to a path: an empty file, whose content goes to the output at the end of the block, unless that
        ends with an exception. Raises DataError, also for an OSError of the block."""
        with self._errors_told():
            target = self._replaceable()
            part = None if target is None else _new_file_beside(target)
            if part is None:
                descriptor, name = tempfile.mkstemp(prefix="pyfastv-")
                os.close(descriptor)
                part, target = Path(name), None
            try:
                yield part
                self._put_in_place(part, target)
            finally:
                with suppress(OSError):
                    part.unlink()

    @contextmanager
    def appended(self) -> Iterator[BinaryIO]:
        """For what grows: the file, open for appending. Raises DataError, also for an OSError of the block."""
        with self._errors_told():
            found = self._found()
            regular = found is None or (stat.S_ISREG(found.st_mode) and _standard_stream(found) is None)
            with open(self.path, "ab") if regular else self._opened() as file:
                yield file

    def _look(self) -> None:
        found = self._found()
        target = os.path.realpath(self.path)
        if not self.path or self.path.endswith(os.sep) or (found and stat.S_ISDIR(found.st_mode)):
            raise DataError(f"{self.path!r} is a folder, not a file that could be written")
        if found is None:
            folder = os.path.dirname(target)
            if not os.path.isdir(folder):
                raise DataError(f"{self.path}: cannot be written: there is no folder {folder}")
            _new_file(folder).unlink()
        elif stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.ENXIO, "it is a socket")
        elif not os.access(self.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def _found(self) -> os.stat_result | None:
        """What is there, at the end of links; None: nothing yet."""
        try:
            return os.stat(self.path)
        except FileNotFoundError:
            return None

    def _replaceable(self) -> Path | None:
        """The regular file that there is or will be, at the end of links; None: what is there is to be written to."""
        self._look()  # hours may have passed
        found = self._found()
        target = Path(os.path.realpath(self.path))
        if found is None:
            return target
        # a file that somebody has open under these names would miss what replaces it
        if not stat.S_ISREG(found.st_mode) or os.path.abspath(self.path).startswith(("/dev/fd/", "/proc/")):
            return None
        if _standard_stream(found) is not None or not os.path.samestat(found, os.stat(target)):
            return None
        return target

    def _put_in_place(self, part: Path, target: Path | None) -> None:
        """``target`` None: what is there stays, and is written to."""
        if target is not None:
            before = self._found()
            if before is not None:
                part.chmod(stat.S_IMODE(before.st_mode))
                with suppress(OSError):
                    os.chown(part, before.st_uid, before.st_gid)
            try:
                part.replace(target)
                return
            except OSError as error:
                if error.errno != errno.EBUSY:  # a file that is mounted cannot be replaced
                    raise
        with part.open("rb") as content, self._opened() as file:
            shutil.copyfileobj(content, file)

    def _opened(self) -> BinaryIO:
        """What is there, to be written to from its beginning; our own stdout and stderr from where they are."""
        found = os.stat(self.path)
        standard = _standard_stream(found)
        if standard is not None:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            return os.fdopen(os.dup(standard), "wb")
        if stat.S_ISFIFO(found.st_mode):
            return _opened_pipe(self.path)
        return open(self.path, "wb")

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            if isinstance(error, DataError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{self.path}: cannot be written: {reason}") from error


def _standard_stream(found: os.stat_result) -> int | None:
    for descriptor in _STANDARD:
        with suppress(OSError):  # it is closed
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


def _new_file_beside(target: Path) -> Path | None:
    """None: the folder takes no new file, and the one that there is has to be written to."""
    try:
        return _new_file(target.parent)
    except OSError:
        if target.exists():
            return None
        raise


def _new_file(folder: str | Path) -> Path:
    path = Path(folder) / f".pyfastv-{os.getpid()}-{secrets.token_hex(4)}.part"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    return path


def _opened_pipe(path: str) -> BinaryIO:
    """Raises OSError where nobody reads: opening it would wait for ever."""
    end = time.monotonic() + _READER_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                raise OSError(errno.ENXIO, "it is a pipe, and nobody reads from it") from None
        time.sleep(0.02)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")

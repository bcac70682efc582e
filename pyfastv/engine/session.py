"""A conversation with a model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._closing import Closing
from ..errors import ClosedError, OptionError
from ..inputs.chat import assistant_message, system_message, user_message
from ..inputs.images import Frame, Picture, Pictures, as_list
from ..inputs.question import picture_and_question
from ..inputs.video import Video, VideoSource
from .answer import Answer
from .desk import Place
from .loaded import PathLike, setting_options
from .process_lock import ProcessLock
from .sampling import RequestOptions, of_request
from .saved_session import SavedSession
from .stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .runner import Runner

__all__ = ["Session"]


class Session(Closing):
    """Questions that build on each other, about one picture or several; made by :meth:`pyfastv.Runner.session`.

    >>> with runner.session() as chat:
    ...     print(chat.ask("clock.png", "What time is it?"))
    ...     print(chat.ask("Is the clock digital?"))                    # the picture is not evaluated again

    The first question of a picture chooses which of its tokens the later layers see; a later one brings back some
    that it needs (``recall`` of :class:`pyfastv.Schedule`). As safe to use from several threads as the runner.
    """

    def __init__(self, runner: Runner, system: str | None = None, **options: Unpack[RequestOptions]) -> None:
        """See :meth:`pyfastv.Runner.session`."""
        self._lock = ProcessLock("runner")
        self._runner = runner
        self._options = options
        self._history: list[dict[str, Any]] = [] if system is None else [system_message(system)]
        self._answering: Stream | None = None  # to the last message of the history
        self._place = Place()  # of the last question
        self._closed = False

    @classmethod
    def _restored(cls, runner: Runner, path: PathLike, options: RequestOptions) -> Self:
        """See :meth:`pyfastv.Runner.session`."""
        saved = SavedSession.load(path, runner._model, max_pixels=runner._max_pixels)
        merged: RequestOptions = {**saved.options, **options}
        session = cls(runner, None, **merged)
        session._history = saved.messages
        if saved.state is not None:
            setting, _ = of_request(merged, runner.setting)
            fastv = setting_options(setting)["fastv"]
            try:
                if fastv != saved.fastv:
                    raise OptionError(
                        f"it was made by the schedule {saved.fastv or 'off'!r}, not {fastv or 'off'!r}"
                    )
                session._place = runner._restore_context(fastv, saved.state)
            except OptionError as error:
                warnings.warn(
                    f"{saved.name}: its context does not fit this runner, so the next question reads the conversation "
                    f"anew: {error}",
                    stacklevel=3,
                )
        return session

    def save(self, path: PathLike) -> bool:
        """Write the conversation to a file, for ``Runner.session(restore=path)``, in this process or another one: its
        messages with their pictures, its options, and what the context holds of it, so that the next question costs its
        own tokens alone. An answer that is being read ends, as by the next question.

        Returns whether the context is in the file. It is not where another request has had the slot since: the next
        question of a restored conversation evaluates it anew then.

        The file has all that was said and shown, and is as large as the KV cache of the conversation. Raises DataError:
        it cannot be written (what was there before is still there); OptionError: options that are no JSON; ClosedError.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("this session is closed: make a new one")
            if self._answering is not None:
                self._answering.close()
            runner = self._runner
            state = runner._save_context(self._place.number)
            saved = SavedSession(self.messages, self._options, self._place.fastv, state)
            saved.save(path, runner._model)
        return state is not None

    def close(self) -> None:
        """Ask no more; ``messages`` stay readable. The runner stays open. Can be called again."""
        self._closed = True

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, as :meth:`pyfastv.Runner.create_chat_completion` takes it; pictures as RGB arrays.

        An answer that was stopped is there as far as it came; a question that raised an error is not."""
        answer = [] if self._answering is None else [assistant_message(self._answering.text)]
        return [*self._history, *answer]

    def ask(
        self,
        *asked: Pictures,
        image: Pictures = None,
        question: str | None = None,
        video: Video | VideoSource | None = None,
        progress: Callable[[int, int], object] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Answer:
        """Answer a question, alone or with a picture or several (a list) or a video that come with it.

        Arguments and errors are those of :meth:`pyfastv.Runner.ask`: the picture first. Text alone is the question,
        whatever it is.
        """
        given = self._given(asked, image, question)
        with self._lock, self._runner._desk.holding() as place:
            return self._ask(*given, video, progress, options, place).read()

    def stream(
        self,
        *asked: Pictures,
        image: Pictures = None,
        question: str | None = None,
        video: Video | VideoSource | None = None,
        progress: Callable[[int, int], object] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """As :meth:`ask`, piece by piece. The next question ends it, wherever it is."""
        given = self._given(asked, image, question)
        with self._lock:
            return self._ask(*given, video, progress, options)

    @staticmethod
    def _given(
        asked: tuple[Pictures, ...], image: Pictures, question: str | None
    ) -> tuple[Pictures, str | None]:
        if len(asked) == 1 and isinstance(asked[0], str) and question is None:
            return image, asked[0]
        return picture_and_question(asked, image, question)

    def _ask(
        self,
        image: Pictures,
        question: str | None,
        video: Video | VideoSource | None,
        progress: Callable[[int, int], object] | None,
        options: RequestOptions,
        place: Place | None = None,
    ) -> Stream:
        if self._closed:
            raise ClosedError("this session is closed: make a new one")
        begin = time.perf_counter()
        # read once: the file may be gone, or another one, when a later question is asked
        given = as_list(image)
        images: list[Picture] = [
            picture if isinstance(picture, Frame) else pixels
            for picture, pixels in zip(given, self._runner._model.load_images(given), strict=True)
        ]
        images += self._runner._load_frames(video)
        image_decode_ms = (time.perf_counter() - begin) * 1000.0
        messages = [*self.messages, user_message(question, images)]
        place = place or Place()
        stream = self._runner._start(
            messages, progress, {**self._options, **options}, image_decode_ms=image_decode_ms, place=place
        )
        self._history, self._answering, self._place = messages, stream, place
        return stream

"""What is asked about what: the arguments that every way to ask takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._checks import shown
from ..errors import OptionError
from .images import Pictures

__all__ = ["picture_and_question"]

_ADDRESSES = ("data:", "file:", "http://", "https://")


def picture_and_question(
    asked: Sequence[Pictures], image: Pictures, question: str | None
) -> tuple[Pictures, str | None]:
    """The picture or pictures, and the question.

    ``asked``: what was passed by position: the picture and then the question, or the question alone. The other way
    round is taken where only one of them can be a question: the other is no text. ``image``, ``question``: what was
    passed by name. Raises OptionError.
    """
    if len(asked) > 2:
        raise OptionError(
            f"ask(picture, question) takes two things, and got {len(asked)}: several pictures are a list, as in "
            "ask([first, second], question)"
        )
    first, second = (*asked, None, None)[:2]
    picture: Pictures = first
    text = None
    if isinstance(second, str):
        text = second
        if isinstance(first, str) and _names_picture(second) and not _names_picture(first):
            raise OptionError(
                f"the picture comes first, then the question: ask({shown(second)}, {shown(first)}), or by name: "
                f"ask(image={shown(second)}, question={shown(first)})"
            )
    elif isinstance(first, str) and (second is not None or question is None):
        picture, text = second, first
        if second is None and image is None and _names_picture(first):
            raise OptionError(
                f"{shown(first)} is a picture, and there is no question: ask({shown(first)}, question); if it is the "
                "question, ask(question=...)"
            )
    elif second is not None:
        raise OptionError(f"question must be a string; got {shown(second)}")
    if picture is not None and image is not None:
        raise OptionError("image is given twice: by its place and by its name")
    if text is not None and question is not None:
        raise OptionError("question is given twice: by its place and by its name")
    return image if picture is None else picture, question if text is None else text


def _names_picture(text: str) -> bool:
    """Is it a file, or an address? A question may be about one, in other words."""
    address = text.lower().startswith(_ADDRESSES) and not any(character.isspace() for character in text)
    return address or os.path.isfile(text)

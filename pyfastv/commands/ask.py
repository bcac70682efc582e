"""``pyfastv ask``"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..engine.answer import Answer
from ..engine.runner import Runner
from ..engine.sampling import SamplingOptions
from ..engine.stream import Stream
from ..errors import Error, ImageError, OptionError
from ..inputs.uris import is_data_uri, local_path
from .bars import bar
from .help import GroupedCommand
from .media import STDIN, read_media, source_name
from .options import answer_options, load_runner, shows_progress, to_sampling, to_setting
from .told import tell_report

__all__ = ["ask"]

_EXAMPLES = """\b
Examples:
  pyfastv ask photo.jpg "What is written on the sign?" -m model.gguf
  pyfastv ask before.jpg after.jpg "What has changed?"
  pyfastv ask clip.mp4 "What happens?" --frames 8
  pyfastv ask --each *.jpg "Describe the image." > captions.jsonl
  pyfastv ask - "What is this?" < photo.jpg
  pyfastv ask photo.jpg - < question.txt
"""


@click.command(cls=GroupedCommand, context_settings={"show_default": True}, epilog=_EXAMPLES)
@click.argument("images", nargs=-1, metavar="[PICTURE]...")
@click.argument("question")
@answer_options
@click.option(
    "--each", is_flag=True, help="Ask about one picture after the other, and print a line of JSON for each."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object: model, picture, question, answer, finish_reason, report.",
)
@click.option("--report", is_flag=True, help="All of what was done for an answer, on stderr.")
def ask(images: tuple[str, ...], question: str, **options: Any) -> int:
    """Answer QUESTION about one picture or several, about a video, or about none.

    PICTURE: a file, a file: or data: URI, or - for standard input; - as QUESTION is text from there.
    """
    _check_usage(images, question, options["each"])
    setting, sampling = to_setting(options), to_sampling(options)
    if question == STDIN:
        question = _question_from_stdin()
    options["pictures"] = bool(images)
    if options["each"]:
        with load_runner(options, setting) as runner:
            return _ask_each(runner, images, question, sampling, options)
    pictures = read_media(images, options)
    with load_runner(options, setting) as runner:
        stream = _stream(runner, pictures, question, sampling, options)
        for piece in stream:
            if not options["as_json"]:
                click.echo(piece, nl=False)
        if options["as_json"]:
            click.echo(json.dumps(_about(runner, images, question) | _result(stream.answer)))
        else:
            click.echo()
        _tell_report(stream.answer, options)
    return 0


def _ask_each(
    runner: Runner, images: Sequence[str], question: str, sampling: SamplingOptions, options: dict[str, Any]
) -> int:
    """A picture that fails has a line as well, with ``error``; the status is 1 then."""
    status = 0
    for image in images:
        about = _about(runner, [image], question)
        try:
            answer = _stream(runner, read_media([image], options), question, sampling, options).read()
        except Error as error:
            click.echo(json.dumps(about | {"error": str(error)}))
            status = 1
        else:
            click.echo(json.dumps(about | _result(answer)))
            _tell_report(answer, options)
    return status


def _stream(
    runner: Runner, pictures: list[Any], question: str, sampling: SamplingOptions, options: dict[str, Any]
) -> Stream:
    with bar("Reading the prompt", shows_progress(options)) as reading:
        return runner.stream(pictures, question, system=options["system"], progress=reading, **sampling)


def _about(runner: Runner, images: Sequence[str], question: str) -> dict[str, Any]:
    """``picture``: a name; None without one, a list where there are several."""
    names = [source_name(image) for image in images]
    picture = names if len(names) > 1 else next(iter(names), None)
    return {"model": runner.info["model"], "picture": picture, "question": question}


def _result(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "report": answer.report.to_dict(),
    }


def _tell_report(answer: Answer, options: dict[str, Any]) -> None:
    if options["report"] or options["brief"]:
        tell_report(answer.report, whole=options["report"])


def _check_usage(images: Sequence[str], question: str, each: bool) -> None:
    if [*images, question].count(STDIN) > 1:
        raise click.UsageError("- can stand for one picture, or for the question.")
    if _is_picture(question):
        raise click.UsageError(
            f"The question is missing: {source_name(question)} is a file. (To ask this text, write it to standard "
            "input, with - as the question.)"
        )
    if each and not images:
        raise click.UsageError("--each needs pictures to ask about.")


def _is_picture(text: str) -> bool:
    """Is the last argument a file, behind which the question was forgotten?"""
    try:
        return is_data_uri(text) or os.path.isfile(local_path(text))
    except ImageError:  # a file of another machine
        return True


def _question_from_stdin() -> str:
    question = sys.stdin.read().strip()
    if not question:
        raise OptionError("standard input has no question")
    return question

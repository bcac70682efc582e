"""``pyfastv chat``"""

from __future__ import annotations

from typing import Any

import click

from .conversation import Repl
from .help import GroupedCommand
from .media import STDIN, read_media
from .options import answer_options, load_runner, to_sampling, to_setting

__all__ = ["chat"]

_EXAMPLES = """\b
Examples:
  pyfastv chat photo.jpg -m model.gguf
  pyfastv chat --system "Answer in one sentence." < questions.txt
"""


@click.command(cls=GroupedCommand, context_settings={"show_default": True}, epilog=_EXAMPLES)
@click.argument("images", nargs=-1, metavar="[PICTURE]...")
@answer_options
@click.option("--no-history", is_flag=True, help="Keep no lines for the arrow keys of the next conversation.")
def chat(images: tuple[str, ...], **options: Any) -> int:
    """Converse about pictures or a video, question by question; /help tells more.

    Where standard input is no terminal every line is a question, and the status is 1 if one of them failed.
    """
    if STDIN in images:
        raise click.UsageError("- cannot be a picture here: standard input has the questions.")
    setting, sampling = to_setting(options), to_sampling(options)
    pictures = read_media(images, options)
    with load_runner(options, setting) as runner:
        return Repl(lambda: runner.session(system=options["system"]), pictures, sampling, options).run()

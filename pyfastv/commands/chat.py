"""``pyfastv chat``"""

from __future__ import annotations

from typing import Any

import click

from .conversation import Repl
from .media import read_media
from .options import load_runner, request_options, shows_progress, to_sampling, to_setting

__all__ = ["chat"]


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@request_options
def chat(images: tuple[str, ...], **options: Any) -> None:
    """Converse about pictures or a video, question by question; /help tells more."""
    setting, sampling = to_setting(options), to_sampling(options)
    pictures = read_media(images, options)
    with load_runner(options, setting) as runner, runner.session(system=options["system"]) as session:
        Repl(session, pictures, sampling, shows_progress(options)).run()

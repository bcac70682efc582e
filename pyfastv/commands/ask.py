"""``pyfastv ask``"""

from __future__ import annotations

import json
from typing import Any

import click

from .bars import bar
from .media import read_media
from .options import load_runner, request_options, shows_progress, to_sampling, to_setting
from .streams import tell

__all__ = ["ask"]


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.argument("question")
@request_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with 'answer' and 'report'.")
def ask(images: tuple[str, ...], question: str, **options: Any) -> None:
    """Answer QUESTION about one picture or several (files or data URIs), or about a video."""
    setting, sampling = to_setting(options), to_sampling(options)
    pictures = read_media(images, options)
    with load_runner(options, setting) as runner:
        with bar("Reading the prompt", shows_progress(options)) as reading:
            stream = runner.stream(pictures, question, system=options["system"], progress=reading, **sampling)
        for piece in stream:
            if not options["as_json"]:
                click.echo(piece, nl=False)
        if options["as_json"]:
            click.echo(json.dumps({"answer": stream.answer.text, "report": stream.report.to_dict()}))
        else:
            click.echo()
            tell(str(stream.report))

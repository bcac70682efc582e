"""``pyfastv show``: what was kept of a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import OptionError
from ..inputs.uris import is_data_uri, local_path
from ..output import Output
from .media import read_media
from .options import SETTING_NAMES, load_runner, request_options, to_sampling, to_setting
from .streams import tell

__all__ = ["show"]


@click.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="PICTURE...")
@click.argument("question")
@click.option(
    "-o", "--output", metavar="FILE.png", help="Where to.  [default: into the terminal, or PICTURE-kept.png]"
)
@click.option(
    "--rules",
    multiple=True,
    metavar="SPEC",
    help="Settings to show side by side, can be repeated: as --schedule takes them, and with turbo: and reduce:.",
)
@click.option("--follow-up", multiple=True, metavar="QUESTION", help="Asked next, about the same picture.")
@request_options
def show(images: tuple[str, ...], question: str, **options: Any) -> None:
    """Draw what was kept of PICTURE for QUESTION: dropped patches dimmed, and what ranked them."""
    from ..show import draw, letters_without_font, named, trace
    from ..show.terminal import can_show, print_image

    given = click.get_current_context().get_parameter_source
    single = [name for name in SETTING_NAMES if given(name) is ParameterSource.COMMANDLINE]
    if options["rules"] and single:
        raise click.UsageError(f"--rules excludes --{single[0]}.")
    setting = to_setting(options)
    rules = named(options["rules"] or [setting], setting)
    sampling = to_sampling(options)
    inline = options["output"] is None and can_show()
    output = None if inline else _check_output(options["output"], images[0])
    _check_matplotlib()
    pictures = read_media(images, options)
    with load_runner(options, next(iter(rules.values()))) as runner:
        questions = [question, *options["follow_up"]]
        made = trace(runner, pictures, questions, rules, sampling, system=options["system"])
        image = draw(made)
    if missing := letters_without_font(made):
        tell(
            f"pyfastv: drawn as boxes, since no font of this machine has them: {missing[:40]}; install one that does, "
            "such as Noto (Debian: fonts-noto-cjk; emoji: fonts-symbola)"
        )
    if output is None:
        print_image(image)
        return
    drawn = io.BytesIO()
    image.save(drawn, "png", optimize=True)
    output.write(drawn.getvalue())
    click.echo(f"{output.path}: {image.width} x {image.height} pixels")


def _check_output(output: str | None, picture: str) -> Output:
    """Where to write; told before a model is loaded."""
    if output is None:
        stem = "picture" if is_data_uri(picture) else Path(local_path(picture)).stem
        return Output(_unused(Path(f"{stem}-kept.png")))
    if Path(output).suffix.lower() != ".png":
        raise OptionError(f"--output must name a .png file; got {output!r}")
    return Output(output)


def _unused(path: Path) -> Path:
    candidates = (path.with_stem(f"{path.stem}-{number}") for number in range(2, 10_000))
    return next((p for p in (path, *candidates) if not p.exists()), path)


def _check_matplotlib() -> None:
    from importlib.util import find_spec

    from ..errors import Error

    if find_spec("matplotlib") is None:
        raise Error("pyfastv show needs matplotlib: pip install 'pyfastv[show]'")

"""All commands, and how the process ends."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from .._about import __version__, lib_path
from ..errors import Error
from ..settings.schedule import LayerWarning
from .ask import ask
from .bench import bench
from .chat import chat
from .demo import demo
from .eval import eval_command
from .info import info
from .plan import plan
from .pull import list_command, pull
from .quantize_mmproj import quantize_mmproj_command
from .serve import serve
from .show import show
from .streams import reason_of, stderr_lost, tell, usable_streams
from .told import tell_error
from .tune import tune_command

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0; 1 after a :class:`pyfastv.Error` or what the system refuses, which is one line on stderr; 2 for wrong usage; 130
    after Ctrl-C.
    """
    with usable_streams(), _warnings_in_a_line():
        try:
            status = int(cli.main(args=arguments, prog_name="pyfastv", standalone_mode=False) or 0)
            sys.stdout.flush()
            return status
        except click.ClickException as error:
            with stderr_lost():
                error.show()
            return error.exit_code
        except click.Abort:
            tell()
            return 130
        except Error as error:
            tell_error(error, _command(arguments))
            return 1
        except MemoryError:
            tell("pyfastv: out of memory")
            return 1
        except OSError as error:
            tell(f"pyfastv: {reason_of(error)}")
            return 1


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Of ours; what others warn of is shown as elsewhere."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show_ours(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, LayerWarning):
                tell(f"pyfastv: {message}")
            else:
                shown(message, category, *where, **options)

        warnings.showwarning = show_ours
        yield


def _command(arguments: Sequence[str] | None) -> click.Command | None:
    """The one that was called."""
    words = sys.argv[1:] if arguments is None else arguments
    return next((cli.commands[word] for word in words if word in cli.commands), None)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Quantized vision-language models on llama.cpp, with FastV."""


@cli.command("lib-path")
def lib_path_command() -> None:
    """Print the folder of the patched libllama and libmtmd."""
    click.echo(lib_path())


for command in (
    *(ask, chat, serve, info, quantize_mmproj_command),
    *(eval_command, tune_command, demo, bench, plan, show),
    *(pull, list_command),
):
    cli.add_command(command)

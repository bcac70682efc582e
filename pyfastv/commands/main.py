"""The command line: one file a command, save for the smallest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from .. import __version__, lib_path
from .bench import bench
from ..models.check import check_machine
from .options import load_runner, read_media, request_options, shows_progress, to_sampling, to_setting
from .plan import plan
from .show import show
from .bars import bar
from .demo import run_demo
from ..errors import Error
from .eval import eval_command
from ..models.info import describe, gather
from ..models.quantize import TYPES, quantize_mmproj
from .conversation import Repl
from .serve import serve
from .streams import reason_of, stderr_lost, tell, usable_streams
from .tune import tune_command

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0; 1 after a :class:`pyfastv.Error` or what the system refuses, which is one line on stderr; 2 for wrong usage; 130
    after Ctrl-C.
    """
    with usable_streams():
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
            tell(f"pyfastv: {' '.join(str(error).split())}")
            return 1
        except MemoryError:
            tell("pyfastv: out of memory")
            return 1
        except OSError as error:
            tell(f"pyfastv: {reason_of(error)}")
            return 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Quantized vision-language models on llama.cpp, with FastV."""


@cli.command(context_settings={"show_default": True})
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


@cli.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@request_options
def chat(images: tuple[str, ...], **options: Any) -> None:
    """Converse about pictures or a video, question by question; /help tells more."""
    setting, sampling = to_setting(options), to_sampling(options)
    pictures = read_media(images, options)
    with load_runner(options, setting) as runner, runner.session(system=options["system"]) as session:
        Repl(session, pictures, sampling, shows_progress(options)).run()


cli.add_command(serve)


@cli.command()
@click.argument("model", required=False)
@click.option("--mmproj", help="Its vision encoder.  [default: the only mmproj*.gguf beside it]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--check", "checked", is_flag=True, help="Try the kernels of this build, the bundled model, and MODEL."
)
def info(model: str | None, mmproj: str | None, as_json: bool, checked: bool) -> int:
    """Tell how pyfastv was built, and about MODEL, a GGUF file: its layers, and whether it can be pruned.

    Without MODEL about the bundled one. Only the headers of the files are read, save with --check.
    """
    findings = check_machine(model, mmproj) if checked else None
    facts: dict[str, Any] = {}
    if findings is None or findings.starts:
        facts = gather(model, mmproj)
    if as_json:
        click.echo(json.dumps(facts | ({"check": findings.to_dict()} if findings else {}), indent=2))
    else:
        click.echo(describe(facts, findings))
    return int(findings is not None and not findings.right)


@cli.command("quantize-mmproj", context_settings={"show_default": True})
@click.argument("source")
@click.argument("target")
@click.option("--type", "kind", type=click.Choice(sorted(TYPES)), default="q8_0", help="Of the matrices.")
@click.option("--force", is_flag=True, help="Write over TARGET if it exists.")
def quantize_mmproj_command(source: str, target: str, kind: str, force: bool) -> None:
    """Write the vision encoder SOURCE, an f16 or f32 mmproj GGUF file, smaller as TARGET."""
    with bar("Quantizing") as quantizing:
        made = quantize_mmproj(source, target, kind, force=force, progress=quantizing)
    click.echo(
        f"{target}: {made.target_bytes / 1e6:.1f} MB, {made.target_bytes / made.source_bytes:.0%} of {source}; "
        f"{made.matrices} matrices {kind}, {made.matrices_f16} f16, {made.tensors_kept} other tensors as they were"
    )


@cli.command("lib-path")
def lib_path_command() -> None:
    """Print the folder of the patched libllama and libmtmd."""
    click.echo(lib_path())


cli.add_command(eval_command)
cli.add_command(tune_command)


@cli.command()
def demo() -> int:
    """Ask the bundled model about a bundled picture, without pruning and with it."""
    return run_demo()


cli.add_command(bench)
cli.add_command(plan)
cli.add_command(show)

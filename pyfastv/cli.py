"""The command line: ``pyfastv ask``, ``info``, ``demo`` and ``lib-path``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
import huggingface_hub
from click.core import ParameterSource

from . import __version__, _native, lib_path
from .console import bar
from .demo import run_demo
from .errors import Error
from .models import bundled_model, from_hub, mmproj_beside
from .options import SCORES, FastV, Sampling, SamplingOptions
from .runner import Runner

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0; 1 after a :class:`pyfastv.Error`, which is one line on stderr; 2 for wrong usage; 130 after Ctrl-C.
    """
    try:
        return int(cli.main(args=arguments, prog_name="pyfastv", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo(err=True)
        return 130
    except Error as error:
        click.echo(f"pyfastv: {' '.join(str(error).split())}", err=True)
        return 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Quantized vision-language models on llama.cpp, with FastV."""


@cli.command(context_settings={"show_default": True})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.argument("question")
@click.option("-m", "--model", help="GGUF file of the language model.  [default: the bundled model]")
@click.option("--mmproj", help="GGUF file of its vision encoder.  [default: the only mmproj*.gguf beside it]")
@click.option("-hf", "--hf-repo", metavar="REPO[:QUANT]", help="Model and mmproj from Hugging Face.")
@click.option("--k", type=int, default=FastV.k, help="FastV: layers before K see every visual token.")
@click.option("--drop", type=float, default=FastV.drop, help="FastV: share that the later layers do not see.")
@click.option(
    "--score", type=click.Choice(SCORES), default=FastV.score, help="Whose attention ranks the visual tokens."
)
@click.option("--pick", default=FastV.pick, help="top-k, window4 (or another side) or uniform.")
@click.option("--off", is_flag=True, help="No FastV: stock llama.cpp.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with 'answer' and 'report'.")
@click.option("-s", "--seed", type=int, help="Seed of the sampler.")
@click.option("--temp", type=float, default=Sampling.temperature, help="Temperature; 0: likeliest token.")
@click.option("--top-k", type=int, default=Sampling.top_k, help="Only the k likeliest tokens; 0: all.")
@click.option("--top-p", type=float, default=Sampling.top_p, help="Only the likeliest with this probability.")
@click.option(
    "--min-p", type=float, default=Sampling.min_p, help="Only tokens this likely beside the likeliest."
)
@click.option("-n", "--max-tokens", type=int, help="Most tokens in the answer.  [default: no limit]")
@click.option(
    "-c", "--n-ctx", type=int, default=0, help="Context in tokens; 0: what the model was trained for."
)
@click.option("-t", "--threads", type=int, help="CPU threads.  [default: physical cores]")
@click.option("-ngl", "--n-gpu-layers", type=int, default=-1, help="Layers on the GPU; -1: all.")
@click.option("-fa", "--flash-attn", type=click.Choice(["auto", "on", "off"]), default="auto")
@click.option("--system", help="System message.")
@click.option("-v", "--verbose", is_flag=True, help="llama.cpp's log on stderr.")
@click.option("--no-progress", is_flag=True, help="No progress bars, on a terminal neither.")
def ask(images: tuple[str, ...], question: str, **options: Any) -> None:
    """Answer QUESTION about one picture or several (files or data URIs)."""
    given = click.get_current_context().get_parameter_source
    if options["off"] and any(
        given(name) is ParameterSource.COMMANDLINE for name in ("k", "drop", "score", "pick")
    ):
        raise click.UsageError("--off excludes --k, --drop, --score and --pick.")
    show_progress = not (options["no_progress"] or options["verbose"])
    model, mmproj = _find_model(options, show_progress)
    fastv = (
        None if options["off"] else FastV(options["k"], options["drop"], options["score"], options["pick"])
    )
    sampling: SamplingOptions = {
        "max_tokens": options["max_tokens"],
        "temperature": options["temp"],
        "top_k": options["top_k"],
        "top_p": options["top_p"],
        "min_p": options["min_p"],
        "seed": options["seed"],
    }
    Sampling(**sampling)  # a wrong value is told before the model is loaded
    with bar("Loading", show_progress) as loading:
        runner = Runner(
            model,
            mmproj,
            n_ctx=options["n_ctx"],
            n_threads=options["threads"],
            n_gpu_layers=options["n_gpu_layers"],
            flash_attn=options["flash_attn"],
            verbose=options["verbose"],
            fastv=fastv,
            progress=loading,
        )
    with runner:
        with bar("Reading the prompt", show_progress) as reading:
            stream = runner.stream(
                list(images), question, system=options["system"], progress=reading, **sampling
            )
        for piece in stream:
            if not options["as_json"]:
                click.echo(piece, nl=False)
        if options["as_json"]:
            click.echo(json.dumps({"answer": stream.answer.text, "report": stream.report.to_dict()}))
        else:
            click.echo()
            click.echo(stream.report, err=True)


def _find_model(options: dict[str, Any], show_progress: bool) -> tuple[Any, Any]:
    if options["hf_repo"] is None:
        model, mmproj = options["model"], options["mmproj"]
        if model is not None and mmproj is None:
            mmproj = mmproj_beside(model)
            if mmproj is None:
                raise click.UsageError("--model needs --mmproj, the GGUF file of its vision encoder.")
        return model, mmproj
    if options["model"] is not None:
        raise click.UsageError("--model and --hf-repo exclude each other.")
    if not show_progress:
        huggingface_hub.utils.disable_progress_bars()
    model, mmproj = from_hub(options["hf_repo"])
    return model, options["mmproj"] or mmproj


@cli.command()
@click.argument("model", required=False)
@click.option("--mmproj", help="Its vision encoder.  [default: the only mmproj*.gguf beside it]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: str | None, mmproj: str | None, as_json: bool) -> None:
    """Tell how pyfastv was built, and about MODEL, a GGUF file: its layers, and whether it can be pruned.

    Without MODEL about the bundled one. Only the headers of the files are read.
    """
    model = model or str(bundled_model())
    mmproj = mmproj or mmproj_beside(model)
    facts: dict[str, Any] = {
        "version": __version__,
        "build": _native.build_info(),
        "system_info": _native.system_info().strip(),
        "backends": _native.backends(),
        "model": _native.model_info(model),
        "vision": None if mmproj is None else _native.vision_info(mmproj),
    }
    click.echo(json.dumps(facts, indent=2) if as_json else _describe(facts))


def _describe(facts: dict[str, Any]) -> str:
    build = facts["build"]
    lines = {
        "pyfastv": facts["version"],
        "llama.cpp": f"{build['llama_cpp']} (from llama-cpp-python {build['llama_cpp_python']})",
        "patches": ", ".join(build["patches"]),
        "compiler": f"{build['compiler']}, {build['build_type']}",
        "features": facts["system_info"],
        "devices": "; ".join(f"{d['name']} ({d['type']}): {d['description']}" for d in facts["backends"]),
    }
    lines |= _describe_model(facts["model"])
    if facts["vision"] is not None:
        lines |= _describe_vision(facts["vision"])
    return "\n".join(f"{name:<15} {value}" for name, value in lines.items())


def _describe_model(model: dict[str, Any]) -> dict[str, str]:
    reason = model["unsupported_reason"]
    lines = {
        "model": model["description"],
        "architecture": model["architecture"],
        "layers": f"{model['n_layer']}, {model['n_embd']} wide",
        "context": f"{model['n_ctx_train']} tokens",
        "size": f"{model['size_bytes'] / 1e6:,.0f} MB, {model['n_params'] / 1e6:,.0f} M parameters",
        "pruning": f"FastV with k from 1 to {model['k_max']}"
        if reason is None
        else f"not possible: {reason}",
    }
    return lines


def _describe_vision(vision: dict[str, Any]) -> dict[str, str]:
    tokens = vision["visual_tokens"]
    size, patch = vision["image_size"], vision["patch_size"]
    return {
        "vision": f"{vision['n_layer']} layers, {size} x {size} pixels in patches of {patch}, "
        f"projector {vision['projector']}",
        "visual tokens": "depends on the picture" if tokens is None else f"{tokens} a picture",
    }


@cli.command("lib-path")
def lib_path_command() -> None:
    """Print the folder of the patched libllama and libmtmd."""
    click.echo(lib_path())


@cli.command()
def demo() -> int:
    """Ask the bundled model about a bundled picture, without FastV and with it."""
    return run_demo()

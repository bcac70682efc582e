"""``pyfastv bench``."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .. import _native
from .._busy import busy_warning
from ..bench.measure import Plan, Results, measure
from ..bench.picture import save_picture
from ..bench.plot import save_plot
from ..bench.ratios import RULE
from ..bench.summary import Row, summarize
from ..bench.tables import as_markdown, print_tables, tables_of
from ..engine.loaded import MAX_N_CTX, MAX_THREADS
from ..errors import DataError, Error, UnsupportedModelError
from ..eval.plot import check_plot
from ..inputs.images import load_image
from ..models import bundled_mmproj, bundled_model
from ..models.encoder_type import ENCODER_TYPES, resolve
from ..models.header import ModelFiles, read_model
from ..output import Output
from ..settings.setting import parse_settings
from .bars import bar
from .options import find_model, hub_option
from .streams import tell

__all__ = ["bench"]

DEFAULT_CONTEXT = 4096  # where a picture's tokens depend on the picture
DEFAULT_SETTINGS = ("off", "k=2,drop=0.5", "k=2,drop=0.75")


@click.command(context_settings={"show_default": True})
@click.argument("model", required=False)
@click.option("--mmproj", help="Its vision encoder.  [default: the only mmproj*.gguf beside it]")
@hub_option
@click.option(
    "--geometry", metavar="NAME", help="In place of MODEL: random weights of published sizes; see --list."
)
@click.option(
    "--type",
    "type_name",
    default="Q4_0",
    help="With --geometry: F16, Q8_0, Q6_K, Q5_0, Q5_K, Q4_0, Q4_K, IQ4_NL.",
)
@click.option(
    "--layers", type=int, metavar="N", help="With --geometry: the language model's first N layers alone."
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder of geometries.  [default: the user's cache]"
)
@click.option("--list", "list_geometries", is_flag=True, help="List the geometries.")
@click.option(
    "--settings",
    "settings",
    multiple=True,
    default=DEFAULT_SETTINGS,
    metavar="SPEC",
    help='Again for each: off, "k=2,drop=0.5", recommended, "turbo:share=0.5 + k=2", ...',
)
@click.option("--rounds", type=click.IntRange(1), default=6, help="Every setting once in each.")
@click.option("--restarts", type=click.IntRange(1), default=1, help="Of the processes, each with all rounds.")
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="CPU threads.  [default: the physical cores]",
)
@click.option("--prompt-tokens", type=click.IntRange(1), default=14, help="Text behind the picture.")
@click.option("--generate", type=click.IntRange(0), default=16, help="Tokens behind the prompt.")
@click.option("--picture", help="A file.  [default: a drawn one, 672 x 672]")
@click.option(
    "-c", "--n-ctx", type=click.IntRange(1, MAX_N_CTX), help="Context in tokens.  [default: enough, or 4096]"
)
@click.option(
    "-ngl", "--n-gpu-layers", type=click.IntRange(-1), default=-1, help="Layers on the GPU; -1: all."
)
@click.option("-fa", "--flash-attn", type=click.Choice(["auto", "on", "off"]), default="auto")
@click.option(
    "--encoder-type",
    type=click.Choice(ENCODER_TYPES),
    default="stock",
    help="Of our vision encoder's matrices; the stock libraries always get the file as it is.",
)
@click.option(
    "--stock",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of unpatched libraries of the same pin, measured in turn with ours.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Every measurement."
)
@click.option(
    "--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path), help="Stacked bars, PNG."
)
@click.option("--markdown", is_flag=True, help="Print the tables in markdown.")
def bench(model: str | None, **options: Any) -> int:
    """Measure what settings cost on this machine, in turn, beside what they cost in theory.

    MODEL is a GGUF file or a name; without it, the bundled model. The machine must be quiet. Ctrl-C ends the measuring
    and prints what there is.
    """
    if options["list_geometries"]:
        return _list_geometries()
    _check_outputs(options)
    settings = parse_settings(options["settings"])
    with tempfile.TemporaryDirectory(prefix="pyfastv-bench-") as folder:
        options["own_picture"] = options["picture"] is not None
        if not options["own_picture"]:
            options["picture"] = str(save_picture(Path(folder)))
        load_image(options["picture"])  # what is no picture is told now
        path, mmproj = _find_model(model, options)
        for file in (path, mmproj):
            if not Path(file).exists():
                raise Error(f"{file}: no such file")
        plan = Plan(
            model=path,
            mmproj=mmproj,
            settings=settings,
            **{
                name: options[name] for name in ("picture", "rounds", "restarts", "generate", "prompt_tokens")
            },
            **{name: options[name] for name in ("n_gpu_layers", "flash_attn", "encoder_type", "stock")},
            n_ctx=options["n_ctx"] or _context_length(mmproj, options),
            n_threads=options["threads"] or _native.usable_cores(),
        )
        files = _read_sizes(path, mmproj)
        with bar("Quantizing the vision encoder") as quantizing:  # the process that measures finds it made
            resolve(Path(mmproj), plan.encoder_type, n_gpu_layers=plan.n_gpu_layers, progress=quantizing)
        results = _measure(plan)
    rows = summarize(plan, results, files)
    if not rows:
        raise click.Abort
    _tell(plan, results, rows, options)
    if results.interrupted:
        raise click.Abort
    return 0


def _check_outputs(options: dict[str, Any]) -> None:
    """Before half an hour of measuring."""
    plot_file = options["plot_file"]
    if plot_file is not None:
        _need("matplotlib", "plots")
        if not plot_file.suffix:
            plot_file = options["plot_file"] = plot_file.with_name(f"{plot_file.name}.png")
        check_plot(plot_file)
    for path in (options["json_file"], plot_file):
        if path is not None:
            try:
                Output(path)
            except DataError as error:
                raise click.UsageError(f"{error}.") from error


def _need(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Error(f"{what} need {error.name or module}: pip install pyfastv[bench]") from error


def _list_geometries() -> int:
    from ..bench.geometry.sizes import GEOMETRIES

    for name, geometry in GEOMETRIES.items():
        d = geometry.decoder
        click.echo(
            f"{name:<16} {d.layers} layers, {d.width} wide, {d.heads} heads ({d.kv_heads} of keys), "
            f"feed-forward {d.ffn}, {geometry.visual_tokens} visual tokens"
        )
    return 0


def _find_model(model: str | None, options: dict[str, Any]) -> tuple[str, str]:
    mmproj = options["mmproj"]
    if options["geometry"] is not None:
        if model is not None or mmproj is not None or options["hf_repo"] is not None:
            raise click.UsageError("--geometry excludes MODEL, --mmproj and --hf-repo.")
        _need("gguf", "geometries")
        from ..bench.geometry.files import default_cache, make_geometry

        with bar(f"Writing {options['geometry']}") as progress:
            paths = make_geometry(
                options["geometry"],
                options["cache"] or default_cache(),
                options["type_name"],
                layers=options["layers"],
                progress=progress,
            )
        return str(paths[0]), str(paths[1])
    if options["layers"] is not None:
        raise click.UsageError("--layers needs --geometry.")
    model, mmproj = find_model({"model": model, "mmproj": mmproj, "hf_repo": options["hf_repo"]}, "MODEL")
    return model or str(bundled_model()), mmproj or str(bundled_mmproj())


def _context_length(mmproj: str, options: dict[str, Any]) -> int:
    """What the prompt and the generation need, where it is known: a larger KV cache only takes memory."""
    if options["geometry"] is not None:
        from ..bench.geometry.sizes import GEOMETRIES

        n_visual: int | None = GEOMETRIES[options["geometry"]].visual_tokens
    else:
        n_visual = _native.vision_info(mmproj)["visual_tokens"]
        # LLaVA-NeXT: so many for each tile
        if "clip.vision.image_grid_pinpoints" in _native.gguf_header(mmproj)["metadata"]:
            n_visual = None
    if n_visual is None or (options["geometry"] is not None and options["own_picture"]):
        return DEFAULT_CONTEXT
    # 256: what a template puts around pictures and their tiles
    needed = n_visual + options["prompt_tokens"] + options["generate"] + 256
    return -(-needed // 256) * 256


def _read_sizes(model: str, mmproj: str) -> ModelFiles | None:
    try:
        return read_model(model, mmproj)
    except UnsupportedModelError as error:
        tell(f"pyfastv: no theory beside the figures: {error}")
        return None


def _measure(plan: Plan) -> Results:
    if (warning := busy_warning(plan.n_threads)) is not None:
        tell(f"pyfastv: {warning}, or name fewer --threads")
    results = Results()
    with bar("Measuring") as update:
        try:
            measure(plan, results, _progress(update))
        except KeyboardInterrupt:
            results.interrupted = True
    return results


def _progress(update: Any) -> Callable[[str, int, int], None]:
    """On a bar where there is a terminal, else as lines on stderr."""

    def advance(what: str, done: int, n_all: int) -> None:
        if update is not None:
            update(done, n_all)
        else:
            tell(f"{done}/{n_all} {what}")

    return advance


def _tell(plan: Plan, results: Results, rows: list[Row], options: dict[str, Any]) -> None:
    prompt = results.prompt
    title = (
        f"{Path(plan.model).name}: {prompt['n_visual']} visual and {prompt['n_text']} text tokens, "
        f"{plan.n_threads} threads, {rows[0].rounds} rounds{_first_layers(options)}"
    )
    if results.interrupted:
        tell("pyfastv: interrupted; this was measured so far")
    with ExitStack() as outputs:  # one that cannot be written does not cost the others
        if options["plot_file"] is not None:
            outputs.callback(save_plot, options["plot_file"], rows, title, plan.off)
        if options["json_file"] is not None:
            outputs.callback(_save_json, options["json_file"], to_json(plan, results, rows))
        tables = tables_of(rows, plan.off)
        if options["markdown"]:
            click.echo("\n\n".join([title, *(as_markdown(name, cells) for name, cells in tables)]))
        else:
            # where nobody looks, wide enough for every table
            console = Console(file=sys.stdout)
            print_tables(
                title, tables, console if console.is_terminal else Console(file=sys.stdout, width=240)
            )


def _first_layers(options: dict[str, Any]) -> str:
    """Where a geometry is not whole."""
    if options.get("layers") is None:
        return ""
    from ..bench.geometry.sizes import GEOMETRIES

    return f", the first {options['layers']} of {GEOMETRIES[options['geometry']].decoder.layers} layers alone"


def _save_json(path: Path, measured: dict[str, Any]) -> None:
    text = json.dumps(measured, indent=1)
    try:
        Output(path).write(text + "\n")
    except DataError:
        click.echo(text)  # half an hour of measuring: not to be lost
        raise


def to_json(plan: Plan, results: Results, rows: list[Row]) -> dict[str, Any]:
    """Everything that was measured, and what it says."""
    return {
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "devices": _native.backends(),
        },
        "options": asdict(plan) | {"settings": [*plan.settings]},
        "prompt": results.prompt,
        "stock": results.stock,
        "rule": RULE,
        "interrupted": results.interrupted,
        "summary": [row.to_dict() for row in rows],
        "measurements": results.rounds,
    }

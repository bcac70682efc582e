"""``pyfastv plan``: what a model would cost."""

from __future__ import annotations

import json
import warnings
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from ..bench.plan import (
    OFF,
    Plan,
    Prompt,
    Settings,
    cheaper,
    compare,
    default_settings,
    in_force,
    measured_lengths,
    plan_model,
)
from ..bench.speed import Speed, measure
from ..errors import Error, OptionError
from ..inputs.images import load_image
from ..models import bundled_mmproj, bundled_model
from ..models.header import ModelFiles, read_model
from ..settings.schedule import LayerWarning
from ..settings.setting import Setting
from .bars import bar
from .options import find_model, hub_option

__all__ = ["plan"]


_WIDTH = 100  # of the table; a narrower terminal breaks its lines, which reads better than broken cells


@click.command(context_settings={"show_default": True})
@click.argument("model", required=False)
@click.option("--mmproj", help="Its vision encoder.  [default: the only mmproj*.gguf beside it]")
@hub_option
@click.option("--against", metavar="MODEL", help="A second model: is the larger one pruned cheaper?")
@click.option("--against-mmproj", metavar="MMPROJ", help="Its vision encoder.")
@click.option("--tokens", type=int, default=32, help="Tokens of text beside the pictures.")
@click.option("--pictures", type=int, default=1, help="Pictures in the prompt.")
@click.option(
    "--visual-tokens", type=int, help="Tokens of one picture.  [default: from the header, or --picture]"
)
@click.option("--picture", help="A picture to measure the vision encoder with, and to count its tokens.")
@click.option(
    "--settings",
    multiple=True,
    metavar="SPEC",
    help='In place of the grid, can be repeated: "k=2,drop=0.5", a preset, "turbo:share=0.5 + k=2", ...',
)
@click.option("--no-measure", is_flag=True, help="Counts only: run nothing, predict no times.")
@click.option("-t", "--threads", type=int, help="CPU threads to measure with.  [default: the physical cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(model: str | None, mmproj: str | None, hf_repo: str | None, **options: Any) -> None:
    """Tell what MODEL, a GGUF file or a name, would cost with and without pruning: FLOPs, KV cache, memory, time.

    Without MODEL the bundled one. Times are predicted from the speed of its first layers on this machine.
    """
    if options["against"] is None and options["against_mmproj"] is not None:
        raise click.UsageError("--against-mmproj needs --against.")
    pairs = [_files({"model": model, "mmproj": mmproj, "hf_repo": hf_repo}, "MODEL")]
    if options["against"] is not None:
        other = {"model": options["against"], "mmproj": options["against_mmproj"], "hf_repo": None}
        pairs.append(_files(other, "--against"))
    given = {spec: Setting.parse(spec) for spec in options["settings"]}
    plans = [_plan(read_model(*pair), given, options) for pair in pairs]
    verdict = compare(*plans) if len(plans) == 2 else None
    if options["as_json"]:
        prompt = {"text_tokens": options["tokens"], "pictures": options["pictures"]}
        made = [entry.to_dict() | {"visual_tokens": entry.prompt.visual_tokens} for entry in plans]
        click.echo(json.dumps({"prompt": prompt, "models": made, "comparison": verdict}, indent=2))
        return
    console = Console(soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    for entry in plans:
        _print(console, entry)
    if verdict is not None:
        console.print(_verdict(verdict))


def _files(named: dict[str, Any], called: str) -> tuple[str, str | None]:
    model, mmproj = find_model(named, called, needs_mmproj=False)
    if model is None:
        return str(bundled_model()), mmproj or str(bundled_mmproj())
    return model, mmproj


def _plan(files: ModelFiles, given: Settings, options: dict[str, Any]) -> Plan:
    picture = None if options["picture"] is None else load_image(options["picture"])
    visual = files.visual_tokens if options["visual_tokens"] is None else options["visual_tokens"]
    settings = _settings(files, given)
    counted = Prompt(visual, options["tokens"], options["pictures"]) if visual is not None else None
    if options["no_measure"] or (counted is None and picture is None):
        return plan_model(files, settings, counted or _unknown(files), unmeasured="not asked for")

    # where only a picture tells how many tokens it has, any length will do until it has told
    guess = counted or Prompt(1024, options["tokens"], options["pictures"])
    speed: Speed | None = None
    unmeasured = None
    if files.mmproj is not None and picture is None:
        picture = np.full((336, 336, 3), 127, np.uint8)
    with bar(f"Measuring {files.name}") as progress:
        try:
            speed, seen = measure(
                files,
                measured_lengths(settings, files, guess),
                picture=picture,
                turbos={s.turbo for s in settings.values() if s.turbo is not None},
                n_threads=options["threads"],
                progress=progress,
            )
            visual = seen if visual is None else visual
        except OptionError:
            raise
        except (Error, OSError) as error:  # the counts stand without it
            unmeasured = str(error)
    prompt = _unknown(files) if visual is None else Prompt(visual, options["tokens"], options["pictures"])
    return plan_model(files, settings, prompt, speed, unmeasured)


def _settings(files: ModelFiles, given: Settings) -> dict[str, Setting]:
    """What was asked for, which is told if it is at other layers; else the grid."""
    if given:
        return in_force(files, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerWarning)
        return in_force(files, default_settings(files.decoder.n_layer, files.cut_layers))


def _unknown(files: ModelFiles) -> Prompt:
    raise OptionError(
        f"{files.name}: how many tokens a picture has depends on the picture: pass --visual-tokens N, "
        "or --picture FILE with an mmproj and without --no-measure"
    )


def _print(console: Console, plan: Plan) -> None:
    files, prompt, off = plan.files, plan.prompt, plan.costs[0]
    lines = {
        "model": f"{files.name}: {files.description}, {files.decoder.n_layer} layers",
        "prompt": f"{prompt.pictures} x {prompt.visual_tokens} visual and {prompt.text_tokens} text tokens",
        "weights": f"{files.weight_bytes / 1e6:,.0f} MB"
        + (f" and {files.mmproj_bytes / 1e6:,.0f} MB of mmproj" if files.mmproj_bytes else ""),
        "encoder": "none"
        if off.encoder_flops is None
        else f"{_tera(off.encoder_flops)} TFLOP" + _encoder_time(plan),
        "speed": _speed(plan),
    }
    if files.window and prompt.visual_tokens * prompt.pictures + prompt.text_tokens > files.window:
        lines["note"] = (
            f"some layers see {files.window} tokens only; counted here as if they saw all, which is too much"
        )
    for title, value in lines.items():
        console.print(f"{title:<8} {value}", highlight=False, markup=False)
    table = Table(
        Column("setting", no_wrap=True), *(Column(name, justify="right") for name in _columns(plan))
    )
    for cost in plan.costs:
        cells = [
            f"{cost.retained_share:.0%}",
            _tera(cost.flops),
            f"{cost.flops / off.flops:.2f}",
            _tera(cost.paper_flops),
            f"{cost.paper_flops / off.paper_flops:.2f}",
            f"{cost.kv_bytes / 1e6:,.1f}",
        ]
        if _merges(plan):
            cells.append("" if cost.encoder_flops is None else _tera(cost.encoder_flops))
        if cost.prefill_ms is not None:
            cells.append(_seconds(cost.prefill_ms))
        if cost.first_token_ms is not None:
            cells.append(_seconds(cost.first_token_ms))
        table.add_row(cost.setting, *cells)
    console.print(table)


def _columns(plan: Plan) -> list[str]:
    columns = ["seen", "TFLOP", "of off", "paper's", "of off", "KV, MB"]
    if _merges(plan):
        columns.append("encoder, TFLOP")
    if plan.costs[0].prefill_ms is not None:
        columns.append("prefill, s")
    if plan.costs[0].first_token_ms is not None:
        columns.append("+ encoder, s")
    return columns


def _merges(plan: Plan) -> bool:
    return any(cost.turbo is not None for cost in plan.costs)


def _encoder_time(plan: Plan) -> str:
    speed = plan.speed
    if speed is None or speed.encode_ms is None:
        return ""
    return f", {_seconds(speed.encode_ms * plan.prompt.pictures)} s"


def _speed(plan: Plan) -> str:
    speed = plan.speed
    if speed is None:
        return f"not measured: {plan.unmeasured}"
    rates = ", ".join(
        f"{2 * r / 1e6:.0f} at {n}" for n, r in zip(speed.rows, speed.flops_per_ms, strict=True)
    )
    return (
        f"GFLOP/s (two a multiply-add) by rows: {rates}; rounds differ by {speed.spread:.0%}; "
        f"at least {speed.generate_ms:.1f} ms a generated token"
    )


def _verdict(verdict: dict[str, Any]) -> str:
    larger, smaller, settings = verdict["larger"], verdict["smaller"], verdict["settings"]
    lines = [f"Is {larger} pruned cheaper than {smaller} without pruning?"]
    for key, title in {
        "paper_flops": "by the paper's formula",
        "flops": "in FLOPs, encoder included",
        "time": "in predicted time",
        "kv_bytes": "in KV cache",
    }.items():
        if settings[0][key] is None:
            continue
        found = cheaper([entry for entry in settings if entry["setting"] != OFF], key)
        ratios = {entry["setting"]: entry[key] for entry in settings}
        listed = ", ".join(f"{name} ({ratios[name]:.2f})" for name in found)
        lines.append(f"  {title:<27} {listed or f'with none of these; off {ratios[OFF]:.2f}'}")
    lines.append(
        f"  its weights take {verdict['more_weight_bytes'] / 1e6:,.0f} MB more, pruned or not; numbers are ratios"
    )
    return "\n".join(lines)


def _tera(value: int) -> str:
    return f"{value / 1e12:.3f}" if value < 1e12 else f"{value / 1e12:.2f}"


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f}"

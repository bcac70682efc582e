"""``pyfastv tune``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from .._checks import integer, real
from ..engine.runner import Runner
from ..errors import DataError
from ..eval.asking import Asking
from ..eval.settings import OFF, check_settings
from ..eval.timing import ratio, time_settings
from ..eval.tune.candidates import candidates, turbo_candidates, why_no_turbo
from ..eval.tune.measuring import Measuring
from ..eval.tune.search import Standing, search
from ..models import bundled_model
from ..output import Output
from ..settings.profile import Profile, model_identity
from ..settings.setting import Setting
from .bars import bar
from .eval import dataset_options, load, pick_pictures
from .options import model_options, runner_arguments, shows_progress

__all__ = ["tune_command"]

_KL = 0.1
_LEVEL = 0.95


@click.command("tune", context_settings={"show_default": True})
@click.argument("paths", nargs=-1, required=True, metavar="[MODEL] DATA")
@model_options
@click.option("--kl", type=float, default=_KL, help="Most divergence from the unpruned model, nats a token.")
@click.option(
    "--confidence",
    type=float,
    default=_LEVEL,
    help="That other pictures stay below it, too, all that is tried counted.",
)
@click.option("--positions", type=int, default=32, help="Tokens of each answer that are compared.")
@click.option("--budget", type=float, metavar="MINUTES", help="Of searching.  [default: as long as it takes]")
@click.option(
    "--settings",
    multiple=True,
    metavar="SPEC",
    help="To try; once for each.  [default: rules, layers, shares, Turbo]",
)
@dataset_options
@click.option("--limit", type=int, help="Only the first questions.")
@click.option("--system", help="System message.")
@click.option("--time", "timed", type=int, default=8, help="Pictures to measure the time on; 0: do not.")
@click.option("--rounds", type=int, default=3, help="Of measuring the time.")
@click.option("-o", "--output", metavar="FILE", default="profile.json", help="The profile.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile, too.")
def tune_command(paths: tuple[str, ...], **options: Any) -> None:
    """Find the cheapest setting that answers as MODEL does unpruned, on the pictures and questions of DATA.

    DATA is what pyfastv eval takes, or a folder of pictures; right answers are not needed. Writes a profile, which
    the other commands take with --profile.
    """
    data = _paths(paths, options)
    target = real("kl", options["kl"], "a number of nats above 0, such as 0.1", 1e-6)
    level = real("confidence", options["confidence"], "a probability from 0.5 to 0.999", 0.5, 0.999)
    positions = integer("positions", options["positions"], 1)
    seconds = (
        None
        if options["budget"] is None
        else 60 * real("budget", options["budget"], "0 or more minutes", 0.0)
    )
    limit = None if options["limit"] is None else integer("limit", options["limit"], 1)
    output = Output(options["output"])
    n_timed, rounds = integer("time", options["timed"], 0), integer("rounds", options["rounds"], 1)
    dataset, instruction = load(data, options, limit)
    asking = Asking(runner_arguments(options), instruction, options["system"], max_tokens=positions)
    model = asking.runner["model_path"]
    model_file = str(model or bundled_model())
    own = check_settings(options["settings"])[1:] if options["settings"] else None
    settings = candidates(model_file) if own is None else own

    with Runner(**asking.runner, fastv=None) as runner, bar("Searching", shows_progress(options)) as progress:
        no_turbo = None if own is not None else why_no_turbo(runner)
        if own is None and no_turbo is None:
            settings += turbo_candidates(model_file)
        measuring = Measuring(runner, dataset.questions, asking, positions)
        best, standings = search(
            settings,
            measuring.n_pictures,
            measuring,
            target,
            level=level,
            seconds=seconds,
            progress=progress,
        )
    measured: dict[str, Any] = {
        "kl_target": target,
        "confidence": level,
        "pictures": measuring.n_pictures if best is None else best.n_pictures,
        "positions": measuring.n_positions,
        "chosen": None if best is None else best.to_dict(),
        "times_fewer_token_rows": None if best is None else round(1 / best.cost, 4),
        "tried": [standing.to_dict() for standing in standings if standing.samples],
    }
    if no_turbo is not None:
        measured["turbo_not_tried"] = no_turbo
    if best is not None and n_timed:
        pictures = pick_pictures(dataset.questions, n_timed)
        with bar("Measuring", shows_progress(options)) as progress:
            times = time_settings([OFF, best.setting], pictures, asking, rounds, progress)
        off, pruned = times[OFF], times[best.setting]
        measured["times"] = {
            "pictures": len(pictures),
            "rounds": rounds,
            "off": off.to_dict(),
            "chosen": pruned.to_dict(),
            "encode_times_faster": ratio(off.encode_ms, pruned.encode_ms)._asdict(),
            "prefill_times_faster": ratio(off.prefill_ms, pruned.prefill_ms)._asdict(),
            "first_token_times_faster": ratio(off.first_token_ms, pruned.first_token_ms)._asdict(),
        }
    chosen = Setting() if best is None else Setting.parse(best.setting)
    profile = Profile(
        chosen.fastv,
        model_identity(model),
        measured,
        turbo=chosen.turbo,
        reduce=chosen.reduce,
        skip=chosen.skip,
    )
    try:
        profile.save(output.path)
    except DataError:
        click.echo(json.dumps(profile.to_dict()))  # hours of work: not to be lost
        raise
    if options["as_json"]:
        click.echo(json.dumps(profile.to_dict()))
        return
    Console(width=120).print(_table(standings, best, target))
    click.echo(_summary(profile, output.path))


def _paths(paths: Sequence[str], options: dict[str, Any]) -> str:
    """DATA; MODEL becomes an option."""
    if len(paths) > 2:
        raise click.UsageError(f"tune takes MODEL and DATA, or DATA alone; got {len(paths)} paths.")
    if len(paths) == 2:
        if options["model"] is not None or options["hf_repo"] is not None:
            raise click.UsageError("MODEL excludes --model and --hf-repo.")
        options["model"] = paths[0]
    return paths[-1]


def _table(standings: Sequence[Standing], best: Standing | None, target: float) -> Table:
    table = Table(
        caption="KL: mean over questions, nats a token; changed: greedy tokens that differ; cost: token rows of prefill, "
        "as a share of unpruned"
    )
    table.add_column("setting")
    for name in ("cost", "pictures", "KL", "at most", "changed", "at most", ""):
        table.add_column(name, justify="right", no_wrap=True)
    most = max(standing.n_pictures for standing in standings)
    for standing in standings:
        passes = standing.kl_upper <= target and standing.n_pictures == most
        mark = "chosen" if standing is best else "passes" if passes else ""
        table.add_row(
            standing.setting,
            f"{standing.cost:.3f}",
            str(standing.n_pictures),
            f"{standing.kl:.4f}",
            f"{standing.kl_upper:.4f}",
            f"{standing.changed:.1%}",
            f"{standing.changed_upper:.1%}",
            mark,
        )
    return table


def _summary(profile: Profile, output: str) -> str:
    measured = profile.measured
    sure = f"{measured['confidence']:.0%} sure"
    chosen = measured["chosen"]
    no_turbo = measured.get("turbo_not_tried")
    lines = [] if no_turbo is None else [f"Turbo was not tried: {no_turbo}"]
    if chosen is None:
        lines.append(
            f"No setting that was tried stays within {measured['kl_target']:g} nats of the unpruned model ({sure}). "
            f"{output} says off; a higher --kl, more pictures or --settings of your own may find one."
        )
        return "\n".join(lines)
    lines += [
        f"{chosen['setting']}",
        f"  {measured['times_fewer_token_rows']:.2f} times fewer token rows through the language model's prefill",
        f"  KL to unpruned {chosen['kl']:.4f} nats a token ({sure}: at most {chosen['kl_upper']:.4f}); "
        f"greedy tokens changed {chosen['changed']:.1%} ({sure}: at most {chosen['changed_upper']:.1%}), "
        f"on {chosen['questions']} questions about {chosen['pictures']} pictures",
    ]
    times = measured.get("times")
    if times is not None:
        encoder = f"encoder {_faster(times['encode_times_faster'])}, " if profile.turbo is not None else ""
        lines.append(
            f"  measured: {encoder}prefill {_faster(times['prefill_times_faster'])}, first token "
            f"{_faster(times['first_token_times_faster'])}: {times['off']['first_token_ms']:.0f} ms unpruned, "
            f"{times['chosen']['first_token_ms']:.0f} ms"
        )
    return "\n".join([*lines, f"Written to {output}: use it with --profile {output}"])


def _faster(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.2f} times faster ({ratio['low']:.2f}-{ratio['high']:.2f})"

"""``pyfastv eval``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import click
from rich.console import Console

from .. import _native
from .._checks import integer
from ..eval.answers import AnswerFile
from ..eval.asking import Asking, ask_all
from ..eval.evaluation import evaluate
from ..eval.layouts import LAYOUTS, load_dataset
from ..eval.plot import check_plot, plot
from ..eval.question import Dataset, Question
from ..eval.scorers import SCORERS, check_answers
from ..eval.settings import check_settings
from ..eval.table import tables
from ..eval.timing import Timing, time_settings
from ..output import Output
from .bars import bar
from .options import model_options, runner_arguments, shows_progress

__all__ = ["dataset_options", "eval_command", "load", "pick_pictures"]

_SETTINGS = ("recommended", "fastv")
_N_TIMED = 8
_TABLE_WIDTH = 140


def dataset_options(command: Any) -> Any:
    """Adds what tells how DATA is to be read."""
    for option in reversed(
        [
            click.option(
                "--layout", type=click.Choice(list(LAYOUTS)), help="What DATA is.  [default: recognized]"
            ),
            click.option("--split", help="Part of a file's name, as train, where DATA has several."),
            click.option("--images", metavar="FOLDER", help="The pictures, where they are not in DATA."),
            click.option("--instruction", help="Appended to every question.  [default: the dataset's usual]"),
        ]
    ):
        command = option(command)
    return command


def load(data: str, options: dict[str, Any], limit: int | None) -> tuple[Dataset, str]:
    """The dataset, and the instruction to ask it with."""
    dataset = load_dataset(
        data, layout=options["layout"], split=options["split"], images=options["images"], limit=limit
    )
    given = options["instruction"]
    return dataset, dataset.instruction if given is None else given


def pick_pictures(questions: tuple[Question, ...], n: int) -> list[Question]:
    """One question about each of n pictures, spread evenly over the dataset."""
    first = list({question.image: question for question in reversed(questions)}.values())[::-1]
    n = min(n, len(first))
    return [first[number * len(first) // n] for number in range(n)]


@click.command("eval", context_settings={"show_default": True})
@click.argument("data")
@model_options
@click.option(
    "--settings",
    multiple=True,
    metavar="SPEC",
    help="A preset, or cuts as --schedule of ask takes them; once for each.  [default: recommended, fastv]",
)
@click.option("--answers", metavar="FILE.jsonl", help="Answers are added to it, and not asked again.")
@click.option("--scorer", type=click.Choice(list(SCORERS)), help="[default: the dataset's usual]")
@dataset_options
@click.option("--limit", type=int, help="Only the first questions.")
@click.option("-n", "--max-tokens", type=int, default=96, help="Most tokens in an answer.")
@click.option("--system", help="System message.")
@click.option("--processes", type=int, default=1, help="Each loads the model, and has its part of the cores.")
@click.option(
    "--time",
    "timed",
    type=int,
    help=f"Measure the time, too, on this many pictures.  [default: {_N_TIMED} with --plot, else none]",
)
@click.option("--rounds", type=int, default=3, help="Of measuring the time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--plot", "plot_file", metavar="FILE.png", help="Score against retained share and time.")
def eval_command(data: str, **options: Any) -> None:
    """Accuracy on DATA, a dataset's folder or a JSONL file, setting by setting; without pruning always, too.

    Layouts that are recognized: JSONL with image, question and answer; VQAv2, TextVQA, POPE, GQA, MME, COCO captions
    and Flickr30k as downloaded.
    """
    settings = check_settings(options["settings"] or _SETTINGS)
    limit = None if options["limit"] is None else integer("limit", options["limit"], 1)
    rounds = integer("rounds", options["rounds"], 1)
    n_timed = _N_TIMED if options["timed"] is None and options["plot_file"] else options["timed"] or 0
    integer("time", n_timed, 0)
    if options["plot_file"]:
        check_plot(options["plot_file"])
        Output(options["plot_file"])
    answer_file = AnswerFile(options["answers"])
    dataset, instruction = load(data, options, limit)
    scorer = options["scorer"] or dataset.scorer
    check_answers(scorer, dataset.questions)
    processes = integer("processes", options["processes"], 1, 256)
    runner = runner_arguments(options)
    if processes > 1 and runner["n_threads"] is None:
        runner["n_threads"] = max(1, _native.usable_cores() // processes)
    asking = Asking(
        runner, instruction, options["system"], integer("max_tokens", options["max_tokens"], 1), processes
    )

    with bar("Answering", shows_progress(options)) as progress:
        answers = ask_all(dataset.questions, settings, answer_file, asking, progress)
    times: dict[str, Timing] | None = None
    if n_timed:
        with bar("Measuring", shows_progress(options)) as progress:
            chosen = pick_pictures(dataset.questions, n_timed)
            times = time_settings(settings, chosen, asking, rounds, progress)

    evaluation = evaluate(dataset.questions, answers, scorer, times)
    with ExitStack() as outputs:  # one that cannot be written does not cost the other
        if options["plot_file"]:
            outputs.callback(plot, evaluation, options["plot_file"])
        if options["as_json"]:
            click.echo(json.dumps(evaluation.to_dict()))
            return
        console = Console(width=_TABLE_WIDTH)
        for table in tables(evaluation):
            console.print(table)

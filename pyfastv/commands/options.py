"""The options that ``pyfastv ask``, ``chat`` and ``serve`` share, and what they make of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource
from huggingface_hub.utils import disable_progress_bars

from .. import _native
from .._checks import INT32_MAX
from ..engine.runner import Runner
from ..engine.sampling import Sampling, SamplingOptions
from ..errors import OptionError
from ..inputs.budget import Budget
from ..inputs.images import MAX_PIXELS
from ..inputs.named_templates import NAMED
from ..models.encoder_type import ENCODER_TYPES, resolve
from ..models.named import NamedModel, find_files, wanted
from ..settings.presets import PRESETS, Recommended
from ..settings.profile import Profile
from ..settings.reduce import REDUCERS, Reducer, to_reducer
from ..settings.schedule import RECALL, Cut, LayerWarning, Schedule
from ..settings.setting import Setting, SettingOptions
from .bars import bar

__all__ = [
    "SETTING_NAMES",
    "answer_options",
    "find_model",
    "hub_option",
    "load_runner",
    "model_options",
    "request_options",
    "runner_arguments",
    "schedule_options",
    "shows_progress",
    "to_sampling",
    "to_setting",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_RULE = Recommended().cuts[0]

hub_option = click.option(
    "-hf", "--hf-repo", metavar="REPO[:QUANT]", help="Model and mmproj from Hugging Face, or its cache."
)

_MODEL = [
    click.option(
        "-m",
        "--model",
        help="GGUF file of the language model, or its name.  [default: PYFASTV_MODEL, else the bundled model]",
    ),
    click.option(
        "--mmproj", help="GGUF file of its vision encoder.  [default: the only mmproj*.gguf beside it]"
    ),
    hub_option,
    click.option(
        "-c",
        "--n-ctx",
        type=int,
        default=0,
        help="Tokens of a prompt and its answer; 0: what the model was trained for, at most 8192.",
    ),
    click.option("-t", "--threads", type=int, help="CPU threads.  [default: the physical cores]"),
    click.option(
        "-tb", "--threads-batch", type=int, help="Of prompts and pictures.  [default: as --threads]"
    ),
    click.option("-ngl", "--n-gpu-layers", type=int, default=-1, help="Layers on the GPU; -1: all."),
    click.option("-fa", "--flash-attn", type=click.Choice(["auto", "on", "off"]), default="auto"),
    click.option(
        "--encoder-type",
        type=click.Choice(ENCODER_TYPES),
        default="auto",
        help="Of the vision encoder's matrices; auto: q8_0 where that is faster, stock: the file as it is.",
    ),
    click.option(
        "--encoder-cache-dir",
        metavar="DIR",
        envvar="PYFASTV_ENCODER_CACHE_DIR",
        show_envvar=True,
        help="Keep the vision encoder's outputs here, for pictures that come again, in other processes, too.",
    ),
    click.option(
        "--encoder-cache-disk-mb",
        type=click.IntRange(0),
        default=1024,
        help="Most of that folder, in MiB.",
    ),
    click.option(
        "--chat-template",
        metavar="FILE|NAME",
        help=f"In place of the model's: Jinja2 in a file, or one of {', '.join(NAMED)}.",
    ),
    click.option(
        "-ctk", "--cache-type-k", default="f16", help="Type of the KV cache's keys: f16, q8_0, q4_0, ..."
    ),
    click.option("-ctv", "--cache-type-v", default="f16", help="And of its values."),
    click.option("-b", "--batch-size", type=int, default=2048, help="Most tokens in a logical batch."),
    click.option("-ub", "--ubatch-size", type=int, default=512, help="Most tokens in a physical batch."),
    click.option("--no-progress", is_flag=True, help="No progress bars, on a terminal neither."),
]
_LOG = "llama.cpp's log on stderr."
_VERBOSE = [click.option("-v", "--verbose", is_flag=True, help=_LOG)]
# where answers are told of, -v is that
_VERBOSE_OF_ANSWERS = [
    click.option("-v", "brief", is_flag=True, help="A line on stderr of what was done for an answer."),
    click.option("--verbose", is_flag=True, help=_LOG),
]

# the one cut of the recommended rule
_CUT = [
    click.option("--k", default=str(_RULE.layer), help="Layers before K see every visual token; also 25%."),
    click.option("--drop", type=float, default=_RULE.drop, help="Share that the later layers do not see."),
    click.option(
        "--score",
        default=_RULE.score,
        help=f"What ranks the visual tokens: {', '.join(_native.SCORE_CHOICES)}.",
    ),
    click.option(
        "--pick", default=_RULE.pick, help=f"How they are picked: {', '.join(_native.PICK_CHOICES)}."
    ),
    click.option(
        "--weigh/--no-weigh", default=_RULE.weigh, help="Kept tokens count for those that they stand for."
    ),
    click.option(
        "--merge/--no-merge", default=_RULE.merge, help="Average what is dropped into what is kept."
    ),
    click.option("--off", is_flag=True, help="No pruning: stock llama.cpp."),
]
_CUT_NAMES = ("k", "drop", "score", "pick", "weigh", "merge", "off")
_OTHERS = ("schedule", "turbo", "reduce", "skip")
SETTING_NAMES = (*_CUT_NAMES, "schedule", "profile", "recall", "cells", "turbo", "reduce", "skip")
"""Options that say what is done to pictures."""


class _ReducerType(click.ParamType):
    """A wrong one is told before a model is loaded."""

    name = "SPEC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reducer | None:
        try:
            return to_reducer(value)
        except OptionError as error:
            self.fail(str(error), param, ctx)


class _TokensType(click.ParamType):
    """A wrong one is told before a model is loaded."""

    name = "N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        try:
            budget = Budget.of(value)
        except OptionError as error:
            self.fail(str(error), param, ctx)
        return budget.least, budget.most or INT32_MAX


_SCHEDULE = [
    click.option(
        "--schedule",
        metavar="SPEC",
        help=f'In place of these: cuts as in "k=2,drop=0.5;k=6,drop=0.75", or {", ".join(PRESETS)}, off.',
    ),
    click.option(
        "--profile",
        metavar="FILE",
        help="In place of these, --turbo, --reduce and --skip: what pyfastv tune found.",
    ),
    click.option(
        "--recall",
        type=float,
        help="Share of a picture's tokens that a later question may bring back; 0: none."
        f"  [default: {RECALL}]",
    ),
    click.option(
        "--turbo", metavar="SPEC", help='Merge tokens in the vision encoder, as in "share=0.5"; off: none.'
    ),
    click.option(
        "--reduce",
        type=_ReducerType(),
        help="Fewer visual tokens before the language model, as in divprune,keep=288 or pool,window=2; "
        f"{', '.join(REDUCERS)}.",
    ),
    click.option(
        "--skip",
        metavar="SPEC",
        help='Do not encode patches that their neighbours predict, as in "tau=8"; off: none is left out.',
    ),
    click.option(
        "--cells", help="KV cells of the later stages; auto: by drop.  [default: as the first stage]"
    ),
]


_MEDIA = [
    click.option("--frames", type=int, help="Frames of a video, evenly spaced.  [default: 8]"),
    click.option("--fps", type=float, help="Frames a second of a video, in place of --frames."),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=MAX_PIXELS,
        help="Largest picture, or frame of a video.",
    ),
]

_BUDGET = [
    click.option(
        "--image-tokens",
        type=_TokensType(),
        help="Most visual tokens of a picture, or LEAST-MOST: it is scaled for that.",
    ),
    click.option(
        "--enlarge/--no-enlarge",
        default=None,
        help="May a model that scales every picture to one size enlarge it?  [default: unless --image-tokens]",
    ),
]

_SAMPLING = [
    click.option("-s", "--seed", type=int, help="Seed of the sampler."),
    click.option("--temp", type=float, default=Sampling.temperature, help="Temperature; 0: likeliest token."),
    click.option("--top-k", type=int, default=Sampling.top_k, help="Only the k likeliest tokens; 0: all."),
    click.option(
        "--top-p", type=float, default=Sampling.top_p, help="Only the likeliest with this probability."
    ),
    click.option(
        "--min-p", type=float, default=Sampling.min_p, help="Only tokens this likely beside the likeliest."
    ),
    click.option("-n", "--max-tokens", type=int, help="Most tokens in the answer.  [default: no limit]"),
    click.option("--system", help="System message."),
]


def model_options(command: Command) -> Command:
    """Adds the options of the model alone."""
    return _with(command, *_MODEL, *_VERBOSE)


def schedule_options(command: Command) -> Command:
    """Adds the options of the model and the schedule to a command."""
    return _with(command, *_MODEL, *_VERBOSE, *_CUT, *_SCHEDULE, *_BUDGET)


def request_options(command: Command) -> Command:
    """Adds the options of the model, the schedule, the media and the sampling to a command."""
    return _with(command, *_MODEL, *_VERBOSE, *_CUT, *_SCHEDULE, *_MEDIA, *_BUDGET, *_SAMPLING)


def answer_options(command: Command) -> Command:
    """As :func:`request_options`, for commands that print answers: -v tells what was done for them."""
    return _with(command, *_MODEL, *_VERBOSE_OF_ANSWERS, *_CUT, *_SCHEDULE, *_MEDIA, *_BUDGET, *_SAMPLING)


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def to_sampling(options: dict[str, Any]) -> SamplingOptions:
    """The sampling keywords of a request. A wrong value is told before a model is loaded."""
    sampling: SamplingOptions = {
        "max_tokens": options["max_tokens"],
        "temperature": options["temp"],
        "top_k": options["top_k"],
        "top_p": options["top_p"],
        "min_p": options["min_p"],
        "seed": options["seed"],
    }
    Sampling(**sampling)
    return sampling


def to_setting(options: dict[str, Any]) -> Setting:
    """What is asked to be done to pictures, by the options, by the profile, or by the entry of the model's name. A wrong
    value is told before a model is loaded."""
    given = click.get_current_context().get_parameter_source
    named = [name for name in (*_CUT_NAMES, *_OTHERS) if given(name) is ParameterSource.COMMANDLINE]
    if options["profile"] is not None:
        if named:
            raise click.UsageError(f"--profile excludes --{named[0]}.")
        setting = Profile.load(options["profile"]).setting
    else:
        asked: SettingOptions = {
            "fastv": _to_schedule(options, [name for name in named if name in _CUT_NAMES]),
            "turbo": options["turbo"],
            "reduce": options["reduce"],
            "skip": options["skip"],
        }
        setting = Setting.of(**(asked | _of_entry(options, named)))
    fastv = setting.fastv
    if fastv is None or (options["recall"] is None and options["cells"] is None):
        return setting
    recall = fastv.recall if options["recall"] is None else options["recall"]
    cells = fastv.cells if options["cells"] is None else _number(options["cells"])
    return setting.but(fastv=Schedule(fastv.cuts, recall, cells))


def _of_entry(options: dict[str, Any], named: list[str]) -> SettingOptions:
    """What the entry of the model's name says and no option does."""
    entry = _wanted(options)
    if entry is None:
        return {}
    # any of the others says something of the schedule
    given = {*named, "fastv"} if set(named) - {"turbo", "reduce", "skip"} else {*named}
    said = entry.options().items()
    return cast(SettingOptions, {name: text for name, text in said if name not in given})


def _to_schedule(options: dict[str, Any], named: list[str]) -> Schedule | str | None:
    """The schedule asked for, None: off. ``named``: the options of a cut that were given."""
    if options["schedule"] is not None:
        if named:
            raise click.UsageError(f"--schedule excludes --{named[0]}.")
        return str(options["schedule"])
    if options["off"]:
        if named != ["off"]:
            raise click.UsageError("--off excludes --k, --drop, --score, --pick, --weigh and --merge.")
        return None
    if set(named) <= {"k", "drop"}:
        return Recommended(_number(options["k"]), options["drop"])
    return Schedule([Cut(_number(options["k"]), *(options[name] for name in _CUT_NAMES[1:-1]))])


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def load_runner(options: dict[str, Any], setting: Setting) -> Runner:
    """The model that the options name, with a progress bar on a terminal. Of cuts that moved to another layer it is told
    where it is told what was done for an answer."""
    arguments = runner_arguments(options)
    with bar("Loading", shows_progress(options)) as loading, warnings.catch_warnings():
        if not (options.get("brief", True) or options.get("report")):
            warnings.simplefilter("ignore", LayerWarning)
        return Runner(**arguments, **setting.options(), max_pixels=options["max_pixels"], progress=loading)


def runner_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords of :class:`pyfastv.Runner` that the options of the model stand for.

    Refuses a ``--profile`` of another model."""
    entry = _wanted(options)
    model, mmproj = find_model(options, needs_mmproj=options.get("pictures", True))
    if options.get("profile") is not None:
        Profile.load(options["profile"]).check(model)
    if model is None or os.path.isfile(model):
        _make_encoder(mmproj, options)
    n_ctx, threads = options["n_ctx"], options["threads"]
    if entry is not None:
        unsaid = click.get_current_context().get_parameter_source("n_ctx") is ParameterSource.DEFAULT
        n_ctx = entry.n_ctx if unsaid and entry.n_ctx is not None else n_ctx
        threads = entry.threads if threads is None else threads
    return {
        "model_path": model,
        "mmproj_path": mmproj,
        "n_ctx": n_ctx,
        "n_threads": threads,
        "n_threads_batch": options["threads_batch"],
        "n_gpu_layers": options["n_gpu_layers"],
        "flash_attn": options["flash_attn"],
        "encoder_type": options["encoder_type"],
        "encoder_cache_dir": options["encoder_cache_dir"],
        "encoder_cache_disk_mb": options["encoder_cache_disk_mb"],
        "n_batch": options["batch_size"],
        "n_ubatch": options["ubatch_size"],
        "type_k": options["cache_type_k"],
        "type_v": options["cache_type_v"],
        "chat_template": options["chat_template"],
        "image_tokens": options.get("image_tokens"),
        "enlarge": options.get("enlarge"),
        "verbose": options["verbose"],
    }


def _make_encoder(mmproj: Any, options: dict[str, Any]) -> None:
    """With a bar of its own; whoever loads the model then finds it made."""
    if mmproj is not None and "\0" not in os.fsdecode(mmproj):
        with bar("Quantizing the vision encoder", shows_progress(options)) as quantizing:
            resolve(
                Path(os.fsdecode(mmproj)),
                options["encoder_type"],
                n_gpu_layers=options["n_gpu_layers"],
                progress=quantizing,
            )


def shows_progress(options: dict[str, Any]) -> bool:
    """False where bars would disturb."""
    return not (options["no_progress"] or options["verbose"])


def find_model(
    options: dict[str, Any], called: str = "--model", *, needs_mmproj: bool = True
) -> tuple[str | None, str | None]:
    """The paths of the model and its mmproj; None: the bundled ones. ``called``: what names it, beside --hf-repo."""
    entry = _wanted(options, called)
    if options.get("no_progress") or options.get("verbose"):
        disable_progress_bars()
    model, mmproj = find_files(entry, options["mmproj"])
    if model is not None and mmproj is None and needs_mmproj:
        raise click.UsageError(f"{called} needs --mmproj, the GGUF file of its vision encoder.")
    return model, mmproj


def _wanted(options: dict[str, Any], called: str = "--model") -> NamedModel | None:
    if options["model"] is not None and options["hf_repo"] is not None:
        raise click.UsageError(f"{called} and --hf-repo exclude each other.")
    return wanted(options["model"], options["hf_repo"])

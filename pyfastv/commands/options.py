"""The options that ``pyfastv ask``, ``chat`` and ``serve`` share, and what they make of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import huggingface_hub
from click.core import ParameterSource

from .. import _native
from ..engine.runner import Runner
from ..engine.sampling import Sampling, SamplingOptions
from ..errors import ImageError, OptionError
from ..inputs.images import load_image
from ..inputs.named_templates import NAMED
from ..inputs.video import Video, is_video, load_frames
from ..models import from_hub, mmproj_beside
from ..models.encoder_type import ENCODER_TYPES, resolve
from ..settings.presets import PRESETS, Recommended
from ..settings.profile import Profile
from ..settings.reduce import REDUCERS, Reducer, to_reducer
from ..settings.schedule import RECALL, Cut, Schedule
from ..settings.setting import Setting
from .bars import bar

__all__ = [
    "load_runner",
    "model_options",
    "read_media",
    "request_options",
    "runner_arguments",
    "schedule_options",
    "shows_progress",
    "to_sampling",
    "to_setting",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_RULE = Recommended().cuts[0]

_MODEL = [
    click.option("-m", "--model", help="GGUF file of the language model.  [default: the bundled model]"),
    click.option(
        "--mmproj", help="GGUF file of its vision encoder.  [default: the only mmproj*.gguf beside it]"
    ),
    click.option("-hf", "--hf-repo", metavar="REPO[:QUANT]", help="Model and mmproj from Hugging Face."),
    click.option(
        "-c",
        "--n-ctx",
        type=int,
        default=0,
        help="Tokens of a prompt and its answer; 0: what the model was trained for, at most 8192.",
    ),
    click.option("-t", "--threads", type=int, help="CPU threads.  [default: all cores]"),
    click.option("-ngl", "--n-gpu-layers", type=int, default=-1, help="Layers on the GPU; -1: all."),
    click.option("-fa", "--flash-attn", type=click.Choice(["auto", "on", "off"]), default="auto"),
    click.option(
        "--encoder-type",
        type=click.Choice(ENCODER_TYPES),
        default="auto",
        help="Of the vision encoder's matrices; auto: q8_0 where that is faster, stock: the file as it is.",
    ),
    click.option(
        "--chat-template",
        metavar="FILE|NAME",
        help=f"In place of the model's: Jinja2 in a file, or one of {', '.join(NAMED)}.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="llama.cpp's log on stderr."),
    click.option("--no-progress", is_flag=True, help="No progress bars, on a terminal neither."),
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
_OTHERS = ("schedule", "turbo", "reduce")


class _ReducerType(click.ParamType):
    """A wrong one is told before a model is loaded."""

    name = "SPEC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reducer | None:
        try:
            return to_reducer(value)
        except OptionError as error:
            self.fail(str(error), param, ctx)


_SCHEDULE = [
    click.option(
        "--schedule",
        metavar="SPEC",
        help=f'In place of these: cuts as in "k=2,drop=0.5;k=6,drop=0.75", or {", ".join(PRESETS)}, off.',
    ),
    click.option(
        "--profile", metavar="FILE", help="In place of these, --turbo and --reduce: what pyfastv tune found."
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
        "--cells", help="KV cells of the later stages; auto: by drop.  [default: as the first stage]"
    ),
]


_MEDIA = [
    click.option("--frames", type=int, help="Frames of a video, evenly spaced.  [default: 8]"),
    click.option("--fps", type=float, help="Frames a second of a video, in place of --frames."),
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
    for option in reversed(_MODEL):
        command = option(command)
    return command


def schedule_options(command: Command) -> Command:
    """Adds the options of the model and the schedule to a command."""
    for option in reversed([*_CUT, *_SCHEDULE]):
        command = option(command)
    return model_options(command)


def request_options(command: Command) -> Command:
    """Adds the options of the model, the schedule, the media and the sampling to a command."""
    for option in reversed([*_MEDIA, *_SAMPLING]):
        command = option(command)
    return schedule_options(command)


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
    """What is asked to be done to pictures, by the options or by the profile. A wrong value is told before a model is
    loaded."""
    given = click.get_current_context().get_parameter_source
    named = [name for name in (*_CUT_NAMES, *_OTHERS) if given(name) is ParameterSource.COMMANDLINE]
    if options["profile"] is not None:
        if named:
            raise click.UsageError(f"--profile excludes --{named[0]}.")
        setting = Profile.load(options["profile"]).setting
    else:
        fastv = _to_schedule(options, [name for name in named if name in _CUT_NAMES])
        setting = Setting.of(fastv, options["turbo"], options["reduce"])
    fastv = setting.fastv
    if fastv is None or (options["recall"] is None and options["cells"] is None):
        return setting
    recall = fastv.recall if options["recall"] is None else options["recall"]
    cells = fastv.cells if options["cells"] is None else _number(options["cells"])
    return setting.but(fastv=Schedule(fastv.cuts, recall, cells))


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


def read_media(sources: Sequence[str], options: dict[str, Any]) -> list[Any]:
    """What the files and data URIs are: pictures as RGB arrays, videos as their frames."""
    media: list[Any] = []
    for source in sources:
        try:
            media.append(load_image(source))
        except ImageError as no_picture:
            if not os.path.isfile(source) or not is_video(source):
                raise no_picture
            video = Video(source, options["frames"], options["fps"])
            with bar("Reading the video", shows_progress(options)) as reading:
                media += load_frames(video, progress=reading)
    return media


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def load_runner(options: dict[str, Any], setting: Setting) -> Runner:
    """The model that the options name, with a progress bar on a terminal."""
    arguments = runner_arguments(options)
    with bar("Loading", shows_progress(options)) as loading:
        return Runner(**arguments, **setting.options(), progress=loading)


def runner_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords of :class:`pyfastv.Runner` that the options of the model stand for.

    Refuses a ``--profile`` of another model."""
    model, mmproj = find_model(options)
    if options.get("profile") is not None:
        Profile.load(options["profile"]).check(model)
    if model is None or os.path.isfile(model):
        _make_encoder(mmproj, options)
    return {
        "model_path": model,
        "mmproj_path": mmproj,
        "n_ctx": options["n_ctx"],
        "n_threads": options["threads"],
        "n_gpu_layers": options["n_gpu_layers"],
        "flash_attn": options["flash_attn"],
        "encoder_type": options["encoder_type"],
        "chat_template": options["chat_template"],
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


def find_model(options: dict[str, Any]) -> tuple[Any, Any]:
    """The paths of the model and its mmproj; None: the bundled ones."""
    if options["hf_repo"] is None:
        model, mmproj = options["model"], options["mmproj"]
        if model is not None and mmproj is None:
            mmproj = mmproj_beside(model)
            if mmproj is None:
                raise click.UsageError("--model needs --mmproj, the GGUF file of its vision encoder.")
        return model, mmproj
    if options["model"] is not None:
        raise click.UsageError("--model and --hf-repo exclude each other.")
    if not shows_progress(options):
        huggingface_hub.utils.disable_progress_bars()
    model, mmproj = from_hub(options["hf_repo"])
    return model, options["mmproj"] or mmproj

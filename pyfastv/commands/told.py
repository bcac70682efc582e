"""What is told on stderr in one line: of an error in the command line's own words, of an answer in numbers."""

from __future__ import annotations

import re

import click

from ..engine.answer import Report
from ..errors import Error
from .streams import tell

__all__ = ["tell_error", "tell_report"]

# Messages name arguments of Python; here are the options that stand for them.
_OPTIONS = {
    "max_pixels": "--max-pixels",
    "n_ctx": "--n-ctx",
    "n_batch": "--batch-size",
    "n_ubatch": "--ubatch-size",
    "n_threads": "--threads",
    "n_threads_batch": "--threads-batch",
    "n_gpu_layers": "--n-gpu-layers",
    "type_k": "--cache-type-k",
    "type_v": "--cache-type-v",
    "mmproj_path": "--mmproj",
    "encoder_type": "--encoder-type",
    "chat_template": "--chat-template",
    "image_tokens": "--image-tokens",
    "enlarge": "--enlarge",
}
_NAMES = re.compile(r"(?<![\w-])(" + "|".join(_OPTIONS) + r")(?!\w)")


def tell_error(error: Error, command: click.Command | None) -> None:
    """Names of arguments as those of options, where the command has them."""
    options = {option for param in command.params for option in param.opts} if command else set()

    def of_command(found: re.Match[str]) -> str:
        option = _OPTIONS[found[1]]
        return option if option in options else found[1]

    tell(f"pyfastv: {_NAMES.sub(of_command, ' '.join(str(error).split()))}")


def tell_report(report: Report, *, whole: bool) -> None:
    """In a line, or all of it."""
    if whole:
        tell(str(report))
        return
    shrunk = dict.fromkeys(str(picture) for picture in report.pictures if picture.was_scaled)
    seen = f"{report.visual_tokens} visual tokens, {report.visual_tokens_kept} kept; "
    if shrunk:
        tell("; ".join(shrunk))
    tell(
        f"{seen if report.visual_tokens else ''}first token after {report.first_token_ms / 1000:.2f} s, "
        f"{report.generated_tokens} tokens at {report.tokens_per_second:.1f}/s"
    )

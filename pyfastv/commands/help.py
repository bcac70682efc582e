"""``--help`` of commands with many options: in groups, with examples behind them."""

from __future__ import annotations

import click

from .options import SETTING_NAMES

__all__ = ["GROUPS", "GroupedCommand"]

GROUPS = {
    "Pictures and videos": ("each", "frames", "fps", "max_pixels", "image_tokens", "enlarge"),
    "Answer": (
        *("as_json", "report", "brief", "max_tokens", "system"),
        *("temp", "top_k", "top_p", "min_p", "seed", "no_history"),
    ),
    "What is dropped": SETTING_NAMES,
    "Model": (
        *("model", "mmproj", "hf_repo", "chat_template", "n_ctx", "threads", "threads_batch", "n_gpu_layers"),
        *("flash_attn", "cache_type_k", "cache_type_v", "batch_size", "ubatch_size", "encoder_type"),
    ),
}
"""Names of options by the heading that they come under."""


class GroupedCommand(click.Command):
    """Options that no group names come under "Other options"."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click."""
        lines = {
            str(option.name): line
            for option in self.get_params(ctx)
            if (line := option.get_help_record(ctx)) is not None
        }
        for title, names in GROUPS.items():
            group = [lines.pop(name) for name in names if name in lines]
            if group:
                with formatter.section(title):
                    formatter.write_dl(group)
        with formatter.section("Other options"):
            formatter.write_dl(list(lines.values()))

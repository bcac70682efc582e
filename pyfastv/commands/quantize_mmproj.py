"""``pyfastv quantize-mmproj``"""

from __future__ import annotations

import click

from ..models.quantize import TYPES, quantize_mmproj
from .bars import bar

__all__ = ["quantize_mmproj_command"]


@click.command("quantize-mmproj", context_settings={"show_default": True})
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

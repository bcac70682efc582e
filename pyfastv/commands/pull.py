"""``pyfastv pull`` and ``pyfastv list``."""

from __future__ import annotations

import json
from typing import Any

import click

from ..errors import ModelError
from ..models import bundled_model
from ..models.hub import CachedModel, cached_models
from ..models.hub import pull as pull_from_hub
from ..models.named import BUNDLED, NamedModel, named_models

__all__ = ["list_command", "pull"]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def pull(names: tuple[str, ...]) -> None:
    """Download models from Hugging Face, or newer files of them: owner/repository[:QUANT], or names of yours.

    They stay in Hugging Face's cache, where -hf finds them without a network. Prints the paths of model and mmproj.
    """
    known = {name: entry for entry in named_models() for name in (entry.model_id, *entry.aliases)}
    repositories = [_repository(name, known) for name in names]
    for repository in repositories:
        for path in pull_from_hub(repository):
            click.echo(path)


def _repository(name: str, known: dict[str, NamedModel]) -> str:
    entry = known.get(name)
    if entry is None:
        return name
    if entry.hf is None:
        raise ModelError(f"{name}: is a file of yours, {entry.model}: there is nothing to download")
    return entry.hf


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """List models: the bundled one, names of yours, and what is in Hugging Face's cache, which needs no network."""
    named, cached = named_models(), list(cached_models())
    if as_json:
        click.echo(json.dumps({"named": [_told(entry) for entry in named], "cached": [*map(_facts, cached)]}))
        return
    rows = [(f"-m {BUNDLED}", _size(bundled_model().stat().st_size), str(bundled_model()))]
    for entry in named:
        names = ", ".join((entry.model_id, *entry.aliases))
        rows.append((f"-m {names}", "", entry.hf or str(entry.model)))
    rows += [(f"-hf {model.repository}", _size(model.bytes), model.file) for model in cached]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, size, where in rows:
        click.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {where}")


def _told(entry: NamedModel) -> dict[str, Any]:
    return {name: value for name, value in vars(entry).items() if value not in (None, ())}


def _facts(model: CachedModel) -> dict[str, Any]:
    return {"repository": model.repository, "file": model.file, "bytes": model.bytes, "path": str(model.path)}


def _size(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"

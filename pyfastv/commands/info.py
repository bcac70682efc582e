"""``pyfastv info``"""

from __future__ import annotations

import json
from typing import Any

import click

from ..models.check import check_machine
from ..models.info import describe, gather
from .options import find_model, hub_option

__all__ = ["info"]


@click.command()
@click.argument("model", required=False)
@click.option("--mmproj", help="Its vision encoder.  [default: the only mmproj*.gguf beside it]")
@hub_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--check", "checked", is_flag=True, help="Try the kernels of this build, the bundled model, and MODEL."
)
def info(model: str | None, mmproj: str | None, hf_repo: str | None, as_json: bool, checked: bool) -> int:
    """Tell how pyfastv was built, and about MODEL, a GGUF file or a name: its layers, and whether it can be pruned.

    Without MODEL about the bundled one. Only the headers of the files are read, save with --check.
    """
    named = {"model": model, "mmproj": mmproj, "hf_repo": hf_repo}
    model, mmproj = find_model(named, "MODEL", needs_mmproj=False)
    findings = check_machine(model, mmproj) if checked else None
    facts: dict[str, Any] = {}
    if findings is None or findings.starts:
        facts = gather(model, mmproj)
    if as_json:
        click.echo(json.dumps(facts | ({"check": findings.to_dict()} if findings else {}), indent=2))
    else:
        click.echo(describe(facts, findings))
    return int(findings is not None and not findings.right)

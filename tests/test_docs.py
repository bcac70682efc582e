"""The examples in the documentation run as they stand, from the root of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyfastv.presets import PRESETS
from pyfastv.schedule import PICKS, SCORES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "example", "exec"), {})


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_methods_names_every_score_pick_and_preset() -> None:
    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    for name in SCORES:
        assert f"`{name}`" in text
    for name in PICKS:
        assert re.search(rf"\| `{name}[\d.]*`", text)
    named = {name.lower() for name in re.findall(r"^\| `(\w+)\(", text, re.M)}
    assert named == set(PRESETS)

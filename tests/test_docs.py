"""The examples in the documentation run as they stand, as scripts in an empty folder; pages have what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path

import click
import pytest

import pyfastv
from pyfastv import errors
from pyfastv.commands.main import cli
from pyfastv.engine.sampling import SamplingOptions
from pyfastv.settings.presets import PRESETS
from pyfastv.settings.schedule import PICKS, SCORES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code, "utf-8")
    command = [sys.executable, "example.py"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr


def test_the_readme_begins_with_what_it_is_what_it_gains_and_what_was_run() -> None:
    first, ways, *_ = re.split(r"^## ", (ROOT / "README.md").read_text("utf-8"), flags=re.M)
    title, sentence, table, picture, told = first.strip().split("\n\n")
    assert title == "# pyfastv"
    assert re.fullmatch(r"[^\n]+[^.]\.", sentence)
    assert ". " not in sentence
    assert {"15.5 s", "**5.8 s**"} <= set(re.findall(r"\| ([\d.* s]+) \|\n", table + "\n"))
    assert re.fullmatch(r"!\[[^\n]+\]\(docs/images/\w+\.png\)", picture)
    assert told.startswith("**No pretrained model of the hub has been run here.** What was: ")
    assert ways.startswith("Three ways in\n")
    assert re.findall(r"^\*\*([^*]+)\*\*", ways, re.M) == ["Python", "The shell", "The apps that you have."]


def test_the_readme_leads_a_newcomer_on() -> None:
    linked = re.findall(r"\]\(docs/([^)]+)", (ROOT / "README.md").read_text("utf-8"))
    pages = ("glossary.md", "memory.md", "compared.md", "security.md", "start.md")
    assert {*pages, "models.md#does-it-work-with-my-model"} <= set(linked)
    assert all(
        name in read("compared.md") for name in ("llama-server", "Ollama", "OpenVINO", "TensorRT", "vLLM")
    )


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_links_lead_to_headings() -> None:
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
            target = page.parent / link if link else page
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, (page.name, link, anchor)


def test_the_index_has_every_page() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((.+)\)", read("README.md"))) == pages


def test_methods_names_every_score_pick_and_preset() -> None:
    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    for name in SCORES:
        assert f"`{name}`" in text
    for name in PICKS:
        assert re.search(rf"\| `{name}[\d.]*`", text)
    named = {name.lower() for name in re.findall(r"^\| `(\w+)\(", text, re.M)}
    assert named == set(PRESETS)


def read(page: str) -> str:
    return (ROOT / "docs" / page).read_text("utf-8")


def code_of(text: str) -> set[str]:
    """Words in code spans and code blocks."""
    spans = re.findall(r"^```.*?^```|^    [^\n]*|`[^`\n]+`", text, re.M | re.S)
    return set(re.findall(r"\w+", "\n".join(spans)))


def first_cells(text: str) -> set[str]:
    """Code in the first column of tables."""
    cells = re.findall(r"^\| (`[^|]*)\|", text, re.M)
    return set(re.findall(r"`(\w+)", "\n".join(cells)))


def test_the_page_of_the_api_names_everything_public() -> None:
    assert set(pyfastv.__all__) - code_of(read("python.md")) == set()


def test_the_page_of_the_api_has_every_argument_field_and_error() -> None:
    text = read("python.md")
    rows = first_cells(text)
    arguments = set(signature(pyfastv.Runner).parameters) - {"model_path", "mmproj_path"}
    assert arguments - rows == set()
    report = {field.name for field in fields(pyfastv.Report)} | {"prefill_ms", "kv_bytes_saved"}
    assert report - rows == set()
    assert set(SamplingOptions.__annotations__) - code_of(text) == set()
    assert set(errors.__all__) - {"Error"} - rows == set()


def test_the_table_of_errors_has_their_bases() -> None:
    for name, base in re.findall(r"^\| `(\w+Error)` \| (\w*) *\|", read("python.md"), re.M):
        bases = {kind.__name__ for kind in getattr(errors, name).__bases__} - {"Error"}
        assert bases == ({base} if base else set()), name


def test_the_page_of_the_command_line_has_every_command() -> None:
    headings = set(re.findall(r"^## ([a-z-]+)$", read("cli.md"), re.M))
    assert headings == set(cli.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_of_commands_in_the_pages_exist(page: Path) -> None:
    for command, arguments in commands_in(page.read_text("utf-8")):
        assert command in cli.commands, (command, arguments)
        known = options_of(cli.commands[command])
        assert options_in(arguments) - known == set(), (command, arguments)


def test_options_on_the_page_of_the_command_line_exist() -> None:
    text = re.sub(r"-D\w+=\w+", "", read("cli.md"))  # of CMake
    named = options_in(text)
    known = set.union(*(options_of(command) for command in (cli, *cli.commands.values())))
    assert len(named) > 50
    assert named - known == set()


def test_the_page_of_the_command_line_has_every_variable_that_is_read() -> None:
    sources = [*(ROOT / "native").rglob("*.cpp"), *(ROOT / "pyfastv").rglob("*.py")]
    code = "\n".join(source.read_text("utf-8") for source in sources)
    read_here = set(re.findall(r'(?:getenv\(|envvar=|environ\[)"(\w+)"', code))
    assert {"LLAMA_FASTV", "PYFASTV_API_KEY"} <= read_here
    assert read_here - first_cells(read("cli.md")) == set()


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """What follows "pyfastv" in code blocks and spans: a command, and its arguments."""
    blocks = re.findall(r"^    ([^\n]*)", text, re.M)
    spans = re.findall(r"`([^`\n]+)`", text)
    for code in [*blocks, *spans]:
        yield from re.findall(r"(?:^|[ \(])pyfastv ([a-z][a-z-]*)([^#|)]*)", code)


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", re.sub(r'"[^"]*"', "", text)))


def options_of(command: click.Command) -> set[str]:
    names = {"-h", "--help"}
    for option in command.params:
        names |= {*option.opts, *option.secondary_opts}
    return names

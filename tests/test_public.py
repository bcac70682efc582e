"""What programs may import: a name that goes or comes is a decision, and is made here."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pyfastv

ROOT = Path(__file__).resolve().parents[1]

PUBLIC = {
    "pyfastv": (
        "EVS VTW Answer AnswerError CDPruner ClosedError ContextLengthError Cut DataError DecodeError DivPrune Error "
        "FastV Feather Frame ImageError Merge ModelError OptionError OutOfMemoryError PLLaVA Pool Profile PyramidDrop "
        "Recommended Reducer Report Runner Sampling Schedule Session Skip Stream Stride TokenProb Turbo "
        "UnsupportedModelError VidCom2 Video ZipVL __version__ examples from_hub lib_path load_frames load_image "
        "model_identity"
    ),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_names_are_these(module: str) -> None:
    found = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(PUBLIC[module].split())
    assert all(hasattr(found, name) for name in found.__all__)


def test_every_public_name_is_described() -> None:
    undescribed = [
        name
        for name in pyfastv.__all__
        if name[0].isupper() and not (getattr(pyfastv, name).__doc__ or "").strip()
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    "module", ["theory", "models", "eval", "show", "llama_cpp", "llm_plugin", "examples", "types"]
)
def test_a_public_module_imports_by_itself(module: str) -> None:
    """Without its siblings having been imported before."""
    done = subprocess.run(
        [sys.executable, "-c", f"import pyfastv.{module}"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["clock", "chart", "dice", "scene"])
def test_the_examples_are_paths_of_pictures(name: str) -> None:
    assert pyfastv.load_image(getattr(pyfastv.examples, name)).shape == (336, 336, 3)


# The folder of the repository


def importing(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In the repository, whose folder hides the installed package."""
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_checkout_is_imported_with_the_native_module_of_the_installed_package() -> None:
    code = "import pyfastv as p; print(p.__file__); print(p.load_image(p.examples.clock).shape)"
    made = importing(code)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == [str(ROOT / "pyfastv" / "__init__.py"), "(336, 336, 3)"]


def test_a_checkout_that_is_not_built_says_what_to_do() -> None:
    made = importing("import pyfastv", "-S")  # without installed packages
    assert made.returncode == 1
    (told,) = [line for line in made.stderr.splitlines() if line.startswith("ImportError")]
    assert all(words in told for words in (str(ROOT / "pyfastv"), "make demo", "pip install ."))

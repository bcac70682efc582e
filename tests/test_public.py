"""What programs may import: a name that goes or comes is a decision, and is made here."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import pyfastv

PUBLIC = {
    "pyfastv": (
        "EVS VTW Answer CDPruner ClosedError ContextLengthError Cut DataError DecodeError DivPrune Error FastV Feather "
        "Frame ImageError Merge ModelError OptionError OutOfMemoryError PLLaVA Pool Profile PyramidDrop Recommended "
        "Reducer Report Runner Sampling Schedule Session Stream Stride Turbo UnsupportedModelError VidCom2 Video ZipVL "
        "__version__ from_hub lib_path load_frames load_image model_identity"
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


@pytest.mark.parametrize("module", ["theory", "models", "eval", "show", "llama_cpp", "llm_plugin"])
def test_a_public_module_imports_by_itself(module: str) -> None:
    """Without its siblings having been imported before."""
    done = subprocess.run(
        [sys.executable, "-c", f"import pyfastv.{module}"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr

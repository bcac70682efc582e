"""The rooms of native/: what may look into libllama and libmtmd (docs/design.md); and of pyfastv/."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "native"
PATCHES = ROOT / "third_party" / "patches"
TREE = ROOT / "third_party" / "llama.cpp"

PUBLIC = {"llama.h", "llama-cpp.h", "mtmd.h", "mtmd-helper.h"}

# a room, the folder of llama.cpp whose inside it alone includes, and a header of that
ROOMS = {"llama": (TREE / "src", "llama-context.h"), "vision": (TREE / "tools" / "mtmd", "clip-impl.h")}


def includes(text: str) -> set[str]:
    return set(re.findall(r'#\s*include\s*["<]([^">]+)[">]', text))


@pytest.mark.parametrize("room", ROOMS)
def test_one_room_includes_what_is_inside_a_library(room: str) -> None:
    folder, example = ROOMS[room]
    inside = {path.name for path in folder.rglob("*.h")} - PUBLIC
    assert example in inside

    outside = {}
    for path in [*NATIVE.rglob("*.h"), *NATIVE.rglob("*.cpp"), *NATIVE.rglob("*.c")]:
        found = {
            name
            for name in includes(path.read_text())
            if Path(name).name in inside and not (NATIVE / name).exists()
        }
        if found and path.relative_to(NATIVE).parts[0] != room:
            outside[str(path.relative_to(ROOT))] = sorted(found)
    assert outside == {}


def test_one_room_includes_llama_cpp_s_common_library() -> None:
    """It changes with every version, and one converter of it is used."""
    common = {path.name for path in (TREE / "common").glob("*.h")}
    assert "json-schema-to-grammar.h" in common
    found = {
        path.relative_to(NATIVE).parts[0]
        for path in [*NATIVE.rglob("*.h"), *NATIVE.rglob("*.cpp")]
        if {
            name
            for name in includes(path.read_text())
            if name in common and not (path.parent / name).exists()
        }
    }
    assert found == {"grammar"}


def added(patch: Path, file: str) -> list[str]:
    """The lines that a patch adds to the files whose path begins in this way."""
    res, concerned = [], False
    for line in patch.read_text().splitlines():
        if line.startswith("+++ "):
            concerned = line.removeprefix("+++ b/").startswith(file)
        elif concerned and line.startswith("+"):
            res.append(line[1:])
    return res


@pytest.mark.parametrize(
    ("patch", "folder", "room"), [("0002", "src/", "llama"), ("0003", "tools/mtmd/", "vision")]
)
def test_call_sites_are_declared_in_one_header(patch: str, folder: str, room: str) -> None:
    [path] = PATCHES.glob(f"{patch}-*.patch")
    text = "\n".join(added(path, folder))
    assert includes(text) <= {f"{room}/call_sites.h", f"{room}/inside_mtmd.h"}

    declared = (NATIVE / room / "call_sites.h").read_text()
    called = set(re.findall(r"pyfastv::(\w+)", text))
    assert called
    assert {name for name in called if not re.search(rf"\b{name}\b", declared)} == set()


def test_no_patch_changes_how_llama_cpp_is_configured() -> None:
    files = {
        line.removeprefix("+++ b/")
        for patch in PATCHES.glob("*.patch")
        for line in patch.read_text().splitlines()
        if line.startswith("+++ ")
    }
    assert files
    assert not {name for name in files if name.endswith((".cmake", "CMakeLists.txt"))}


# pyfastv

PACKAGE = ROOT / "pyfastv"


def imported(module: str, path: Path, modules: set[str]) -> Iterator[str]:
    """Modules of ours that are imported with this one: not in a function, nor for types alone."""
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in modules else base


def test_no_import_goes_in_a_circle() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {
        module: set(imported(module, path, set(files))) & set(files) - {module}
        for module, path in files.items()
    }
    # a package that only lends names is imported by its own modules, and imports them
    left = {module: found - {"pyfastv"} for module, found in graph.items() if module != "pyfastv"}
    while free := {module for module, found in left.items() if not found & set(left)}:
        left = {module: found for module, found in left.items() if module not in free}
    assert left == {}


def test_what_an_answer_follows_is_known_below_the_engine() -> None:
    """So that a runner and the server have it from one place."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    found = {
        name
        for path in (PACKAGE / "constraints").glob("*.py")
        for name in imported(f"pyfastv.constraints.{path.stem}", path, modules)
    }
    assert found
    rooms = {"pyfastv", "pyfastv._checks", "pyfastv._native", "pyfastv.errors"}
    assert {name for name in found if not name.startswith("pyfastv.constraints")} <= rooms


def test_http_is_in_one_room() -> None:
    """And nothing else is there."""
    web = {"fastapi", "starlette", "uvicorn", "anyio", "httpcore2"}
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if web
        & {name.split(".")[0] for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.M)}
    }
    assert users == {"serve"}

"""The rooms of native/: what may look into libllama and libmtmd (docs/design.md)."""

from __future__ import annotations

import re
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

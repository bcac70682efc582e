"""The build: SIMD is on, patches are really applied, and what is missing is said in one line."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyfastv import _native

import fetch

ROOT = Path(__file__).parents[1]
THIRD_PARTY = ROOT / "third_party"

PATCH = """\
diff --git a/src/file.cpp b/src/file.cpp
--- a/src/file.cpp
+++ b/src/file.cpp
@@ -1,3 +1,4 @@
 one
+one and a half
 two
 three
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree inside a git work tree, as third_party/llama.cpp is."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "inner" / "src").mkdir(parents=True)
    (tmp_path / "inner" / "src" / "file.cpp").write_text("one\ntwo\nthree\n")
    return tmp_path / "inner"


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "0001-half.patch"
    path.write_text(PATCH)
    return path


def configure(build: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """CMake's configuration of the project; nothing is compiled."""
    import pybind11

    command = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *options]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"], **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def flags_of(build: Path) -> str:
    lines = (build / "include" / "build_info.h").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if "PYFASTV_CPU_FLAGS" in line)


def test_this_build_has_the_simd_of_this_machine() -> None:
    info = _native.system_info()
    if platform.machine() in ("x86_64", "AMD64"):
        wanted = "AVX2 = 1" if " avx2 " in Path("/proc/cpuinfo").read_text() else "SSE3 = 1"
        assert wanted in info
    else:
        assert "NEON = 1" in info
    assert _native.build_info()["cpu_flags"]


def test_a_reproducible_build_has_simd(tmp_path: Path) -> None:
    """ggml leaves out all SIMD where SOURCE_DATE_EPOCH is set, unless it is told not to."""
    fetch.make_tree(THIRD_PARTY / "llama.cpp", fetch.PATCHES)
    result = configure(tmp_path, SOURCE_DATE_EPOCH="1700000000")
    assert result.returncode == 0, result.stderr
    assert "Setting GGML_NATIVE_DEFAULT to OFF" in result.stdout  # the trap is still there
    assert "native" in flags_of(tmp_path)


def test_a_portable_build_has_simd(tmp_path: Path) -> None:
    fetch.make_tree(THIRD_PARTY / "llama.cpp", fetch.PATCHES)
    result = configure(tmp_path, "-DGGML_NATIVE=OFF")
    assert result.returncode == 0, result.stderr
    assert "native" not in flags_of(tmp_path)
    if platform.machine() in ("x86_64", "AMD64"):
        assert "-mavx2" in flags_of(tmp_path)


def test_a_patch_is_applied_inside_another_work_tree(tree: Path, patch: Path) -> None:
    plain = subprocess.run(["git", "apply", str(patch)], cwd=tree, capture_output=True)
    assert plain.returncode == 0  # and yet:
    assert "half" not in (tree / "src" / "file.cpp").read_text()

    fetch.apply(patch, tree)
    assert "half" in (tree / "src" / "file.cpp").read_text()


def test_a_patch_that_does_not_fit_is_an_error_that_names_it(tree: Path, patch: Path) -> None:
    (tree / "src" / "file.cpp").write_text("something else\n")
    with pytest.raises(fetch.FetchError, match=r"0001-half\.patch does not apply"):
        fetch.apply(patch, tree)


def copied_tree(tmp_path: Path) -> Path:
    """The parts of our tree that configuring looks at before anything is built."""
    source, tree = THIRD_PARTY / "llama.cpp", tmp_path / "llama.cpp"
    fetch.make_tree(source, fetch.PATCHES)
    shutil.copytree(source / "src", tree / "src")
    shutil.copy(source / fetch.STAMP, tree)
    return tree


def configure_fails(tmp_path: Path, tree: Path, message: str) -> None:
    result = configure(tmp_path / "build", f"-DPYFASTV_LLAMA_DIR={tree}")
    assert result.returncode != 0
    assert message in " ".join(result.stderr.split())


def test_a_tree_without_our_patches_does_not_build(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path)
    context = tree / "src" / "llama-context.cpp"
    context.write_text(context.read_text().replace("pyfastv::takes", ""))
    configure_fails(tmp_path, tree, "our patches are not applied")


def test_a_tree_of_another_pin_does_not_build(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path)
    (tree / fetch.STAMP).write_text("0" * 64 + "\n")
    configure_fails(tmp_path, tree, "was made from another pin")


def test_a_folder_that_is_no_tree_does_not_build(tmp_path: Path) -> None:
    configure_fails(tmp_path, tmp_path, "is not a llama.cpp tree")


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    other.write_bytes(b"something else")
    with pytest.raises(fetch.FetchError, match=fetch.PIN["sha256"]):
        fetch.make_tree(tmp_path / "llama.cpp", [], other)
    assert not (tmp_path / "llama.cpp").exists()


def test_without_network_and_tree_one_line_says_what_to_do(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    script = [sys.executable, str(THIRD_PARTY / "fetch.py"), "--output", str(tmp_path / "llama.cpp")]
    result = subprocess.run(script, capture_output=True, text=True, env=env)
    assert result.returncode == 1
    assert result.stderr.startswith("pyfastv: cannot download llama-cpp-python==")
    assert "PYFASTV_LLAMA_DIR" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_finished_tree_is_left_alone(tmp_path: Path) -> None:
    tree = tmp_path / "llama.cpp"
    tree.mkdir()
    (tree / fetch.STAMP).write_text(fetch.stamp([]))
    (tree / "mark").touch()
    fetch.make_tree(tree, [])  # would need the network otherwise
    assert (tree / "mark").exists()

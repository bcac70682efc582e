"""The tiles of AMX are configured as their kernels expect, whatever CPU the tests run on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import build_stock
import fetch

TREE = Path(__file__).parents[1] / "third_party" / "llama.cpp"
CPUINFO = Path("/proc/cpuinfo")

# llama.cpp's own text in a program: two threads load the configuration twice each, and what they loaded is printed as
# hexadecimal numbers. arch_prctl() is ours: it counts.
PROGRAM = """
#include <immintrin.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include <sys/syscall.h>

extern "C" {
unsigned char seen[64];
long          n_loads;
unsigned long saved[3];
}
static thread_local int n_asked;
extern "C" long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    n_asked += number == SYS_arch_prctl && va_arg(list, int) == 0x1023 && va_arg(list, int) == 18;
    va_end(list);
    return 0;
}

%s

__attribute__((noinline)) static void load() {
    ggml_tile_config_init();
}

int main() {
    for (int i = 0; i < 2; ++i) {
        std::thread([] {
            for (int k = 0; k < 2; ++k) {
                load();
                for (unsigned char byte : seen) {
                    printf("%%02x", byte);
                }
                printf(" %%ld %%d\\n", n_loads, n_asked);
            }
        }).join();
    }
}
"""

# In place of the instruction: 64 bytes go from where it would read them to `seen`. No stack, no flags.
MACRO = """
    .macro ldtilecfg memory:vararg
    movq %rsi, saved(%rip)
    movq %rdi, saved+8(%rip)
    movq %rcx, saved+16(%rip)
    leaq \\memory, %rsi
    leaq seen(%rip), %rdi
    movl $64, %ecx
    rep movsb
    movq n_loads(%rip), %rcx
    leaq 1(%rcx), %rcx
    movq %rcx, n_loads(%rip)
    movq saved(%rip), %rsi
    movq saved+8(%rip), %rdi
    movq saved+16(%rip), %rcx
    .endm
"""

# of A [16 rows, 32 bytes] in tiles 2 and 3, B [8, 64] in 0 and 1, C [16, 64] in 4 to 7: Intel's layout of a palette
ROWS = [8, 8, 16, 16, 16, 16, 16, 16] + 8 * [0]
BYTES = [64, 64, 32, 32, 64, 64, 64, 64] + 8 * [0]
CONFIGURATION = struct.pack("<BB14x16H16B", 1, 0, *BYTES, *ROWS)


def source_of_the_configuration(tree: Path) -> str:
    """The struct and the functions, as they stand in llama.cpp."""
    folder = tree / "ggml" / "src" / "ggml-cpu" / "amx"
    mmq, amx = ((folder / name).read_text() for name in ("mmq.cpp", "amx.cpp"))
    found = [
        *re.findall(r"^#define (?:ARCH_REQ_XCOMP_PERM|XFEATURE_XTILEDATA) .*$", amx, re.M),
        *re.findall(r"^(?:static )?bool ggml_amx_init\(\) \{$.*?^\}$", amx, re.M | re.S),
        *re.findall(r"^struct tile_config_t ?\{$.*?^\};$", mmq, re.M | re.S),
        *re.findall(r"^inline void ggml_tile_config_init\(void\) \{$.*?^\}$", mmq, re.M | re.S),
    ]
    assert len(found) == 5
    return "\n\n".join(found)


@pytest.fixture(scope="module")
def compiler() -> str:
    """Of C++ for x86-64, that knows AMX."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("this machine has no C++ compiler for x86-64 Linux")
    if subprocess.run(
        [compiler, "-mamx-int8", "-E", "-x", "c++", os.devnull], capture_output=True
    ).returncode:
        pytest.skip("this machine's compiler does not know AMX")
    return compiler


def compile_to_assembly(compiler: str, folder: Path, optimization: str) -> Path:
    fetch.make_tree(TREE, fetch.PATCHES)
    (folder / "program.cpp").write_text(PROGRAM % source_of_the_configuration(TREE))
    flags = ["-std=c++17", "-fPIC", "-march=x86-64-v3", "-mamx-tile", "-mamx-int8", optimization]
    subprocess.run([compiler, *flags, "-S", "program.cpp"], cwd=folder, check=True)
    return folder / "program.s"


@pytest.mark.parametrize("optimization", ["-O2", "-O3"])
def test_every_thread_loads_the_whole_configuration(compiler: str, tmp_path: Path, optimization: str) -> None:
    """And again each time, because other libraries release the tiles; and asks for them before."""
    assembly = compile_to_assembly(compiler, tmp_path, optimization)
    assert "ldtilecfg" in assembly.read_text()
    assembly.write_text(MACRO + assembly.read_text())
    subprocess.run([compiler, "program.s", "-o", "program", "-pthread"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)

    lines = [line.split() for line in done.stdout.splitlines()]
    assert [bytes.fromhex(seen) for seen, _, _ in lines] == 4 * [CONFIGURATION]
    assert [int(loads) for _, loads, _ in lines] == [1, 2, 3, 4]
    assert all(int(asked) > 0 for _, _, asked in lines)


@pytest.mark.skipif(
    not CPUINFO.exists() or " amx_tile " not in CPUINFO.read_text(), reason="this machine has no AMX"
)
def test_the_cpu_takes_the_configuration(compiler: str, tmp_path: Path) -> None:
    """Stored back by the CPU itself."""
    program = """
    #include <immintrin.h>
    #include <cstdint>
    #include <cstdio>
    #include <sys/syscall.h>
    #include <unistd.h>
    %s
    int main() {
        if (!ggml_amx_init()) {
            return 1;
        }
        ggml_tile_config_init();
        alignas(64) unsigned char seen[64] = {};
        __asm__ volatile("sttilecfg %%0" : "=m"(seen));
        _tile_zero(0);
        for (unsigned char byte : seen) {
            printf("%%02x", byte);
        }
    }
    """
    fetch.make_tree(TREE, fetch.PATCHES)
    (tmp_path / "program.cpp").write_text(program % source_of_the_configuration(TREE))
    flags = ["-std=c++17", "-O3", "-march=native"]
    subprocess.run([compiler, *flags, "program.cpp", "-o", "program"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert bytes.fromhex(done.stdout) == CONFIGURATION


@pytest.mark.parametrize(
    ("flags", "options"),
    [("avx512f amx_tile amx_int8", ["--only", "0004-amx-tiles.patch"]), ("avx512f", ["--no-patches"])],
)
def test_a_stock_build_has_the_mended_tiles_where_it_would_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, options: list[str]
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {flags}\n")
    commands: list[list[str]] = []
    monkeypatch.setattr(build_stock, "CPUINFO", cpuinfo)
    monkeypatch.setattr(build_stock, "run", commands.append)
    build_stock.fetch(tmp_path / "llama.cpp", programs=False)
    assert [command[-len(options) :] for command in commands] == [options]
    assert "--programs" not in commands[0]

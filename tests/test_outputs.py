"""Where results go: files, links, pipes, devices; and stdin, stdout and stderr, closed, full or of few letters."""

from __future__ import annotations

import io
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pyfastv
from pyfastv import DataError, Profile, Recommended, model_identity
from pyfastv.bench.plot import save_plot
from pyfastv.bench.summary import summarize
from pyfastv.commands.bench import _tell
from pyfastv.commands.main import main
from pyfastv.eval import AnswerFile, Given, evaluate, plot
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model
from pyfastv.models.quantize import quantize_mmproj

from dequantize import dequantize
from test_bench import plan, results_of
from test_eval import ANSWERS, QUESTIONS

CLOCK = str(bundled_examples()[0].picture)

Write = Callable[[Path], object]


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Write]:
    """What writes a result, by the start of what it writes."""
    source = tmp_path_factory.mktemp("f32") / "mmproj.gguf"
    dequantize(bundled_mmproj(), source)
    evaluation = evaluate(QUESTIONS, ANSWERS, "auto")
    rows = summarize(plan("k=2", stock="here"), results_of(), None)
    return {
        "{": Profile(Recommended(), model_identity()).save,
        "GGUF": lambda path: quantize_mmproj(source, path, "q4_0", force=True),
        "\x89PNG": lambda path: plot(evaluation, path),
        "%PDF": lambda path: save_plot(path, rows, "a title", "off"),
    }


NAMES = {"{": "a.json", "GGUF": "a.gguf", "\x89PNG": "a.png", "%PDF": "a.pdf"}


@pytest.fixture(params=NAMES, ids=lambda kind: NAMES[kind])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond ``n_bytes``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# files, links, pipes


def test_a_link_stays_one_and_its_target_is_replaced(
    kind: str, writers: dict[str, Write], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "old", tmp_path / NAMES[kind]
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    writers[kind](link)
    assert link.is_symlink()
    assert target.read_bytes().startswith(kind.encode("latin-1"))
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["old"]


def test_a_pipe_stays_one_and_is_written_to(kind: str, writers: dict[str, Write], tmp_path: Path) -> None:
    pipe, read = tmp_path / NAMES[kind], []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    writers[kind](pipe)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    reader.join(10)
    assert read[0].startswith(kind.encode("latin-1"))


def test_a_pipe_that_nobody_reads_is_told(
    writers: dict[str, Write], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyfastv.output._READER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: cannot be written: it is a pipe, and nobody reads from it"):
        writers["{"](tmp_path / "pipe")


def test_a_folder_and_a_missing_folder_are_told_by_name(
    kind: str, writers: dict[str, Write], tmp_path: Path
) -> None:
    folder = tmp_path / NAMES[kind]
    folder.mkdir()
    with pytest.raises(DataError, match=f"{folder}' is a folder"):
        writers[kind](folder)
    with pytest.raises(DataError, match=f"there is no folder {tmp_path}/none"):
        writers[kind](tmp_path / "none" / NAMES[kind])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory"):
        writers[kind](tmp_path / "file" / NAMES[kind])


def test_a_full_disk_leaves_the_old_file(kind: str, writers: dict[str, Write], tmp_path: Path) -> None:
    path = tmp_path / NAMES[kind]
    path.write_bytes(b"old")
    with full_disk(100), pytest.raises(DataError, match="cannot be written: File too large"):
        writers[kind](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_our_own_stdout_is_written_to_where_it_is(tmp_path: Path) -> None:
    """A file that stdout goes to is not replaced: what is printed before and after is in it, too."""
    code = (
        "from pyfastv import Profile; from pyfastv.settings.profile import model_identity; print('before'); "
        "Profile(None, model_identity()).save('/dev/stdout'); print('after')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, cwd=tmp_path)
    first, *middle, last = (tmp_path / "out").read_text().splitlines()
    assert (first, last) == ("before", "after")
    assert json.loads("\n".join(middle))["schedule"] == "off"


# told before the work, and nothing lost behind it


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four questions."""
    file = tmp_path / "questions.jsonl"
    pictures = {example.picture for example in bundled_examples()}
    lines = [{"image": str(picture), "question": "What?", "answer": "A"} for picture in sorted(pictures)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "DATA", "--plot"],
        ["eval", "DATA", "--answers"],
        ["tune", "DATA", "-o"],
        ["show", CLOCK, "What?", "-o"],
        ["bench", "--json"],
        ["bench", "--plot"],
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_where_a_result_cannot_go_is_told_before_a_model_is_loaded(
    command: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(pyfastv._native, "Engine", loaded)
    monkeypatch.setattr("pyfastv.bench.measure.start_runner_worker", loaded)
    (tmp_path / "folder.png").mkdir()
    for path, told in (("none/out.png", f"there is no folder {tmp_path}/none"), ("folder.png", "folder")):
        arguments = [str(data) if word == "DATA" else word for word in command]
        assert main([*arguments, str(tmp_path / path)]) in (1, 2)
        printed = capfd.readouterr()
        assert told in printed.err
        assert printed.out == ""


def test_a_profile_that_cannot_be_written_in_the_end_is_printed(
    data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyfastv.commands.tune.Runner", lambda **_: nullcontext())
    monkeypatch.setattr("pyfastv.commands.tune.why_no_turbo", lambda runner: "no")
    measured = SimpleNamespace(n_pictures=4, n_positions=8)
    monkeypatch.setattr("pyfastv.commands.tune.Measuring", lambda *_: measured)
    monkeypatch.setattr("pyfastv.commands.tune.search", lambda *_, **__: (None, []))
    assert main(["tune", str(data), "-o", "/dev/full"]) == 1
    printed = capfd.readouterr()
    assert json.loads(printed.out)["measured"]["turbo_not_tried"] == "no"
    assert printed.err == "pyfastv: /dev/full: cannot be written: No space left on device\n"


def test_measurements_that_cannot_be_written_are_printed_and_the_plot_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = summarize(plan("k=2", stock="here"), results_of(), None)
    options = {"markdown": True, "json_file": Path("/dev/full"), "plot_file": tmp_path / "plot.png"}
    with pytest.raises(DataError, match="No space left"):
        _tell(plan("k=2", stock="here"), results_of(), rows, options)
    assert '"measurements": {' in capfd.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_a_file_of_answers_on_a_full_disk_goes_on_from_where_it_is(tmp_path: Path) -> None:
    """Nothing twice, nothing cut off: also in the same run."""
    path = tmp_path / "answers.jsonl"
    given = [Given("off", str(number), "An answer.", 1.0) for number in range(20)]
    answers = AnswerFile(path)

    def add_all() -> None:
        for one in given:
            answers.add([one])

    with full_disk(500), pytest.raises(DataError, match="cannot be written: File too large") as raised:
        add_all()
    n = 500 // len(path.read_text().splitlines(keepends=True)[0])
    assert f"; {n} answers are there: when it can be written, the same command goes on" in str(raised.value)
    found = AnswerFile(path)
    assert [found.find("off", one.id) is not None for one in given] == [i < n for i in range(20)]
    answers.add(given[n:])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [one.id for one in given]


def test_answers_can_go_to_a_device() -> None:
    answers = AnswerFile("/dev/null")
    for number in ("1", "2"):
        answers.add([Given("off", number, "A", 1.0)])
    assert answers.find("off", "2") is not None
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# stdin, stdout, stderr


def run(redirect: str, *arguments: str) -> tuple[int, str, str]:
    """Status, stdout, stderr of a command whose shell has redirected it."""
    script = f'exec {redirect}; exec "$@"'
    made = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "pyfastv", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    return made.returncode, made.stdout, made.stderr


@pytest.mark.parametrize(
    ("redirect", "arguments", "status", "told"),
    [
        (">/dev/full", ["info"], 1, "pyfastv: stdout cannot be written: No space left on device\n"),
        (">/dev/full", ["plan", "--no-measure"], 1, "pyfastv: stdout cannot be written: No space left"),
        (">&-", ["info", "--json"], 1, "pyfastv: stdout cannot be written: Bad file descriptor\n"),
        ("2>/dev/full", ["info", "none.gguf"], 1, ""),
        ("2>/dev/full", ["nothing"], 2, ""),
    ],
)
def test_a_stream_that_cannot_be_written_costs_one_line(
    redirect: str, arguments: list[str], status: int, told: str
) -> None:
    found, out, err = run(redirect, *arguments)
    assert (found, out) == (status, "")
    assert err.startswith(told)
    assert err.count("\n") == bool(told)


def test_what_is_told_on_a_full_stderr_does_not_cost_the_answer() -> None:
    words = ["chat", "-c", "512", "-t", "1", "-n", "2"]
    made = subprocess.run(
        ["sh", "-c", 'exec 2>/dev/full; exec "$@"', "sh", sys.executable, "-m", "pyfastv", *words],
        stdout=subprocess.PIPE,
        input=b"Read it.\n/nothing\nRead it.\n",
        timeout=120,
        cwd="/",
    )
    assert made.returncode == 1  # there is no /nothing
    first, second = made.stdout.splitlines()
    assert first
    assert second


def test_a_chat_without_stdin_ends(fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", CLOCK]) == 0


def test_letters_that_stdout_lacks_are_escaped(
    fake_engine: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [(7, "café ✓".encode()), None]
    monkeypatch.setattr("conftest.FakeEngine.next", lambda self, number: said.pop(0))
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["ask", CLOCK, "Q?"]) == 0
    assert out.buffer.getvalue() == b"caf\xe9 \\u2713\n"  # type: ignore[attr-defined]
    assert out.errors == "strict"


def test_a_current_folder_that_is_gone_is_one_line(tmp_path: Path, data: Path) -> None:
    (tmp_path / "gone").mkdir()
    enter = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone"
    told = "pyfastv: the current folder does not exist any more: change to another one\n"
    assert run(f"3>&-; {enter}", "eval", str(data), "--processes", "2") == (1, "", told)


# paths of any bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One whose name is not UTF-8."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        path.mkdir()
    except OSError:
        pytest.skip("this machine's file system has UTF-8 names only")
    (path / "model.gguf").symlink_to(bundled_model())
    (path / "mmproj.gguf").symlink_to(bundled_mmproj())
    return path


def test_a_model_is_loaded_from_a_path_that_is_not_utf_8(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, mmproj = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    for command in (["info", model], ["plan", model, "--no-measure"]):
        assert main(command) == 0
    assert "possible, k = 1-11" in capfd.readouterr().out
    assert (
        main(["ask", CLOCK, "Q?", "-m", model, "--mmproj", mmproj, "-c", "1024", "-t", "1", "-n", "1"]) == 0
    )


def test_errors_name_a_path_that_is_not_utf_8_in_letters(folder: Path) -> None:
    (folder / "text.gguf").write_text("hello")
    for use in (
        pyfastv._native.model_info,
        pyfastv._native.vision_info,
        pyfastv._native.gguf_header,
        pyfastv.Runner,
        lambda path: quantize_mmproj(path, folder / "out.gguf"),
        lambda path: pyfastv.load_image(str(path)),
        Profile.load,
    ):
        for name in ("none.gguf", "text.gguf"):
            with pytest.raises(pyfastv.Error) as raised:
                use(folder / name)
            assert rf"caf\xe9/{name}" in str(raised.value)
            str(raised.value).encode()


def test_a_null_character_is_no_path() -> None:
    with pytest.raises(pyfastv.ModelError, match="null character"):
        pyfastv.Runner(f"{bundled_model()}\0.gguf")
    with pytest.raises(DataError, match="null"):
        Profile(None, model_identity()).save("a\0.json")

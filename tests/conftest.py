"""Fixtures: the bundled model and pictures, and an engine without a model for what needs none."""

from __future__ import annotations

import gc
import os
import signal

# before the libraries are loaded: threads that spin where others compute make tests ten times as slow
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's products; these threads do nothing but spin
# the tests know which model they ask
os.environ.pop("PYFASTV_MODEL", None)

from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pyfastv
from pyfastv import _native
from pyfastv.models import bundled_examples, bundled_mmproj, bundled_model

from compare import exact_runner
from dequantize import dequantize
from serving import Server, serving

# files of more than three seconds: `make check` leaves them out
SLOW = [
    "accuracy",
    "allocations",
    "architectures",
    "bench_command",
    "bench_geometry",
    "benchmarks",
    "broken_states",
    "build",
    "c_api",
    "cancel",
    "chat_apps",
    "check",
    "checkpoints",
    "cli",
    "compat",
    "docs",
    "encoder_files",
    "encoder_type",
    "environment",
    "eval",
    "failures",
    "files",
    "frame_pairs",
    "golden",
    "golden_rules",
    "hybrid_memory",
    "hybrids",
    "layers",
    "llama_cpp_handler",
    "llm_plugin",
    "long_texts",
    "memory",
    "one_engine",
    "outputs",
    "plan",
    "pool",
    "programs_models",
    "quantize",
    "recall",
    "reduce_runner",
    "response_format",
    "runner",
    "saved_sessions",
    "scoring_memory",
    "serve_access",
    "serve_addresses",
    "serve_fetch",
    "serve_fuzz",
    "serve_inspection",
    "serve_hostile",
    "serve_llama_server",
    "serve_ollama",
    "serve_openai",
    "serve_page",
    "serve_process",
    "serve_streams",
    "session",
    "show",
    "skip",
    "skip_options",
    "slots",
    "templates",
    "text_encoding",
    "thoughts",
    "tools",
    "tune",
    "turbo",
    "turbo_options",
    "typed",
    "video",
    "windows",
]

HARDWARE = "this machine"  # how the reason begins of a test that cannot run here, whatever is installed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        help=f"a skipped test has failed, unless its reason begins with '{HARDWARE}'",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    # what thousands of collected tests are made of is not looked through by each collection of garbage
    gc.collect()
    gc.freeze()


def _refuse_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (config.getoption("--no-skips") and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith(HARDWARE):
        report.outcome, report.longrepr = "failed", f"not run: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(collector.config, report)
    return report


# a shell's background job is born deaf to Ctrl-C, which tests press
signal.signal(signal.SIGINT, signal.default_int_handler)

REPORT: dict[str, Any] = {
    "visual_tokens": 576,
    "patches": 576,
    "encoded_tokens": 576,
    "prompt_tokens": 600,
    "cached_tokens": 100,
    "generated_tokens": 4,
    "encode_ms": 100.0,
    "reduce_ms": 0.0,
    "full_ms": 10.0,
    "stage0_ms": 20.0,
    "choose_ms": 0.5,
    "later_ms": 19.5,
    "generate_ms": 8.0,
    "first_token_ms": 160.0,
    "pictures_encoded": 1,
    "pictures_from_cache": 0,
    "pictures_from_disk": 0,
    "recalled_tokens": 0,
    "first_layers": [0, 2],
    "visual_tokens_in_stage": [576, 288],
    "kv_bytes_used": [100, 200],
    "kv_bytes_allocated": [1000, 2000],
    "kv_bytes_used_stock": 500,
    "kv_bytes_allocated_stock": 3500,
    "archive_bytes": 50,
    "graphs_reused": 3,
}


def layers_of(spec: str) -> list[Any]:
    """Of the cuts of a schedule; none of an empty text."""
    found = _native.parse_schedule(spec) if spec else None
    return [] if found is None else [cut["layer"] for cut in found["cuts"]]


def engine_report(**changes: Any) -> Any:
    """What an engine reports, with REPORT in it and these changes."""
    names = [name for name in dir(_native.RunReport) if not name.startswith("_")]
    made = {name: getattr(_native.RunReport(), name) for name in names}
    assert made.keys() >= REPORT.keys()
    return SimpleNamespace(**{**made, **REPORT, **changes})


class FakeEngine:
    """Answers ``tokens``; remembers its calls; raises ``failure`` where ``failing`` names a method."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.closed = False
        self.media_marker = "<__media_1234__>"
        self.n_ctx, self.n_layer, self.description = 4096, 12, "fake"
        self.chat_template: str | None = None
        self.bos_token, self.eos_token = "<s>", "</s>"
        self.control_tokens = [("<s>", False, False), ("</s>", False, False)]
        self.tokens = [b" It is ", b"9:10", b".", b" Yes."]
        self.finish_reason: str | None = None
        self.calls: list[tuple[str, Any]] = []
        self.failing, self.failure = "", RuntimeError("failure")
        self._left: list[bytes] = []
        self.attached = ""

    def _call(self, name: str, arguments: Any = None) -> None:
        self.calls.append((name, arguments))
        if name == self.failing:
            raise self.failure

    def close(self) -> None:
        self.closed = True

    def set_fastv(self, spec: str) -> None:
        self._call("set_fastv", spec)
        self.attached = spec

    def fits(self, spec: str) -> bool:
        return layers_of(spec) in ([], layers_of(self.attached))

    def fit(self, spec: str) -> None:
        if not self.fits(spec):
            self._call("fit", spec)
            self.attached = spec

    def fit_layers(self, spec: str) -> list[tuple[int, int]]:
        return [(layer, layer) for layer in layers_of(spec)]

    def set_turbo(self, spec: str) -> None:
        self._call("set_turbo", spec)

    def set_reducer(self, spec: str) -> None:
        self._call("set_reducer", spec)

    def picture_shape(self, width: int, height: int, enlarge: bool) -> tuple[int, int, int, int]:
        return 576, 1, 336, 336

    def set_skip(self, spec: str) -> None:
        self._call("set_skip", spec)

    def check(self, turbo: str, reducer: str, skip: str = "") -> None:
        pass

    def prefill(
        self,
        prompt: str,
        images: Any,
        image_ids: Any,
        progress: Any,
        add_bos: bool,
        reserve: int,
        frames: Any = (),
        turbo: str | None = None,
        reducer: str | None = None,
        started: Any = None,
        fastv: str | None = None,
        answers: Any = (),
        literal: Any = (),
        contents: Any = (),
        enlarge: Any = (),
        skip: str | None = None,
    ) -> int:
        arguments = {"images": images, "image_ids": image_ids, "add_bos": add_bos, "reserve": reserve}
        settings = {"turbo": turbo, "fastv": fastv, "answers": answers, "literal": literal}
        self._call("prefill", {"prompt": prompt, **arguments, **settings})
        if started is not None:
            started(1)
        if progress is not None:
            progress(1, 2)
            progress(2, 2)
        return 1

    def start(self, request: int | None = None, **sampling: Any) -> None:
        self._call("start", sampling)
        limit = sampling["max_tokens"]
        self._left = self.tokens[: None if limit < 0 else limit]
        self.finish_reason = None

    def next(self, request: int | None = None) -> tuple[int, bytes] | None:
        self._call("next")
        if not self._left:
            self.finish_reason = "stop"
            return None
        return 7, self._left.pop(0)

    def next_with_probs(
        self, request: int | None = None
    ) -> tuple[int, bytes, float, list[tuple[int, bytes, float]]] | None:
        token = self.next(request)
        return None if token is None else (*token, -0.5, [(*token, -0.5), (8, b"other", -1.5)])

    def save(self, request: int) -> NDArray[np.uint8]:
        self._call("save", request)
        return np.frombuffer(b"the context", np.uint8)

    def restore(self, state: NDArray[np.uint8]) -> int:
        self._call("restore", bytes(state))
        return 2

    def reset(self) -> None:
        self._call("reset")

    def report(self, request: int | None = None) -> Any:
        return engine_report()

    def reason(self, request: int | None = None) -> str | None:
        return self.finish_reason

    def cancel(self, request: int) -> None:
        pass


@pytest.fixture
def fake_runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[pyfastv.Runner]:
    """A runner without a model; its engine is ``fake_runner._engine``."""
    monkeypatch.setattr(_native, "Engine", FakeEngine)
    with pyfastv.Runner() as runner:
        yield runner


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Engines without a model, as they are made."""
    made: list[Any] = []

    class Recorded(FakeEngine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr(_native, "Engine", Recorded)
    return made


@pytest.fixture(scope="session")
def runner() -> Iterator[pyfastv.Runner]:
    """The bundled model, with the default rule."""
    with pyfastv.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyfastv.Runner]:
    """The bundled model in f32, for comparisons with the reference."""
    folder = tmp_path_factory.mktemp("f32")
    dequantize(bundled_model(), folder / "model.gguf")
    dequantize(bundled_mmproj(), folder / "mmproj.gguf")
    with exact_runner(folder / "model.gguf", folder / "mmproj.gguf") as runner:
        yield runner


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the bundled model that may fetch pictures; its folder of pictures has clock.png."""
    for module in ("fastapi", "uvicorn", "prometheus_client", "httpcore2"):
        pytest.importorskip(module, reason="needs the extra serve")
    folder = tmp_path_factory.mktemp("served") / "pictures"
    folder.mkdir()
    clock = bundled_examples()[0].picture
    (folder / "clock.png").write_bytes(clock.read_bytes())
    (folder.parent / "secret.png").write_bytes(clock.read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    with serving(
        *("--n-ctx", "2048", "--allow-remote-images", "--allow-local-files", str(folder)),
        *("--max-images", "2", "--max-body-mb", "4"),
    ) as server:
        server.folder = folder
        yield server


@pytest.fixture
def picture() -> dict[str, Path]:
    """The bundled pictures: clock, chart, dice, scene."""
    return {example.picture.stem: example.picture for example in bundled_examples()}

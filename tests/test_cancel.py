"""A computation that is stopped, wherever it is: that is told, nothing half done is taken for a result, and whoever asks
again gets what he would have got."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pyfastv
from pyfastv import Runner, Sampling
from pyfastv.commands.demo import same_answer
from pyfastv.engine.job_pool import JobPool
from pyfastv.inputs.chat import user_message
from pyfastv.models import bundled_examples, bundled_mmproj

import random_gguf
import random_mmproj
from c_api import ABORTED, OK, Context, Model, Row, contexts, llama, read
from decoding import random_llama
from serving import Server, data_uri, question, send, serving
from vision_api import Encoder

CLOCK = bundled_examples()[0]
STOPPED = 2  # PYFASTV_ENCODE_STOPPED
TURBO = [None, "share=0.5"]

ggml = ctypes.CDLL(str(next(pyfastv.lib_path().glob("libggml-base.*"))))
ggml.ggml_get_name.argtypes = ggml.ggml_op_desc.argtypes = ggml.ggml_get_data.argtypes = [ctypes.c_void_p]
ggml.ggml_nbytes.argtypes = [ctypes.c_void_p]
ggml.ggml_get_name.restype = ggml.ggml_op_desc.restype = ctypes.c_char_p
ggml.ggml_get_data.restype = ctypes.c_void_p
ggml.ggml_nbytes.restype = ctypes.c_size_t


# the vision encoder, as a program uses it


class Stopping:
    """A cb_eval that stops behind the node ``at``, counted from 0; None: nowhere. ``nodes``: names, of the last run."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.nodes: list[str] = []

    def __call__(self, node: int, ask: bool) -> bool:
        if not ask:
            return False
        self.nodes.append(ggml.ggml_get_name(node).decode())
        return len(self.nodes) - 1 == self.at


@pytest.fixture(scope="module")
def bundled() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()


@pytest.fixture(scope="module")
def clock() -> np.ndarray:
    with Image.open(CLOCK.picture) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Path]]:
    """A language model and an encoder of a few blocks, with random weights."""
    model, mmproj = random_mmproj.write_pair(tmp_path_factory.mktemp("small"), "Janus-Pro")
    loaded = Model(model)
    yield loaded, mmproj
    loaded.close()


NOISE = np.random.default_rng(8).integers(0, 256, (112, 112, 3), dtype=np.uint8)


@pytest.mark.parametrize("turbo", TURBO)
def test_an_encoder_stopped_behind_any_node_says_so(small: tuple[Model, Path], turbo: str | None) -> None:
    model, mmproj = small
    stop = Stopping()
    encoder = Encoder(model, mmproj, turbo, on_node=stop)
    expected = encoder.encode(NOISE)
    n_nodes = len(stop.nodes)

    def stop_everywhere(encode: Callable[[], int]) -> None:
        for at in range(n_nodes):
            stop.at, stop.nodes = at, []
            assert (encode(), len(stop.nodes)) == (STOPPED, at + 1)
            assert encoder.merged() == [[], [], []]  # nor those of the picture before
            stop.at = None
            again = encoder.encode(NOISE)
            np.testing.assert_array_equal(again.features, expected.features)
            assert again.places.tolist() == expected.places.tolist()

    encoder.encode_often(NOISE, stop_everywhere)
    encoder.close()
    assert n_nodes > 100


@pytest.mark.parametrize("turbo", TURBO)
def test_the_bundled_encoder_is_right_after_a_stop_in_any_block(
    bundled: Model, clock: np.ndarray, turbo: str | None
) -> None:
    """Where a runner asks whether to go on."""
    stop = Stopping()
    encoder = Encoder(bundled, bundled_mmproj(), turbo, on_node=stop)
    expected = encoder.encode(clock)
    blocks = [i for i, name in enumerate(stop.nodes) if name.startswith("ffn_out")]
    assert len(blocks) > 5
    status: list[int] = []
    for at in blocks:
        stop.at, stop.nodes = at, []
        encoder.encode_often(clock, lambda encode: status.append(encode()))
    stop.at = None
    np.testing.assert_array_equal(encoder.encode(clock).features, expected.features)
    encoder.close()
    assert status == [STOPPED] * len(blocks)


@pytest.mark.parametrize("op", ["ARGSORT", "ARGMAX"])
@pytest.mark.parametrize("value", [-1, 2**30])
def test_what_turbo_reads_from_a_graph_is_checked_before_it_is_an_index(
    small: tuple[Model, Path], op: str, value: int
) -> None:
    """The eval callback writes something else there when all is computed."""
    model, mmproj = small
    nodes: list[int] = []
    spoil = False

    def on_node(node: int, ask: bool) -> bool:
        if ask:
            nodes.append(node)
            return len(nodes) == n_nodes
        for node in nodes if spoil else ():
            if ggml.ggml_op_desc(node).decode() == op:
                n = ggml.ggml_nbytes(node) // 4
                (ctypes.c_int32 * n).from_address(ggml.ggml_get_data(node))[:] = [value] * n
        return True

    n_nodes = 0
    encoder = Encoder(model, mmproj, "share=0.5", on_node=on_node)
    expected = encoder.encode(NOISE)
    n_nodes, spoil = len(nodes), True

    def encode(run: Callable[[], int]) -> None:
        nodes.clear()
        assert run() == 1
        assert encoder.merged() == [[], [], []]

    encoder.encode_often(NOISE, encode)
    spoil = False
    nodes.clear()
    np.testing.assert_array_equal(encoder.encode(NOISE).features, expected.features)
    encoder.close()


# the later layers

N = 64  # visual tokens
BEFORE, QUESTION, SECOND = [1, 30, 31, 32], [40, 41, 42, 43, 44, 45], [50, 51, 52, 53, 54]
AT_QUESTION = len(BEFORE) + N
AT_SECOND = AT_QUESTION + len(QUESTION)
PICTURE = np.random.default_rng(0).normal(size=(N, random_gguf.WIDTH)).astype(np.float32)

SPECS = [
    "fastv,k=1,drop=0.5",
    "k=1,drop=0.5,score=question-max,pick=cover,weigh;k=3,drop=0.75,score=last,recall=0.125",  # matrices, scores
    "k=1,drop=0.5,merge;k=2,drop=0.625,score=all,recall=0.25",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with random_llama(tmp_path_factory.mktemp("model")) as model:
        yield model


@pytest.fixture
def make(model: Model) -> Iterator[Callable[..., Context]]:
    with contexts(model) as make:
        yield make


def see(context: Context, seq: int = 0) -> None:
    assert context.rows([Row(seq, i, token) for i, token in enumerate(BEFORE)], logits=False) == 0
    context.begin_picture()
    assert context.picture(PICTURE, len(BEFORE), seq=seq) == 0


def state(context: Context) -> tuple[Any, ...]:
    """What a flush changes: cells in use, rows that wait, tokens that entered."""
    report = context.report()
    cuts = range(report.n_stages - 1)
    return (
        list(report.kv_bytes_used[: report.n_stages]),
        report.n_pending,
        report.n_recalled,
        list(report.n_visual_entered[1 : report.n_stages]),
        [context.kept(cut) for cut in cuts],
        [context.scores(cut).tolist() for cut in cuts],
    )


def flush_after_stops(context: Context) -> int:
    """pyfastv_flush(), stopped behind every node in turn until it is not; how often it was."""
    before = state(context)
    stops = 0
    while True:
        with context.aborting(after=stops):
            status = context.flush()
        if status == OK:
            return stops
        assert status == ABORTED
        assert state(context) == before
        stops += 1


@pytest.mark.parametrize("spec", SPECS)
def test_a_flush_stopped_behind_any_node_can_be_repeated(make: Callable[..., Context], spec: str) -> None:
    """Of a picture's question, and of one that recalls: with the logits and the choice of a run without stops."""
    stopped, undisturbed = make(spec), make(spec)
    for context in (stopped, undisturbed):
        see(context)
    for tokens, position in ((QUESTION, AT_QUESTION), (SECOND, AT_SECOND)):
        for context in (stopped, undisturbed):
            assert context.tokens(tokens, position) == 0
        stops = flush_after_stops(stopped)
        assert stops > 20 or "recall" not in spec
        assert undisturbed.flush() == OK
        np.testing.assert_array_equal(read(stopped), read(undisturbed))
        assert state(stopped) == state(undisturbed)


def test_a_stopped_flush_of_several_sequences_can_be_repeated(make: Callable[..., Context]) -> None:
    asking = [Row(seq, AT_QUESTION + i, token) for seq in (0, 1) for i, token in enumerate(QUESTION)]
    stopped, undisturbed = (make(SPECS[1], n_seq_max=2) for _ in range(2))
    for context in (stopped, undisturbed):
        see(context, 0)
        see(context, 1)
        assert context.rows(asking) == 0
    assert flush_after_stops(stopped) > 20
    for index in (len(QUESTION) - 1, -1):
        np.testing.assert_array_equal(read(stopped, index), read(undisturbed, index))


def test_a_flush_with_shifted_positions_stopped_behind_any_node_can_be_repeated(
    make: Callable[..., Context],
) -> None:
    """The keys are turned before the later layers run."""
    stopped, undisturbed = make(SPECS[1]), make(SPECS[1])
    for context in (stopped, undisturbed):
        see(context)
        assert context.tokens(QUESTION, AT_QUESTION) == 0
        assert context.flush() == OK
        assert context.tokens(SECOND, AT_SECOND) == 0
        context.shift(0, -1, 5)
    assert flush_after_stops(stopped) > 20
    np.testing.assert_array_equal(read(stopped), read(undisturbed))


@pytest.mark.parametrize("spec", SPECS)
def test_a_picture_and_a_question_stopped_behind_any_node_leave_nothing(
    make: Callable[..., Context], spec: str
) -> None:
    """In the first layers."""
    stopped, undisturbed = make(spec, n_ubatch=48), make(spec, n_ubatch=48)
    see(undisturbed)
    assert stopped.tokens(BEFORE, 0, logits=False) == 0

    def decode_after_stops(decode: Callable[[], int]) -> None:
        before, stops = state(stopped), 0
        while True:
            with stopped.aborting(after=stops):
                result = decode()
            if result == 0:
                assert stops > 20
                return
            assert result == 2
            assert stopped.remove(stopped_at, -1)  # the ubatches before
            assert state(stopped) == before
            stops += 1

    def see_picture() -> int:
        stopped.begin_picture()
        return stopped.picture(PICTURE, len(BEFORE))

    stopped_at = len(BEFORE)
    decode_after_stops(see_picture)
    stopped_at = AT_QUESTION
    decode_after_stops(lambda: stopped.tokens(QUESTION, AT_QUESTION))
    assert undisturbed.tokens(QUESTION, AT_QUESTION) == 0
    np.testing.assert_array_equal(read(stopped), read(undisturbed))


def test_an_eval_callback_that_stops_is_an_abort(model: Model, make: Callable[..., Context]) -> None:
    """ggml leaves the graph then, and reports success."""
    expected = make(SPECS[0])
    see(expected)
    assert expected.tokens(QUESTION, AT_QUESTION) == 0

    stop = Stopping()
    callback = llama.ggml_backend_sched_eval_callback(lambda node, ask, data: stop(node, ask))
    context = make(SPECS[0], cb_eval=callback)
    see(context)
    stop.at, stop.nodes = 7, []
    assert context.tokens(QUESTION, AT_QUESTION) == 2
    stop.at = None
    assert context.tokens(QUESTION, AT_QUESTION) == 0
    stop.at, stop.nodes = 7, []
    assert context.flush() == ABORTED
    stop.at = None
    np.testing.assert_array_equal(read(context), read(expected))


# requests

ENDLESS = "root ::= [a-z ] root"
OPTIONS: dict[str, Any] = {"n_threads": 1, "n_ctx": 1024, "encoder_cache_mb": 0, "turbo": "share=0.5"}


def answers(runner: Runner) -> bool:
    return same_answer(runner.ask(CLOCK.picture, CLOCK.question).text, CLOCK.answer)


def interrupted(delay: float, call: Callable[[], object]) -> None:
    """``call``, with a SIGINT in the middle, or at its end."""
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    came = False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        timer.start()
        call()
        timer.join()
        time.sleep(0.1)
    except KeyboardInterrupt:
        came = True
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert came


@pytest.mark.parametrize(("turbo", "n"), [(None, 3), ("share=0.5", 8)])
def test_ctrl_c_at_any_time_ends_a_request_and_not_the_runner(turbo: str | None, n: int) -> None:
    with Runner(**{**OPTIONS, "turbo": turbo}) as runner:
        begin = time.perf_counter()
        assert answers(runner)
        seconds = time.perf_counter() - begin
        for delay in np.linspace(0.0, seconds, n):
            interrupted(delay, lambda: runner.ask(CLOCK.picture, CLOCK.question))
            assert answers(runner)


def test_a_stream_that_is_closed_after_any_piece_leaves_its_runner() -> None:
    with Runner(**OPTIONS) as runner:
        for n in range(20):
            stream = runner.stream(None, "Describe.", grammar=ENDLESS)
            pieces = [next(stream) for _ in range(n)]
            stream.close()
            assert stream.text == "".join(pieces)
            with pytest.raises(StopIteration):
                next(stream)
        stream = runner.stream(None, "Describe.", grammar=ENDLESS)
        assert answers(runner)
        stream.close()  # a later request has ended it
        chunks = runner.create_chat_completion([user_message("Describe.")], stream=True, grammar=ENDLESS)
        next(chunks)
        chunks.close()
        assert answers(runner)


def test_a_job_that_is_cancelled_at_any_time_disturbs_no_other() -> None:
    with JobPool(slots=2, **OPTIONS) as pool:

        def ask() -> Any:
            return pool.submit([user_message(CLOCK.question, CLOCK.picture)], Sampling())

        begin = time.perf_counter()
        assert same_answer(ask().read(), CLOCK.answer)
        seconds = time.perf_counter() - begin
        for delay in np.linspace(0.0, seconds, 7):
            pool._slots.reset()
            job, other = ask(), ask()
            time.sleep(delay)
            job.cancel()
            assert same_answer(other.read(), CLOCK.answer)
            assert job.wait(10)
            assert job.finish_reason in ("cancelled", "stop")


def test_clients_that_leave_at_any_time_leave_the_server(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    options = ("--threads", "1", "--n-ctx", "1024", "--slots", "2", "--turbo", "share=0.5")
    messages = [question(CLOCK.question, data_uri(CLOCK.picture))]

    def answers(server: Server) -> bool:
        text = server.chat(messages, max_tokens=20)["choices"][0]["message"]["content"]
        return same_answer(text, CLOCK.answer)

    with serving(*options) as server:
        begin = time.perf_counter()
        assert answers(server)
        seconds = time.perf_counter() - begin
        for i, delay in enumerate(np.linspace(0.0, seconds, 6)):
            # another picture each time: what the server has seen is not encoded again
            noise = np.random.default_rng(i).integers(0, 256, (336, 336, 3), np.uint8)
            path = tmp_path / f"{i}.png"
            Image.fromarray(noise).save(path)
            other = [question("Describe.", data_uri(path))]
            connection = send(server, {"messages": other, "max_tokens": 200, "stream": i % 2 == 0})
            time.sleep(delay)
            connection.close()
            assert answers(server)

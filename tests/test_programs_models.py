"""LLAMA_FASTV in an unpatched llama-server, on models whose memory is no plain cache: recurrent layers beside attention,
sliding windows. Random models, so that every token depends on all that there is.

The server keeps prompts, goes back to checkpoints of states and windows that it has saved, and has four slots.
"""

from __future__ import annotations

import base64
import io
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import pyfastv

import random_gguf
import random_mmproj
from programs import STOCK, Server, needs_programs, our_libraries, serve

pytestmark = needs_programs


class Kind(NamedTuple):
    family: str
    cuts: tuple[int, ...]
    visual: int  # tokens of a picture

    def spec(self, drop: float) -> str:
        return ";".join(f"k={layer},drop={drop}" for layer in self.cuts)


KINDS = {
    "qwen35": Kind("Qwen3.5", (4, 8), 48),
    "gemma3": Kind("Gemma 3", (6,), 64),
}

PICTURES = [np.random.default_rng(seed).integers(0, 256, (168, 224, 3), dtype=np.uint8) for seed in range(5)]
N_TOKENS = 8
# of random_gguf's vocabulary; answers are made of them, so that their text is read as the same tokens again
LETTERS = slice(3 + ord("a"), 3 + ord("z") + 1)
# of logits: of two letters that are as near to each other other batches or kernels make either the best
NEAR = 0.05
# the server saves what it may go back to four tokens before the end of a prompt
QUESTION = "".join(chr(97 + i * i % 26) for i in range(40))
# behind it no window reaches back to the first question, and none of its cells is left
LONG = "".join(chr(97 + i * i * i % 26) for i in range(400))
# of the server: batches that are less than a window's cells, and a slot keeps its prompt while others are asked
OPTIONS = ("-c", "4096", "-ub", "64", "--no-cache-idle-slots")


class Turn(NamedTuple):
    prompt: str  # {} in place of the picture
    tokens: list[int]


def conversation(ask: Callable[[str], list[int]]) -> list[Turn]:
    """A question, one that follows its answer, and another in place of the first."""
    first = Turn(f"Look: {{}}\n{QUESTION}", ask(f"Look: {{}}\n{QUESTION}"))
    answer = "".join(chr(token - 3) for token in first.tokens)
    prompts = [f"{first.prompt}{answer}{LONG}", f"{first.prompt[:-3]}xyz"]
    return [first, *(Turn(prompt, ask(prompt)) for prompt in prompts)]


def furthest(runner: pyfastv.Runner, picture: np.ndarray, turns: list[Turn]) -> float:
    """How far below the runner's best letter one of a conversation is, by logits; it goes on with what was said."""
    engine = runner._engine
    engine.reset()
    res = 0.0
    for turn in turns:
        prompt = turn.prompt.format(engine.media_marker)
        engine.prefill(prompt, [picture], [str(hash(picture.tobytes()))], None, True, N_TOKENS)
        for i, token in enumerate(turn.tokens):
            if i:
                engine.feed(turn.tokens[i - 1])
            logits = engine.logits()
            res = max(res, float(logits[LETTERS].max() - logits[token]))
        # what follows the last is not computed, as llama-server does
    return res


class Slot:
    """Of a llama-server, which is asked about a picture."""

    def __init__(self, server: Server, number: int, picture: np.ndarray) -> None:
        self.server, self.number, self.pixels = server, number, picture
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        self.picture = base64.b64encode(png.getvalue()).decode()
        self.cached: list[int] = []  # tokens of each prompt that were there
        self.turns: list[Turn] = []

    def ask(self, prompt: str) -> list[int]:
        body: dict[str, Any] = {
            "prompt": {
                "prompt_string": prompt.format(self.server.marker),
                "multimodal_data": [self.picture],
            },
            "grammar": "root ::= [a-z]+",
            **{"n_predict": N_TOKENS, "temperature": 0, "seed": 1, "ignore_eos": True},
            **{"return_tokens": True, "id_slot": self.number, "cache_prompt": True},
        }
        answer = self.server.post("/completion", body)
        self.cached.append(answer["timings"]["cache_n"])
        assert len(answer["tokens"]) == N_TOKENS
        return answer["tokens"]

    def talk(self) -> None:
        self.turns = conversation(self.ask)


def talks(server: Server) -> list[Slot]:
    """A conversation alone, then four at once."""
    slots = [Slot(server, max(0, number - 1), picture) for number, picture in enumerate(PICTURES)]
    slots[0].talk()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Slot.talk, slots[1:]))
    return slots


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return our_libraries(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def files(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return random_mmproj.write_pair(tmp_path_factory.mktemp("models"), kind.family)


@pytest.fixture(scope="module")
def runner(files: tuple[Path, Path]) -> Iterator[pyfastv.Runner]:
    with pyfastv.Runner(
        *files, n_ctx=1024, n_ubatch=64, n_threads=1, fastv=None, encoder_type="stock"
    ) as runner:
        yield runner


@pytest.mark.parametrize("kind", ["qwen35"], indirect=True)
def test_a_servers_conversations_are_the_runners(
    tmp_path: Path, libraries: Path, kind: Kind, files: tuple[Path, Path], runner: pyfastv.Runner
) -> None:
    with serve(tmp_path / "log", libraries, kind.spec(0.5), *OPTIONS, files=files) as server:
        slots = talks(server)
    runner.set_fastv(kind.spec(0.5))
    assert max(found := [furthest(runner, slot.pixels, slot.turns) for slot in slots]) < NEAR, found
    runner.set_fastv(None)  # or this could not tell pruning from none
    assert max(furthest(runner, slot.pixels, slot.turns) for slot in slots) > NEAR


def test_without_drop_a_servers_conversations_are_stock_s(
    tmp_path: Path,
    libraries: Path,
    kind: Kind,
    files: tuple[Path, Path],
    runner: pyfastv.Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYFASTV_KERNELS", "stock")  # of the servers
    with serve(tmp_path / "stock", STOCK, None, *OPTIONS, files=files) as server:
        expected = talks(server)
    log = tmp_path / "log"
    with serve(log, libraries, kind.spec(0), "--verbosity", "4", *OPTIONS, files=files) as server:
        slots = talks(server)
    assert f"LLAMA_FASTV: k={kind.cuts[0]}" in log.read_text().replace("fastv,", "")
    runner.set_fastv(None)
    found = [furthest(runner, slot.pixels, slot.turns) for slot in (*slots, *expected)]
    assert max(found) < NEAR, found
    for slot in slots:
        # behind windows that others have overwritten the server goes back for what follows, too
        assert min(slot.cached[1:]) > kind.visual + len(QUESTION) - 5
    # of several at once it is chance which rows share a batch
    assert (slots[0].turns, slots[0].cached) == (expected[0].turns, expected[0].cached)


def test_pictures_are_refused_where_a_draft_reads_hidden_rows(tmp_path: Path, libraries: Path) -> None:
    """A head for multi-token prediction, which most files of Qwen3.5 bring. Text goes on."""
    _, mmproj = random_mmproj.write_pair(tmp_path, "Qwen3.5")
    model = tmp_path / "model.gguf"
    random_gguf.write(model, "qwen35", vocab=random_mmproj.SPECIAL_TOKENS, draft_head=True)
    log = tmp_path / "log"
    options = (*OPTIONS, "--spec-type", "draft-mtp")
    with serve(log, libraries, "k=4,drop=0.5", *options, files=(model, mmproj)) as server:
        text = {"prompt": "What?", "n_predict": 24, "temperature": 0, "seed": 1, "ignore_eos": True}
        before = server.post("/completion", text)
        assert before["timings"]["draft_n"] > 0
        with pytest.raises(urllib.error.HTTPError) as refused:
            Slot(server, 0, PICTURES[0]).ask(f"Look: {{}}\n{QUESTION}")
        assert refused.value.code == 500
        assert "failed to process mtmd chunk" in refused.value.read().decode()
        assert server.post("/completion", text)["content"] == before["content"]
    assert (
        "outputs hidden rows for a draft model, which this version does not do in stages" in log.read_text()
    )

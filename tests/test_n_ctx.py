"""n_ctx is how many tokens a slot has, for a prompt and its answer, whoever asks; without it what the model was trained
for, at most 8192."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyfastv import ContextLengthError, Runner, _native
from pyfastv.engine.job_pool import JobPool
from pyfastv.models import info

import random_gguf

OPTIONS: dict[str, Any] = {"n_threads": 1, "fastv": None}


@pytest.fixture(params=[1024, 20_000])
def trained_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(random_gguf, "CONTEXT", request.param)
    return int(request.param)


@pytest.fixture
def model(trained_for: int, tmp_path: Path) -> Path:
    random_gguf.write(tmp_path / "model.gguf", "llama", vocab=())
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("n_slots", [1, 3])
def test_without_it_a_slot_has_what_the_model_was_trained_for(
    model: Path, trained_for: int, n_slots: int
) -> None:
    expected = min(trained_for, 8192)
    engine = _native.Engine(model_path=str(model), n_slots=n_slots, n_threads=1)
    assert engine.n_ctx == expected
    engine.close()
    for n_ctx in (None, 0):
        with Runner(model, n_slots=n_slots, n_ctx=n_ctx, **OPTIONS) as runner:
            assert runner.info["n_ctx"] == expected
        with JobPool(model, slots=n_slots, n_ctx=n_ctx, **OPTIONS) as pool:
            assert pool.n_ctx == expected


def test_info_tells_both(model: Path, trained_for: int) -> None:
    text = info.describe(info.gather(str(model), None))
    more = ", used up to 8192 unless -c says more" if trained_for > 8192 else ""
    assert f"context         {trained_for} tokens{more}\n" in text


@pytest.mark.parametrize("n_slots", [1, 3])
@pytest.mark.parametrize("trained_for", [1024], indirect=True)
def test_it_counts_for_each_slot(model: Path, n_slots: int) -> None:
    with Runner(model, n_slots=n_slots, n_ctx=300, **OPTIONS) as runner:
        engine = runner._engine
        assert engine.n_ctx == 300
        # a token has to fit behind it
        assert engine.prefill("a" * 299, [], [], None, False, 1)
        with pytest.raises(ContextLengthError) as raised:
            engine.prefill("a" * 300, [], [], None, False, 1)
        assert (raised.value.n_tokens, raised.value.n_ctx) == (300, 300)

"""Memory is flat over a conversation of a thousand questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pyfastv import Runner

import random_mmproj
from c_api import OK, Context, contexts, read
from decoding import random_llama
from random_gguf import WIDTH

PICTURE = 40  # tokens
QUESTION, ANSWER = [40, 41, 42, 43], [50, 51]
RULE = "k=1,drop=0.5,score=question-max,pick=cover,weigh,recall=0.1;k=2,drop=0.75,score=question-max"
MIB = 1024 * 1024


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


def held(context: Context) -> list[int]:
    """Of a context: what the report counts, what is known of visual tokens, and a saved sequence."""
    report = context.report()
    counted = [report.archive_bytes, report.similarity_bytes, *list(report.kv_bytes_used)[:3]]
    return [*counted, len(context.scores()), len(context.grids()), len(context.save_sequence(0))]


def test_a_context_that_is_shifted_keeps_nothing_of_what_is_gone(tmp_path: Path) -> None:
    """As programs do with an endless conversation: the older half goes, the rest moves up. A picture every ten turns."""
    rng = np.random.default_rng(0)
    found, resident = [], []
    with random_llama(tmp_path) as model, contexts(model, n_ctx=512, n_ubatch=64) as make:
        context, position = make(RULE), 0
        for turn in range(1000):
            if turn % 10 == 0:
                context.begin_picture("", 8, 5)
                assert context.picture(rng.normal(size=(PICTURE, WIDTH)).astype(np.float32), position) == OK
                position += PICTURE
            for tokens in (QUESTION, ANSWER[:1], ANSWER[1:]):
                assert context.tokens(tokens, position) == OK
                assert np.isfinite(read(context)).all()
                position += len(tokens)
            if turn % 20 == 19:
                found.append(held(context))
                resident.append(rss())
                if position == 400:
                    assert context.remove(0, 200)
                    context.shift(200, -1, -200)
                    position = 200
    early, late = np.max(found[2:10], axis=0), np.max(found[10:], axis=0)
    # which rows come back is chance
    assert (late <= 1.05 * early).all(), (early, late)
    assert resident[-1] - resident[9] < 8 * MIB


def test_a_picture_that_is_gone_is_forgotten_when_nothing_is_left_of_it(tmp_path: Path) -> None:
    with random_llama(tmp_path) as model, contexts(model, n_ctx=512, n_ubatch=64) as make:
        context, end = make(RULE), 0
        for seed in range(2):
            rows = np.random.default_rng(seed).normal(size=(PICTURE, WIDTH)).astype(np.float32)
            context.begin_picture("", 8, 5)
            assert context.picture(rows, end) == OK
            assert context.tokens(QUESTION, end + PICTURE) == OK
            read(context)
            end += PICTURE + len(QUESTION)
        kept, scores = context.kept(1), context.scores(1)
        assert kept[0] < PICTURE < kept[-1]

        assert context.remove(0, 30)  # a part of it: the others keep their places in it
        assert context.kept(1) == [token for token in kept if token >= 30]
        assert len(context.grids()) == 2
        assert context.remove(30, PICTURE + 2)
        assert context.kept(1) == [token - PICTURE for token in kept if token >= PICTURE]
        np.testing.assert_array_equal(context.scores(1), scores[PICTURE:])
        assert context.grids() == [(0, 8, 5)]

        # its question can be taken back, and asked again, with the same result
        begin = end - len(QUESTION)
        again = []
        for _ in range(2):
            assert context.remove(begin, -1)
            assert context.kept(1) == []
            assert context.tokens(QUESTION, begin) == OK
            again.append((read(context).tolist(), context.kept(1)))
        assert again[0] == again[1]
        assert context.load_sequence(context.save_sequence(0), 0) > 0
        assert context.kept(1) == again[1][1]


def test_a_runner_s_conversations_do_not_add_up(tmp_path: Path) -> None:
    """About one picture, five questions each; what is kept is as in the first conversation, turn by turn."""
    pixels = np.random.default_rng(5).integers(0, 256, (168, 224, 3), dtype=np.uint8)
    options: dict[str, Any] = {"grammar": "root ::= [a-z ] root", "max_tokens": 2}
    files = random_mmproj.write_pair(tmp_path, "LLaVA")
    kept, resident = [], []
    with Runner(
        *files, fastv=RULE.replace("k=1", "k=2").replace(";k=2", ";k=3"), n_ctx=512, n_threads=1
    ) as runner:
        for _ in range(40):
            with runner.session() as chat:
                reports = [
                    chat.ask("Why?", pixels if turn == 0 else None, **options).report for turn in range(5)
                ]
            kept.append([report.archive_bytes for report in reports])
            resident.append(rss())
    assert kept[1:] == [kept[0]] * 39
    assert kept[0] == sorted(kept[0])
    assert resident[-1] - resident[15] < 2.4 * MIB

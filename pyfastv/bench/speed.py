"""How fast this machine runs a model, by a short measurement on its first layers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .. import _native
from ..engine.runner import Runner
from ..errors import OptionError, UnsupportedModelError
from ..models.header import ModelFiles
from ..settings.turbo import Turbo
from ..theory import Decoder, layer_flops

__all__ = ["Speed", "measure", "prefill_ms"]

_LAYERS = 3
_ROUNDS = 3
_GENERATED = 4


@dataclass(frozen=True)
class Speed:
    """A model's speed on this machine. Times are wall-clock milliseconds."""

    rows: tuple[int, ...]
    """Lengths of the prompts that were measured, ascending."""
    flops_per_ms: tuple[float, ...]
    """Multiply-adds (:func:`pyfastv.theory.flops`) of layers, for each of them."""
    spread: float
    """The slowest rounds together less the fastest together, relative to these."""
    output_ms: float
    """The output matrix for one row."""
    generate_ms: float
    """One generated token, all layers; a lower bound: a part of a few layers stays in the processor's cache."""
    encode_ms: float | None
    """Vision encoder and projector for one picture; None without an mmproj."""
    n_threads: int | None
    encode_ms_by_turbo: Mapping[str, float] = field(default_factory=dict)
    """The same with each Turbo that was asked for, by its text."""

    def encode_ms_of(self, turbo: Turbo | None) -> float | None:
        """With a Turbo, or with none."""
        return self.encode_ms if turbo is None else self.encode_ms_by_turbo.get(turbo.spec())


def measure(
    files: ModelFiles,
    lengths: Sequence[int],
    *,
    picture: np.ndarray | None = None,
    turbos: Iterable[Turbo] = (),
    n_threads: int | None = None,
    progress: Callable[[float], object] | None = None,
) -> tuple[Speed, int | None]:
    """Run prompts of these lengths through the first layers of a model, and a picture through its encoder.

    An excerpt of the model, three layers (of a hybrid as many as reach one with attention) with the embeddings and the
    output matrix, is written to a temporary file.
    Returns the speed and the number of visual tokens of ``picture`` (RGB, uint8 [height, width, 3]; None where there is
    no encoder). ``turbos``: the encoder is run with each of them, too. Raises ModelError if the excerpt cannot be
    written, OptionError where the encoder cannot merge, and what :class:`pyfastv.Runner` raises.
    """
    decoder = files.decoder
    with_attention = [il + 1 for il, width in enumerate(decoder.pair_width) if width > 0]
    n_layers = min(max([_LAYERS, *with_attention[:1]]), decoder.n_layer)
    with tempfile.TemporaryDirectory(prefix="pyfastv-") as folder:
        excerpt = Path(folder) / "excerpt.gguf"
        _native.write_excerpt(files.paths, n_layers, str(excerpt))
        longest = max(lengths)
        with Runner(
            excerpt,
            files.mmproj if picture is not None else None,
            n_ctx=longest * 2 + 4096,
            n_threads=n_threads,
            fastv=None,
            encoder_cache_mb=0,
        ) as runner:
            encode_ms, visual_tokens = None, None
            by_turbo: dict[str, float] = {}
            if picture is not None and files.mmproj is not None:
                encode_ms, visual_tokens = _measure_encoder(runner._engine, picture)
                for turbo in turbos:
                    try:
                        runner.set_turbo(turbo)
                    except UnsupportedModelError as error:
                        raise OptionError(str(error)) from error
                    by_turbo[turbo.spec()] = _measure_encoder(runner._engine, picture)[0]
            if progress:
                progress(0.2)
            speed = _measure_decoder(runner._engine, files, n_layers, lengths, encode_ms, n_threads, progress)
            return replace(speed, encode_ms_by_turbo=by_turbo), visual_tokens


def _measure_encoder(engine: _native.Engine, picture: np.ndarray) -> tuple[float, int]:
    times = []
    for number in range(3):
        engine.reset()
        engine.prefill(engine.media_marker, [picture], [str(number)], None, True, 1)
        report = engine.report()
        times.append(report.encode_ms)
        if times[-1] > 2000:
            break
    # the first one of a small encoder pays for the start
    return min(times), report.visual_tokens


def _measure_decoder(
    engine: _native.Engine,
    files: ModelFiles,
    n_layers: int,
    lengths: Sequence[int],
    encode_ms: float | None,
    n_threads: int | None,
    progress: Callable[[float], object] | None,
) -> Speed:
    text = _text_of_length(engine)
    steps, done = _ROUNDS * len(lengths), 0
    measured: dict[int, list[float]] = {}
    token_times = []
    for _ in range(_ROUNDS):
        for length in lengths:
            n, spent = _prefill(engine, text(length))
            measured.setdefault(n, []).append(spent)
            token_times += [_feed(engine) for _ in range(_GENERATED)]
            done += 1
            if progress:
                progress(0.2 + 0.8 * done / steps)
    token_ms = min(token_times)

    # generation reads every weight once for a row: its time goes by bytes
    decoder, weights = files.decoder, files.weights
    excerpt_bytes = sum(weights.layers[:n_layers]) + weights.output
    output_ms = token_ms * weights.output / excerpt_bytes
    part = replace(
        decoder,
        attention_weights=decoder.attention_weights[:n_layers],
        ffn_weights=decoder.ffn_weights[:n_layers],
        pair_width=decoder.pair_width[:n_layers],
        kv_width=decoder.kv_width[:n_layers],
    )
    rows = sorted(measured)
    fastest = {n: min(measured[n]) for n in rows}  # what others do on the machine only adds
    rates = [
        sum(layer_flops(part, il, n) for il in range(n_layers)) / max(fastest[n] - output_ms, 1e-3)
        for n in rows
    ]
    return Speed(
        rows=tuple(rows),
        flops_per_ms=tuple(rates),
        spread=sum(max(measured[n]) - min(measured[n]) for n in rows) / sum(fastest.values()),
        output_ms=output_ms,
        generate_ms=token_ms * (sum(weights.layers) + weights.output) / excerpt_bytes,
        encode_ms=encode_ms,
        n_threads=n_threads,
    )


def _text_of_length(engine: _native.Engine) -> Callable[[int], str]:
    """Makes texts of about so many tokens: a word is one token or several, and something may stand in front."""
    counts = []
    for words in (16, 48):
        engine.reset()
        engine.prefill(" a" * words, [], [], None, True, 1)
        counts.append(engine.report().prompt_tokens)
    per_word = (counts[1] - counts[0]) / 32
    front = counts[0] - 16 * per_word
    return lambda length: " a" * max(1, round((length - front) / per_word))


def _prefill(engine: _native.Engine, text: str) -> tuple[int, float]:
    """How many tokens a prompt has, and the milliseconds that it takes."""
    engine.reset()
    begin = time.perf_counter()
    engine.prefill(text, [], [], None, True, 1)
    spent = (time.perf_counter() - begin) * 1000.0
    return engine.report().prompt_tokens, spent


def _feed(engine: _native.Engine) -> float:
    begin = time.perf_counter()
    engine.feed(int(np.argmax(engine.logits())))
    engine.logits()
    return (time.perf_counter() - begin) * 1000.0


def prefill_ms(decoder: Decoder, rows: Sequence[int], speed: Speed) -> float:
    """Predicted time of the language model's prefill, for rows of each layer.

    The rate at a number of rows is interpolated between the measured ones."""
    rates = np.interp(rows, speed.rows, speed.flops_per_ms)
    layers = sum(
        layer_flops(decoder, il, n) / rate for (il, n), rate in zip(enumerate(rows), rates, strict=True)
    )
    return float(layers + speed.output_ms)

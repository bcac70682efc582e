"""Compares pyfastv with a golden file: kept sets, scores and logits of every setting.

    python compare.py golden_hf.npz --model tiny-llava-f32.gguf --mmproj mmproj-tiny-llava-f32.gguf

The model files must hold the golden file's weights as f32 (dequantize.py writes such files from quantized ones, and
llama.cpp's convert_hf_to_gguf.py from a Hugging Face folder). Ends with status 1 if something is out of tolerance.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pyfastv

from golden import GoldenCase, GoldenQuestion, read_golden

PICTURES = Path(__file__).parent
N_STEPS = 32

MAX_RMS = 1e-3  # relative, of logits
# llama.cpp takes GELU from tables of f16 and the tanh form of the projector's: see weights.use_ggml_activations
SCORE_TOLERANCE = {"rtol": 5e-3, "atol": 2e-6}


@dataclass(frozen=True)
class Difference:
    kept_equal: bool
    scores_close: bool
    rms_first: float
    """Relative rms of the logits after the prompt."""
    rms_last: float
    """Relative rms of the logits of the last of the greedy steps."""

    @property
    def passes(self) -> bool:
        return self.kept_equal and self.scores_close and max(self.rms_first, self.rms_last) < MAX_RMS


def exact_runner(model: Path, mmproj: Path) -> pyfastv.Runner:
    """Flash attention off and an f32 KV cache: rounding is all that may differ."""
    options: dict[str, Any] = {"n_ctx": 1024, "flash_attn": False, "type_k": "f32", "type_v": "f32"}
    return pyfastv.Runner(model, mmproj, **options, fastv=None, encoder_type="stock")


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def prefill(runner: pyfastv.Runner, prompt: str, picture: str) -> None:
    """Runs a golden file's prompt, with <image> for its picture, up to the logits behind it."""
    engine = runner._engine
    image = pyfastv.load_image(PICTURES / picture)
    image_id = hashlib.sha256(image.tobytes()).hexdigest()
    engine.prefill(prompt.replace("<image>", engine.media_marker), [image], [image_id], None, True, N_STEPS)


def compare(runner: pyfastv.Runner, question: GoldenQuestion, case: GoldenCase) -> Difference:
    """Runs the prompt and the reference's own tokens, so that one other choice does not spoil the rest."""
    engine = runner._engine
    engine.set_fastv("" if case.k is None else f"fastv,k={case.k},drop={case.drop}")
    prefill(runner, question.prompt, question.image)
    first = relative_rms(engine.logits(), case.logits_first)

    kept_equal = scores_close = True
    if case.k is not None:
        kept_equal = np.array_equal(engine.kept(0), case.kept)
        scores_close = np.allclose(engine.scores(0), question.scores[case.k], **SCORE_TOLERANCE)

    for token in case.tokens[:-1]:
        engine.feed(int(token))
    return Difference(kept_equal, scores_close, first, relative_rms(engine.logits(), case.logits_last))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--mmproj", type=Path, required=True)
    args = parser.parse_args()

    failed = 0
    with exact_runner(args.model, args.mmproj) as runner:
        for question in read_golden(args.golden).questions:
            for case in question.cases:
                result = compare(runner, question, case)
                failed += not result.passes
                print(
                    f"{question.id} {case.name:<12} kept {'equal' if result.kept_equal else 'DIFFERENT'}, "
                    f"logits rms {result.rms_first:.1e} first, {result.rms_last:.1e} after {N_STEPS} steps"
                    f"{'' if result.passes else '  FAILED'}"
                )
    print(f"{failed} out of tolerance (logits {MAX_RMS:g}, kept sets equal)")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

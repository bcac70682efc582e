"""Llama 4 in NumPy: three of four layers see the chunk that a row is in, the fourth sees all and knows no positions.

In float64. A layer is given the rows that are there, in the order in which they came, and no others. Reads the F32 files
of random_gguf; the mathematics are those of the released models, in the form of llama.cpp's src/models/llama4.cpp.

    reference = Llama4(path)
    prompt = [Rows(tokens, positions), Rows(picture, positions), Rows(question, positions)]
    result = reference.run(prompt, [Cut(4, [0, 1, 2, 10, 20, 43, 44])])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from hybrid import Cut, Result, Rows, shares, sigmoid, silu, stands_before

CHUNK = 8192  # positions; llama.cpp knows no other
WITHOUT_ROPE = 4  # every so manieth layer, which sees all
TEMPERATURE = 0.1  # of queries in those layers, times the log of how many chunks have begun


class Llama4:
    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._weights = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
        self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        self.n_layer = self._value("block_count")
        self._head = self._value("attention.key_length")

    def run(self, prompt: Sequence[Rows], cuts: Sequence[Cut] = ()) -> Result:
        x = np.concatenate([self._embedded(part.values) for part in prompt])
        positions = np.concatenate([part.positions for part in prompt], axis=1)
        n, here = len(x), np.arange(len(x))
        attention, without_rope = {}, {}
        for layer in range(self.n_layer):
            for cut in cuts:
                if cut.layer == layer:
                    at = {row: i for i, row in enumerate(here.tolist())}
                    x, here = x[[at[row] for row in cut.rows]], np.array(cut.rows)
            block = f"blk.{layer}."
            out, paid = self._attend(layer, self._norm(f"{block}attn_norm", x), positions[:, here])
            attention[layer], without_rope[layer] = np.zeros((n, n)), np.zeros(n)
            attention[layer][np.ix_(here, here)] = paid
            without_rope[layer][here] = paid[-1]  # of the layers that do not rotate
            x = x + out
            x = x + self._feed_forward(block, self._norm(f"{block}ffn_norm", x))
        return Result(
            self._norm("output_norm", x[-1]) @ self._weights["output.weight"].T, attention, without_rope
        )

    def _embedded(self, values: np.ndarray) -> np.ndarray:
        return self._weights["token_embd.weight"][values] if values.ndim == 1 else values.astype(np.float64)

    def _attend(self, layer: int, x: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block, n, size = f"blk.{layer}.", len(x), self._head
        q, k, v = (self._times(f"{block}attn_{name}", x).reshape(n, -1, size) for name in "qkv")
        time = positions[0]
        sees = np.tril(stands_before(positions))
        if (layer + 1) % WITHOUT_ROPE == 0:
            q = q * (1 + TEMPERATURE * np.log(np.floor((time + 1) / CHUNK) + 1))[:, None, None]
        else:
            turns = self._turns(time)
            q, k = (self._unit(rotated_neighbours(rows, turns)) for rows in (q, k))
            sees &= time[:, None] // CHUNK == time // CHUNK

        of_queries = q.shape[1] // k.shape[1]
        out, paid = np.empty(q.shape), np.zeros((n, n))
        for head in range(q.shape[1]):
            share = shares(q[:, head] @ k[:, head // of_queries].T / size**0.5, sees)
            out[:, head] = share @ v[:, head // of_queries]
            paid += share / q.shape[1]
        return self._times(f"{block}attn_output", out.reshape(n, -1)), paid

    def _turns(self, time: np.ndarray) -> np.ndarray:
        """[n, size/2] angles, rounded step by step as ggml does it: these positions are large."""
        step = np.float32(self._value("rope.freq_base", 1e4) ** (-2 / self._head))
        angles = [time.astype(np.float32)]
        while len(angles) < self._head // 2:
            angles.append(angles[-1] * step)
        return np.stack(angles, axis=1).astype(np.float64)

    def _feed_forward(self, block: str, x: np.ndarray) -> np.ndarray:
        if f"{block}ffn_gate.weight" in self._weights:
            return self._gated(block, "", x)
        # the best expert, to whose rows its share is given before, and the one that all rows meet
        logits = self._times(f"{block}ffn_gate_inp", x)
        out = self._gated(block, "_shexp", x)
        for row, expert in enumerate(logits.argmax(axis=1)):
            scaled = x[row] * sigmoid(logits[row, expert])
            out[row] += self._gated(block, "_exps", scaled, expert)
        return out

    def _gated(self, block: str, kind: str, x: np.ndarray, expert: int | None = None) -> np.ndarray:
        gate, up, down = (self._weights[f"{block}ffn_{name}{kind}.weight"] for name in ("gate", "up", "down"))
        if expert is not None:
            gate, up, down = gate[expert], up[expert], down[expert]
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return self._unit(x) * self._weights[f"{name}.weight"]

    def _unit(self, x: np.ndarray) -> np.ndarray:
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self._value("attention.layer_norm_rms_epsilon"))

    def _times(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T

    def _value(self, key: str, default=None):
        return self._metadata.get(f"llama4.{key}", default)


def rotated_neighbours(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """[n, heads, size]: pairs (2i, 2i + 1) are turned."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)

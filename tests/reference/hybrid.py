"""Recurrent layers beside attention in NumPy: gated delta nets (qwen35) and short convolutions (lfm2).

Row by row in float64. A layer is given the rows that are there, in the order in which they came, and no others: what
was dropped is neither a key, nor in a state, nor among the last rows of a convolution. Reads the F32 files of
random_gguf; the mathematics are those of the papers, in the form of llama.cpp's src/models/<architecture>.cpp.

    reference = Hybrid(path)
    prompt = [text([1, 2, 3], 0), picture(rows, 3), text([4, 5], 43)]
    result = reference.run(prompt, [Cut(4, [0, 1, 2, 10, 20, 43, 44])])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Rows:
    """What is decoded by one call."""

    values: np.ndarray  # int [n] tokens, or float [n, width] of a picture
    positions: np.ndarray  # int [4, n]: time, y, x, one more; only the first without M-RoPE


@dataclass(frozen=True)
class Cut:
    """From this layer on there are these rows alone, in this order."""

    layer: int
    rows: Sequence[int]  # of the prompt


@dataclass(frozen=True)
class Result:
    logits: np.ndarray  # [n_vocab] of the last row
    # by layer, of those that have attention: to the rows of the prompt, mean of the heads; 0 for those that are not there
    attention: dict[int, np.ndarray]  # [n, n]
    without_rope: dict[int, np.ndarray]  # [n], of the last row, with queries and keys not rotated


class Hybrid:
    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._weights = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
        self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        self._arch = self._metadata["general.architecture"]
        self.n_layer = self._value("block_count")
        self._head = self._value("attention.key_length")
        self._epsilon = self._value("attention.layer_norm_rms_epsilon")

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
            x, paid, unrotated = self._layer(layer, x, positions[:, here])
            if paid is not None:
                attention[layer], without_rope[layer] = np.zeros((n, n)), np.zeros(n)
                attention[layer][np.ix_(here, here)] = paid
                without_rope[layer][here] = unrotated
        final = self._norm("token_embd_norm" if self._arch == "lfm2" else "output_norm", x[-1])
        output = self._weights.get("output.weight", self._weights["token_embd.weight"])
        return Result(final @ output.T, attention, without_rope)

    def _embedded(self, values: np.ndarray) -> np.ndarray:
        return self._weights["token_embd.weight"][values] if values.ndim == 1 else values.astype(np.float64)

    def _layer(
        self, layer: int, x: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        block = f"blk.{layer}."
        paid, unrotated = None, None
        rows = self._norm(f"{block}attn_norm", x)
        if f"{block}attn_k.weight" in self._weights:
            out, paid, unrotated = self._attend(block, rows, positions)
        elif self._arch == "lfm2":
            out = self._convolve(f"{block}shortconv.", rows)
        else:
            out = self._remember(block, rows)
        x = x + out
        rows = self._norm(f"{block}{'ffn_norm' if self._arch == 'lfm2' else 'post_attention_norm'}", x)
        up = silu(self._times(f"{block}ffn_gate", rows)) * self._times(f"{block}ffn_up", rows)
        return x + self._times(f"{block}ffn_down", up), paid, unrotated

    def _attend(
        self, block: str, x: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a row to those that came before it and stand before it."""
        n, size = len(x), self._head
        q, k, v = (self._times(f"{block}attn_{name}", x).reshape(n, -1, size) for name in "qkv")
        gate = None
        if self._arch == "qwen35":  # a head of queries, and one of their gates, in turn
            q, gate = q[:, 0::2], q[:, 1::2].reshape(n, -1)
        turns = self._turns(positions)
        q, k = self._norm(f"{block}attn_q_norm", q), self._norm(f"{block}attn_k_norm", k)
        q_turned, k_turned = rotated(q, turns), rotated(k, turns)
        of_queries = q.shape[1] // k.shape[1]
        sees = np.tril(stands_before(positions))

        out, paid, unrotated = np.empty(q.shape), np.zeros((n, n)), np.zeros(n)
        for head in range(q.shape[1]):
            shared = head // of_queries
            share = shares(q_turned[:, head] @ k_turned[:, shared].T / size**0.5, sees)
            out[:, head] = share @ v[:, shared]
            paid += share / q.shape[1]
            unrotated += shares(q[-1:, head] @ k[:, shared].T / size**0.5, sees[-1:])[0] / q.shape[1]
        flat = out.reshape(n, -1)
        if gate is not None:
            flat = flat * sigmoid(gate)
        return self._times(f"{block}attn_output", flat), paid, unrotated

    def _turns(self, positions: np.ndarray) -> np.ndarray:
        """[n, size/2] angles."""
        half = self._head // 2
        frequency = np.arange(half)
        axis = np.zeros(half, int)
        if sections := self._value("rope.dimension_sections"):  # t, y, x, t, ... as long as each has some
            axis = np.where(frequency < 3 * np.array(sections)[frequency % 3], frequency % 3, 3)
        base = self._value("rope.freq_base", 1e4)
        return positions[axis].T * base ** (-frequency / half)

    def _convolve(self, block: str, x: np.ndarray) -> np.ndarray:
        before, behind, values = np.split(self._times(f"{block}in_proj", x), 3, axis=1)
        mixed = causal_convolution(before * values, self._weights[f"{block}conv.weight"])
        return self._times(f"{block}out_proj", behind * mixed)

    def _remember(self, block: str, x: np.ndarray) -> np.ndarray:
        """Gated delta rule (arXiv 2412.06464): a matrix a head, S = exp(g)*(S - b*k*(k.S)) + b*k*v."""
        size = self._value("ssm.state_size")
        n_keys, n_heads = self._value("ssm.group_count"), self._value("ssm.time_step_rank")
        mixed = silu(
            causal_convolution(self._times(f"{block}attn_qkv", x), self._weights[f"{block}ssm_conv1d.weight"])
        )
        q, k, v = np.split(mixed.reshape(len(x), -1, size), [n_keys, 2 * n_keys], axis=1)
        q, k = self._unit(q) / size**0.5, self._unit(k)
        share = sigmoid(self._times(f"{block}ssm_beta", x))
        step = np.logaddexp(0, self._times(f"{block}ssm_alpha", x) + self._weights[f"{block}ssm_dt.bias"])
        decay = np.exp(step * self._weights[f"{block}ssm_a"])

        out = np.empty(v.shape)
        keys_of = np.arange(n_heads) % n_keys
        state = np.zeros((n_heads, size, size))
        for row in range(len(x)):
            key = k[row, keys_of]
            state *= decay[row, :, None, None]
            known = (key[:, None] @ state)[:, 0]
            state += key[:, :, None] * (share[row, :, None] * (v[row] - known))[:, None]
            out[row] = (q[row, keys_of][:, None] @ state)[:, 0]
        gate = self._times(f"{block}attn_gate", x).reshape(v.shape)
        gated = self._norm(f"{block}ssm_norm", out) * silu(gate)
        return self._times(f"{block}ssm_out", gated.reshape(len(x), -1))

    def _unit(self, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + self._epsilon)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self._epsilon) * self._weights[f"{name}.weight"]

    def _times(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T

    def _value(self, key: str, default=None):
        return self._metadata.get(f"{self._arch}.{key}", default)


def causal_convolution(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Of every channel over the rows that are there; kernel: [channels, taps], the last of a row itself."""
    taps = kernel.shape[1]
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    return sum(padded[tap : tap + len(x)] * kernel[:, tap] for tap in range(taps))


def rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """[n, heads, size]: pairs (i, i + size/2) are turned."""
    a, b = np.split(x, 2, axis=2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=2)


def stands_before(positions: np.ndarray) -> np.ndarray:
    """bool [n, n]: does the second stand at or before the place of the first? In time, then y, then x."""
    places = [tuple(place) for place in positions[:3].T.tolist()]
    return np.array([[other <= place for other in places] for place in places])


def shares(logits: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """Softmax of every row over what it sees."""
    weights = np.exp(np.where(sees, logits, -np.inf))
    return weights / weights.sum(axis=1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)

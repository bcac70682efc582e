"""Gemma 4 E2B and E4B in NumPy: per-layer embeddings, and layers that read the keys and values of earlier ones.

In float64. A layer is given the rows that are there, in the order in which they came, and no others; what it adds of a
row's own goes with the row. Reads the F32 files of random_gguf; the mathematics are those of the released models, in the
form of llama.cpp's src/models/gemma4.cpp.

    reference = GemmaE(path)
    prompt = [Rows(tokens, positions), Rows(picture, positions), Rows(question, positions)]
    result = reference.run(prompt, [Cut(4, [0, 1, 2, 10, 20, 43, 44])])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from hybrid import Cut, Result, Rows, rotated, shares, stands_before

PADDING = 0  # the token whose embeddings a picture's rows have in each layer


class GemmaE:
    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._weights = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
        self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        self.n_layer = self._value("block_count")
        self._width = self._value("embedding_length")
        self._head = self._value("attention.key_length")
        self._own = self._value("embedding_length_per_layer_input")
        self._n_with_cache = self.n_layer - self._value("attention.shared_kv_layers")
        self._sees_window = self._value("attention.sliding_window_pattern")

    def run(self, prompt: Sequence[Rows], cuts: Sequence[Cut] = ()) -> Result:
        x = np.concatenate([self._embedded(part.values) for part in prompt])
        tokens = np.concatenate(
            [part.values if part.values.ndim == 1 else np.full(len(part.values), PADDING) for part in prompt]
        )
        positions = np.concatenate([part.positions for part in prompt], axis=1)
        of_layers = self._of_layers(x, tokens)
        n, here = len(x), np.arange(len(x))
        attention, without_rope = {}, {}
        cache: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # by layer: keys and values of the rows that are there
        for layer in range(self.n_layer):
            for cut in cuts:
                if cut.layer == layer:
                    at = {row: i for i, row in enumerate(here.tolist())}
                    x, here = x[[at[row] for row in cut.rows]], np.array(cut.rows)
            block = f"blk.{layer}."
            out, paid, unrotated = self._attend(
                layer, self._norm(f"{block}attn_norm", x), positions[:, here], cache
            )
            attention[layer], without_rope[layer] = np.zeros((n, n)), np.zeros(n)
            attention[layer][np.ix_(here, here)] = paid
            without_rope[layer][here] = unrotated
            x = x + self._norm(f"{block}post_attention_norm", out)
            x = x + self._norm(
                f"{block}post_ffw_norm", self._feed_forward(block, self._norm(f"{block}ffn_norm", x))
            )
            added = gelu(self._times(f"{block}inp_gate", x)) * of_layers[here, layer]
            x = x + self._norm(f"{block}post_norm", self._times(f"{block}proj", added))
            x = x * self._weights[f"{block}layer_output_scale.weight"]
        logits = self._norm("output_norm", x[-1]) @ self._weights["token_embd.weight"].T
        cap = self._value("final_logit_softcapping")
        return Result(cap * np.tanh(logits / cap), attention, without_rope)

    def _embedded(self, values: np.ndarray) -> np.ndarray:
        if values.ndim == 2:  # as it is
            return values.astype(np.float64)
        return self._weights["token_embd.weight"][values] * np.float32(self._width**0.5)

    def _of_layers(self, x: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """[n, n_layer, own]: a projection of the row, and an embedding of its token."""
        shape = (len(x), self.n_layer, self._own)
        projected = (self._times("per_layer_model_proj", x) / self._width**0.5).reshape(shape)
        looked_up = self._weights["per_layer_token_embd.weight"][tokens].reshape(shape) * self._own**0.5
        return (self._norm("per_layer_proj_norm", projected) + looked_up) / 2**0.5

    def _attend(
        self,
        layer: int,
        x: np.ndarray,
        positions: np.ndarray,
        cache: dict[int, tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        block, n, size = f"blk.{layer}.", len(x), self._head
        q = self._norm(f"{block}attn_q_norm", self._times(f"{block}attn_q", x).reshape(n, -1, size))
        if layer < self._n_with_cache:
            k = self._norm(f"{block}attn_k_norm", self._times(f"{block}attn_k", x).reshape(n, -1, size))
            cache[layer] = k, self._normed(self._times(f"{block}attn_v", x).reshape(n, -1, size))
            k, v = cache[layer]
        else:  # of the last layer of its kind that has some
            k, v = cache[self._n_with_cache - (2 if self._sees_window[layer] else 1)]
        turns = self._turns(layer, positions[0])
        q_turned, k_turned = rotated(q, turns), rotated(k, turns)
        sees = np.tril(stands_before(positions))
        if self._sees_window[layer]:
            sees &= positions[0][:, None] - positions[0] < self._value("attention.sliding_window")

        of_queries = q.shape[1] // k.shape[1]
        out, paid, unrotated = np.empty(q.shape), np.zeros((n, n)), np.zeros(n)
        for head in range(q.shape[1]):  # products are not scaled
            shared = head // of_queries
            share = shares(q_turned[:, head] @ k_turned[:, shared].T, sees)
            out[:, head] = share @ v[:, shared]
            paid += share / q.shape[1]
            unrotated += shares(q[-1:, head] @ k[:, shared].T, sees[-1:])[0] / q.shape[1]
        return self._times(f"{block}attn_output", out.reshape(n, -1)), paid, unrotated

    def _turns(self, layer: int, time: np.ndarray) -> np.ndarray:
        """[n, size/2] angles."""
        half = self._head // 2
        window = self._sees_window[layer]
        base = self._value("rope.freq_base_swa" if window else "rope.freq_base", 1e4)
        frequency = base ** (-np.arange(half) / half)
        return time[:, None] * (frequency if window else frequency / self._weights["rope_freqs.weight"])

    def _feed_forward(self, block: str, x: np.ndarray) -> np.ndarray:
        gated = gelu(self._times(f"{block}ffn_gate", x)) * self._times(f"{block}ffn_up", x)
        return self._times(f"{block}ffn_down", gated)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return self._normed(x) * self._weights[f"{name}.weight"]

    def _normed(self, x: np.ndarray) -> np.ndarray:
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self._value("attention.layer_norm_rms_epsilon"))

    def _times(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T

    def _value(self, key: str, default=None):
        return self._metadata.get(f"gemma4.{key}", default)


def gelu(x: np.ndarray) -> np.ndarray:
    """With tanh. ggml-cpu takes it from a table of float16, which costs more than all its other rounding."""
    rounded = x.astype(np.float16).astype(np.float64)
    inner = (2 / np.pi) ** 0.5 * (rounded + 0.044715 * rounded**3)
    table = (0.5 * rounded * (1 + np.tanh(inner))).astype(np.float16).astype(np.float64)
    return np.where(np.abs(x) < 10, table, np.maximum(x, 0))

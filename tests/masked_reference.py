"""A model's prompt in NumPy, where later layers do not see some rows: what the stages are compared with.

One pass over all rows in float64. Nothing is dropped: a row that a layer does not see is masked out as a key there. Reads
the F32 files of random_gguf; the mathematics are those of llama.cpp's src/models/<architecture>.cpp.

    reference = Reference(path)
    prompt = [text([1, 2, 3], 0), picture(rows, 3), text([4, 5], 43)]
    result = reference.run(prompt, visible)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

ROPE_OF_NEIGHBOURS = ("llama", "mistral3")  # pairs (2i, 2i + 1); the others' are (i, i + size/2)
WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6}  # every so manieth layer sees all, the others a window
SCALED_TEXT = ("gemma", "gemma2", "gemma3", "gemma4")
SCALED_PICTURE = ("gemma", "gemma2")  # llama.cpp does scale the rows of a picture there
GELU = ("gemma", "gemma2", "gemma3", "gemma4")


@dataclass(frozen=True)
class Part:
    """Rows that are decoded by one call."""

    rows: np.ndarray  # int [n] tokens, or float32 [n, n_embd_inp] of a picture
    positions: np.ndarray  # int [4, n]: time, y, x, one more; only the first without M-RoPE
    causal: bool = True  # False: the rows see each other whatever their order

    @property
    def is_picture(self) -> bool:
        return self.rows.ndim == 2


def text(ids: Sequence[int], start: int) -> Part:
    time = np.arange(start, start + len(ids))
    return Part(np.array(ids), np.stack([time, time, time, np.zeros_like(time)]))


def picture(rows: np.ndarray, start: int, *, causal: bool = True) -> Part:
    """One position a row."""
    return Part(rows, text([0] * len(rows), start).positions, causal)


def picture_2d(rows: np.ndarray, start: int, nx: int) -> Part:
    """M-RoPE: one time; the positions behind it go on at start + the longer side. The fourth is HunyuanVL's picture."""
    index = np.arange(len(rows))
    return Part(rows, np.stack([0 * index + start, start + index // nx, start + index % nx, 0 * index + 2]))


@dataclass(frozen=True)
class Result:
    logits: np.ndarray  # [n_vocab] of the last row
    attention: list[np.ndarray]  # a layer: [n, n], of rows to rows, averaged over the heads
    without_rope: list[np.ndarray]  # a layer: [n], of the last row, with queries and keys not rotated


class Reference:
    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._weights = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
        self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        self.arch = self._metadata["general.architecture"]
        self.n_layer = self._value("block_count")
        self._width = self._value("embedding_length")
        self._heads = self._value("attention.head_count")
        self._kv_heads = self._value("attention.head_count_kv")
        self._head = self._value("attention.key_length")
        self._window = self._value("attention.sliding_window", 0)
        self._n_deepstack = self._value("n_deepstack_layers", 0)

    def run(self, prompt: Sequence[Part], visible: np.ndarray | None = None) -> Result:
        """visible: bool [n_layer, n], whether others see the row in the layer; None: all do."""
        x = np.concatenate([self._embed(part) for part in prompt])
        positions = np.concatenate([part.positions for part in prompt], axis=1)
        if visible is None:
            visible = np.ones((self.n_layer, len(x)), bool)
        x, deepstack = x[:, : self._width], x[:, self._width :]
        seen = before(positions)
        start = 0
        mutual = np.zeros_like(seen)  # rows of one picture that see each other whatever their order
        for part in prompt:
            end = start + len(part.rows)
            mutual[start:end, start:end] = not part.causal
            start = end

        attention, without_rope = [], []
        for il in range(self.n_layer):
            mask = seen & visible[il]
            if self._has_window(il) or self.arch != "gemma4":
                mask |= mutual & visible[il]
            if self._has_window(il):
                mask &= positions[0][:, None] - positions[0] < self._window
            x, weights, unrotated = self._layer(il, x, positions, mask)
            attention.append(weights)
            without_rope.append(unrotated)
            if il < self._n_deepstack:
                x = x + deepstack[:, il * self._width : (il + 1) * self._width]

        logits = self._norm("output_norm", x[-1]) @ self._output().T
        if cap := self._value("final_logit_softcapping", 0.0):
            logits = cap * np.tanh(logits / cap)
        return Result(logits, attention, without_rope)

    def _embed(self, part: Part) -> np.ndarray:
        """[n, n_embd_inp]"""
        scaled = SCALED_PICTURE if part.is_picture else SCALED_TEXT
        scale = np.float32(self._width**0.5) if self.arch in scaled else 1
        if part.is_picture:
            return part.rows.astype(np.float64) * scale
        rows = self._weights["token_embd.weight"][part.rows] * scale
        return np.pad(rows, ((0, 0), (0, self._n_deepstack * self._width)))

    def _layer(
        self, il: int, x: np.ndarray, positions: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        block = f"blk.{il}"
        attend = self._latent_attention if self.arch == "deepseek2" else self._attention
        out, weights, unrotated = attend(il, self._norm(f"{block}.attn_norm", x), positions, mask)
        x = x + self._norm(f"{block}.post_attention_norm", out)
        out = self._feed_forward(block, self._norm(f"{block}.ffn_norm", x))
        return x + self._norm(f"{block}.post_ffw_norm", out), weights, unrotated

    def _attention(
        self, il: int, x: np.ndarray, positions: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The output [n, width], and Result's attention and without_rope of the layer."""
        block = f"blk.{il}"
        n_q, n_kv = self._heads * self._head, self._kv_heads * self._head
        if f"{block}.attn_qkv.weight" in self._weights:
            q, k, v = np.split(self._linear(f"{block}.attn_qkv", x), [n_q, n_q + n_kv], axis=1)
        else:
            q, k, v = (self._linear(f"{block}.{name}", x) for name in ("attn_q", "attn_k", "attn_v"))
        q, k, v = (rows.reshape(len(x), -1, self._head).transpose(1, 0, 2) for rows in (q, k, v))
        q, k = self._norm(f"{block}.attn_q_norm", q), self._norm(f"{block}.attn_k_norm", k)
        if temperature := self._value("attention.temperature_scale", 0.0):
            steps = positions[0] // self._value("rope.scaling.original_context_length")
            q = q * (1 + temperature * np.log(steps + 1))[:, None]
        if self.arch == "gemma4":
            v = self._normed(v)
            q = q * self._head**0.5  # its attention is not scaled
        scale = self._value("rope.scaling.attn_factor", 1.0)
        q, k = scale * q, scale * k
        k, v = (rows.repeat(self._heads // self._kv_heads, axis=0) for rows in (k, v))

        unrotated = self._weigh(q[:, -1:], k, mask[-1:])
        angles = self._angles(il, positions)
        weights = self._weigh(self._rotate(q, angles), self._rotate(k, angles), mask)
        out = (weights @ v).transpose(1, 0, 2).reshape(len(x), -1)
        return self._linear(f"{block}.attn_output", out), weights.mean(axis=0), unrotated.mean(axis=0)[0]

    def _latent_attention(
        self, il: int, x: np.ndarray, positions: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys and values of all heads are made from one latent row, beside one key that is rotated (deepseek2)."""
        block, n = f"blk.{il}", len(x)
        size, turned = self._value("attention.key_length_mla"), self._value("rope.dimension_count")
        rank = self._value("attention.kv_lora_rank")
        q = self._linear(
            f"{block}.attn_q_b", self._norm(f"{block}.attn_q_a_norm", self._linear(f"{block}.attn_q_a", x))
        )
        q = q.reshape(n, self._heads, size).transpose(1, 0, 2)
        latent, key = np.split(self._linear(f"{block}.attn_kv_a_mqa", x), [rank], axis=1)
        latent = self._norm(f"{block}.attn_kv_a_norm", latent)
        angles = positions[0][:, None] * 1e4 ** (-np.arange(turned // 2) / (turned // 2))

        def rotate(rows: np.ndarray) -> np.ndarray:  # neighbours
            a, b = rows[..., 0::2], rows[..., 1::2]
            cos, sin = np.cos(angles), np.sin(angles)
            return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(rows.shape)

        keys = latent @ self._weights[f"{block}.attn_k_b.weight"]  # [heads, n, size without the rotated part]
        values = latent @ self._weights[f"{block}.attn_v_b.weight"].transpose(0, 2, 1)
        logits = q[..., :-turned] @ keys.transpose(0, 2, 1) + rotate(q[..., -turned:]) @ rotate(key).T
        seen = np.where(mask | np.eye(n, dtype=bool), logits / size**0.5, -np.inf)
        weights = np.exp(seen - seen.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = (weights @ values).transpose(1, 0, 2).reshape(n, -1)
        return self._linear(f"{block}.attn_output", out), weights.mean(axis=0), np.zeros(n)

    def _weigh(self, q: np.ndarray, k: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """[heads, queries, n]; the queries are of the last rows. A row sees at least itself."""
        scores = q @ k.transpose(0, 2, 1) / self._head**0.5
        if cap := self._value("attn_logit_softcapping", 0.0):
            scores = cap * np.tanh(scores / cap)
        n = k.shape[1]
        scores = np.where(mask | np.eye(n, dtype=bool)[n - len(mask) :], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    def _angles(self, il: int, positions: np.ndarray) -> np.ndarray:
        """[n, head/2]"""
        base = self._value("rope.freq_base", 1e4)
        if self._has_window(il):
            base = self._value("rope.freq_base_swa", 1e4)
        half = self._head // 2
        frequencies = base ** (-np.arange(half) / half)
        if not self._has_window(il):
            for name in ("rope_freqs.weight", "rope_factors_short.weight"):
                frequencies = frequencies / self._weights.get(name, 1.0)
        return positions[self._position_of_frequency(half)].T * frequencies

    def _position_of_frequency(self, half: int) -> np.ndarray:
        """[head/2], which of the four positions turns it."""
        sections = self._value("rope.dimension_sections", [half, 0, 0, 0])
        if self.arch != "qwen3vl":
            return np.repeat(np.arange(4), sections)
        index = np.arange(half)
        which = index % 3  # time, y, x, time, ...
        return np.where(index < 3 * np.array(sections)[which], which, 3)

    def _rotate(self, x: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """[heads, n, head]"""
        half = self._head // 2
        shape = (half, 2) if self.arch in ROPE_OF_NEIGHBOURS else (2, half)
        axis = -1 if self.arch in ROPE_OF_NEIGHBOURS else -2
        a, b = np.moveaxis(x.reshape(*x.shape[:2], *shape), axis, 0)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis).reshape(x.shape)

    def _feed_forward(self, block: str, x: np.ndarray) -> np.ndarray:
        up = self._linear(f"{block}.ffn_up", x)
        if f"{block}.ffn_gate.weight" in self._weights:
            gate = self._linear(f"{block}.ffn_gate", x)
        else:
            gate, up = np.split(up, 2, axis=1)
        activation = gelu if self.arch in GELU else silu
        return self._linear(f"{block}.ffn_down", activation(gate) * up)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights.get(f"{name}.bias", 0.0)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """RMS norm; as it is where the model has none."""
        if f"{name}.weight" not in self._weights:
            return x
        return self._normed(x) * self._weights[f"{name}.weight"]

    def _normed(self, x: np.ndarray) -> np.ndarray:
        # llama.cpp does not read qwen2vl's
        epsilon = 0.0 if self.arch == "qwen2vl" else self._value("attention.layer_norm_rms_epsilon")
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)

    def _output(self) -> np.ndarray:
        return self._weights.get("output.weight", self._weights["token_embd.weight"])

    def _has_window(self, il: int) -> bool:
        listed = self._value("attention.sliding_window_pattern")
        if listed is not None:
            return bool(listed[il])
        pattern = WINDOW_PATTERN.get(self.arch)
        return pattern is not None and il % pattern < pattern - 1

    def _value(self, key: str, default=None):
        return self._metadata.get(f"{self.arch}.{key}", default)


def before(positions: np.ndarray) -> np.ndarray:
    """Causal: bool [n, n], whether a row (first index) sees another. Rows of one time: in the order of y, then x."""
    time, y, x = positions[:3]
    later = (y[:, None] < y) | ((y[:, None] == y) & (x[:, None] < x))
    return (time[:, None] > time) | ((time[:, None] == time) & ~later)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """With tanh; ggml-cpu has a table from float16 to float16, which costs more than all its other rounding."""
    y = x.astype(np.float16).astype(np.float64)
    y = 0.5 * y * (1 + np.tanh((2 / np.pi) ** 0.5 * y * (1 + 0.044715 * y * y)))
    return np.where(np.abs(x) < 10, y.astype(np.float16), np.maximum(x, 0)).astype(np.float64)


def relative_rms(a: np.ndarray, b: np.ndarray) -> float:
    """Of the difference, in units of b's deviation."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / np.std(b))

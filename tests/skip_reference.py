"""Vision encoders that see some units of a picture alone (native/include/pyfastv_skip.h), in NumPy: every patch by its
own place, windows as pairs of patches that see each other. Of small files with F32 weights (random_mmproj)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from turbo_reference import F32, Reference, _gelu

WINDOW = 112  # pixels a side, of Qwen2.5-VL
QWEN = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger")
MERGED = {"idefics3": 2, "internvl": 2, "gemma3": 2, **dict.fromkeys(QWEN, 2)}


class SkipReference(Reference):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        value = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
        self.pattern = int(value.get("clip.vision.n_wa_pattern", 0))
        self.merge = MERGED.get(self.projector, 1)
        self.rms = self.projector == "qwen2.5vl_merger"
        self.fused = "v.blk.0.attn_qkv.weight" in self.w

    def encoded(self, picture: np.ndarray, kept: Sequence[int]) -> np.ndarray:
        """``picture``: uint8 [height, width, 3], as the encoder sees it; ``kept``: units. [kept, n_out]"""
        side = self.patch * self.merge
        ny, nx = picture.shape[0] // side, picture.shape[1] // side
        self.places = np.array(
            [
                (unit // nx * self.merge + dy, unit % nx * self.merge + dx)
                for unit in kept
                for dy in range(self.merge)
                for dx in range(self.merge)
            ]
        )
        x = self._patches(picture, ny * self.merge, nx * self.merge)
        below: list[np.ndarray] = []
        for il in range(self.n_blocks):
            x = self._layer(x, il)
            if f"v.deepstack.{il}.fc1.weight" in self.w:
                name = f"v.deepstack.{il}"
                rows = self._layer_norm(x.reshape(len(kept), -1), f"{name}.norm")
                below.append(self._linear(_gelu(self._linear(rows, f"{name}.fc1")), f"{name}.fc2"))
        x = self._normed(x, "v.post_ln")
        x = x[:-1] if self.projector == "internvl" else x[int(self.cls) :]  # CLS
        return np.concatenate([self._projected(x, len(kept)), *below], axis=1)

    def _patches(self, picture: np.ndarray, ny: int, nx: int) -> np.ndarray:
        p = self.patch
        pixels = (picture.astype(F32) / F32(255) - self.mean) / self.std
        parts = [pixels[y * p : (y + 1) * p, x * p : (x + 1) * p] for y, x in self.places]
        cut = np.array([part.transpose(2, 0, 1).ravel() for part in parts])
        # ggml's convolution has both in F16; a still picture is two frames
        cut = cut.astype(np.float16).astype(F32)
        names = ["v.patch_embd.weight", *(["v.patch_embd.weight.1"] if self.projector in QWEN else [])]
        kernels = [
            self.w[name].astype(np.float16).astype(F32).reshape(len(self.w[name]), -1) for name in names
        ]
        x = sum(cut @ kernel.T for kernel in kernels) + self.w.get("v.patch_embd.bias", F32(0))
        if "v.position_embd.weight" not in self.w:
            return x
        table = self.w["v.position_embd.weight"]
        raster = [y * nx + x for y, x in self.places]
        if self.projector == "mlp":
            return np.concatenate([self.w["v.class_embd"].reshape(1, -1) + table[:1], x + table[1:][raster]])
        if self.projector == "internvl":
            return np.concatenate([x + table[raster], self.w["v.class_embd"].reshape(1, -1) + table[-1:]])
        if self.projector == "qwen3vl_merger":
            table = _stretched(table, ny, nx)
        return x + table[raster]

    def _layer(self, x: np.ndarray, il: int) -> np.ndarray:
        name = f"v.blk.{il}"
        h = self._normed(x, f"{name}.ln1")
        if self.fused:
            parts = np.split(self._linear(h, f"{name}.attn_qkv"), 3, axis=1)
        else:
            parts = [self._linear(h, f"{name}.attn_{which}") for which in "qkv"]
        q, k, v = (self._heads(part) for part in parts)
        if self.projector in QWEN:
            q, k = self._turned(q), self._turned(k)
        logits = np.einsum("hqd,hkd->hqk", q, k) / np.sqrt(F32(q.shape[-1]))
        if self.pattern and (il + 1) % self.pattern:
            window = self.places // (WINDOW // self.patch)
            logits[:, (window[:, None] != window[None]).any(-1)] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("hqk,hkd->qhd", weights, v).reshape(len(x), -1)
        x = x + self._linear(out, f"{name}.attn_out")
        h = self._normed(x, f"{name}.ln2")
        up = self._linear(h, f"{name}.ffn_up")
        gate = f"{name}.ffn_gate"
        up = _gelu(self._linear(h, gate)) * up if f"{gate}.weight" in self.w else self._activate(up)
        return x + self._linear(up, f"{name}.ffn_down")

    def _turned(self, x: np.ndarray) -> np.ndarray:
        """[heads, n, d]: the first half of the pairs by the row, the others by the column."""
        half = x.shape[-1] // 2
        speed = F32(10000) ** (-np.arange(half // 2, dtype=F32) * 2 / half)
        angle = np.concatenate([self.places[:, :1] * speed, self.places[:, 1:] * speed], axis=1)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1
        )

    def _normed(self, x: np.ndarray, name: str) -> np.ndarray:
        if not self.rms:
            return self._norm(x, name)
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + self.eps)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def _layer_norm(self, x: np.ndarray, name: str, eps: float | None = None) -> np.ndarray:
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + (self.eps if eps is None else F32(eps)))
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def _projected(self, x: np.ndarray, n: int) -> np.ndarray:
        if self.projector == "gemma3":
            x = x.reshape(n, -1, x.shape[1]).mean(1)
            x = x / np.sqrt((x * x).mean(1, keepdims=True) + self.eps) * self.w["mm.soft_emb_norm.weight"]
            return x @ self.w["mm.input_projection.weight"]
        x = x.reshape(n, -1)
        if self.projector == "idefics3":
            return x @ self.w["mm.model.fc.weight"].T
        if self.projector == "internvl":
            x = self._layer_norm(x, "mm.model.mlp.0", 1e-5)
            return self._linear(_gelu(self._linear(x, "mm.model.mlp.1")), "mm.model.mlp.3")
        second = "mm.1" if self.projector == "janus_pro" else "mm.2"
        return self._linear(_gelu(self._linear(x, "mm.0")), second)


def _stretched(table: np.ndarray, ny: int, nx: int) -> np.ndarray:
    """A square of learned positions on ny x nx patches: bilinear, corners on corners. [ny * nx, d]"""
    side = round(len(table) ** 0.5)
    grid = table.reshape(side, side, -1)

    def along(values: np.ndarray, n: int) -> np.ndarray:
        at = np.arange(n, dtype=F32) * F32((side - 1) / (n - 1))
        low = np.minimum(at.astype(int), side - 2)
        share = (at - low).astype(F32).reshape(-1, 1, 1)
        return values[low] * (1 - share) + values[low + 1] * share

    rows = along(grid, ny)
    return along(rows.transpose(1, 0, 2), nx).transpose(1, 0, 2).reshape(ny * nx, -1)

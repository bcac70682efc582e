"""Turbo's mathematics (native/include/pyfastv_turbo.h), written again: a CLIP or SigLIP encoder with an MLP projector in
NumPy, one token pair after the other. Needs F32 files, and pictures of the encoder's own size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from pyfastv import _native

F32 = np.float32


@dataclass
class Tokens:
    """What is left of a picture; CLS, if there is one, is the first."""

    x: np.ndarray  # [n, d]
    size: np.ndarray  # [n]
    members: list[list[int]]  # of each token, its patches; [-1] for CLS
    place: list[int]  # -1 for CLS

    @property
    def n(self) -> int:
        return len(self.place)


@dataclass
class Result:
    features: np.ndarray  # [n, n_embd], behind the projector
    places: list[int]
    sizes: list[int]
    targets: list[int]  # for every patch its token
    margin: float = field(default=np.inf)  # the smallest difference of scores that a choice hung on


class Reference:
    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.value = value = {name: entry.contents() for name, entry in reader.fields.items()}
        self.w = {
            t.name: np.array(t.data, F32).reshape(tuple(reversed(t.shape.tolist()))) for t in reader.tensors
        }
        self.patch = int(value["clip.vision.patch_size"])
        self.heads = int(value["clip.vision.attention.head_count"])
        self.eps = F32(value["clip.vision.attention.layer_norm_epsilon"])
        self.mean = np.array(value["clip.vision.image_mean"], F32)
        self.std = np.array(value["clip.vision.image_std"], F32)
        self.projector = value.get("clip.projector_type", "mlp")
        self.use_gelu = bool(value.get("clip.use_gelu", False))
        # LLaVA takes its features where the file says, or before the last block
        self.n_blocks = int(value["clip.vision.block_count"])
        if self.projector == "mlp":
            self.n_blocks = int(value.get("clip.vision.feature_layer", [self.n_blocks - 1])[0])
        self.cls = "v.class_embd" in self.w

    def merged(self, picture: np.ndarray, counts: dict[int, int], alpha: float) -> Result:
        """``picture``: uint8 [height, width, 3]; ``counts``: how many tokens a block merges."""
        tokens = self._embed(picture)
        margins = [np.inf]
        for il in range(self.n_blocks):
            tokens = self._block(tokens, il, counts.get(il, 0), alpha, margins)
            self._behind(tokens, il)
        x = self._norm(tokens.x, "v.post_ln") if "v.post_ln.weight" in self.w else tokens.x
        first = int(self.cls)
        members = tokens.members[first:]
        owner = {patch: token for token, patches in enumerate(members) for patch in patches}
        return Result(
            self._project(self._spread(x[first:], owner)),
            tokens.place[first:],
            [len(patches) for patches in members],
            [owner[patch] for patch in range(len(owner))],
            min(margins),
        )

    def _behind(self, tokens: Tokens, il: int) -> None:
        """What else is made of a block's rows."""

    def _spread(self, x: np.ndarray, owner: dict[int, int]) -> np.ndarray:
        """The rows that enter the projector, of the tokens' [n, d]; ``owner``: of each patch."""
        return x

    def _patches(self, picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """[patches, d] in raster order, without a bias"""
        p = self.patch
        pixels = (picture.astype(F32) / F32(255) - self.mean) / self.std
        ny, nx = picture.shape[0] // p, picture.shape[1] // p
        patches = pixels.reshape(ny, p, nx, p, 3).transpose(0, 2, 4, 1, 3).reshape(ny * nx, 3 * p * p)
        # ggml's convolution has both in F16
        patches, kernel = (values.astype(np.float16).astype(F32) for values in (patches, kernel))
        return patches @ kernel.reshape(len(kernel), -1).T

    def _embed(self, picture: np.ndarray) -> Tokens:
        x = self._patches(picture, self.w["v.patch_embd.weight"]) + self.w.get("v.patch_embd.bias", F32(0))
        members, place = [[i] for i in range(len(x))], list(range(len(x)))
        if self.cls:
            x = np.concatenate([self.w["v.class_embd"].reshape(1, -1), x])
            members, place = [[-1], *members], [-1, *place]
        x = x + self.w["v.position_embd.weight"]
        if "v.pre_ln.weight" in self.w:
            x = self._norm(x, "v.pre_ln")
        return Tokens(x, np.ones(len(x), F32), members, place)

    def _block(self, tokens: Tokens, il: int, r: int, alpha: float, margins: list[float]) -> Tokens:
        name = f"v.blk.{il}"
        h = self._norm(tokens.x, f"{name}.ln1")
        q, k, v = (self._heads(rows) for rows in self._attention_rows(h, name))
        q, k = self._turn(q, tokens), self._turn(k, tokens)
        logits = np.einsum("hqd,hkd->hqk", q, k) / np.sqrt(F32(q.shape[-1])) + np.log(tokens.size)
        logits = logits + self._hidden(tokens, il)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("hqk,hkd->qhd", weights, v).reshape(tokens.n, -1)
        x = tokens.x + self._linear(out, f"{name}.attn_out")

        value = weights[:, 0, :].mean(0) if self.cls else weights.mean((0, 1))
        merged = Tokens(x, tokens.size, tokens.members, tokens.place)
        key = k.mean(0)
        while r > 0:
            step = min(r, self._at_once(merged.n - self.cls))
            merged, key, value = self._merge(merged, key, value, step, alpha, margins)
            r -= step

        merged.x = merged.x + self._feed_forward(self._norm(merged.x, f"{name}.ln2"), name)
        return merged

    def _attention_rows(self, h: np.ndarray, name: str) -> list[np.ndarray]:
        return [self._linear(h, f"{name}.attn_{which}") for which in "qkv"]

    def _turn(self, x: np.ndarray, tokens: Tokens) -> np.ndarray:
        """Queries or keys [heads, n, d] by the positions of their tokens."""
        return x

    def _hidden(self, tokens: Tokens, il: int) -> np.ndarray:
        """Added to logits: [n, n] or one number; minus infinity where a key is not seen."""
        return np.zeros((), F32)

    def _at_once(self, n: int) -> int:
        """How many of n patches a step merges at most."""
        return n // 2

    def _may_merge(self, tokens: Tokens, i: int, j: int) -> bool:
        return True

    def _feed_forward(self, h: np.ndarray, name: str) -> np.ndarray:
        up, down = self.w[f"{name}.ffn_up.weight"], self.w[f"{name}.ffn_down.weight"]
        swapped = up.shape[0] < down.shape[0]  # older files
        first, second = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
        return self._linear(self._activate(self._linear(h, f"{name}.{first}")), f"{name}.{second}")

    def _merge(
        self, tokens: Tokens, key: np.ndarray, value: np.ndarray, r: int, alpha: float, margins: list[float]
    ) -> tuple[Tokens, np.ndarray, np.ndarray]:
        n = tokens.n
        key = key / np.linalg.norm(key, axis=1, keepdims=True)
        patches = list(range(int(self.cls), n))
        evens, odds = patches[::2], patches[1::2]
        partner, score, lead = {}, {}, {}
        for i in evens:
            beside = [j for j in odds if self._may_merge(tokens, i, j)]
            if not beside:
                continue
            cosines = key[beside] @ key[i]
            best = int(cosines.argmax())
            partner[i] = beside[best]
            score[i] = float(cosines[best] - F32(alpha) * n * value[i])
            lead[i] = float(cosines[best] - np.delete(cosines, best).max(initial=-2))
        ranked = sorted(partner, key=lambda i: (-score[i], i))
        gone = ranked[:r]
        margins += [lead[i] for i in gone]
        if r < len(ranked):
            margins.append(score[ranked[r - 1]] - score[ranked[r]])

        x, size, key, value = tokens.x.copy(), tokens.size.copy(), key.copy(), value.copy()
        members, place = [list(patches) for patches in tokens.members], list(tokens.place)
        for j in odds:
            parts = [j, *(i for i in gone if partner[i] == j)]
            weight = tokens.size[parts] / tokens.size[parts].sum()
            x[j] = weight @ tokens.x[parts]
            key[j] = weight @ key[parts]
            value[j] = value[parts].sum()
            size[j] = tokens.size[parts].sum()
            members[j] = sorted(patch for part in parts for patch in tokens.members[part])
            place[j] = tokens.place[min(parts, key=lambda t: (-tokens.size[t], tokens.place[t]))]
        left = sorted(set(range(n)) - set(gone), key=lambda t: place[t])
        return (
            Tokens(x[left], size[left], [members[t] for t in left], [place[t] for t in left]),
            key[left],
            value[left],
        )

    def _project(self, x: np.ndarray) -> np.ndarray:
        second = "mm.2" if self.projector in ("mlp", "phi4") else "mm.1"
        return self._linear(_gelu(self._linear(x, "mm.0")), second)

    def _activate(self, x: np.ndarray) -> np.ndarray:
        return _gelu(x) if self.use_gelu else _through_f16(lambda h: h / (1 + np.exp(F32(-1.702) * h)), x)

    def _heads(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), self.heads, -1).transpose(1, 0, 2)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + self.eps)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


# ggml's CPU looks these functions up in a table from F16 to F16; our kernels compute them
EXACT = _native.kernels()["chosen"] is not None


def _gelu(x: np.ndarray) -> np.ndarray:
    root = F32(np.sqrt(2 / np.pi))
    table = _through_f16(lambda h: F32(0.5) * h * (1 + np.tanh(root * h * (1 + F32(0.044715) * h * h))), x)
    return np.where(x >= 10, x, np.where(x <= -10, F32(0), table))


def _through_f16(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    if EXACT:
        return function(x)
    return function(x.astype(np.float16).astype(F32)).astype(np.float16).astype(F32)


def spread(total: int, first: int, last: int) -> dict[int, int]:
    """How many tokens each of these blocks merges, as evenly as can be."""
    length = last - first + 1
    ends = [total * (b + 1) // length for b in range(length)]
    return {first + b: end - start for b, (start, end) in enumerate(zip([0, *ends], ends, strict=False))}

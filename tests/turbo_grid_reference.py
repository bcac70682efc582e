"""Turbo with rows that are given back, written again in NumPy for encoders behind whose blocks patches lie side by side:
pixel shuffle (idefics3, internvl), pooling (gemma3), mergers (pixtral, and Qwen's three, with windows and deepstack)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from turbo_reference import F32, Reference, Tokens, _gelu

Place = tuple[int, int]  # y, x of a patch


class GridReference(Reference):
    """Of a picture of the encoder's own size; patches are numbered as the encoder has their rows, CLS is the first."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.qwen = self.projector in ("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger")
        self.rms = self.projector in ("qwen2.5vl_merger", "pixtral")
        self.fused = "v.blk.0.attn_qkv.weight" in self.w
        self.gated = "v.blk.0.ffn_gate.weight" in self.w
        self.pattern = int(self.value.get("clip.vision.n_wa_pattern", 0))
        self.deepstack: list[np.ndarray] = []

    def _embed(self, picture: np.ndarray) -> Tokens:
        ny, nx = picture.shape[0] // self.patch, picture.shape[1] // self.patch
        self.size = (ny, nx)
        self.deepstack = []
        self.places, self.window = _rows(ny, nx, 8 if self.pattern else 0) if self.qwen else _raster(ny, nx)

        x = self._patches(picture, self.w["v.patch_embd.weight"])
        if "v.patch_embd.weight.1" in self.w:  # the same picture as the second of two frames
            x = x + self._patches(picture, self.w["v.patch_embd.weight.1"])
        x = x[[y * nx + column for y, column in self.places]] + self.w.get("v.patch_embd.bias", F32(0))
        members, place = [[i] for i in range(len(x))], list(range(len(x)))

        table = self.w.get("v.position_embd.weight")
        if self.qwen and table is not None:
            x = x + _stretched(table, ny, nx)[[y * nx + column for y, column in self.places]]
        elif table is not None:
            x = x + table[: len(x)]
        if self.cls:
            cls = self.w["v.class_embd"].reshape(1, -1) + table[-1:]
            x, members, place = np.concatenate([cls, x]), [[-1], *members], [-1, *place]
        return Tokens(x, np.ones(len(x), F32), members, place)

    def _attention_rows(self, h: np.ndarray, name: str) -> list[np.ndarray]:
        if self.fused:
            return np.split(self._linear(h, f"{name}.attn_qkv"), 3, axis=1)
        return super()._attention_rows(h, name)

    def _turn(self, x: np.ndarray, tokens: Tokens) -> np.ndarray:
        if not self.qwen and self.projector != "pixtral":
            return x
        d = x.shape[-1]
        at = np.array([self.places[place] for place in tokens.place], F32)  # [n, 2]
        powers = F32(10000) ** (-4 * np.arange(d // 4, dtype=F32) / F32(d))
        angles = [at[:, [0]] * powers, at[:, [1]] * powers]  # rows, then columns: each [n, d/4]
        if self.qwen:
            first, second = slice(0, d // 2), slice(d // 2, d)
        else:
            first, second = slice(0, d, 2), slice(1, d, 2)
            angles[1] = angles[1] * F32(10000) ** F32(-2 / d)
        angle = np.concatenate(angles, axis=1)
        cos, sin = np.cos(angle), np.sin(angle)
        out = np.empty_like(x)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    def _hidden(self, tokens: Tokens, il: int) -> np.ndarray:
        if not self.pattern or (il + 1) % self.pattern == 0:
            return super()._hidden(tokens, il)
        window = np.array([self.window[place] for place in tokens.place])
        return np.where(window[:, None] == window, F32(0), F32(-np.inf))

    def _at_once(self, n: int) -> int:
        return n // 2 - (max(self.window) + 1 if self.pattern else 0)

    def _may_merge(self, tokens: Tokens, i: int, j: int) -> bool:
        return not self.pattern or self.window[tokens.place[i]] == self.window[tokens.place[j]]

    def _feed_forward(self, h: np.ndarray, name: str) -> np.ndarray:
        if not self.gated:
            return super()._feed_forward(h, name)
        gate = _through_table(self._linear(h, f"{name}.ffn_gate"))
        return self._linear(gate * self._linear(h, f"{name}.ffn_up"), f"{name}.ffn_down")

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if not self.rms:
            return super()._norm(x, name)
        return self._scaled(x) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(1, keepdims=True) + self.eps)

    def _spread(self, x: np.ndarray, owner: dict[int, int]) -> np.ndarray:
        return x[[owner[patch] for patch in range(len(owner))]]

    def _behind(self, tokens: Tokens, il: int) -> None:
        name = f"v.deepstack.{il}"
        if f"{name}.norm.weight" not in self.w:
            return
        owner = {patch: token for token, patches in enumerate(tokens.members) for patch in patches}
        units = self._spread(tokens.x, owner).reshape(len(owner) // 4, -1)
        h = self._linear(super()._norm(units, f"{name}.norm"), f"{name}.fc1")
        self.deepstack.append(self._linear(_gelu(h), f"{name}.fc2"))

    def _project(self, x: np.ndarray) -> np.ndarray:
        """``x``: [patches, d]"""
        return getattr(self, f"_project_{self.projector.replace('.', '')}")(x)

    def _project_idefics3(self, x: np.ndarray) -> np.ndarray:
        return self._units(x).reshape(-1, 4 * x.shape[1]) @ self.w["mm.model.fc.weight"].T

    def _project_internvl(self, x: np.ndarray) -> np.ndarray:
        units = self._units(x).reshape(-1, 4 * x.shape[1])
        units = units - units.mean(1, keepdims=True)
        units = units / np.sqrt((units * units).mean(1, keepdims=True) + F32(1e-5))
        units = units * self.w["mm.model.mlp.0.weight"] + self.w["mm.model.mlp.0.bias"]
        return self._linear(_gelu(self._linear(units, "mm.model.mlp.1")), "mm.model.mlp.3")

    def _project_gemma3(self, x: np.ndarray) -> np.ndarray:
        pooled = self._scaled(self._units(x).mean(1)) * self.w["mm.soft_emb_norm.weight"]
        return pooled @ self.w["mm.input_projection.weight"]

    def _project_pixtral(self, x: np.ndarray) -> np.ndarray:
        x = self._scaled(x) * self.w["mm.input_norm.weight"]
        # the four patches of a unit side by side, number by number
        units = self._units(x).transpose(0, 2, 1).reshape(-1, 4 * x.shape[1])
        h = units @ self.w["mm.patch_merger.weight"].T
        rows = self._linear(_gelu(self._linear(h, "mm.1")), "mm.2")
        lines = np.split(rows, self.size[0] // 2)
        line_end = self.w["v.token_embd.img_break"].reshape(1, -1)
        return np.concatenate([part for line in lines for part in (line, line_end)][:-1])

    def _project_qwen2vl_merger(self, x: np.ndarray) -> np.ndarray:
        h = x.reshape(len(x) // 4, -1)
        return self._linear(_gelu(self._linear(h, "mm.0")), "mm.2")

    def _project_qwen25vl_merger(self, x: np.ndarray) -> np.ndarray:
        units = [self.places[i] for i in range(0, len(x), 4)]  # of each the upper left patch
        in_raster_order = sorted(range(len(units)), key=lambda unit: units[unit])
        return self._project_qwen2vl_merger(x)[in_raster_order]

    def _project_qwen3vl_merger(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([self._project_qwen2vl_merger(x), *self.deepstack], axis=1)

    def _units(self, x: np.ndarray) -> np.ndarray:
        """[patches, d] in raster order to [units, 4, d], of 2 x 2 patches"""
        ny, nx = self.size
        grid = x.reshape(ny // 2, 2, nx // 2, 2, -1).transpose(0, 2, 1, 3, 4)
        return grid.reshape(ny * nx // 4, 4, -1)


def _raster(ny: int, nx: int) -> tuple[list[Place], list[int]]:
    return [(y, x) for y in range(ny) for x in range(nx)], [0] * (ny * nx)


def _rows(ny: int, nx: int, side: int) -> tuple[list[Place], list[int]]:
    """Of Qwen's encoders, in the order of their rows: patches in units of 2 x 2, these in windows of side x side patches
    (0: in none). Their places, and the numbers of their windows."""
    side = side or max(ny, nx)
    places, window = [], []
    for number, (top, left) in enumerate((y, x) for y in range(0, ny, side) for x in range(0, nx, side)):
        for y in range(top, min(top + side, ny), 2):
            for x in range(left, min(left + side, nx), 2):
                places += [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)]
                window += [number] * 4
    return places, window


def _stretched(table: np.ndarray, ny: int, nx: int) -> np.ndarray:
    """A square table of rows to ny x nx, linearly, corners on corners."""
    side = int(np.sqrt(len(table)))
    grid = table.reshape(side, side, -1)
    for axis, n in enumerate((ny, nx)):
        at = np.arange(n, dtype=F32) * F32(side - 1) / F32(n - 1)
        low = np.minimum(at.astype(int), side - 2)
        share = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)).astype(F32)
        grid = grid.take(low, axis) * (1 - share) + grid.take(low + 1, axis) * share
    return grid.reshape(ny * nx, -1)


def _through_table(x: np.ndarray) -> np.ndarray:
    """GELU of a gate, which ggml's CPU looks up in F16 with any kernels."""
    x = x.astype(np.float16).astype(F32)
    root = F32(np.sqrt(2 / np.pi))
    return (
        (F32(0.5) * x * (1 + np.tanh(root * x * (1 + F32(0.044715) * x * x)))).astype(np.float16).astype(F32)
    )

"""The floor: the time that an encoder's products alone would take at the best rate the machine shows for them.

Shapes: L tokens, N patches, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

_UNITS = {
    "bf16": ("avx512_bf16", "amx_bf16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8"),
    "fp16": ("avx512_fp16",),
}


@dataclass(frozen=True)
class Products:
    """The matrix products of one image."""

    tokens: int  # L
    dim: int  # D
    depth: int
    patches: int  # N
    patch: int  # side [px]

    @classmethod
    def of(cls, encoder: Any, size: tuple[int, int]) -> "Products":
        """Count those of a `PixioEncoder` for images of `size` [px]."""
        patches = (size[0] // encoder.patch) * (size[1] // encoder.patch)
        return cls(patches + encoder.cls_token.shape[1], encoder.dim, len(encoder.blocks), patches, encoder.patch)

    @property
    def flops(self) -> int:
        """Multiplications and additions: qkv, proj and MLP 24 L D^2, attention 4 L^2 D, each block; patches."""
        block = 24 * self.tokens * self.dim**2 + 4 * self.tokens**2 * self.dim
        return self.depth * block + 2 * self.patches * self.dim * 3 * self.patch**2

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """The linear layers of a block, (rows, inputs, outputs): 96 % of the work of size b, and its largest shapes."""
        wide = 4 * self.dim
        return [(self.tokens, *each) for each in ((self.dim, 3 * self.dim), (self.dim, wide), (wide, self.dim))]


def cpu_units(precision: str) -> list[str]:
    """Return which of this CPU's instruction sets compute in a precision; empty where it has none, or none is known."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return []
    return [each for each in _UNITS.get(precision, ()) if each in flags.split()]


def multiplications(rows: int, inputs: int, outputs: int, precision: str, device: str) -> dict[str, Callable[[], Any]]:
    """Return ways to compute one product, by the name of what computes it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((rows, inputs), (outputs, inputs)))
    if precision == "int8":
        a, b = (torch.clamp(each * 32, -127, 127).to(torch.int8).to(device) for each in (x, w))
        return {"torch int8": lambda: torch._int_mm(a, b.t())}
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    x, w = x.to(device, dtype), w.to(device, dtype)
    found: dict[str, Callable[[], Any]] = {"torch": lambda: torch.nn.functional.linear(x, w)}
    if device == "cpu" and precision == "fp32":
        left, right = x.numpy(), np.ascontiguousarray(w.numpy().T)
        found["numpy"] = lambda: left @ right
    if device == "cpu" and precision in ("fp32", "bf16") and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)  # as torch.compile calls it
        found["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return found


class Rates:
    """Measures, turn by turn, how fast an encoder's largest products are; the best of all turns counts.

    Args:
        products: of the encoder.
        precisions: to measure; one that the machine cannot multiply in is left out.
        device: cpu or cuda.
    """

    def __init__(self, products: Products, precisions: tuple[str, ...], device: str) -> None:
        self.device = device
        self.best: dict[str, tuple[float, str]] = {}  # precision: operations a second, what reached it
        self._ways = []
        for precision in precisions:
            for shape in products.shapes:
                for name, way in multiplications(*shape, precision, device).items():
                    try:
                        self._timed(way)
                    except (RuntimeError, NotImplementedError):
                        continue
                    self._ways.append((precision, name, 2 * shape[0] * shape[1] * shape[2], way))

    def turn(self, calls: int) -> None:
        """Time every product again."""
        import torch

        with torch.inference_mode():
            for precision, name, flops, way in self._ways:
                rate = flops / min(self._timed(way) for _ in range(calls))
                self.best[precision] = max(self.best.get(precision, (0.0, "")), (rate, name))

    def _timed(self, way: Callable[[], Any]) -> float:
        if self.device == "cuda":
            import torch

            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            way()
            last.record()
            torch.cuda.synchronize()
            return first.elapsed_time(last) / 1000
        began = process_time()
        way()
        return process_time() - began

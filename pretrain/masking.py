"""Block-wise patch masks with static shapes (arXiv 2512.15715, section 3: blocks of 4x4 patches, 75 % hidden).

Shapes: B batch, N patches of a grid, V visible and M hidden patches (V + M = N), K blocks of a grid.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BadInput


class MaskShape(NamedTuple):
    """Sizes of a mask; equal for every image."""

    grid: tuple[int, int]  # rows, columns of patches
    block: int  # side of a block [patches]
    blocks: int  # K
    visible_blocks: int

    @property
    def visible(self) -> int:
        """V."""
        return self.visible_blocks * self.block**2

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def ratio(self) -> float:
        """Actual share of hidden patches; only whole blocks are hidden."""
        return 1 - self.visible / self.patches


def mask_shape(grid: tuple[int, int], ratio: float, block: int) -> MaskShape:
    """Return the sizes of a mask that hides a `ratio` of a grid's blocks; the number of visible blocks is rounded down.

    Raises:
        BadInput: if the blocks do not tile the grid (names those that do), or no or all patches would be hidden.
    """
    rows, columns = grid
    divisors = [size for size in range(1, min(grid) + 1) if rows % size == 0 and columns % size == 0]
    if block not in divisors:
        below = max((size for size in divisors if size < block), default=None)
        above = min((size for size in divisors if size > block), default=None)
        nearest = " or ".join(str(size) for size in (below, above) if size is not None)
        raise BadInput(
            f"blocks of {block}x{block} patches do not tile a grid of {rows}x{columns}; the nearest that do: {nearest}"
        )
    if not 0 < ratio < 1:
        raise BadInput(f"mask ratio {ratio} must lie between 0 and 1: some patches are visible and some are predicted")
    blocks = (rows // block) * (columns // block)
    visible = math.floor(blocks * (1 - ratio) + 1e-9)
    visible = min(visible, blocks - 1)  # a tiny ratio hides one block
    if not visible:
        raise BadInput(
            f"mask ratio {ratio} hides all {blocks} blocks of {block}x{block} patches in a grid of {rows}x{columns}; "
            f"choose a ratio of at most {1 - 1 / blocks:.3g}, or a smaller block"
        )
    return MaskShape(grid, block, blocks, visible)


class PatchMask(NamedTuple):
    """Visible patches, for the encoder, and hidden ones, for the decoder to predict; row-major indices."""

    visible: Tensor  # (B, V) int64, in the encoder's order
    hidden: Tensor  # (B, M) int64
    grid: tuple[int, int]  # rows, columns

    @classmethod
    def random(
        cls, grid: tuple[int, int], ratio: float, block: int, generator: torch.Generator | Sequence[torch.Generator]
    ) -> "PatchMask":
        """Hide random blocks, with one generator for each image, so that masks do not depend on other images.

        Args:
            grid: rows and columns of patches.
            ratio: share of the patches to hide, in (0, 1).
            block: side of a block [patches]; must divide both sides of the grid.
            generator: one per image.

        Raises:
            BadInput: as `mask_shape`.
        """
        shape = mask_shape(grid, ratio, block)
        generators = [generator] if isinstance(generator, torch.Generator) else generator
        noise = torch.stack([torch.rand(shape.blocks, generator=each, device=each.device) for each in generators])
        return cls.from_noise(noise, shape)

    @classmethod
    def from_noise(cls, noise: Tensor, shape: MaskShape) -> "PatchMask":
        """Keep the blocks with the lowest noise visible, in the order of their noise; row-major inside a block.

        Args:
            noise: (B, K), one number per block.
        """
        rows, columns = shape.grid
        size = shape.block
        table = torch.arange(rows * columns, device=noise.device).view(rows // size, size, columns // size, size)
        table = table.permute(0, 2, 1, 3).reshape(shape.blocks, size * size)
        order = noise.argsort(dim=1, stable=True)
        visible, hidden = order.split([shape.visible_blocks, shape.blocks - shape.visible_blocks], dim=1)
        return cls(table[visible].flatten(1), table[hidden].flatten(1), shape.grid)

    @classmethod
    def none(cls, grid: tuple[int, int], batch: int = 1) -> "PatchMask":
        """Hide nothing."""
        every = torch.arange(grid[0] * grid[1]).expand(batch, -1)
        return cls(every, every[:, :0], grid)

    @property
    def ratio(self) -> float:
        """Share of the patches that is hidden."""
        return self.hidden.shape[1] / (self.grid[0] * self.grid[1])

    def is_hidden(self) -> Tensor:
        """Return (B, N) bool."""
        every = torch.zeros(
            len(self.visible), self.grid[0] * self.grid[1], dtype=torch.bool, device=self.visible.device
        )
        return every.scatter(1, self.hidden, True)

    def to(self, device: torch.device, non_blocking: bool = False) -> "PatchMask":
        """Return the mask on `device`."""
        return PatchMask(
            self.visible.to(device, non_blocking=non_blocking),
            self.hidden.to(device, non_blocking=non_blocking),
            self.grid,
        )

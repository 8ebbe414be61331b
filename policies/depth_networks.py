"""What learns from depth beside a frozen encoder: patches added to colour's, and a network for points.

Shapes: B batch, T frames of history, N patches, D width, n points.
"""

from torch import Tensor, nn

from ..encoders.encoder import TokenShape
from .necks import fuse_frames

CELL = 8  # side of a patch of depth [px]


class DepthPatches(nn.Module):
    """Code and validity of depth, embedded patch by patch, to be added to the embedded patches of colour.

    All weights are 0 at first, so that the encoder starts with colour alone, as it was trained (zero convolutions:
    Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543).

    Args:
        grid: rows and columns of patches.
        dim: D.
    """

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.size = (grid[0] * CELL, grid[1] * CELL)  # of the depth it takes [px]
        self.project = nn.utils.skip_init(nn.Conv2d, 2, dim, CELL, stride=CELL)  # draws no random numbers
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def forward(self, depth: Tensor) -> Tensor:
        """Return (B, N, D) of depth (B, *size, 2) uint8."""
        return self.project(depth.permute(0, 3, 1, 2).float() / 255).flatten(2).transpose(1, 2)


class PointNetwork(nn.Module):
    """A small PointNet, as DP3's (arXiv 2403.03954): an MLP on each point with layer norm, the maximum over points.

    What it gives is the same whatever the order of the points, and however often one is repeated.

    Args:
        frames: T.
        how: how frames are fused, as in `fuse_frames`.
    """

    _WIDTHS = (64, 128, 256)
    _FEATURE = 64

    def __init__(self, frames: int, how: str) -> None:
        super().__init__()
        self.frames, self.how = frames, how
        layers: list[nn.Module] = []
        inputs = 3
        for width in self._WIDTHS:
            layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
            inputs = width
        self.points = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(inputs, self._FEATURE), nn.LayerNorm(self._FEATURE))
        self.tokens = TokenShape(cls=1, grid=(1, 1), dim=frames * self._FEATURE)

    def forward(self, clouds: Tensor) -> Tensor:
        """Return one token a sample, (B, 1, 1, T * 64), of clouds (B, T, n, 4) as `point_cloud` makes them."""
        there = clouds[..., 3:]
        highest = (self.points(clouds[..., :3]) * there).amax(dim=2)  # features are not negative: 0 is no point
        return fuse_frames(self.project(highest), self.how)[:, None, None]

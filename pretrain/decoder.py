"""The deep pixel decoder (arXiv 2512.15715, section 3 and table 13).

Shapes: B batch, K class tokens, N patches, V visible patches, D encoder width, C decoder width, P = 3 * patch^2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.pixio import Block, Tokens, check_sizes, initialise_transformer, resized_positions
from ..errors import BadInput, UnknownName, closest
from .masking import PatchMask

# width, depth, heads. "reference" decodes every published encoder; the others keep small encoders affordable, since
# the reference is 98 % of the work beside a ti encoder.
DECODERS: dict[str, tuple[int, int, int]] = {
    "ti": (192, 8, 6),
    "s": (256, 8, 8),
    "b": (384, 16, 12),
    "reference": (512, 32, 16),
    "mae": (512, 8, 16),  # He et al. 2021, for comparisons
}


class PixelDecoder(nn.Module):
    """Predicts the pixels of all patches from the tokens of the visible ones.

    Args:
        encoder_dim: width D of the tokens it reads.
        dim: own width C.
        depth: number of blocks.
        heads: attention heads; must divide `dim`.
        patch: side of a patch [px].
        image_size: side of the square image the position table is made for [px]; others interpolate it.
        cls_tokens: number of class tokens K; they pass through all blocks and have no loss.

    Raises:
        BadInput: if `dim` is not a multiple of `heads` or `image_size` not of `patch`.
    """

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        depth: int,
        heads: int,
        patch: int = 16,
        image_size: int = 256,
        cls_tokens: int = 8,
    ) -> None:
        super().__init__()
        check_sizes(dim, heads, patch, image_size)
        self.arguments = dict(
            encoder_dim=encoder_dim,
            dim=dim,
            depth=depth,
            heads=heads,
            patch=patch,
            image_size=image_size,
            cls_tokens=cls_tokens,
        )
        self.patch, self.cls_tokens = patch, cls_tokens
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, cls_tokens + (image_size // patch) ** 2, dim))
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 3 * patch**2)
        self.initialise()

    @classmethod
    def preset(
        cls, name: str, encoder_dim: int, patch: int = 16, image_size: int = 256, cls_tokens: int = 8
    ) -> "PixelDecoder":
        """Return a decoder of a named size: ti, s, b, reference, mae.

        Raises:
            UnknownName: for any other name.
        """
        if name not in DECODERS:
            raise UnknownName(f"no decoder {name!r}; there are: {', '.join(DECODERS)}{closest(name, DECODERS)}")
        return cls(encoder_dim, *DECODERS[name], patch=patch, image_size=image_size, cls_tokens=cls_tokens)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights with `initialise_transformer`."""
        initialise_transformer(self, self.mask_token, self.pos_embed, generator)

    def forward(self, tokens: Tokens, mask: PatchMask, cls_only: Tensor | None = None) -> Tensor:
        """Predict every patch, visible ones too.

        Args:
            tokens: the encoder's normed tokens; patches (B, V, D) in the order of ``mask.visible``.
            cls_only: (B,) bool, images that are decoded from their class tokens only; None means none.

        Returns:
            (B, N, P), each patch flattened as row, column, channel.
        """
        rows, columns = mask.grid
        x = self.embed(torch.cat(tokens, dim=1))
        cls, seen = x.split([self.cls_tokens, tokens.patches.shape[1]], dim=1)
        places = mask.visible.unsqueeze(-1).expand(-1, -1, seen.shape[2])
        blank = self.mask_token.to(seen.dtype)
        if cls_only is not None:
            seen = torch.where(cls_only.view(-1, 1, 1), blank, seen)
        patches = blank.expand(len(seen), rows * columns, -1).scatter(1, places, seen)
        x = torch.cat([cls, patches], dim=1) + resized_positions(self.pos_embed, self.cls_tokens, rows, columns)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, self.cls_tokens :]))


@torch.no_grad()
def sincos_positions_(table: Tensor, cls_tokens: int) -> None:
    """Overwrite a learned position table with 2-D sines and cosines; class tokens get zeros.

    Half of the width encodes the row, half the column, as in He et al. 2021 (MAE). It shortens the early plateau of
    small runs.

    Args:
        table: (1, K + side * side, D) with D a multiple of 4.

    Raises:
        BadInput: for another width.
    """
    count, dim = table.shape[1] - cls_tokens, table.shape[2]
    if dim % 4:
        raise BadInput(f"sine-cosine positions need a width that is a multiple of 4; got {dim}")
    side = round(count**0.5)
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(side, dtype=torch.float64).unsqueeze(1) * frequencies  # (side, D / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, D / 2)
    rows = waves.unsqueeze(1).expand(-1, side, -1)
    columns = waves.unsqueeze(0).expand(side, -1, -1)
    grid = torch.cat([columns, rows], dim=2).reshape(count, dim)
    table.copy_(F.pad(grid, (0, 0, cls_tokens, 0)).to(table.dtype))

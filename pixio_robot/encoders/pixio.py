"""The Pixio encoder: a plain pre-norm ViT with 8 class tokens (arXiv 2512.15715, table 10).

Parameter names are those of the official checkpoints, so official files load strictly.

Shapes: B batch, K class tokens, N patches, V visible patches, L = K + N or K + V, D width.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import BadInput, UnknownName, closest
from .encoder import EncoderNetwork, Tokens, TokenShape


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection (rows ordered q, k, v)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        batch, length, dim = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)  # after unbind, which saves a copy backwards
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear; four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """``x + Attn(LN(x))`` then ``x + MLP(LN(x))``; training drops a residual per sample with rate `drop_path`.

    `activation_checkpointing` trades time for memory: activations inside are computed again in the backward pass.
    """

    def __init__(self, dim: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drops, self.activation_checkpointing = drop_path > 0, False
        self.keep = torch.tensor(1.0 - drop_path, device="cpu")  # a tensor, so that blocks compile to one program
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def _drop(self, residual: Tensor) -> Tensor:
        if not (self.training and self.drops):
            return residual
        return residual * (torch.rand(residual.shape[0], 1, 1, device=residual.device) < self.keep) / self.keep

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._residuals, x, use_reentrant=False)
        return self._residuals(x)

    def _residuals(self, x: Tensor) -> Tensor:
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """One convolution with kernel = stride = patch."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor, visible: Tensor | None = None) -> Tensor:
        """Embed all patches of (B, 3, H, W), or only the `visible` (B, V); the others are not computed."""
        if visible is None:
            return self.proj(pixels).flatten(2).transpose(1, 2)
        chosen = patches_of(pixels, self.proj.kernel_size[0], visible).flatten(2)
        return F.linear(chosen, self.proj.weight.flatten(1), self.proj.bias)


def patches_of(pixels: Tensor, patch: int, indices: Tensor) -> Tensor:
    """Cut patches out of images.

    Args:
        pixels: (B, 3, H, W), both sides multiples of `patch`.
        patch: side P of a patch [px].
        indices: (B, V) row-major indices of the patches to cut.

    Returns:
        (B, V, 3, P, P).
    """
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    grid = pixels.view(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    return grid[torch.arange(batch, device=pixels.device).unsqueeze(1), indices // columns, indices % columns]


@torch.no_grad()
def initialise_transformer(
    module: nn.Module, tokens: nn.Parameter, positions: nn.Parameter, generator: torch.Generator | None = None
) -> None:
    """Draw fresh weights as MAE does (He et al. 2021, arXiv 2111.06377).

    Tokens and positions are normal with standard deviation 0.02, matrices and convolution kernels Xavier-uniform.
    Biases of linear layers are zero, those of convolutions follow PyTorch's default.

    Args:
        module: all of its Linear, Conv2d and LayerNorm layers are drawn.
        tokens: learned tokens, such as class or mask tokens.
        positions: position table.
        generator: None draws from PyTorch's global generator.
    """
    nn.init.normal_(tokens, std=0.02, generator=generator)
    nn.init.trunc_normal_(positions, std=0.02, generator=generator)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            kernel = layer.weight.flatten(1)
            nn.init.xavier_uniform_(kernel, generator=generator)
            bound = kernel.shape[1] ** -0.5
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    initialise_layers(module, generator)


@torch.no_grad()
def initialise_layers(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw every Linear Xavier-uniform with zero bias and reset every LayerNorm inside `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def check_sizes(dim: int, heads: int, patch: int, image_size: int) -> None:
    """Refuse a transformer that cannot be built.

    Raises:
        BadInput: if `dim` is not a multiple of `heads` or `image_size` not of `patch`.
    """
    if dim % heads:
        raise BadInput(f"width {dim} cannot be split over {heads} heads; choose heads that divide the width")
    if image_size % patch:
        raise BadInput(f"image_size {image_size} is not a multiple of the patch size {patch}")


def resized_positions(table: Tensor, cls_tokens: int, rows: int, columns: int) -> Tensor:
    """Return a position table for another grid, (1, K + rows * columns, D).

    The patch part is resized bicubically in fp32 (align_corners false, no antialias); class tokens keep theirs.

    Args:
        table: (1, K + side * side, D), made for a square grid.
    """
    count, dim = table.shape[1] - cls_tokens, table.shape[2]
    side = math.isqrt(count)
    if (rows, columns) == (side, side):
        return table
    cls, patches = table.split([cls_tokens, count], dim=1)
    square = patches.reshape(1, side, side, dim).permute(0, 3, 1, 2).float()
    resized = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([cls, resized.permute(0, 2, 3, 1).reshape(1, rows * columns, dim).to(cls.dtype)], dim=1)


def resized_patches(matrix: Tensor, patch: int, other: int) -> Tensor:
    """Return patch weights for another patch size; an enlarged patch has the same embedding as before.

    The pseudo-inverse of bilinear resizing, FlexiViT's (Beyer et al. 2022, arXiv 2212.08013, section 3.4).

    Args:
        matrix: (D, 3, patch, patch).
        other: the new side [px].
    """
    if other == patch:
        return matrix
    basis = torch.eye(patch**2, dtype=torch.float64).reshape(-1, 1, patch, patch)
    enlarge = F.interpolate(basis, size=(other, other), mode="bilinear", align_corners=False).flatten(1)  # (p*p, q*q)
    inverse = torch.linalg.pinv(enlarge.T)  # (p*p, q*q)
    return (matrix.double().flatten(2) @ inverse).reshape(*matrix.shape[:2], other, other).to(matrix.dtype)


# width, depth, heads; b to 5b are the published sizes (arXiv 2512.15715, table 8), ti and s the ViT convention
PRESETS: dict[str, tuple[int, int, int]] = {
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
    "1b": (1536, 48, 24),
    "5b": (3072, 48, 32),
}


class PixioEncoder(EncoderNetwork):
    """A Pixio vision transformer.

    Args:
        dim: width D of a token.
        depth: number of blocks.
        heads: attention heads; must divide `dim`.
        patch: side of a patch [px].
        image_size: side of the square image the position table was made for [px]. Other sizes interpolate it.
        cls_tokens: number of class tokens K.
        drop_path: stochastic depth rate of the last block; a linear ramp from 0 at the first.

    Raises:
        BadInput: if `dim` is not a multiple of `heads` or `image_size` not of `patch`.
    """

    can_finetune: ClassVar[bool] = True
    takes_patch_residual: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        patch: int = 16,
        image_size: int = 256,
        cls_tokens: int = 8,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(dim, heads, patch, image_size)
        self.arguments = dict(
            dim=dim,
            depth=depth,
            heads=heads,
            patch=patch,
            image_size=image_size,
            cls_tokens=cls_tokens,
            drop_path=drop_path,
        )
        self.dim, self.patch, self.cls_tokens = dim, patch, cls_tokens
        self.grid = image_size // patch  # side of the grid the position table covers
        self._baked: tuple[int, int] | None = None  # grid that `bake_positions` resized the table to
        self.cls_token = nn.Parameter(torch.zeros(1, cls_tokens, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, cls_tokens + self.grid**2, dim))
        self.patch_embed = PatchEmbed(dim, patch)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList([Block(dim, heads, rate) for rate in rates])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.initialise()

    @classmethod
    def preset(cls, name: str, drop_path: float = 0.0) -> "PixioEncoder":
        """Return a randomly initialised encoder of a named size: ti, s, b, l, h, 1b, 5b.

        Raises:
            UnknownName: for any other name.
        """
        if name not in PRESETS:
            raise UnknownName(f"no encoder size {name!r}; there are: {', '.join(PRESETS)}{closest(name, PRESETS)}")
        dim, depth, heads = PRESETS[name]
        return cls(dim, depth, heads, drop_path=drop_path)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights with `initialise_transformer`."""
        initialise_transformer(self, self.cls_token, self.pos_embed, generator)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the position table for a grid of `rows` x `columns` patches, (1, K + rows * columns, D)."""
        if self._baked == (rows, columns):
            return self.pos_embed
        return resized_positions(self.pos_embed, self.cls_tokens, rows, columns)

    @torch.no_grad()
    def bake_positions(self, rows: int, columns: int) -> None:
        """Resize the position table once, for an encoder that will only see this grid again."""
        self.pos_embed = nn.Parameter(self.positions(rows, columns), requires_grad=False)
        self._baked = (rows, columns)

    @property
    def block_count(self) -> int:
        return len(self.blocks)

    def token_shape(self, size: tuple[int, int]) -> TokenShape:
        return TokenShape(self.cls_tokens, (size[0] // self.patch, size[1] // self.patch), self.dim)

    def block_tokens(self, pixels: Tensor, blocks: Sequence[int], *, normed: bool = True) -> list[Tokens]:
        return self(pixels, blocks=list(blocks), normed=normed)

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def check_size(self, size: tuple[int, int], name: str) -> None:
        if any(side < self.patch or side % self.patch for side in size):
            asked = "x".join(map(str, size))
            raise BadInput(f"{name}: images of {asked} px do not fit; both sides must be multiples of {self.patch}")

    @overload
    def forward(
        self,
        pixels: Tensor,
        visible: Tensor | None = None,
        blocks: None = None,
        normed: bool = True,
        patch_residual: Tensor | None = None,
    ) -> Tokens: ...

    @overload
    def forward(
        self, pixels: Tensor, visible: Tensor | None = None, *, blocks: Sequence[int], normed: bool = True
    ) -> list[Tokens]: ...

    def forward(
        self,
        pixels: Tensor,
        visible: Tensor | None = None,
        blocks: Sequence[int] | None = None,
        normed: bool = True,
        patch_residual: Tensor | None = None,
    ) -> Tokens | list[Tokens]:
        """Encode images.

        Args:
            pixels: (B, 3, H, W) float, normalised by `preprocess`; H and W multiples of the patch size.
            visible: (B, V) int64, row-major indices of the patches that the encoder sees, in the order they are
                returned; None shows all. A patch keeps the position of its place in the image.
            blocks: 0-based block indices; returns a list of `Tokens`, one for each block in this order.
            normed: apply the final LayerNorm (also to intermediate blocks).
            patch_residual: (B, N or V, D), added to the embedded patches before the first block; None adds nothing.

        Raises:
            BadInput: if a side is not a multiple of the patch size, or a block index does not exist.
        """
        height, width = pixels.shape[-2:]
        if height % self.patch or width % self.patch:
            raise BadInput(f"pixels are {height}x{width}; both sides must be multiples of {self.patch}")
        if blocks is not None and (bad := [i for i in blocks if not 0 <= i < len(self.blocks)]):
            raise BadInput(f"blocks {bad} do not exist; the encoder has blocks 0 to {len(self.blocks) - 1}")
        positions = self.positions(height // self.patch, width // self.patch)
        patch_positions = positions[:, self.cls_tokens :]
        if visible is not None:
            patch_positions = F.embedding(visible, patch_positions[0])
        patches = self.patch_embed(pixels, visible) + patch_positions
        if patch_residual is not None:
            patches = patches + patch_residual
        cls = (self.cls_token + positions[:, : self.cls_tokens]).expand(patches.shape[0], -1, -1)
        x = torch.cat([cls, patches], dim=1)
        outputs: dict[int, Tokens] = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if blocks is not None and index in blocks:
                outputs[index] = self._split(x, normed)
        return self._split(x, normed) if blocks is None else [outputs[index] for index in blocks]

    def _split(self, x: Tensor, normed: bool) -> Tokens:
        x = self.norm(x) if normed else x
        return Tokens(x[:, : self.cls_tokens], x[:, self.cls_tokens :])

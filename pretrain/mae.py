"""Masked reconstruction: the encoder sees some patches of an image, the decoder predicts the others.

Shapes: B batch, N patches, V visible and M hidden ones, P = 3 * patch^2 numbers of a patch (row, column, channel).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..encoders.pixio import PixioEncoder, patches_of
from ..errors import BadInput
from .decoder import PixelDecoder, sincos_positions_
from .masking import PatchMask

EPSILON = 1e-6  # on the variance of a patch (He et al. 2021)


class AutoencoderOutput(NamedTuple):
    """Prediction and loss of a batch."""

    loss: Tensor  # () fp32, mean of the images' losses
    prediction: Tensor  # (B, N, P); normalised patch by patch where the target is
    per_image_loss: Tensor  # (B,) fp32, mean over the predicted patches; without gradient


class MaskedAutoencoder(nn.Module):
    """A Pixio encoder and a pixel decoder, trained to predict hidden patches.

    Args:
        encoder: reads the visible patches.
        decoder: with the encoder's patch size, class tokens and width as input.
        norm_pixels: normalise each target patch to mean 0 and variance 1.

    Raises:
        BadInput: if the two do not match.
    """

    def __init__(self, encoder: PixioEncoder, decoder: PixelDecoder, norm_pixels: bool = True) -> None:
        super().__init__()
        for name, theirs in (
            ("patch", encoder.patch),
            ("cls_tokens", encoder.cls_tokens),
            ("encoder_dim", encoder.dim),
        ):
            if decoder.arguments[name] != theirs:
                raise BadInput(
                    f"the decoder has {name} {decoder.arguments[name]}, the encoder {theirs}; make them equal"
                )
        self.encoder, self.decoder, self.norm_pixels = encoder, decoder, norm_pixels

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that rebuild the network."""
        return {
            "encoder": self.encoder.arguments,
            "decoder": self.decoder.arguments,
            "norm_pixels": self.norm_pixels,
        }

    def initialise(self, positions: str = "normal", generator: torch.Generator | None = None) -> None:
        """Draw new weights.

        Args:
            positions: "normal" draws both position tables as published, "sincos" fills them with 2-D sines and
                cosines, which shortens small runs.
        """
        self.encoder.initialise(generator)
        self.decoder.initialise(generator)
        if positions == "sincos":
            for part in (self.encoder, self.decoder):
                sincos_positions_(part.pos_embed, part.cls_tokens)

    def forward(self, pixels: Tensor, mask: PatchMask, cls_only: Tensor | None = None) -> AutoencoderOutput:
        """Encode the visible patches, predict all, and return the loss on the hidden ones.

        Args:
            pixels: (B, 3, H, W) float as `preprocess` returns them.
            mask: of the images' grid, hiding at least one patch.
            cls_only: (B,) bool, images that are decoded from their class tokens only; None means none. Their loss is
                over visible and hidden patches, since the decoder sees neither.

        Raises:
            BadInput: if the mask is of another grid or hides nothing.
        """
        patch = self.encoder.patch
        grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
        if mask.grid != grid:
            raise BadInput(
                f"the mask is for a grid of {mask.grid[0]}x{mask.grid[1]}, the images have {grid[0]}x{grid[1]}"
            )
        if not mask.hidden.shape[1]:
            raise BadInput("the mask hides no patch, so there is nothing to predict")
        prediction = self.decoder(self.encoder(pixels, visible=mask.visible), mask, cls_only)
        per_image = self._errors(prediction, pixels, mask.hidden)
        if cls_only is not None:
            seen = self._errors(prediction, pixels, mask.visible)
            share = mask.visible.shape[1] / prediction.shape[1]
            per_image = torch.where(cls_only, torch.lerp(per_image, seen, share), per_image)
        return AutoencoderOutput(per_image.mean(), prediction, per_image.detach())

    def _errors(self, prediction: Tensor, pixels: Tensor, indices: Tensor) -> Tensor:
        """Return the mean squared error over some patches of each image, (B,) fp32."""
        target = self.target(pixels, indices)
        rows = indices.unsqueeze(-1).expand(-1, -1, target.shape[2])
        return (prediction.gather(1, rows).float() - target).square().mean(dim=(1, 2))

    def target(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """Return the patches to predict, (B, M, P), in fp32 also under autocast.

        Args:
            pixels: (B, 3, H, W).
            indices: (B, M) row-major indices of patches.
        """
        patches = flat_patches(pixels.float(), self.encoder.patch, indices)
        if not self.norm_pixels:
            return patches
        mean, std = patch_statistics(patches)
        return (patches - mean) / std


class PatchStatistics(NamedTuple):
    """Mean and standard deviation of each patch, (B, M, 1)."""

    mean: Tensor
    std: Tensor


def patch_statistics(patches: Tensor) -> PatchStatistics:
    """Return the statistics that targets are normalised with; the variance is unbiased.

    Args:
        patches: (B, M, P).
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return PatchStatistics(mean, (variance + EPSILON).sqrt())


def flat_patches(pixels: Tensor, patch: int, indices: Tensor) -> Tensor:
    """Return patches of images, (B, M, P) flattened as row, column, channel.

    Args:
        pixels: (B, 3, H, W).
        patch: side of a patch [px].
        indices: (B, M) row-major indices of patches.
    """
    return patches_of(pixels, patch, indices).permute(0, 1, 3, 4, 2).flatten(2)


def images_of(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put patches back into images.

    Args:
        patches: (B, N, P) flattened as row, column, channel.
        grid: rows and columns.

    Returns:
        (B, 3, H, W).
    """
    rows, columns = grid
    size = round((patches.shape[2] / 3) ** 0.5)
    cells = patches.view(len(patches), rows, columns, size, size, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, rows * size, columns * size)

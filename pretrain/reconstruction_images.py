"""Images of a masked autoencoder's input, masked input and prediction.

Shapes: B images, N patches, V visible and M hidden ones, P numbers of a patch.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from .image_grid import draw_grid
from .mae import PatchStatistics, flat_patches, images_of, patch_statistics
from .masking import PatchMask


def true_statistics(pixels: Tensor, mask: PatchMask) -> PatchStatistics:
    """Return each patch's own statistics; those of hidden patches leak part of the target."""
    return patch_statistics(_patches(pixels, mask))


def visible_statistics(pixels: Tensor, mask: PatchMask) -> PatchStatistics:
    """Return statistics with those of hidden patches replaced by the visible ones' mean, weighted by 1 / distance^2."""
    truth = true_statistics(pixels, mask)
    rows, columns = mask.grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float().to(pixels.device)  # (N, 2)
    distance = torch.cdist(places.unsqueeze(0), places[mask.visible])  # (B, N, V)
    weights = 1 / distance.clamp(min=0.1).square()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    rows_of = mask.visible.unsqueeze(-1)
    guess = PatchStatistics(*(weights @ each.gather(1, rows_of) for each in truth))
    hidden = mask.is_hidden().unsqueeze(-1)
    return PatchStatistics(*(torch.where(hidden, ours, theirs) for ours, theirs in zip(guess, truth, strict=True)))


def draw_reconstructions(path: Path, pixels: Tensor, prediction: Tensor, mask: PatchMask, normed: bool) -> None:
    """Write an image with one column per image and the rows input, masked input, prediction.

    Where targets were normalised patch by patch, there are two prediction rows: with statistics interpolated from the
    visible patches, and with the true ones. The latter is labelled, since true statistics leak brightness and contrast.

    Args:
        path: a PNG.
        pixels: (B, 3, H, W) as `preprocess` returns them.
        prediction: (B, N, P).
        normed: whether the prediction is normalised patch by patch.
    """
    hidden = mask.is_hidden().unsqueeze(-1)
    patches = _patches(pixels, mask)

    def filled(values: Tensor) -> Tensor:
        return images_of(torch.where(hidden, values, patches), mask.grid)

    rows = {"input": pixels, "visible\npatches": images_of(patches.masked_fill(hidden, 0.0), mask.grid)}
    if normed:
        guess, truth = visible_statistics(pixels, mask), true_statistics(pixels, mask)
        rows["prediction"] = filled(prediction * guess.std + guess.mean)
        rows["with true patch\nstatistics\n(leak brightness\nof the target)"] = filled(
            prediction * truth.std + truth.mean
        )
    else:
        rows["prediction"] = filled(prediction)
    draw_grid(path, {name: _displayable(values).numpy() for name, values in rows.items()}, side=1.5)


def _patches(pixels: Tensor, mask: PatchMask) -> Tensor:
    """Return all patches, (B, N, P)."""
    rows, columns = mask.grid
    every = torch.arange(rows * columns, device=pixels.device).expand(len(pixels), -1)
    return flat_patches(pixels, pixels.shape[2] // rows, every)


def _displayable(pixels: Tensor) -> Tensor:
    """Return (B, H, W, 3) uint8."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)

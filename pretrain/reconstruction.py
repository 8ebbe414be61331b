"""The objective of pre-training: predict hidden patches."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoders.load import save_encoder
from ..encoders.pixio import Tokens
from ..encoders.preprocessing import Preprocessing, preprocess
from ..training.distributed import unwrapped
from .cost import training_flops
from .loader import Batch
from .mae import MaskedAutoencoder
from .masking import MaskShape, PatchMask
from .monitor import Matrix, Monitor
from .networks import blank_autoencoder, save_autoencoder
from .objective import Objective
from .reconstruction_images import draw_reconstructions


class MaskedReconstruction(Objective):
    """Masked reconstruction.

    Args:
        model: freshly initialised, the same in every process.
        shape: of the masks.
        cls_only: share of the images that are decoded from their class tokens only.
    """

    name = "pretrain"

    def __init__(self, model: MaskedAutoencoder, shape: MaskShape, cls_only: float = 0.0) -> None:
        self.model, self.shape, self.cls_only = model, shape, cls_only
        self.wrapped_modules = [model.encoder, model.decoder]
        encoder, decoder = ([*module.blocks] for module in self.wrapped_modules)
        self.checkpointable_blocks = {"none": [], "decoder": decoder, "all": encoder + decoder}
        self.arguments = model.arguments
        self.size, self.mask_blocks = shape.grid[0] * model.encoder.patch, shape.blocks
        self.flops = training_flops(model, shape)

    def losses(self, trained: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        hiding = self._masks(batch.mask_noise.to(device, non_blocking=True))
        return {"pixels": trained(self._pixels(batch.images, device), *hiding).loss}

    def parts(self, trained: nn.Module) -> list[nn.Module]:
        return [trained]

    def measure(self, trained: nn.Module, monitor: Monitor) -> tuple[dict[str, float], Matrix]:
        def losses(images: Tensor, noise: Tensor) -> dict[str, Tensor]:
            return {"valid/loss": trained(self._pixels(images, images.device), *self._masks(noise)).per_image_loss}

        def encode(images: Tensor) -> Tokens:
            return unwrapped(trained).encoder(self._pixels(images, images.device))

        numbers = monitor.mean(losses)  # first, since FSDP takes the first module that runs as its root
        features, cosine = monitor.features(encode)
        return numbers | features, cosine

    def visualize(self, trained: nn.Module, monitor: Monitor, path: Path, first: bool) -> None:
        images, noise = monitor.shown
        pixels, (mask, cls_only) = self._pixels(images, images.device), self._masks(noise)
        prediction = trained(pixels, mask, cls_only).prediction
        if first:
            mask = mask.to(torch.device("cpu"))
            draw_reconstructions(path, pixels.cpu(), prediction.float().cpu(), mask, unwrapped(trained).norm_pixels)

    def save(self, whole: nn.Module, out: Path, settings: dict[str, Any], step: int) -> None:
        model = cast(MaskedAutoencoder, whole)
        save_autoencoder(out / "autoencoder.safetensors", model, settings, step)
        save_encoder(model.encoder, out / "encoder.safetensors", settings, step)

    def blank(self) -> nn.Module:
        return blank_autoencoder(self.arguments)

    def _masks(self, noise: Tensor) -> tuple[PatchMask, Tensor | None]:
        """Return the masks, and which images are decoded from their class tokens only, (B,) bool.

        Both are functions of each image's own noise.
        """
        cls_only = noise.sum(dim=1) % 1 < self.cls_only if self.cls_only else None
        return PatchMask.from_noise(noise, self.shape), cls_only

    def _pixels(self, images: Tensor, device: torch.device) -> Tensor:
        return preprocess(images.to(device, non_blocking=True), Preprocessing(size=(self.size, self.size)))

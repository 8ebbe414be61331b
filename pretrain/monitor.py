"""What is measured beside training, on images it never sees: loss on fixed masks, what features are like, pictures.

Shapes: F held-out images, K class tokens, D width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError
from ..hardware import autocast
from ..preprocessing import Preprocessing, preprocess
from ..schemas import Pretrain
from ..token_statistics import class_token_cosine, effective_rank, mean_off_diagonal
from .images.image_set import ImageSet
from .loader import held_out_batch
from .masking import MaskShape, PatchMask
from .order import Order, Split
from .parallel import World, unwrapped
from .probes.knn import knn_accuracy
from .probes.thumbnails import thumbnails
from .reconstruct import draw_reconstructions

BANK = 1000  # labelled training images that vote for the held-out ones
SHOWN = 8  # images of a picture


class _Features(NamedTuple):
    cls: Tensor  # (F, K, D)
    pooled: Tensor  # (F, D)


class Monitor:
    """Measures a model now and then; every process takes part, with its slice of the images.

    Args:
        split: says which images are held out, and which are trained on and may vote in the k-NN.
    """

    def __init__(
        self, images: ImageSet, split: Split, shape: MaskShape, settings: Pretrain, precision: str, world: World
    ) -> None:
        self._shape, self._precision, self._world = shape, precision, world
        self._chunk = min(settings.micro_batch or 64, 64)
        self._size = (settings.image_size, settings.image_size)
        held = held_out_batch(images, split, seed=settings.seed, size=self._size, blocks=shape.blocks)
        self.unreadable = held.unreadable
        self._shown = (held.images[:SHOWN], held.mask_noise[:SHOWN])
        self._count = len(held.images)  # F
        each = -(-self._count // world.size)  # every process takes as many; the last may repeat the first
        mine = torch.arange(world.rank * each, (world.rank + 1) * each) % self._count
        self._images, self._noise = held.images[mine], held.mask_noise[mine]
        self._thumbnails = thumbnails(held.images)
        self._bank: tuple[Tensor, Tensor, Tensor] | None = None  # images, their labels, labels of the held-out
        if images.labels is not None:
            self._bank = self._labelled(images, split, settings, held.indices)
        self.cosine: list[list[float]] = []

    def _labelled(
        self, images: ImageSet, split: Split, settings: Pretrain, held: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the bank of the k-NN, or None where too few images have labels."""
        assert images.labels is not None
        chosen = split.index(Order(split.training, settings.seed).at(np.arange(min(BANK, split.training))))
        chosen = np.sort(chosen[images.labels[chosen] >= 0])
        labels = torch.from_numpy(np.asarray(images.labels[held.numpy()])).long()
        if len(chosen) < 2 or not bool((labels >= 0).all()):
            return None
        voters = Split(len(images), held_out=np.zeros(0, np.int64), evaluated=chosen)
        try:
            bank = held_out_batch(images, voters, seed=settings.seed, size=self._size, blocks=self._shape.blocks)
        except DataError:
            return None
        return bank.images, torch.from_numpy(np.asarray(images.labels[bank.indices.numpy()])).long(), labels

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on fixed masks, and what features are like: cosine of class tokens, rank, k-NN accuracy."""
        training = model.training
        model.eval()
        losses = []
        with torch.compiler.set_stance("force_eager"):  # other batch sizes than training's are not worth compiling
            for pixels, noise in self._chunks(self._images, self._noise):
                with autocast(self._world.device, self._precision):
                    losses.append(model(pixels, PatchMask.from_noise(noise, self._shape)).per_image_loss)
            features = self._encode(model, self._images)
        features = _Features(*(self._world.gathered(part)[: self._count] for part in features))
        cls = features.cls.cpu().numpy()
        matrix = class_token_cosine(cls)
        self.cosine = matrix.round(4).tolist()
        numbers = {
            "valid/loss": float(self._world.gathered(torch.cat(losses))[: self._count].mean()),
            "features/class_token_cosine": mean_off_diagonal(matrix),
            "features/effective_rank": effective_rank(cls.mean(axis=1)),
        }
        if self._bank is not None:
            numbers |= self._knn(model, features, *self._bank)
        model.train(training)
        return numbers

    def _knn(
        self, model: nn.Module, features: _Features, images: Tensor, bank_labels: Tensor, labels: Tensor
    ) -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):
            bank, device = self._encode(model, images), self._world.device
        bank_labels, labels = bank_labels.to(device), labels.to(device)
        pairs = {
            "class_tokens/knn_accuracy": (bank.cls.mean(dim=1), features.cls.mean(dim=1)),
            "patches/knn_accuracy": (bank.pooled, features.pooled),
            "pixels/knn_accuracy": (thumbnails(images).to(device), self._thumbnails.to(device)),
        }
        return {name: knn_accuracy(voters, bank_labels, asked, labels) for name, (voters, asked) in pairs.items()}

    def _encode(self, model: nn.Module, images: Tensor) -> _Features:
        encoder = unwrapped(model).encoder
        parts = []
        for pixels, _ in self._chunks(images, images):
            with autocast(self._world.device, self._precision):
                tokens = encoder(pixels)
            parts.append(_Features(tokens.cls.float(), tokens.patches.float().mean(dim=1)))
        return _Features(torch.cat([each.cls for each in parts]), torch.cat([each.pooled for each in parts]))

    def _chunks(self, images: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part, other in zip(images.split(self._chunk), others.split(self._chunk), strict=True):
            pixels = preprocess(part.to(self._world.device), Preprocessing(size=self._size))
            yield pixels, other.to(self._world.device)

    @torch.no_grad()
    def picture(self, model: nn.Module, path: Path) -> None:
        """Draw what the model makes of a few held-out images."""
        training = model.training
        model.eval()
        images, noise = (each.to(self._world.device) for each in self._shown)
        pixels, mask = preprocess(images, Preprocessing(size=self._size)), PatchMask.from_noise(noise, self._shape)
        with torch.compiler.set_stance("force_eager"), autocast(self._world.device, self._precision):
            prediction = model(pixels, mask).prediction
        if self._world.first:
            normed = unwrapped(model).norm_pixels
            draw_reconstructions(path, pixels.cpu(), prediction.float().cpu(), mask.to(torch.device("cpu")), normed)
        model.train(training)

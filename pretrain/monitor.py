"""Metrics on validation images during training: mean losses, and statistics of the encoder's features.

Shapes: F validation images, K class tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..encoders.pixio import Tokens
from ..encoders.token_statistics import class_token_cosine, effective_rank, mean_off_diagonal
from ..errors import DataError
from ..hardware import autocast
from ..training.distributed import World
from .images.image_set import ImageSet
from .loader import SampleShape, validation_batch
from .order import Order, Split
from .probes.knn import knn_accuracy
from .probes.thumbnails import thumbnails

BANK = 1000  # labelled training images of the k-NN classifier
SHOWN = 8  # images of a visualization
Matrix = list[list[float]]


class _Features(NamedTuple):
    cls: Tensor  # (F, K, D)
    pooled: Tensor  # (F, D)


class Monitor:
    """Validation images and metrics on them. Every process evaluates its own slice.

    Args:
        images: the set.
        split: which images are for validation, and which are trained on and may be in the k-NN bank.
        shape: of a sample.
        seed: of mask noise and bank.
        chunk: images of a forward pass.
        precision: "fp32" or "bf16".
        world: the processes.
    """

    def __init__(
        self,
        images: ImageSet,
        split: Split,
        shape: SampleShape,
        *,
        seed: int,
        chunk: int,
        precision: str,
        world: World,
    ) -> None:
        self._precision, self._world, self._chunk = precision, world, chunk
        self._shape, self._seed = shape, seed
        held = validation_batch(images, split, shape, seed=seed)
        self.unreadable = held.unreadable
        self._shown = (held.images[:SHOWN], held.mask_noise[:SHOWN])
        self._count = len(held.images)  # F
        each = -(-self._count // world.size)  # equal slices; the last may repeat the first images
        mine = torch.arange(world.rank * each, (world.rank + 1) * each) % self._count
        self._images, self._noise = held.images[mine], held.mask_noise[mine]
        self._thumbnails = thumbnails(held.images)
        # images, their labels, labels of the validation images
        self._bank: tuple[Tensor, Tensor, Tensor] | None = self._labelled(images, split, held.indices)

    def _labelled(self, images: ImageSet, split: Split, held: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the bank of the k-NN classifier, or None where too few images have labels."""
        if images.labels is None:
            return None
        chosen = split.index(Order(split.training, self._seed).at(np.arange(min(BANK, split.training))))
        chosen = np.sort(chosen[images.labels[chosen] >= 0])
        labels = torch.from_numpy(np.asarray(images.labels[held.numpy()])).long()
        if len(chosen) < 2 or not bool((labels >= 0).all()):
            return None
        voters = Split(len(images), val_images=np.zeros(0, np.int64), evaluated=chosen)
        try:
            bank = validation_batch(images, voters, self._shape, seed=self._seed)
        except DataError:
            return None
        return bank.images, torch.from_numpy(np.asarray(images.labels[bank.indices.numpy()])).long(), labels

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """The images of visualizations, (8, S, S, 3) uint8, and their mask noise, on the device."""
        images, noise = self._shown
        return images.to(self._world.device), noise.to(self._world.device)

    @torch.no_grad()
    def mean(self, values: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> dict[str, float]:
        """Return means over the validation images.

        Args:
            values: takes images (B, S, S, 3) uint8 and mask noise (B, M); returns named numbers, (B,) each.
        """
        parts: dict[str, list[Tensor]] = {}
        with self._eager():
            for images, noise in zip(self._images.split(self._chunk), self._noise.split(self._chunk), strict=True):
                for name, each in values(images.to(self._world.device), noise.to(self._world.device)).items():
                    parts.setdefault(name, []).append(each.float())
        return {
            name: float(self._world.gathered(torch.cat(each))[: self._count].mean()) for name, each in parts.items()
        }

    @torch.no_grad()
    def features(self, encode: Callable[[Tensor], Tokens], name: str = "") -> tuple[dict[str, float], Matrix]:
        """Return statistics of an encoder's features, and the cosine between its class tokens, (K, K).

        Args:
            encode: takes images (B, S, S, 3) uint8, returns normed tokens.
            name: of the encoder, part of the metrics' names; "" for the only one.
        """
        prefix = f"{name}_" if name else ""
        ours = self._encode(encode, self._images)
        features = _Features(*(self._world.gathered(part)[: self._count] for part in ours))
        cls = features.cls.cpu().numpy()
        matrix = class_token_cosine(cls)
        numbers = {
            f"features/{prefix}class_token_cosine": mean_off_diagonal(matrix),
            f"features/{prefix}effective_rank": effective_rank(cls.mean(axis=1)),
        }
        if self._bank is not None:
            numbers |= self._knn(encode, features, prefix, *self._bank)
        return numbers, matrix.round(4).tolist()

    def _knn(
        self,
        encode: Callable[[Tensor], Tokens],
        features: _Features,
        prefix: str,
        images: Tensor,
        bank_labels: Tensor,
        labels: Tensor,
    ) -> dict[str, float]:
        bank, device = self._encode(encode, images), self._world.device
        bank_labels, labels = bank_labels.to(device), labels.to(device)
        pairs = {
            f"class_tokens/{prefix}knn_accuracy": (bank.cls.mean(dim=1), features.cls.mean(dim=1)),
            f"patches/{prefix}knn_accuracy": (bank.pooled, features.pooled),
            "pixels/knn_accuracy": (thumbnails(images).to(device), self._thumbnails.to(device)),
        }
        return {name: knn_accuracy(voters, bank_labels, asked, labels) for name, (voters, asked) in pairs.items()}

    def _encode(self, encode: Callable[[Tensor], Tokens], images: Tensor) -> _Features:
        parts = []
        with self._eager():
            for chunk in images.split(self._chunk):
                tokens = encode(chunk.to(self._world.device))
                parts.append(_Features(tokens.cls.float(), tokens.patches.float().mean(dim=1)))
        return _Features(torch.cat([each.cls for each in parts]), torch.cat([each.pooled for each in parts]))

    @contextmanager
    def _eager(self) -> Iterator[None]:
        """Compute in the run's precision, without compiling for batch sizes other than training's."""
        with torch.compiler.set_stance("force_eager"), autocast(self._world.device, self._precision):
            yield

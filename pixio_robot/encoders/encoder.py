"""What an encoder is: the contract of its network, and `Backbone`, which everything else in the package uses.

To add an encoder, subclass `EncoderNetwork`, write a loader ``load(text) -> LoadedEncoder``, and register the loader
as an entry point of the group ``pixio_robot.encoders``. With the entry point ``mine = "package.module:load"``,
``encoder=mine:TEXT`` calls ``load("TEXT")``.

Shapes: B batch, K class tokens, N patches, D width.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import BadInput, CheckpointError
from .preprocessing import Preprocessing, preprocess


class Tokens(NamedTuple):
    """What an encoder returns."""

    cls: Tensor  # (B, K, D), K = 8 for Pixio
    patches: Tensor  # (B, N, D), row-major over the grid; (B, V, D) when only V patches were visible


class TokenShape(NamedTuple):
    """The shape of the tokens of one image, known before the encoder runs."""

    cls: int  # K
    grid: tuple[int, int]  # rows and columns of patches
    dim: int  # D


class EncoderNetwork(nn.Module, ABC):
    """A network that turns pixels into tokens.

    A subclass must define `forward` and `token_shape`. The other members are optional capabilities. A network declares
    the ones it has, and callers check the declaration, not the class.

    Attributes:
        arguments: what rebuilds the network. They are part of the fingerprint.
        can_finetune: the network can be trained together with a policy.
        takes_patch_residual: `forward` accepts ``patch_residual``, (B, N, D), added to the embedded patches.
        block_count: number of blocks whose tokens `block_tokens` returns; 0 if it returns none.
    """

    can_finetune: ClassVar[bool] = False
    takes_patch_residual: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    @abstractmethod
    def forward(self, pixels: Tensor, *, normed: bool = True) -> Tokens:
        """Encode (B, 3, H, W) pixels; raw tokens, before the network's final norm, unless `normed`."""

    @abstractmethod
    def token_shape(self, size: tuple[int, int]) -> TokenShape:
        """Return the token shape of an image of `size` (height, width) [px]."""

    @property
    def block_count(self) -> int:
        return 0

    def block_tokens(self, pixels: Tensor, blocks: Sequence[int], *, normed: bool = True) -> list[Tokens]:
        """Return the tokens of several blocks.

        Args:
            pixels: (B, 3, H, W).
            blocks: 0-based block indices; the result has one entry for each, in this order.
            normed: apply the final norm to each.

        Raises:
            BadInput: if a block does not exist.
        """
        raise BadInput(f"{type(self).__name__} returns the tokens of its last block only; use the linear head")

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the final norm to raw tokens of `block_tokens`, (B, ..., D)."""
        raise BadInput(f"{type(self).__name__} has no final norm to apply to single blocks")

    def bake_positions(self, rows: int, columns: int) -> None:
        """Resize position tables once, for a network that will only see this grid again. Exported programs call it."""

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Refuse images of a size that the network cannot take. The default encodes one black image.

        Args:
            size: height, width [px].
            name: of the encoder, for the message.

        Raises:
            BadInput, CheckpointError: if the network cannot take it.
        """
        self.eval()
        try:
            self.token_shape(size)
        except Exception as error:  # the network may belong to any library, each with its own exceptions
            reason = f"{type(error).__name__}: {error}"
            asked = "x".join(map(str, size))
            raise CheckpointError(f"{name!r} returns no tokens for images of {asked} px ({reason})") from error


class LoadedEncoder(NamedTuple):
    """What the loader of an encoder returns."""

    network: EncoderNetwork
    preprocessing: Preprocessing
    weights: str = "trained"  # or "random"


class Backbone(nn.Module):
    """An encoder with its preprocessing, token shape and fingerprint.

    A frozen backbone (no parameter requires a gradient) stays in evaluation mode when a module around it is set to
    training. To train it: ``backbone.requires_grad_(True).train()``.

    Args:
        network: what encodes.
        name: the name that `load_encoder` was given.
        preprocessing: how images become the pixels that the network was trained on.
        weights: "trained" or "random".
    """

    def __init__(
        self, network: EncoderNetwork, name: str, preprocessing: Preprocessing, weights: str = "trained"
    ) -> None:
        super().__init__()
        self.network = network
        self.name, self.preprocessing, self.weights = name, preprocessing, weights
        self._token_shape: TokenShape | None = None
        self._fingerprint: tuple[Any, str] = (None, "")  # the state it was computed from, and the digest

    @property
    def token_shape(self) -> TokenShape:
        """The token shape of one preprocessed image."""
        if self._token_shape is None:
            self._token_shape = self.network.token_shape(self.preprocessing.size)
        return self._token_shape

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; a frozen backbone stays in evaluation mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def preprocess(self, images: Tensor) -> Tensor:
        """Turn (B, H, W, 3) uint8 images into pixels (B, 3, height, width)."""
        return preprocess(images, self.preprocessing)

    def forward(self, pixels: Tensor, normed: bool = True, patch_residual: Tensor | None = None) -> Tokens:
        """Encode pixels.

        Args:
            pixels: (B, 3, H, W), from `preprocess`.
            normed: apply the final norm; else raw tokens.
            patch_residual: (B, N, D), added to the embedded patches before the first block; None adds nothing.

        Raises:
            BadInput: if there is a `patch_residual` and the network takes none.
        """
        if patch_residual is None:
            return self.network(pixels, normed=normed)
        if not self.network.takes_patch_residual:
            raise BadInput(f"{self.name} takes no patch residual; use a Pixio encoder")
        return self.network(pixels, normed=normed, patch_residual=patch_residual)

    @torch.no_grad()
    def fingerprint(self) -> str:
        """Return the hex SHA-256 of the weights and the network's arguments, on any device and from any file.

        It identifies token caches. It is computed once for frozen weights; changed weights have another fingerprint.
        """
        state = sorted(self.network.state_dict().items())
        seen = tuple((name, tensor.data_ptr(), tensor._version, tensor.dtype) for name, tensor in state)
        trainable = any(parameter.requires_grad for parameter in self.network.parameters())
        if trainable or self._fingerprint[0] != seen:  # fused optimisers change weights without a new version
            arguments = dict(self.network.arguments)
            arguments.pop("drop_path", None)  # matters in training only
            digest = hashlib.sha256(repr(sorted(arguments.items())).encode())
            for name, tensor in state:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._fingerprint = (seen, digest.hexdigest())
        return self._fingerprint[1]

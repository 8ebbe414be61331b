"""Vision: from images and depth to tokens. The only module of this folder that handles encoders.

What is kept of one frame (`Vision.encode`: tokens of a frozen encoder, small images of a network that is trained end to
end, small depth) is cached for data sets and remembered for running episodes. `Vision.forward` makes tokens of it, with
gradients where something learns.

Shapes: B batch, U frames, T observation steps, K class tokens, N patches, D width, H, W image, S side of small images.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.token_cache import encode, tokens_of
from ..depth.encoding import depth_images, small_depth
from ..depth.estimator import DepthEstimator
from ..encoders.encoder import Backbone, TokenShape
from ..errors import BadInput
from .depth_inputs import PointView, depth_estimator, predicted
from .depth_networks import DepthPatches, PointNetwork
from .pixel_network import SIDE, PixelNetwork, downsample

PIXELS = "pixels"  # frames and tokens of the network that is trained end to end
DEPTH_FEATURE = "depth_feature"  # frames and tokens of the network for depth
_IN_MEMORY = 2 * 1024**3  # largest activations that are kept for the backward pass [bytes]
ACTIVATIONS_PER_INPUT = 25  # numbers that a block keeps for each of its input, about


@dataclass(frozen=True)
class VisionSpec:
    """What images and depth become; all that rebuilds a `Vision` beside its encoder and weights."""

    encoder: str = "none"  # "encoder", "cnn" (trained end to end) or "none"
    cameras: tuple[str, ...] = ()  # features that are encoded: images, and depth as images
    steps: int = 1  # T
    normed: bool = True
    kinds: tuple[str, ...] = ("cls",)  # of tokens that the policy observes
    precision: str = "fp32"
    tune: str = "frozen"
    depth: str = "none"  # none, patches, late, points or channels
    depth_key: str = "depth"  # of the camera whose depth is observed
    depth_code: tuple[str, float, float] = ("inverse", 0.25, 4.0)
    depth_points: int = 512
    frames: str = "flare"  # how a network for points fuses frames
    view: dict[str, Any] | None = None  # of points: arguments of `PointView`
    depth_head: tuple[str, str] | None = None  # file and SHA-256 of the depth estimator; None where depth is measured

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "VisionSpec":
        """Rebuild from `asdict` that went through JSON."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


class Vision(nn.Module):
    """Images and depth in, tokens out.

    Args:
        spec: what to do.
        backbone: the encoder of ``spec.encoder == "encoder"``. Frozen, it is no part of the state. Tuned, a copy of it
            is.

    Raises:
        BadInput: if the encoder is missing or cannot be tuned as asked.
    """

    def __init__(self, spec: VisionSpec, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.spec = spec
        if (spec.encoder == "encoder") != (backbone is not None):
            raise BadInput("a policy on an encoder needs this encoder, and only such a policy takes one")
        tuned = spec.tune != "frozen"
        if tuned and spec.depth == "patches":
            raise BadInput(
                f"observation.depth=patches adds depth to a frozen encoder, and training.tune={spec.tune} tunes it; "
                "use training.tune=frozen, or observation.depth=late or points"
            )
        self.backbone: Backbone | None = _tuned(backbone, spec.tune) if tuned else None
        self._frozen = _Shared(None if tuned else backbone)
        self.pixels = PixelNetwork(spec.steps, len(spec.cameras)) if spec.encoder == "cnn" else None
        self.depth: PixelNetwork | PointNetwork | None = None
        self.residual: DepthPatches | None = None
        if spec.depth == "late":
            self.depth = PixelNetwork(spec.steps, channels=2)
        elif spec.depth == "points":
            self.depth = PointNetwork(spec.steps, spec.frames)
        elif spec.depth == "patches":
            if backbone is None:
                raise BadInput("observation.depth=patches adds depth to an encoder's patches, and there is no encoder")
            self.residual = DepthPatches(backbone.token_shape.grid, backbone.token_shape.dim)
        self.view = None if spec.view is None else PointView.from_arguments(spec.view)
        self._estimator: DepthEstimator | None = None
        self.device = torch.device("cpu")

    @property
    def encoder(self) -> Backbone | None:
        """The encoder, frozen or tuned."""
        return self.backbone or self._frozen.backbone

    @property
    def trainable(self) -> bool:
        """Whether anything here learns; if not, tokens can be computed once for a whole data set."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def observes_images(self) -> bool:
        """Whether colour images are needed, also to predict depth."""
        return self.spec.encoder != "none" or self.spec.depth_head is not None

    @property
    def observes_depth(self) -> bool:
        """Whether measured depth is needed."""
        return self._depth_measured or any(key.startswith("depth") for key in self.spec.cameras)

    @property
    def _takes_depth(self) -> bool:
        return self.depth is not None or self.residual is not None

    @property
    def _depth_measured(self) -> bool:
        return self._takes_depth and self.spec.depth_head is None

    @property
    def keys(self) -> tuple[str, ...]:
        """The images and depth that an observation must hold."""
        keys = [*self.spec.cameras]
        if self.spec.depth_head is not None:
            keys.append(self.image_key)
        if self._depth_measured:
            keys.append(self.spec.depth_key)
        return tuple(dict.fromkeys(keys))

    @property
    def image_key(self) -> str:
        """The image of the camera whose depth is observed."""
        return "rgb" + self.spec.depth_key.removeprefix("depth")

    @property
    def token_shapes(self) -> dict[str, TokenShape]:
        """What `forward` gives, by name."""
        shapes: dict[str, TokenShape] = {}
        if self.pixels is not None:
            shapes[PIXELS] = PixelNetwork.tokens
        elif self.encoder is not None:
            shapes |= dict.fromkeys(self.spec.cameras, self.encoder.token_shape)
        if self.depth is not None:
            shapes[DEPTH_FEATURE] = self.depth.tokens
        return shapes

    def place(self, device: torch.device) -> "Vision":
        """Move this and the frozen encoder to a device."""
        self.device = device
        for each in (self._frozen.backbone, self._estimator):
            if each is not None:
                each.to(device)
        return self.to(device)

    def as_images(self, key: str, values: np.ndarray) -> np.ndarray:
        """Return a feature as images (B, H, W, 3) uint8: colour unchanged, depth as codes."""
        return depth_images(values, *self.spec.depth_code) if key.startswith("depth") else values

    def pixel_frames(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what the network that is trained end to end keeps of a frame, (B, S, S, 3 * cameras) uint8."""
        return np.concatenate([downsample(self.as_images(key, observation[key])) for key in self.spec.cameras], axis=-1)

    def depth_frames(self, depth: np.ndarray, world: np.ndarray | None = None) -> np.ndarray:
        """Return what is kept of depth (B, H, W) [m]: (B, *size, 2) uint8, or clouds (B, n, 4) float32.

        Args:
            depth: 0 where invalid.
            world: (B, H, W, 3) the pixels' points in the world [m], of another camera than the training's.
        """
        if self.view is not None:
            return self.view.clouds(depth, self.spec.depth_points, world)
        size = (SIDE, SIDE) if self.residual is None else self.residual.size
        return small_depth(depth, size, *self.spec.depth_code)

    def estimate_depth(self, images: np.ndarray) -> np.ndarray:
        """Return predicted depth of images (B, H, W, 3), (B, H, W) float32 [m], as training sees it."""
        return predicted(self.load_depth_head(), images).astype(np.float32)

    @torch.inference_mode(False)
    def load_depth_head(self) -> DepthEstimator:
        """Return the depth estimator, loaded on first use.

        Raises:
            BadInput: if the policy observes measured depth.
            CheckpointError: if the file is missing or is not the one of the training.
        """
        if self.spec.depth_head is None:
            raise BadInput("this policy observes measured depth and has no depth head")
        if self._estimator is None:
            self._estimator = depth_estimator(*self.spec.depth_head).to(self.device)
        return self._estimator

    @torch.inference_mode()
    def encode(self, observation: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Return what is kept of one frame of each of B episodes, (B, ...) each, one encoder call a camera.

        Args:
            observation: (B, ...) arrays; ``points`` (B, H, W, 3) [m] replaces the training camera's geometry.
        """
        kept: dict[str, Tensor] = {}
        if self._takes_depth:
            if self.spec.depth_head is None:
                depth = observation[self.spec.depth_key]
            else:
                depth = self.estimate_depth(observation[self.image_key])
            frames = self.depth_frames(depth, observation.get("points"))
            kept[DEPTH_FEATURE] = torch.from_numpy(frames).to(self.device)
        if self.pixels is not None:
            kept[PIXELS] = torch.from_numpy(self.pixel_frames(observation)).to(self.device)
            return kept
        if self.encoder is None:
            return kept
        for number, key in enumerate(self.spec.cameras):
            images = torch.from_numpy(self.as_images(key, observation[key])).to(self.device)
            added = self.residual(kept[DEPTH_FEATURE]) if self.residual is not None and number == 0 else None
            cls, patches = encode(self.encoder, images, self.spec.normed, self.spec.precision, added)
            kept |= {f"{key}.{kind}": {"cls": cls, "patches": patches}[kind] for kind in self.spec.kinds}
        if self.residual is not None:
            del kept[DEPTH_FEATURE]
        return kept

    def forward(self, frames: Mapping[str, Tensor], index: Tensor | None = None) -> dict[str, Tensor]:
        """Return tokens: "<name>.cls" (B, T, K, D), "<name>.patches" (B, T, N, D).

        Args:
            frames: what `encode` gives, with T observation steps, (B, T, ...). Instead of a camera's tokens there may
                be its images (U, H, W, 3) uint8, or its depth (U, H, W) [m] where that is encoded as images; they are
                encoded with gradients. Small depth and clouds are then those of these frames, (U, ...).
            index: (B, T), which of the U frames each step is.
        """
        tokens = {name: values for name, values in frames.items() if name.endswith((".cls", ".patches"))}
        if self.pixels is not None:
            tokens[f"{PIXELS}.cls"] = self.pixels(frames[PIXELS])
        for number, key in enumerate(self.spec.cameras):
            if key in frames and index is not None:
                added = self.residual(frames[DEPTH_FEATURE]) if self.residual is not None and number == 0 else None
                tokens |= self._encode_with_gradients(key, frames[key], index, added)
        if self.depth is not None:
            depth = frames[DEPTH_FEATURE]
            tokens[f"{DEPTH_FEATURE}.cls"] = self.depth(depth if index is None else depth[index])
        return tokens

    def _encode_with_gradients(
        self, key: str, images: Tensor, index: Tensor, added: Tensor | None
    ) -> dict[str, Tensor]:
        encoder = self.encoder
        if encoder is None:
            raise BadInput(f"there is no encoder for the images of {key}")
        if key.startswith("depth"):
            images = torch.from_numpy(self.as_images(key, images.cpu().numpy())).to(images.device)
        blocks, shape = _blocks(encoder), encoder.token_shape
        numbers = len(images) * shape.grid[0] * shape.grid[1] * shape.dim
        kept = 4 * ACTIVATIONS_PER_INPUT * numbers * len(blocks)
        for block in blocks:
            block.activation_checkpointing = torch.is_grad_enabled() and kept > _IN_MEMORY
        seen = tokens_of(encoder, images, self.spec.normed, self.spec.precision, added)
        found = {"cls": seen.cls, "patches": seen.patches}
        return {f"{key}.{kind}": found[kind].float()[index] for kind in self.spec.kinds}


class _Shared:
    """Holds a frozen encoder: its weights are no part of the state of what holds it, and copies share them."""

    def __init__(self, backbone: Backbone | None) -> None:
        self.backbone = backbone

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


def _tuned(backbone: Backbone | None, tune: str) -> Backbone:
    """Return a copy of an encoder whose last blocks, or all of which, learn.

    Raises:
        BadInput: unless `tune` is frozen, last:N or full, and the encoder has blocks.
    """
    if backbone is None or not backbone.network.can_finetune:
        raise BadInput(f"training.tune={tune} needs an encoder that can be finetuned, such as Pixio's")
    word, _, number = tune.partition(":")
    backbone = copy.deepcopy(backbone)
    blocks = _blocks(backbone)
    if tune == "full":
        return backbone.requires_grad_(True)
    if word != "last" or not number.isdigit() or not 1 <= int(number) <= len(blocks):
        raise BadInput(f"training.tune={tune}: give frozen, full, or last:N with N from 1 to {len(blocks)}")
    backbone.requires_grad_(False)
    norm = getattr(backbone.network, "norm", None)
    for part in (*blocks[-int(number) :], *([] if norm is None else [norm])):
        part.requires_grad_(True)
    return backbone


def _blocks(backbone: Backbone) -> list[Any]:
    """Return the transformer blocks of an encoder, where it has some."""
    return list(getattr(backbone.network, "blocks", ()))


def spec_json(spec: VisionSpec) -> dict[str, Any]:
    """Return a spec ready for JSON; `VisionSpec.from_json` rebuilds it."""
    return asdict(spec)

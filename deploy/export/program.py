"""A policy and its encoder as one program: images, depth and proprioception in, actions out.

What is kept of earlier frames goes in and comes out, so that each frame is encoded once: the output ``tokens`` of one
call is in the input ``tokens_history`` of the next. `Runtime` does that.

Shapes: B batch, T frames of history, K class tokens, N patches, D width, P proprioception, C chunk, A action.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.robomimic import depth_key
from ...encoders.load import Backbone
from ...errors import BadInput
from ...policies.pixel_network import SIDE
from ...policies.visuomotor import LoadedPolicy
from ..manifest import STARTS, HistorySpec, TensorSpec
from .pixels import DepthImages, Pixels, SmallDepth, SmallImages


class Program(nn.Module):
    """What is exported: a module of positional inputs and outputs that have names."""

    observation: list[TensorSpec]
    memory: list[HistorySpec]
    outputs: list[TensorSpec]

    @property
    def inputs(self) -> list[TensorSpec]:
        """All inputs in their order."""
        kept = [each for each in self.memory if each.frames > 1]
        starts = [TensorSpec(STARTS, (), "bool")] if kept else []
        return [*self.observation, *starts, *(each.history for each in kept)]

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes and types."""
        generator = np.random.default_rng(0)
        values = []
        for port in self.inputs:
            drawn = generator.uniform(0, 255 if port.dtype == "uint8" else 1, (batch, *port.shape))
            values.append(torch.from_numpy(drawn.astype(port.dtype)))
        return tuple(values)


class EncoderProgram(Program):
    """An encoder alone: ``rgb`` in, ``cls`` and ``patches`` out.

    Args:
        backbone: the encoder.
        image_size: side of the images [px].
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.tokens = TokenStage(backbone, image_size, normed=True)
        shape = backbone.token_shape
        self.observation, self.memory = [_image("rgb", image_size)], []
        self.outputs = [
            TensorSpec("cls", (shape.cls, shape.dim), "float32", "class tokens after the final norm"),
            TensorSpec("patches", (shape.grid[0] * shape.grid[1], shape.dim), "float32", "patch tokens, row by row"),
        ]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.tokens(values[0])


class TokenStage(nn.Module):
    """Images (B, H, W, 3), whole grey levels of any type, to class and patch tokens in float32.

    The position table is resized once, here.
    """

    def __init__(self, backbone: Backbone, image_size: int, normed: bool) -> None:
        super().__init__()
        self.pixels = Pixels(backbone.preprocessing, (image_size, image_size))
        self.network, self.normed = copy.deepcopy(backbone.network).cpu(), normed
        self.network.bake_positions(*backbone.token_shape.grid)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cls, patches = self.network(self.pixels(images), normed=self.normed)
        return cls.float(), patches.float()


class PolicyProgram(Program):
    """A policy with its encoder.

    Args:
        loaded: the policy.
        backbone: its encoder; None for a policy without one.
    """

    def __init__(self, loaded: LoadedPolicy, backbone: Backbone | None) -> None:
        super().__init__()
        self.policy = copy.deepcopy(loaded.policy).cpu().eval()
        fold_norms(self.policy)
        policy, size = self.policy, loaded.request.image_size
        self.sees = policy.pixels is not None or backbone is not None
        embedder, settings = policy.embedder, policy.embedder.settings
        code = (settings.depth_code, settings.depth_range[0], settings.depth_range[1])
        self.stage: nn.Module | None = None
        self.depth_images: DepthImages | None = None
        self.small_depth: SmallDepth | None = None
        self.observation, self.memory = [], []
        if self.sees:
            if backbone is None:
                self.stage = SmallImages((size, size), SIDE)
                seen: tuple[int, ...] = (SIDE, SIDE, 3 * len(policy.images))
                self.memory.append(HistorySpec("images", policy.history, seen))
            else:
                self.stage = TokenStage(backbone, size, settings.normed)
                shape = backbone.token_shape
                count = shape.grid[0] * shape.grid[1] if embedder.needs_patches else shape.cls
                self.memory.append(HistorySpec("tokens", policy.history, (count, shape.dim * len(policy.images))))
            if any(key.startswith("depth") for key in policy.images):
                self.depth_images = DepthImages(*code)
            self.observation += [_image(key, size) for key in policy.images]
        if policy.depth is not None:
            self.small_depth = SmallDepth((size, size), SIDE, *code)
            self.memory.append(HistorySpec("small_depth", policy.depth.frames, (SIDE, SIDE, 2)))
            self.observation.append(_image(depth_key(policy.images[0]), size))
        if embedder.proprio_dim:
            what = "known state of the task" if policy.felt == "state" else "what the robot feels, as in training"
            self.observation.append(TensorSpec(policy.felt, (embedder.proprio_dim,), "float32", what))
        with torch.no_grad():
            chunk = self(*self.example(1))[0].shape[1]
        self.outputs = [TensorSpec("action", (chunk, policy.actions), "float32", "within [-1, 1], as in training")]
        self.outputs += [TensorSpec(each.name, each.shape, "float32") for each in self.memory]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = {port.name: value for port, value in zip(self.inputs, values, strict=True)}
        newest = []
        tokens = depth = None
        if self.sees:
            newest.append(torch.cat([self._view(key, given[key]) for key in self.policy.images], dim=-1))
            tokens = self._remembered(self.memory[0], newest[0], given)
        if self.small_depth is not None:
            newest.append(self.small_depth(given[depth_key(self.policy.images[0])]))
            depth = self._remembered(self.memory[-1], newest[-1], given)
        actions = self.policy(tokens, given.get(self.policy.felt), depth).clamp(-1, 1)
        return actions.reshape(actions.shape[0], -1, self.policy.actions), *newest

    def _view(self, key: str, values: Tensor) -> Tensor:
        """Return what is kept of a camera's image."""
        if key.startswith("depth"):
            assert self.depth_images is not None
            values = self.depth_images(values)
        assert self.stage is not None
        if isinstance(self.stage, SmallImages):
            return self.stage(values)
        cls, patches = self.stage(values)
        kept = patches if self.policy.embedder.needs_patches else cls
        return kept.half().float()  # as the cache stores them

    def _remembered(self, memory: HistorySpec, newest: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Return (B, T, ...), oldest first; where an episode starts its first frame is repeated."""
        frame = newest[:, None]
        if memory.frames == 1:
            return frame
        past = given[memory.history.name]
        starts = given[STARTS].view(-1, *[1] * newest.ndim)
        return torch.cat([torch.where(starts, frame.expand_as(past), past), frame], dim=1)


class Affine(nn.Module):
    """What a batch normalisation is after training: a scale and a bias for each number."""

    scale: Tensor
    bias: Tensor

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        bias = -norm.running_mean * scale
        if norm.affine:
            scale, bias = scale * norm.weight, bias * norm.weight + norm.bias
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.bias


def fold_norms(module: nn.Module) -> None:
    """Replace every `BatchNorm1d` inside a module by its `Affine`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            setattr(module, name, Affine(child))
        else:
            fold_norms(child)


def _image(key: str, size: int) -> TensorSpec:
    if key.startswith("depth"):
        return TensorSpec(key, (size, size), "float32", "metres along the optical axis, 0 where invalid")
    return TensorSpec(key, (size, size, 3), "uint8", "RGB")


def program_of(loaded: LoadedPolicy, backbone: Backbone | None) -> PolicyProgram:
    """Return the program of a policy, in evaluation mode.

    Raises:
        BadInput: if its encoder is not given, or it sees depth in a way that no program has.
    """
    policy, depth = loaded.policy, loaded.policy.embedder.settings.depth
    if policy.depth_head is not None or policy.patches is not None or depth == "points":
        how = f"embedding.depth={depth}" + (" of predicted depth" if policy.depth_head is not None else "")
        raise BadInput(
            f"a policy with {how} has no program yet: evaluate and stream run it; what can be exported is colour, and "
            "measured depth with embedding.depth=late or channels"
        )
    if loaded.encoder is not None and backbone is None:
        raise BadInput(f"this policy looks through {loaded.encoder.name!r}, which is not given")
    return PolicyProgram(loaded, backbone if loaded.encoder is not None else None).eval().requires_grad_(False)

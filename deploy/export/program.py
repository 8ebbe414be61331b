"""A policy and its encoder as one program: images, depth and vectors in, actions out.

What is kept of earlier steps goes in and comes out, so that each frame is encoded once: the output ``rgb.cls`` of one
call is in the input ``rgb.cls_history`` of the next. Recurrent memory is passed on in the same way, by `Runtime`.

Shapes: B batch, T observation steps, K class tokens, N patches, D width, P vector, H horizon, A action.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from ...encoders.encoder import Backbone
from ...errors import BadInput
from ...policies.loaded import LoadedPolicy
from ...policies.pixel_network import SIDE
from ...policies.vision import DEPTH_FEATURE, PIXELS
from ..manifest import NOISE, STARTS, HistorySpec, TensorSpec
from .pixels import DepthImages, Pixels, SmallDepth, SmallImages


class Program(nn.Module):
    """What is exported: a module of positional inputs and outputs that have names."""

    observation: list[TensorSpec]
    memory: list[HistorySpec]
    outputs: list[TensorSpec]
    noise: TensorSpec | None = None

    @property
    def inputs(self) -> list[TensorSpec]:
        """All inputs in their order."""
        kept = [each for each in self.memory if each.frames > 1]
        noise = [] if self.noise is None else [self.noise]
        is_first = [TensorSpec(STARTS, (), "bool")] if kept else []
        return [*self.observation, *noise, *is_first, *(each.history for each in kept)]

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes and types."""
        generator = np.random.default_rng(0)
        values = []
        for tensor in self.inputs:
            drawn = generator.uniform(0, 255 if tensor.dtype == "uint8" else 1, (batch, *tensor.shape))
            values.append(torch.from_numpy(drawn.astype(tensor.dtype)))
        return tuple(values)


class EncoderProgram(Program):
    """An encoder alone: ``rgb`` in, ``cls`` and ``patches`` out.

    Args:
        backbone: the encoder.
        image_size: side of the images [px].
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.tokens = TokenStage(backbone, (image_size, image_size), normed=True)
        shape = backbone.token_shape
        self.observation, self.memory = [TensorSpec("rgb", (image_size, image_size, 3), "uint8", "RGB")], []
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

    def __init__(self, backbone: Backbone, image_size: tuple[int, int], normed: bool) -> None:
        super().__init__()
        self.pixels = Pixels(backbone.preprocessing, image_size)
        self.network, self.normed = copy.deepcopy(backbone.network).cpu(), normed
        self.network.bake_positions(*backbone.token_shape.grid)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cls, patches = self.network(self.pixels(images), normed=self.normed)
        return cls.float(), patches.float()


class PolicyProgram(Program):
    """A policy with its vision.

    Args:
        loaded: the policy.

    Raises:
        BadInput: if it observes in a way that no program has.
    """

    def __init__(self, loaded: LoadedPolicy) -> None:
        super().__init__()
        vision, spec = loaded.vision.spec, loaded.spec
        if vision.depth_head is not None or vision.depth in ("patches", "points"):
            how = f"observation.depth={vision.depth}" + ("" if vision.depth_head is None else " of predicted depth")
            raise BadInput(
                f"a policy with {how} cannot be exported: evaluate, stream and run checkpoint=FILE run it with torch. "
                "Colour, and measured depth with observation.depth=late or channels, can be exported"
            )
        self.spec, self.kinds = spec, vision.kinds
        self.model = copy.deepcopy(loaded.model).cpu().eval()
        fold_norms(self.model.policy)
        self.cameras = vision.cameras
        self.stage: nn.Module | None = None
        self.depth_images: DepthImages | None = None
        self.small_depth: SmallDepth | None = None
        self.depth_key = vision.depth_key
        self.observation, self.memory = observation_specs(loaded), []
        sizes = {each.name: (each.shape[0], each.shape[1]) for each in self.observation if len(each.shape) > 1}
        steps = spec.observation_steps
        if self.cameras:
            size = sizes[self.cameras[0]]
            if any(sizes[key] != size for key in self.cameras):
                raise BadInput(f"cameras of different sizes cannot be exported together: {sizes}")
            if vision.encoder == "cnn":
                self.stage = SmallImages(size, SIDE)
                self.memory.append(HistorySpec(PIXELS, steps, (SIDE, SIDE, 3 * len(self.cameras))))
            else:
                encoder = loaded.vision.encoder
                if encoder is None:
                    raise BadInput("this policy observes an encoder's tokens, and its encoder is not given")
                self.stage = TokenStage(encoder, size, vision.normed)
                shape = encoder.token_shape
                counts = {"cls": shape.cls, "patches": shape.grid[0] * shape.grid[1]}
                self.memory += [
                    HistorySpec(f"{key}.{kind}", steps, (counts[kind], shape.dim))
                    for key in self.cameras
                    for kind in self.kinds
                ]
            if any(key.startswith("depth") for key in self.cameras):
                self.depth_images = DepthImages(*vision.depth_code)
        if vision.depth == "late":
            self.small_depth = SmallDepth(sizes[self.depth_key], SIDE, *vision.depth_code)
            self.memory.append(HistorySpec(DEPTH_FEATURE, steps, (SIDE, SIDE, 2)))
        policy = self.model.policy
        self.past_vectors = list(spec.vectors) if policy.observes_past_vectors and steps > 1 else []
        # "vector.": an output needs another name than the input that it repeats
        self.memory += [HistorySpec(f"vector.{key}", steps, (spec.vectors[key],)) for key in self.past_vectors]
        self.recurrent = {key: tuple(each.shape[1:]) for key, each in policy.initial_memory(1).items()}
        self.memory += [HistorySpec(f"memory.{key}", 2, shape) for key, shape in self.recurrent.items()]
        if policy.noise_shape is not None:
            self.noise = TensorSpec(NOISE, policy.noise_shape, "float32", "standard normal")
        self.outputs = [TensorSpec("action", (spec.horizon, spec.action_dim), "float32", "in the units of the data")]
        self.outputs += [TensorSpec(each.name, each.shape, "float32") for each in self.memory]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = {tensor.name: value for tensor, value in zip(self.inputs, values, strict=True)}
        latest = self._frames(given)
        vectors = {key: given[key][:, None] for key in self.spec.vectors}
        latest |= {f"vector.{key}": given[key] for key in self.past_vectors}
        histories = {each.name: each for each in self.memory}
        kept = {name: self._remembered(histories[name], value, given) for name, value in latest.items()}
        vectors |= {key: kept.pop(f"vector.{key}") for key in self.past_vectors}
        memory = {}
        if self.recurrent:
            is_first = given[STARTS]
            fresh = self.model.policy.initial_memory(is_first.shape[0])
            for key, value in fresh.items():
                past = given[histories[f"memory.{key}"].history.name][:, 0]
                memory[key] = torch.where(is_first.view(-1, *[1] * (value.ndim - 1)), value, past)
        actions, memory = self.model.act(kept, vectors, memory, given.get(NOISE))
        return actions, *latest.values(), *(memory[key] for key in self.recurrent)

    def _frames(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is kept of this step's frames, in the order of `memory`."""
        latest: dict[str, Tensor] = {}
        views = [self._image(key, given[key]) for key in self.cameras]
        if isinstance(self.stage, SmallImages):
            latest[PIXELS] = torch.cat([self.stage(each) for each in views], dim=-1)
        elif self.stage is not None:
            for key, view in zip(self.cameras, views, strict=True):
                cls, patches = self.stage(view)
                found = {"cls": cls, "patches": patches}
                latest |= {
                    f"{key}.{kind}": found[kind].half().float() for kind in self.kinds
                }  # as the cache stores them
        if self.small_depth is not None:
            latest[DEPTH_FEATURE] = self.small_depth(given[self.depth_key])
        return latest

    def _image(self, key: str, values: Tensor) -> Tensor:
        return values if self.depth_images is None or not key.startswith("depth") else self.depth_images(values)

    def _remembered(self, memory: HistorySpec, latest: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Return (B, T, ...), oldest first; where an episode starts its first frame is repeated."""
        frame = latest[:, None]
        if memory.frames == 1:
            return frame
        past = given[memory.history.name]
        is_first = given[STARTS].view(-1, *[1] * latest.ndim)
        return torch.cat([torch.where(is_first, frame.expand_as(past), past), frame], dim=1)


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


def observation_specs(loaded: LoadedPolicy) -> list[TensorSpec]:
    """Return what an observation of a policy must hold."""
    units = {"image": "RGB", "depth": "metres along the optical axis, 0 where invalid"}
    names = {"proprio": "proprioception, as in training", "state": "privileged state of the task"}
    found = []
    for key, feature in loaded.spec.observation.items():
        dtype = "uint8" if feature.kind == "image" else "float32"
        unit = units.get(feature.kind) or feature.unit or names.get(key, "")
        found.append(TensorSpec(key, feature.shape, dtype, unit))
    return found


def program_of(loaded: LoadedPolicy) -> PolicyProgram:
    """Return the program of a policy, in evaluation mode.

    Raises:
        BadInput: if it observes depth in a way that no program has.
    """
    return PolicyProgram(loaded).eval().requires_grad_(False)

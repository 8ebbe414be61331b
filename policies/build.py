"""From settings to an untrained policy: vision and policy network for what a data set or an environment observes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..datasets.dataset import EpisodeDataset, Feature, camera_keys, depth_key
from ..datasets.statistics import Statistics
from ..encoders.encoder import Backbone
from ..encoders.load import WITHOUT_ENCODER
from ..errors import DataError, PixioError
from ..files import sha256_of
from ..hardware import seeded
from ..plugins import find_plugin
from .depth_inputs import PointView, check_depth, check_depth_encoder, recorded_depth, require_depth_head
from .policy import Batch, EncoderIdentity, Memory, Observation, Policy, PolicySpec
from .settings import ObservationSettings
from .vision import Vision, VisionSpec

_KINDS = {"none": (), "cls": ("cls",), "patches": ("patches",), "both": ("cls", "patches")}


@dataclass(frozen=True)
class PolicyDesign:
    """What is chosen about a policy before it is built."""

    encoder: str  # as `load_encoder` takes it, or a baseline: none, cnn, state
    config: Any  # an instance of a policy's `Config`
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    horizon: int = 1
    tune: str = "frozen"
    precision: str = "fp32"  # of the encoder

    @property
    def label(self) -> str:
        """Short name in files and tables: the policy's name, or that of the baseline."""
        return self.encoder if self.encoder in WITHOUT_ENCODER else str(self.config.name)

    @property
    def vector(self) -> str:
        """The vector beside the images: proprioception, or the privileged state."""
        return "state" if self.encoder == "state" else "proprio"

    @property
    def observes_images(self) -> bool:
        """Whether the policy has an encoder or a network for images."""
        return self.encoder not in ("none", "state")


class VisionPolicy(nn.Module):
    """Vision and policy as one module: what is trained, saved, evaluated and exported."""

    def __init__(self, vision: Vision, policy: Policy) -> None:
        super().__init__()
        self.vision, self.policy = vision, policy

    @property
    def spec(self) -> PolicySpec:
        """What the policy was built for."""
        return self.policy.spec

    def observation(
        self, frames: Mapping[str, Tensor], vectors: Mapping[str, Tensor], index: Tensor | None
    ) -> Observation:
        """Return a normalised observation from kept frames and vectors, (B, T, ...) each."""
        return self.policy.normalise({**self.vision(frames, index), **vectors})

    def forward(
        self,
        frames: Mapping[str, Tensor],
        vectors: Mapping[str, Tensor],
        action: Tensor,
        action_is_pad: Tensor,
        index: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss, a scalar, and further numbers.

        Args:
            frames: as `Vision.forward` takes them, with `index`.
            vectors: (B, T, P) in the data's units; or what `Policy.precompute` gave, without frames.
            action: (B, H, A) in the data's units.
            action_is_pad: (B, H) bool.
        """
        target = self.policy.normaliser.normalise("action", action)
        return self.policy.loss(Batch(self.observation(frames, vectors, index), target, action_is_pad))

    def act(
        self, frames: Mapping[str, Tensor], vectors: Mapping[str, Tensor], memory: Memory, noise: Tensor | None = None
    ) -> tuple[Tensor, Memory]:
        """Return actions (B, H, A) in the data's units, and the next memory."""
        return self.policy.act({**self.vision(frames), **vectors}, memory, noise)


def policy_class(config: Any) -> type[Policy]:
    """Return the policy of a config, by its ``name``.

    Raises:
        UnknownName: if no such policy is installed.
        PixioError: if its class does not define all that the contract asks for.
    """
    found: type[Policy] = find_plugin("policies", config.name)
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise PixioError(f"the policy {config.name!r} ({found.__module__}:{found.__name__}) lacks {', '.join(missing)}")
    return found


def observed_cameras(design: PolicyDesign, dataset: EpisodeDataset) -> tuple[str, ...]:
    """Return the image features that a policy observes; () without images.

    Raises:
        UnknownName: for a camera that was not recorded.
        DataError: if depth is needed and was not recorded.
    """
    if not design.observes_images and design.observation.depth == "none":
        return ()
    cameras = camera_keys(dataset, design.observation.cameras)
    if recorded_depth(design.observation) != "none":
        for key in map(depth_key, cameras):
            if key not in dataset.features:
                raise DataError(f"{dataset.source} has no {key!r}; record it with: pixio-robot collect obs=rgbd")
    return cameras


def build_policy(
    design: PolicyDesign,
    features: Mapping[str, Feature],
    cameras: tuple[str, ...],
    backbone: Backbone | None,
    seed: int,
    statistics: Statistics | None = None,
    view: PointView | None = None,
) -> VisionPolicy:
    """Return an untrained policy; also the way to learn, before any work, whether settings make sense.

    Args:
        features: what the data set or environment holds.
        cameras: image features to observe, the default camera first.
        backbone: the encoder; None for a baseline.
        view: of a policy of points; without one it is made up.

    Raises:
        UnknownName: for a name in the settings that does not exist.
        BadInput: for impossible settings.
        DataError: if there is no feature that the policy needs.
    """
    observation, kind = design.observation, policy_class(design.config)
    check_depth(observation, has_encoder=backbone is not None)
    check_depth_encoder(observation, backbone)
    vector = design.vector
    if vector == "state" and vector not in features:
        raise DataError("the demonstrations have no feature 'state'; record them again with: pixio-robot collect")
    observed: dict[str, Feature] = {}
    channels = tuple(map(depth_key, cameras)) if observation.depth == "channels" else ()
    if design.observes_images or observation.depth_head is not None:
        observed |= {key: features[key] for key in cameras if key in features}
    if observation.depth != "none" and observation.depth_head is None:
        wanted = channels or (depth_key(cameras[0]),)
        observed |= {key: features[key] for key in wanted if key in features}
    keeps = observation.proprio or not design.observes_images
    if vector in features and keeps and features[vector].shape[0]:
        observed[vector] = features[vector]
    with seeded(seed, 0):
        vision = Vision(_vision_spec(design, cameras, channels, view), backbone)
        spec = PolicySpec(
            observed,
            features["action"],
            statistics or {},
            observation.steps,
            design.horizon,
            vision.token_shapes,
            None if backbone is None else EncoderIdentity.of(backbone, design.precision),
        )
        return VisionPolicy(vision, kind(design.config, spec))


def _vision_spec(
    design: PolicyDesign,
    cameras: tuple[str, ...],
    channels: tuple[str, ...],
    view: PointView | None,
) -> VisionSpec:
    observation = design.observation
    head = observation.depth_head
    encoder = {"cnn": "cnn", "none": "none", "state": "none"}.get(design.encoder, "encoder")
    if observation.depth == "points" and view is None:
        view = PointView.made_up()
    return VisionSpec(
        encoder=encoder,
        cameras=(*cameras, *channels) if encoder != "none" else (),
        steps=observation.steps,
        normed=observation.normed,
        kinds=_KINDS[policy_class(design.config).observed_tokens(design.config)],
        precision=design.precision,
        tune=design.tune,
        depth=observation.depth,
        depth_key=depth_key(cameras[0]) if cameras else "depth",
        depth_code=(observation.depth_code, observation.depth_range[0], observation.depth_range[1]),
        depth_points=observation.depth_points,
        frames=getattr(design.config, "frames", "stack"),
        view=None if view is None or observation.depth != "points" else view.arguments(),
        depth_head=None if head is None else (head, sha256_of(require_depth_head(head))),
    )

"""Behaviour cloning: from demonstrations and a design to a model and its training data."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..datasets.dataset import EpisodeDataset
from ..datasets.statistics import dataset_statistics
from ..encoders.encoder import Backbone
from ..encoders.load import WITHOUT_ENCODER, load_encoder
from ..errors import UnknownName, closest
from .build import PolicyDesign, VisionPolicy, build_policy, observed_cameras
from .data import CachedFrames, TrainingData, cached_frames
from .depth_inputs import point_view, predicted_depth
from .settings import OBSERVATION_MODES, StatisticsSettings


@dataclass(frozen=True)
class CloningSetup:
    """What cloning needs beside data, design and encoder."""

    seed: int = 0
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    cache: Path = Path("runs/cache")  # folder of the caches of frames
    device: torch.device = torch.device("cpu")


@dataclass
class Prepared:
    """A model that can be trained, and its data."""

    model: VisionPolicy
    data: TrainingData
    frames: CachedFrames


def load_backbone(name: str) -> Backbone | None:
    """Load an encoder, or return None for a baseline without one: none, cnn, state."""
    return None if name in WITHOUT_ENCODER else load_encoder(name)


def has_depth(obs: str) -> bool:
    """Return whether `obs=` asks for depth.

    Raises:
        UnknownName: unless it is rgb or rgbd.
    """
    if obs not in OBSERVATION_MODES:
        raise UnknownName(f"no obs {obs!r}{closest(obs, OBSERVATION_MODES)}; there are: {', '.join(OBSERVATION_MODES)}")
    return obs == "rgbd"


def new_model(dataset: EpisodeDataset, design: PolicyDesign, backbone: Backbone | None, seed: int) -> VisionPolicy:
    """Return an untrained model without statistics, to learn early whether the settings make sense.

    Raises:
        UnknownName, BadInput, DataError: as `build_policy` does.
    """
    dataset.feature("action")
    return build_policy(design, dataset.features, observed_cameras(design, dataset), backbone, seed)


def prepare_cloning(
    dataset: EpisodeDataset, design: PolicyDesign, backbone: Backbone | None, setup: CloningSetup
) -> Prepared:
    """Encode what is not cached yet, and return the model and its data.

    Raises:
        UnknownName, BadInput, DataError: as `build_policy` and `TrainingData` do.
    """
    cameras, observation = observed_cameras(design, dataset), design.observation
    depths = view = None
    if observation.depth_head is not None and cameras:
        depths = predicted_depth(setup.cache, observation.depth_head, dataset, cameras[0], setup.device)
    if observation.depth == "points":
        view = point_view(observation, dataset, cameras[0], depths)
    modes = {"action": setup.statistics.action, design.vector: setup.statistics.proprio}
    present = {key: mode for key, mode in modes.items() if key in dataset.features}
    statistics = dataset_statistics(dataset, dataset.rows("train"), present)
    model = build_policy(design, dataset.features, cameras, backbone, setup.seed, statistics, view)
    model.vision.place(setup.device)
    frames = cached_frames(model.vision, dataset, setup.cache, depths)
    tuned = model.vision.spec.cameras if model.vision.backbone is not None else ()
    return Prepared(model, TrainingData(dataset, model.spec, frames, tuned), frames)

"""Depth as input of a policy: which settings go together, points of a camera, depth predicted from colour.

Shapes: B batch, F frames, H, W of the frames, n points.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from ..calibration import Calibration
from ..cameras.frame import Intrinsics
from ..cameras.geometry import points
from ..cameras.point_clouds import point_cloud
from ..datasets.dataset import EpisodeDataset, depth_key
from ..depth.encoding import check_code
from ..depth.estimator import DepthEstimator, load_depth
from ..encoders.encoder import Backbone
from ..errors import BadInput, CheckpointError, UnknownName, closest
from ..files import replacing, sha256_of
from ..progress import stage
from ..run_folder import digest
from .settings import DEPTHS, ObservationSettings

_SEEN = 64  # frames that a box is taken from
_SHARE = 0.01  # of their points that may lie outside, on each side of each axis


def check_depth(observation: ObservationSettings, has_encoder: bool) -> None:
    """Refuse impossible settings of depth.

    Args:
        has_encoder: whether the policy has an encoder.

    Raises:
        UnknownName: for an unknown fusion or code.
        BadInput: for impossible numbers, or choices that exclude each other.
    """
    depth = observation.depth
    if depth not in DEPTHS:
        raise UnknownName(f"no observation.depth {depth!r}{closest(depth, DEPTHS)}; there are: {', '.join(DEPTHS)}")
    if depth == "none":
        if observation.depth_head is not None:
            raise BadInput("observation.depth_head predicts depth for a fusion; choose one: observation.depth=late")
        return
    if len(observation.depth_range) != 2:
        raise BadInput(f"observation.depth_range={observation.depth_range}: give two distances, e.g. [0.25,4]")
    check_code(observation.depth_code, *observation.depth_range)
    if depth in ("late", "patches") and observation.depth_code == "colours":
        raise BadInput(
            f"observation.depth={depth} takes codes of one number; choose observation.depth_code=inverse, log or metres"
        )
    if depth == "patches" and not has_encoder:
        raise BadInput("observation.depth=patches adds depth to an encoder's patches; without one, use late or points")
    if depth == "channels" and observation.depth_head is not None:
        raise BadInput(
            "observation.depth=channels shows measured depth; predicted depth works with late, patches and points"
        )
    box = observation.depth_box
    if box and (len(box) != 6 or any(low >= high for low, high in zip(box[::2], box[1::2], strict=True))):
        raise BadInput(f"observation.depth_box={box}: six numbers are needed, x0,x1,y0,y1,z0,z1 with x0 < x1 and so on")


def check_depth_encoder(observation: ObservationSettings, backbone: Backbone | None) -> None:
    """Refuse an encoder that depth patches cannot be added to.

    Raises:
        BadInput: if it is not Pixio's, or crops images.
    """
    if observation.depth != "patches" or backbone is None:
        return
    if not backbone.network.takes_patch_residual or backbone.preprocessing.resize != "squash":
        raise BadInput(
            f"observation.depth=patches needs a Pixio encoder that takes whole images, which {backbone.name} is not: "
            "use late or points"
        )


def recorded_depth(observation: ObservationSettings) -> str:
    """Return `observation.depth` if demonstrations must hold depth for it, else "none"."""
    return "none" if observation.depth_head is not None else observation.depth


@dataclass(frozen=True)
class PointView:
    """Where points are: the camera that a policy was trained with and the box that it uses."""

    calibration: Calibration
    box: tuple[float, ...]  # x0, x1, y0, y1, z0, z1 in the world [m]

    def arguments(self) -> dict[str, Any]:
        """Return what rebuilds this, ready for JSON."""
        return {**{key: value.tolist() for key, value in self.calibration._asdict().items()}, "box": list(self.box)}

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> "PointView":
        """Rebuild from `arguments()`."""
        matrices = (np.array(arguments[key]) for key in Calibration._fields)
        return cls(Calibration(*matrices), tuple(arguments["box"]))

    @classmethod
    def made_up(cls) -> "PointView":
        """Return any view, to build a policy of points without data."""
        return cls(Calibration(np.eye(3), np.eye(4)), (0.0, 1.0) * 3)

    def clouds(self, depth: np.ndarray, count: int, seen: np.ndarray | None = None) -> np.ndarray:
        """Return clouds (B, count, 4) float32 as `point_cloud` makes them.

        Args:
            depth: (B, H, W) [m], 0 where invalid.
            count: points of a cloud.
            seen: (B, H, W, 3) the pixels' points in the world [m], of another camera than the training's.
        """
        found = self.world(depth) if seen is None else seen
        return np.stack(
            [point_cloud(each, there > 0, self.box, count) for each, there in zip(found, depth, strict=True)]
        )

    def world(self, depth: np.ndarray) -> np.ndarray:
        """Return the points of depth (B, H, W) [m] in the world, (B, H, W, 3) float32 [m]."""
        height, width = depth.shape[1:]
        known = Intrinsics.from_matrix(self.calibration.intrinsics, width, height)
        return np.stack([depth_to_world_points(each, known, self.calibration.camera_to_world) for each in depth])


def depth_to_world_points(depth: np.ndarray, intrinsics: Intrinsics, camera_to_world: np.ndarray) -> np.ndarray:
    """Return the points of a depth map (H, W) [m] in the world, (H, W, 3) float32 [m]; of invalid pixels anything."""
    rotation, shift = camera_to_world[:3, :3].astype(np.float32), camera_to_world[:3, 3].astype(np.float32)
    return points(depth, intrinsics) @ rotation.T + shift


def point_view(
    observation: ObservationSettings, dataset: EpisodeDataset, image_key: str, depths: np.ndarray | None
) -> PointView:
    """Return the view of a policy of points.

    Without `depth_box` it is the box around the middle 98 % of the demonstrations' points, axis by axis.

    Args:
        depths: (F, H, W) [m] in place of recorded depth.

    Raises:
        DataError: if the demonstrations do not hold the camera's calibration, or it moved.
        BadInput: if there are no points.
    """
    calibration = dataset.calibration(image_key)
    if observation.depth_box:
        return PointView(calibration, tuple(observation.depth_box))
    anywhere = PointView(calibration, ())
    near, far = observation.depth_range
    some: list[np.ndarray] = []
    for part in depth_parts(dataset, depth_key(image_key), depths):
        depth = part[:1]
        some.append(anywhere.world(depth)[(depth >= near) & (depth <= far)])
        if len(some) == _SEEN:
            break
    found = np.concatenate(some)
    if not len(found):
        raise BadInput(f"no point of the demonstrations is {near} to {far} m away; widen observation.depth_range")
    low, high = np.quantile(found, (_SHARE, 1 - _SHARE), axis=0)
    high = np.maximum(high, low + 1e-3)
    return PointView(calibration, tuple(np.stack([low, high], axis=1).ravel().tolist()))


def depth_parts(
    dataset: EpisodeDataset, key: str, depths: np.ndarray | None, first: int = 0, size: int = 16
) -> Iterator[np.ndarray]:
    """Yield depth (B, H, W) float32 [m] of all frames from `first` on, recorded or, if given, predicted (F, H, W)."""
    if depths is None:
        yield from dataset.batches(key, first, size)
    else:
        for begin in range(first, len(depths), size):
            yield depths[begin : begin + size].astype(np.float32)


def require_depth_head(path: str) -> Path:
    """Return the path of a depth head, whose file must exist.

    Raises:
        CheckpointError: if it is not.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"no depth head at {path}; pixio-robot probe probes=[depth_dpt] writes one")
    return Path(path)


def depth_estimator(path: str, expected: str | None = None) -> DepthEstimator:
    """Load the depth estimator.

    Args:
        path: a file that `probe` wrote.
        expected: SHA-256 of the file that a policy was trained with.

    Raises:
        CheckpointError: if it cannot be loaded or is another file.
    """
    if expected is not None and sha256_of(require_depth_head(path)) != expected:
        raise CheckpointError(f"{path} is not the depth head that the policy was trained with")
    return load_depth(require_depth_head(path))


def predicted(estimator: DepthEstimator, images: np.ndarray) -> np.ndarray:
    """Return depth of images (B, H, W, 3) uint8 as training and evaluation see it: (B, H, W) float16 [m]."""
    return estimator.estimate(images).astype(np.float16)


def predicted_depth(root: Path, head: str, dataset: EpisodeDataset, image_key: str, device: torch.device) -> np.ndarray:
    """Return depth predicted for a camera of demonstrations, (F, H, W) float16 [m], from the cache in `root`.

    The file is named after the head, the demonstrations and the camera; an interrupted prediction starts again.
    """
    estimator = depth_estimator(head).to(device)
    path = root / f"depth-{digest(sha256_of(Path(head)), dataset.fingerprint, image_key)}.npy"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            parts: list[np.ndarray] = []
            with stage("predict depth", dataset.frames) as bar:
                for images in dataset.batches(image_key, 0, 32):
                    parts.append(predicted(estimator, images))
                    bar.advance(len(images))
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(parts))
    return np.load(path, mmap_mode="r")

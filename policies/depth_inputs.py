"""Depth as a policy takes it: which choices go together, points of a camera, depth predicted from colour.

Shapes: B batch, F frames, H, W of the frames, n points.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..cameras.frame import Intrinsics
from ..cameras.geometry import points
from ..cameras.point_clouds import point_cloud
from ..datasets.robomimic import DemoSet, depth_key
from ..depth.encoding import check_code
from ..depth.estimator import DepthEstimator, load_depth
from ..encoders.load import Backbone
from ..envs.rendering import Calibration
from ..errors import BadInput, CheckpointError, UnknownName, closest
from ..files import replacing, sha256_of
from ..progress import stage
from ..run_folder import digest
from .settings import DEPTHS, EmbeddingSettings

_SEEN = 64  # frames that a box is taken from
_SHARE = 0.01  # of their points that may lie outside, on each side of each axis


def check_depth(embedding: EmbeddingSettings, sees: bool) -> None:
    """Refuse settings of depth that cannot be.

    Args:
        sees: whether the policy has an encoder.

    Raises:
        UnknownName: for an unknown fusion or code.
        BadInput: for impossible numbers, or choices that do not go together.
    """
    depth = embedding.depth
    if depth not in DEPTHS:
        raise UnknownName(f"no embedding.depth {depth!r}{closest(depth, DEPTHS)}; there are: {', '.join(DEPTHS)}")
    if depth == "none":
        if embedding.depth_head is not None:
            raise BadInput("embedding.depth_head predicts depth for a fusion; choose one, e.g. embedding.depth=late")
        return
    if len(embedding.depth_range) != 2:
        raise BadInput(f"embedding.depth_range={embedding.depth_range}: two distances are needed, e.g. [0.25,4]")
    check_code(embedding.depth_code, *embedding.depth_range)
    if depth in ("late", "patches") and embedding.depth_code == "colours":
        raise BadInput(f"embedding.depth={depth} takes codes of one number; choose depth_code=inverse, log or metres")
    if depth == "patches" and not sees:
        raise BadInput("embedding.depth=patches adds depth to an encoder's patches; without one, take late or points")
    if depth == "channels" and embedding.depth_head is not None:
        raise BadInput("embedding.depth=channels shows measured depth; predicted depth goes with late, patches, points")
    if not 0 <= embedding.depth_dropout <= 0.45:
        raise BadInput(f"embedding.depth_dropout={embedding.depth_dropout}: it must be between 0 and 0.45")
    box = embedding.depth_box
    if box and (len(box) != 6 or any(low >= high for low, high in zip(box[::2], box[1::2], strict=True))):
        raise BadInput(f"embedding.depth_box={box}: six numbers are needed, x0,x1,y0,y1,z0,z1 with x0 < x1 and so on")


def check_depth_encoder(embedding: EmbeddingSettings, backbone: Backbone | None) -> None:
    """Refuse an encoder that depth patches cannot be added to.

    Raises:
        BadInput: if it is not Pixio's, or does not look at whole frames.
    """
    if embedding.depth != "patches" or backbone is None:
        return
    if not backbone.network.takes_patch_residual or backbone.preprocessing.resize != "squash":
        raise BadInput(
            f"embedding.depth=patches needs a Pixio encoder that sees whole frames; {backbone.name} is none: "
            "take late or points"
        )


def recorded_depth(embedding: EmbeddingSettings) -> str:
    """Return `embedding.depth` if demonstrations must hold depth for it, else "none"."""
    return "none" if embedding.depth_head is not None else embedding.depth


@dataclass(frozen=True)
class PointView:
    """Where points are: the camera that a policy was trained with and the box that it looks at."""

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


def point_view(embedding: EmbeddingSettings, demos: DemoSet, depths: np.ndarray | None) -> PointView | None:
    """Return the view of a policy of points; None for other fusions.

    Without `depth_box` it is the box around the middle 98 % of the demonstrations' points, axis by axis.

    Raises:
        DataError: if the demonstrations do not tell the camera, or it moved.
        BadInput: if there are no points.
    """
    if embedding.depth != "points":
        return None
    image = demos.images(embedding.cameras)[0]
    calibration = demos.calibration(image)
    if embedding.depth_box:
        return PointView(calibration, tuple(embedding.depth_box))
    anywhere = PointView(calibration, ())
    near, far = embedding.depth_range
    some: list[np.ndarray] = []
    for part in depth_frames(demos, depth_key(image), depths):
        depth = part[:1]
        some.append(anywhere.world(depth)[(depth >= near) & (depth <= far)])
        if len(some) == _SEEN:
            break
    found = np.concatenate(some)
    if not len(found):
        raise BadInput(f"no point of the demonstrations is {near} to {far} m away; widen embedding.depth_range")
    low, high = np.quantile(found, (_SHARE, 1 - _SHARE), axis=0)
    high = np.maximum(high, low + 1e-3)
    return PointView(calibration, tuple(np.stack([low, high], axis=1).ravel().tolist()))


def depth_frames(demos: DemoSet, key: str, depths: np.ndarray | None, size: int = 16) -> Iterator[np.ndarray]:
    """Yield all frames' depth (B, H, W) float32 [m], recorded or, if given, predicted (F, H, W), `size` at a time."""
    if depths is None:
        for part in demos.batches(key, 0, size):
            yield part[..., 0]
    else:
        for begin in range(0, len(depths), size):
            yield depths[begin : begin + size].astype(np.float32)


def require_depth_head(path: str) -> Path:
    """Return the path of a depth head that is there.

    Raises:
        CheckpointError: if it is not.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"no depth head at {path}; pixio-robot probe probes=[depth_dpt] writes one")
    return Path(path)


def depth_estimator(path: str, expected: str | None = None) -> DepthEstimator:
    """Load what predicts depth.

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


def predicted_depth(root: Path, embedding: EmbeddingSettings, demos: DemoSet, device: Any) -> np.ndarray | None:
    """Return depth predicted for the first camera of demonstrations, (F, H, W) float16 [m], from the cache in `root`.

    None if depth is not predicted. The file is named after the head, the demonstrations and the camera; a stopped
    prediction begins anew.
    """
    if embedding.depth_head is None:
        return None
    estimator = depth_estimator(embedding.depth_head).to(device)
    key = demos.images(embedding.cameras)[0]
    path = root / f"depth-{digest(sha256_of(Path(embedding.depth_head)), demos.sha256(), key)}.npy"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            total = int(demos.lengths.sum())
            parts: list[np.ndarray] = []
            with stage("predict depth", total) as bar:
                for images in demos.batches(key, 0, 32):
                    parts.append(predicted(estimator, images))
                    bar.advance(len(images))
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(parts))
    return np.load(path, mmap_mode="r")

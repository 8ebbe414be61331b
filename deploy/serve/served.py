"""What a server can serve: a bundle, a checkpoint or a recorded episode."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...datasets.dataset import open_dataset
from ...errors import BadInput, DataError
from ..manifest import Manifest, TensorSpec, check_verified
from ..replay import ReplayPolicy
from ..runtime import RunningPolicy


class Served(NamedTuple):
    """A policy to serve."""

    manifest: Manifest  # what observations are like
    new_session: Callable[[], RunningPolicy]  # makes a policy with its own history


def served_bundle(folder: str, threads: int | None, allow_unverified: bool) -> Served:
    """Return a bundle to serve.

    Raises:
        CheckpointError: if it is damaged, or is int8 and did not pass verification.
        BadInput: if it is an encoder alone.
    """
    from ..runtime import Runtime

    check_verified(folder, allow_unverified)
    first = Runtime.load(folder, threads)
    if first.manifest.kind != "policy":
        raise BadInput(f"{folder} is an encoder alone, which does not act; export a checkpoint")
    return Served(first.manifest, first.session)


def served_checkpoint(checkpoint: str, threads: int | None, device: str) -> Served:
    """Return a checkpoint to serve, computed by torch.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    import torch

    from ...hardware import choose_device
    from ..eager import eager_policies

    if threads is not None:
        torch.set_num_threads(threads)
    manifest, new_session, _ = eager_policies(checkpoint, choose_device(device))
    return Served(manifest, new_session)


def served_replay(path: str, episode: int, horizon: int, stride: int) -> Served:
    """Return a recorded episode to serve.

    Args:
        episode: index in the file.
        horizon: actions in a chunk.
        stride: control steps between two requests.

    Raises:
        DataError: if there is no such episode.
    """
    dataset = open_dataset(path)
    if episode >= len(dataset.lengths):
        raise DataError(f"{dataset.source} has {len(dataset.lengths)} episodes; episode={episode} is none of them")
    first = int(dataset.lengths[:episode].sum())
    actions = dataset.read("action", np.arange(first, first + int(dataset.lengths[episode]))).astype(np.float32)
    units = {"image": "RGB", "depth": "metres along the optical axis, 0 where invalid"}
    kept = {key: feature for key, feature in dataset.features.items() if feature.kind in units or key == "proprio"}
    tensors = [
        TensorSpec(key, feature.shape, "uint8" if feature.kind == "image" else "float32", units.get(feature.kind, key))
        for key, feature in kept.items()
    ]
    images = [feature.shape[0] for feature in kept.values() if feature.kind == "image"]
    width, robot = actions.shape[1], dataset.provenance.get("robot") or {}
    manifest = Manifest(
        kind="policy",
        target="replay",
        precision="fp32",
        program="",
        observation=tensors,
        outputs=[TensorSpec("action", (horizon, width), "float32", "as recorded")],
        task=dataset.provenance.get("task") or None,
        image_size=images[0] if images else None,
        control_period=1 / dataset.fps if dataset.fps else None,
        action_names=robot.get("axes"),
        action_meanings=robot.get("actions"),
        horizon=horizon,
        policy={"kind": "replay", "sha256": dataset.fingerprint, "episode": episode},
    )
    return Served(manifest, lambda: ReplayPolicy(actions, horizon, stride))

"""What a server can serve: a bundle, a checkpoint or a recorded episode."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...datasets.robomimic import DemoSet, depth_key
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
    demos = DemoSet(path)
    if episode >= len(demos.names):
        raise DataError(f"{demos.path} has {len(demos.names)} episodes; episode={episode} is none of them")
    starts = demos.frame_starts
    rows = np.flatnonzero(starts == np.unique(starts)[episode])
    actions = demos.read("actions")[rows].astype(np.float32)
    observe, side = demos.request.observe, demos.request.image_size
    recorded = demos.environment.get("cameras") or []
    images = demos.images(recorded) if "rgb" in observe else ()
    tensors = [TensorSpec(key, (side, side, 3), "uint8", "RGB") for key in images]
    if "depth" in observe:
        unit = "metres along the optical axis, 0 where invalid"
        tensors += [TensorSpec(depth_key(key), (side, side), "float32", unit) for key in demos.images(recorded)]
    if "proprio" in demos.widths:
        tensors.append(TensorSpec("proprio", (demos.widths["proprio"],), "float32", "proprioception"))
    width, robot = actions.shape[1], demos.environment.get("robot") or {}
    manifest = Manifest(
        kind="policy",
        target="replay",
        precision="fp32",
        program="",
        observation=tensors,
        outputs=[TensorSpec("action", (horizon, width), "float32", "within [-1, 1], as recorded")],
        task=demos.task,
        image_size=side,
        control_period=1 / robot["control_hz"] if "control_hz" in robot else None,
        action_names=robot.get("axes"),
        action_meanings=robot.get("actions"),
        horizon=horizon,
        action_low=[-1.0] * width,
        action_high=[1.0] * width,
        policy={"kind": "replay", "sha256": demos.sha256(), "episode": episode},
    )
    return Served(manifest, lambda: ReplayPolicy(actions, horizon, stride))

"""`pixio-robot serve`: a bundle, a checkpoint or a recorded episode behind a `PolicyServer`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...datasets.robomimic import DemoSet, depth_key
from ...errors import BadInput, DataError
from ..commands import Serve
from ..runtime.bundle import Manifest, TensorSpec, check_gate
from ..runtime.policy import Policy
from ..runtime.replay import Replay
from .server import Limits, PolicyServer
from .token_file import read_token


def new_server(command: Serve) -> PolicyServer:
    """Return the server that a command asks for, not started.

    Raises:
        BadInput: unless one of bundle, checkpoint and replay is given.
    """
    given = [name for name in ("bundle", "checkpoint", "replay") if getattr(command, name) is not None]
    if len(given) != 1:
        raise BadInput(
            f"serve one thing: bundle=FOLDER, checkpoint=FILE or replay=FILE; got {', '.join(given) or 'none'}"
        )
    token = None if command.token_file is None else read_token(Path(command.token_file))
    card, session = {"bundle": _bundle, "checkpoint": _checkpoint, "replay": _replay}[given[0]](command)
    if card.kind != "policy":
        raise BadInput(f"{command.bundle} is an encoder alone, which does not act; export a checkpoint")
    limits = Limits(command.clients, command.idle)
    return PolicyServer(card, session, command.host, command.port, token, limits)


def _bundle(command: Serve) -> tuple[Manifest, Callable[[], Policy]]:
    from ..runtime.runtime import Runtime

    assert command.bundle is not None
    check_gate(command.bundle, command.allow_unverified)
    first = Runtime.load(command.bundle, command.threads)
    return first.card, first.session


def _checkpoint(command: Serve) -> tuple[Manifest, Callable[[], Policy]]:
    import torch

    from ...hardware import choose_device
    from ..eager import eager_policies

    assert command.checkpoint is not None
    if command.threads is not None:
        torch.set_num_threads(command.threads)
    card, session, _ = eager_policies(command.checkpoint, choose_device(command.device))
    return card, session


def _replay(command: Serve) -> tuple[Manifest, Callable[[], Policy]]:
    assert command.replay is not None
    demos = DemoSet(command.replay)
    if command.episode >= len(demos.names):
        raise DataError(f"{demos.path} has {len(demos.names)} episodes; episode={command.episode} is none of them")
    starts = demos.frame_starts
    rows = np.flatnonzero(starts == np.unique(starts)[command.episode])
    actions = demos.read("actions")[rows].astype(np.float32)
    observe, side = demos.request.observe, demos.request.image_size
    recorded = demos.environment.get("cameras") or []
    images = demos.images(recorded) if "rgb" in observe else ()
    ports = [TensorSpec(key, (side, side, 3), "uint8", "RGB") for key in images]
    if "depth" in observe:
        unit = "metres along the optical axis, 0 where invalid"
        ports += [TensorSpec(depth_key(key), (side, side), "float32", unit) for key in demos.images(recorded)]
    if "proprio" in demos.widths:
        ports.append(TensorSpec("proprio", (demos.widths["proprio"],), "float32", "what the robot feels"))
    width, robot = actions.shape[1], demos.environment.get("robot") or {}
    card = Manifest(
        kind="policy",
        target="replay",
        precision="fp32",
        program="",
        observation=ports,
        outputs=[TensorSpec("action", (command.chunk, width), "float32", "within [-1, 1], as recorded")],
        task=demos.task,
        image_size=side,
        control_period=1 / robot["control_hz"] if "control_hz" in robot else None,
        action_names=robot.get("axes"),
        action_meanings=robot.get("actions"),
        chunk=command.chunk,
        action_low=[-1.0] * width,
        action_high=[1.0] * width,
        policy={"kind": "replay", "sha256": demos.sha256(), "episode": command.episode},
    )
    return card, lambda: Replay(actions, command.chunk, command.stride)

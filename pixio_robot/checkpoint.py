"""Checkpoints: safetensors files that also hold the network's arguments, the settings, the version and the step.

Nothing is unpickled.
"""

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import CheckpointError
from .files import replacing

FORMAT = "pixio-robot/1"


@dataclass
class Checkpoint:
    """What a file holds."""

    kind: str  # "encoder", "autoencoder", "policy", "bc-state" or "depth-head"
    tensors: dict[str, Tensor]
    arguments: dict[str, Any]  # what rebuilds the network
    settings: dict[str, Any] = field(default_factory=dict)  # what trained it
    step: int = 0
    version: str = ""  # of pixio-robot when written


def save_checkpoint(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path` (``.safetensors``), complete or not at all."""
    header = {
        "format": FORMAT,
        "kind": checkpoint.kind,
        "arguments": json.dumps(checkpoint.arguments),
        "settings": json.dumps(checkpoint.settings),
        "step": str(checkpoint.step),
        "version": version("pixio-robot"),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    with replacing(Path(path)) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # it wraps the operating system's error
            if "os error 28" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise CheckpointError(f"{path} could not be written: {error}") from error


def load_checkpoint(path: Path | str, kind: str) -> Checkpoint:
    """Read a checkpoint of the given kind.

    Raises:
        CheckpointError: if the file is missing, truncated, not ours, or of another kind.
    """
    path = Path(path)
    header, tensors = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file but not a pixio-robot checkpoint (no format {FORMAT!r})")
    if header["kind"] != kind:
        raise CheckpointError(f"{path} holds a checkpoint of kind {header['kind']!r}; a {kind!r} is needed here")
    return Checkpoint(
        kind=kind,
        tensors=tensors,
        arguments=json.loads(header["arguments"]),
        settings=json.loads(header["settings"]),
        step=int(header["step"]),
        version=header["version"],
    )


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the header strings and tensors of any safetensors file.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}); fetch it again") from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Load `tensors` into `module`, all of them and nothing else.

    Raises:
        CheckpointError: naming the first missing, unexpected or wrongly shaped key.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {len(missing)} keys missing {missing[:3]}, "
            f"{len(unexpected)} keys unexpected {unexpected[:3]}"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, "
                f"{type(module).__name__} needs {tuple(tensor.shape)}"
            )
    module.load_state_dict(dict(tensors))

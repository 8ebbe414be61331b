"""Pixio weights as published: the official ``.pth`` files, read as plain tensors. No pickle code runs.

Shapes: K class tokens, D width.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import load_strictly
from ..errors import BadInput, CheckpointError
from .pixio import PRESETS, PixioEncoder

logger = logging.getLogger(__name__)

PRETRAINING_ONLY = ("decoder", "mask_token")  # prefixes of keys in a training checkpoint that are not the encoder's


def build_encoder(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], source: object) -> PixioEncoder:
    """Return an encoder with exactly these weights in fp32, without initialising random ones first.

    Raises:
        CheckpointError: naming the argument or key that does not fit.
    """
    try:
        with torch.device("meta"):
            encoder = PixioEncoder(**arguments)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError, BadInput) as error:
        raise CheckpointError(f"{source} does not describe an encoder: {error}") from error
    encoder.to_empty(device="cpu")
    load_strictly(encoder, tensors, source)
    return encoder


def read_official(path: Path) -> PixioEncoder:
    """Read an official ``.pth``: a bare state dict, or the encoder out of a training checkpoint (key ``model``).

    Raises:
        CheckpointError: if the file is damaged, would run code when loaded, or does not hold a Pixio encoder.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader, with any type
        if "Weights only load failed" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects besides tensors, or is damaged; it was not unpickled. Get the published "
                "file, or save only its state dict where you trust it"
            ) from error
        raise CheckpointError(f"{path} is damaged or not a .pth file ({error}); fetch it again") from error
    tensors = loaded
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        tensors = {name: value for name, value in loaded["model"].items() if not str(name).startswith(PRETRAINING_ONLY)}
        dropped = len(loaded["model"]) - len(tensors)
        logger.info("%s is a training checkpoint: loaded its encoder, ignored %d decoder entries", path, dropped)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} is not a state dict: a mapping of names to tensors is needed")
    return build_encoder(_arguments_from_shapes(tensors, path), tensors, path)


def _arguments_from_shapes(tensors: Mapping[str, Tensor], source: Path) -> dict[str, int]:
    try:
        _, cls_tokens, dim = tensors["cls_token"].shape
        positions = tensors["pos_embed"].shape[1] - cls_tokens
        patch = tensors["patch_embed.proj.weight"].shape[-1]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{source} is not a Pixio encoder: {error}; it has {sorted(tensors)[:3]}") from error
    grid = round(max(positions, 0) ** 0.5)
    if grid < 1 or grid**2 != positions:
        raise CheckpointError(f"{source}: pos_embed holds {positions} patches, which is not a square grid")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    heads = [heads for width, blocks, heads in PRESETS.values() if (width, blocks) == (dim, depth)]
    if not heads:
        sizes = ", ".join(f"{name} {width}x{blocks}" for name, (width, blocks, _) in PRESETS.items())
        raise CheckpointError(
            f"{source} is {dim} wide and {depth} blocks deep, not a published size; there are: {sizes}"
        )
    return dict(dim=dim, depth=depth, heads=heads[0], patch=patch, image_size=grid * patch, cls_tokens=cls_tokens)

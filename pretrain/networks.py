"""The networks that pre-training trains: from settings, and from and to files."""

from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..encoder import PRESETS, PixioEncoder
from ..errors import BadInput, CheckpointError, UnknownName, closest
from ..hardware import combine
from ..schemas import Pretrain
from .decoder import DECODERS, PixelDecoder
from .mae import MaskedAutoencoder


def sizes(command: Pretrain) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return width, depth and heads of the encoder and of the decoder."""
    decoder = command.decoder
    if decoder == "auto":
        decoder = command.encoder if command.encoder in DECODERS else _nearest_decoder(command.encoder)
    return network_size("encoder", command.encoder, PRESETS), network_size("decoder", decoder, DECODERS)


def _nearest_decoder(encoder: str) -> str:
    width = network_size("encoder", encoder, PRESETS)[0]
    return next((name for name in DECODERS if name in PRESETS and width <= PRESETS[name][0]), "reference")


def network_size(what: str, name: str, known: dict[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    if name in known:
        return known[name]
    numbers = name.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
        raise UnknownName(
            f"no {what} {name!r}; there are: {', '.join(known)}, or WIDTHxDEPTHxHEADS such as 128x6x4"
            f"{closest(name, known)}"
        )
    width, depth, heads = (int(number) for number in numbers)
    if width % heads or width % 4:
        raise BadInput(
            f"{what}={name}: the width must be a multiple of 4 and of the heads; {width} % {heads} = {width % heads}"
        )
    return width, depth, heads


def build_autoencoder(command: Pretrain) -> MaskedAutoencoder:
    """Return the network of the settings, its weights not yet the seed's."""
    encoder_size, decoder_size = sizes(command)
    common = dict(patch=command.patch, image_size=command.image_size, cls_tokens=command.cls_tokens)
    encoder = PixioEncoder(*encoder_size, **common, drop_path=command.drop_path)
    return MaskedAutoencoder(encoder, PixelDecoder(encoder.dim, *decoder_size, **common), command.norm_pixels)


def new_autoencoder(command: Pretrain) -> MaskedAutoencoder:
    """Return the network of the settings with weights that the seed decides."""
    with torch.device("meta"):  # draws nothing from the global generator
        model = build_autoencoder(command)
    model.to_empty(device="cpu")
    model.initialise(command.positions, torch.Generator().manual_seed(combine(command.seed, 0)))
    return model


def blank_autoencoder(arguments: dict[str, Any]) -> MaskedAutoencoder:
    """Return the autoencoder of these arguments without weights, on the meta device."""
    with torch.device("meta"):
        encoder, decoder = PixioEncoder(**arguments["encoder"]), PixelDecoder(**arguments["decoder"])
        return MaskedAutoencoder(encoder, decoder, arguments["norm_pixels"])


def save_autoencoder(path: Path, model: MaskedAutoencoder, settings: dict[str, Any], step: int = 0) -> None:
    """Write encoder and decoder to `path` (``.safetensors``), to score images with or to train on.

    Args:
        settings: what trained it, ready for JSON.
        step: after how many training steps.
    """
    save_checkpoint(path, Checkpoint("autoencoder", model.state_dict(), model.arguments, settings, step))


def load_autoencoder(path: str | Path) -> MaskedAutoencoder:
    """Return an autoencoder that `pretrain` wrote, in evaluation mode, on the CPU in fp32.

    Args:
        path: its ``autoencoder.safetensors``, or the run folder that holds it.

    Raises:
        CheckpointError: if the file is missing, damaged or of another kind.
    """
    path = Path(path)
    file = path / "autoencoder.safetensors" if path.is_dir() else path
    checkpoint = load_checkpoint(file, kind="autoencoder")
    try:
        model = blank_autoencoder(checkpoint.arguments)
    except (KeyError, TypeError, BadInput) as error:
        raise CheckpointError(f"{file} does not say how its networks are built ({error!r}); write it again") from error
    model.to_empty(device="cpu")
    load_strictly(model, checkpoint.tensors, file)
    return model.eval()

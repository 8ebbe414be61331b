"""The networks that pre-training trains: from settings, and from and to files."""

from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..encoders.load import load_encoder
from ..encoders.pixio import PRESETS, PixioEncoder, resized_patches, resized_positions
from ..errors import BadInput, CheckpointError, UnknownName, closest
from ..files import sha256_of
from ..hardware import combine
from .commands import Pretrain
from .decoder import DECODERS, PixelDecoder
from .mae import MaskedAutoencoder

_MAY_DIFFER = ("image_size", "patch", "drop_path")  # between the weights a run begins with and its own networks


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
    if command.start is not None:
        _take_weights(model, command.start)
    return model


def start_hash(start: str | None) -> str:
    """Return what identifies the weights a run begins with; "" where it draws them.

    Raises:
        CheckpointError, UnknownName: if there are none of this name.
    """
    if start is None:
        return ""
    file = _autoencoder_file(start)
    if file is None:
        return load_encoder(start).fingerprint()
    if not file.is_file():
        raise CheckpointError(f"no file {file}")
    return sha256_of(file)


def _autoencoder_file(start: str) -> Path | None:
    """Return the file of an autoencoder that `start` names, or None if it names an encoder."""
    path = Path(start)
    file = path / "autoencoder.safetensors" if path.is_dir() else path
    return file if file.name == "autoencoder.safetensors" else None


def _take_weights(model: MaskedAutoencoder, start: str) -> None:
    """Replace weights by trained ones, the decoder's too if `start` has one; else it keeps its drawn weights.

    Raises:
        CheckpointError: if the networks are of other sizes.
    """
    take_encoder(model.encoder, start)
    if _autoencoder_file(start) is not None:
        _take("decoder", model.decoder, load_autoencoder(start).decoder, start)


def take_encoder(encoder: PixioEncoder, start: str) -> None:
    """Replace an encoder's weights by trained ones; position table and patches are resized to its own.

    Args:
        encoder: changed in place.
        start: a run folder of ``pretrain``, its ``autoencoder.safetensors``, or an encoder as `load_encoder` takes it.

    Raises:
        CheckpointError: if the networks are of other sizes.
    """
    if _autoencoder_file(start) is not None:
        given = load_autoencoder(start).encoder
    else:
        network = load_encoder(start).network
        if not isinstance(network, PixioEncoder):
            raise CheckpointError(f"start={start} is no Pixio encoder, so it cannot be trained on")
        given = network
    _take("encoder", encoder, given, start)


def _take(name: str, part: Any, given: Any, start: str) -> None:
    asked, found = ({k: v for k, v in each.arguments.items() if k not in _MAY_DIFFER} for each in (part, given))
    if different := [f"{key} {found[key]}, not {asked[key]}" for key in asked if asked[key] != found[key]]:
        raise CheckpointError(f"start={start} has an {name} with {'; '.join(different)}; change one or the other")
    side = part.arguments["image_size"] // part.patch
    table = resized_positions(given.pos_embed.detach(), part.cls_tokens, side, side)
    part.load_state_dict({**given.state_dict(), **_resized_ends(given, part.patch), "pos_embed": table})


def _resized_ends(part: PixioEncoder | PixelDecoder, patch: int) -> dict[str, torch.Tensor]:
    """Return the weights that read or predict pixels, for patches of another side."""
    if isinstance(part, PixioEncoder):
        return {"patch_embed.proj.weight": resized_patches(part.patch_embed.proj.weight.detach(), part.patch, patch)}
    return {
        f"head.{key}": _resized_prediction(value, part.patch, patch) for key, value in part.head.state_dict().items()
    }


def _resized_prediction(rows: torch.Tensor, patch: int, other: int) -> torch.Tensor:
    """Return a layer's rows (3 * patch^2, ...), ordered row, column, channel, for patches enlarged bilinearly."""
    images = rows.reshape(patch, patch, -1).permute(2, 0, 1).unsqueeze(1)
    larger = torch.nn.functional.interpolate(images, size=(other, other), mode="bilinear", align_corners=False)
    return larger.squeeze(1).permute(1, 2, 0).reshape(3 * other**2, *rows.shape[1:])


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

"""The autoencoders of pre-training: from a configuration, from other weights, from and to files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..encoders.load import load_encoder
from ..encoders.pixio import PRESETS, PixioEncoder, resized_patches, resized_positions
from ..errors import BadInput, CheckpointError, UnknownName, closest
from ..files import sha256_of
from ..hardware import combine
from .decoder import DECODERS, PixelDecoder
from .mae import MaskedAutoencoder

POSITIONS = ("sincos", "normal")
_MAY_DIFFER = ("image_size", "patch", "drop_path")  # between initial weights and the network that gets them

Size = tuple[int, int, int]  # width, depth, heads


@dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture and initial weights of an encoder and its decoder.

    Raises:
        BadInput, UnknownName: naming the setting, its value and what is possible.
    """

    encoder: str = "ti"  # ti, s, b, l, h, 1b, 5b, or WIDTHxDEPTHxHEADS
    decoder: str = "auto"  # ti, s, b, reference, mae, or WIDTHxDEPTHxHEADS; auto depends on the encoder
    patch: int = 16  # side of a patch [px]
    image_size: int = 256  # side of the training crops [px]
    cls_tokens: int = 8
    drop_path: float = 0.0  # stochastic depth rate of the last encoder block
    positions: str = "sincos"  # initial position tables
    norm_pixels: bool = True  # normalise each target patch
    init_from: str | None = None  # initial weights, as for `load_encoder_weights`; None draws them

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            side = self.image_size // self.patch * self.patch
            near = " or ".join(str(each) for each in (side, side + self.patch) if each)
            raise BadInput(f"image_size={self.image_size} is not a multiple of patch={self.patch}; use {near}")
        check_drop_path(self.drop_path)
        if self.positions not in POSITIONS:
            near = closest(self.positions, POSITIONS)
            raise UnknownName(f"no positions {self.positions!r}; there are: {', '.join(POSITIONS)}{near}")
        _ = self.encoder_size, self.decoder_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size // self.patch,) * 2

    @property
    def encoder_size(self) -> Size:
        """Width, depth and heads of the encoder."""
        return network_size("encoder", self.encoder, PRESETS)

    @property
    def decoder_size(self) -> Size:
        """Width, depth and heads of the decoder."""
        name = self.decoder
        if name == "auto":
            name = self.encoder if self.encoder in DECODERS else _nearest_decoder(self.encoder_size[0])
        return network_size("decoder", name, DECODERS)


def check_drop_path(rate: float) -> None:
    """Refuse an impossible stochastic depth rate.

    Raises:
        BadInput: naming it.
    """
    if not 0 <= rate <= 0.999:
        raise BadInput(f"drop_path={rate} must lie from 0 to 0.999")


def _nearest_decoder(width: int) -> str:
    return next((name for name in DECODERS if name in PRESETS and width <= PRESETS[name][0]), "reference")


def network_size(what: str, name: str, known: dict[str, Size]) -> Size:
    """Return width, depth and heads of a named size, or of one like "128x6x4".

    Raises:
        UnknownName: for another name.
        BadInput: for a width that is no multiple of 4 and of the heads.
    """
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


def build_autoencoder(config: AutoencoderConfig) -> MaskedAutoencoder:
    """Return the network of a configuration, not yet initialised."""
    common = dict(patch=config.patch, image_size=config.image_size, cls_tokens=config.cls_tokens)
    encoder = PixioEncoder(*config.encoder_size, **common, drop_path=config.drop_path)
    decoder = PixelDecoder(encoder.dim, *config.decoder_size, **common)
    return MaskedAutoencoder(encoder, decoder, config.norm_pixels)


def new_autoencoder(config: AutoencoderConfig, seed: int) -> MaskedAutoencoder:
    """Return the network of a configuration, with weights that the seed decides or those of `init_from`."""
    with torch.device("meta"):  # draws nothing from the global generator
        model = build_autoencoder(config)
    model.to_empty(device="cpu")
    model.initialise(config.positions, torch.Generator().manual_seed(combine(seed, 0)))
    if config.init_from is not None:
        _load_weights(model, config.init_from)
    return model


def init_from_hash(init_from: str | None) -> str:
    """Return a hash of initial weights; "" where they are drawn.

    Raises:
        CheckpointError, UnknownName: if there are none of this name.
    """
    if init_from is None:
        return ""
    file = _autoencoder_file(init_from)
    if file is None:
        return load_encoder(init_from).fingerprint()
    if not file.is_file():
        raise CheckpointError(f"no file {file}")
    return sha256_of(file)


def _autoencoder_file(init_from: str) -> Path | None:
    """Return the file of the autoencoder that `init_from` names, or None if it names an encoder."""
    path = Path(init_from)
    file = path / "autoencoder.safetensors" if path.is_dir() else path
    return file if file.name == "autoencoder.safetensors" else None


def _load_weights(model: MaskedAutoencoder, init_from: str) -> None:
    """Replace weights by trained ones; the decoder keeps its drawn weights where `init_from` has no decoder.

    Raises:
        CheckpointError: if the networks are of other sizes.
    """
    load_encoder_weights(model.encoder, init_from)
    if _autoencoder_file(init_from) is not None:
        _copy_weights("decoder", model.decoder, load_autoencoder(init_from).decoder, init_from)


def load_encoder_weights(encoder: PixioEncoder, init_from: str) -> None:
    """Replace an encoder's weights by trained ones; position table and patch weights are resized.

    Args:
        encoder: changed in place.
        init_from: a run folder of ``pretrain``, its ``autoencoder.safetensors``, or an encoder as for `load_encoder`.

    Raises:
        CheckpointError: if the networks are of other sizes.
    """
    if _autoencoder_file(init_from) is not None:
        source = load_autoencoder(init_from).encoder
    else:
        network = load_encoder(init_from).network
        if not isinstance(network, PixioEncoder):
            raise CheckpointError(f"init_from={init_from} is no Pixio encoder, so it cannot be trained further")
        source = network
    _copy_weights("encoder", encoder, source, init_from)


def _copy_weights(name: str, part: Any, source: Any, init_from: str) -> None:
    ours, theirs = ({k: v for k, v in each.arguments.items() if k not in _MAY_DIFFER} for each in (part, source))
    if different := [f"{key} {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key]]:
        raise CheckpointError(f"init_from={init_from} has a {name} with {'; '.join(different)}; change one of the two")
    side = part.arguments["image_size"] // part.patch
    table = resized_positions(source.pos_embed.detach(), part.cls_tokens, side, side)
    part.load_state_dict({**source.state_dict(), **_resized_ends(source, part.patch), "pos_embed": table})


def _resized_ends(part: PixioEncoder | PixelDecoder, patch: int) -> dict[str, torch.Tensor]:
    """Return the weights that read or predict pixels, resized to another patch side."""
    if isinstance(part, PixioEncoder):
        return {"patch_embed.proj.weight": resized_patches(part.patch_embed.proj.weight.detach(), part.patch, patch)}
    return {
        f"head.{key}": _resized_prediction(value, part.patch, patch) for key, value in part.head.state_dict().items()
    }


def _resized_prediction(rows: torch.Tensor, patch: int, other: int) -> torch.Tensor:
    """Return a layer's rows (3 * patch^2, ...), ordered row, column, channel, resized bilinearly to another patch."""
    images = rows.reshape(patch, patch, -1).permute(2, 0, 1).unsqueeze(1)
    larger = torch.nn.functional.interpolate(images, size=(other, other), mode="bilinear", align_corners=False)
    return larger.squeeze(1).permute(1, 2, 0).reshape(3 * other**2, *rows.shape[1:])


def blank_autoencoder(arguments: dict[str, Any]) -> MaskedAutoencoder:
    """Return an autoencoder without weights, on the meta device."""
    with torch.device("meta"):
        encoder, decoder = PixioEncoder(**arguments["encoder"]), PixelDecoder(**arguments["decoder"])
        return MaskedAutoencoder(encoder, decoder, arguments["norm_pixels"])


def save_autoencoder(path: Path, model: MaskedAutoencoder, settings: dict[str, Any], step: int = 0) -> None:
    """Write encoder and decoder to a ``.safetensors`` file, to score images with or to train further.

    Args:
        settings: that trained it, ready for JSON.
        step: number of training steps.
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
        raise CheckpointError(f"{file} has incomplete network arguments ({error!r}); write it again") from error
    model.to_empty(device="cpu")
    load_strictly(model, checkpoint.tensors, file)
    return model.eval()

"""Encoders by name: `load_encoder` gives any of them with its preprocessing and its identity.

Shapes: B batch, K class tokens, N patches, D width.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ..errors import BadInput, CheckpointError, UnknownName, closest
from . import baselines, hub
from .official import build_encoder, read_official
from .pixio import PRESETS, PixioEncoder, Tokens, TokenShape
from .preprocessing import Preprocessing, preprocess
from .transformers_folders import read_transformers, write_transformers

logger = logging.getLogger(__name__)

PUBLISHED = tuple(f"facebook/pixio-{size}" for size in ("vitb16", "vitl16", "vith16", "vit1b16", "vit5b16"))
BUNDLED = {"pixio-robot-ti": Path(__file__).parent.parent / "weights" / "pixio-robot-ti.safetensors"}  # trained by us
WITHOUT_ENCODER = {
    "none": "blind policy, which sees proprioception alone",
    "cnn": "policy that learns to see by itself",
    "state": "policy that is told what there is",
}
FORMS = f"""an encoder is one of
  {", ".join(BUNDLED):<33} bundled with this package, Apache-2.0
  random:SIZE or random:SIZE:SEED   random weights; sizes {", ".join(PRESETS)}
  PATH.safetensors                  written by pixio-robot
  PATH.pth                          an official Pixio file
  FOLDER or OWNER/NAME              Pixio for transformers, such as {PUBLISHED[0]}
  hf:FOLDER or hf:OWNER/NAME        another vision model of transformers
  timm:MODEL or random:timm:MODEL   a model of timm
each with @SIDE behind it where it is to see images of another size, such as random:b@224"""


class Backbone(nn.Module):
    """An encoder with all that using it needs: preprocessing, token shape, fingerprint.

    A frozen backbone (no parameter requires a gradient) stays in evaluation mode when a module around it is set to
    training. To train it: ``backbone.requires_grad_(True).train()``.

    Args:
        network: pixels (B, 3, H, W) and ``normed`` to `Tokens`.
        name: what `load_encoder` was given.
        preprocessing: how the network wants its images.
        weights: "trained" or "random".
    """

    def __init__(
        self,
        network: PixioEncoder | baselines.Baseline,
        name: str,
        preprocessing: Preprocessing,
        weights: str = "trained",
    ) -> None:
        super().__init__()
        self.network = network
        self.name, self.preprocessing, self.weights = name, preprocessing, weights
        self._token_shape: TokenShape | None = None
        self._fingerprint: tuple[Any, str] = (None, "")  # the state it was taken of, and the digest

    @property
    def token_shape(self) -> TokenShape:
        """What one preprocessed image gives."""
        if self._token_shape is None:
            height, width = self.preprocessing.size
            if isinstance(self.network, PixioEncoder):
                patch = self.network.patch
                self._token_shape = TokenShape(
                    self.network.cls_tokens, (height // patch, width // patch), self.network.dim
                )
            else:
                self._token_shape = self.network.token_shape((height, width))
        return self._token_shape

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; frozen, it stays in evaluation mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def preprocess(self, images: Tensor) -> Tensor:
        """Turn (B, H, W, 3) uint8 images into the pixels this network was trained on."""
        return preprocess(images, self.preprocessing)

    def forward(self, pixels: Tensor, normed: bool = True) -> Tokens:
        """Encode (B, 3, H, W) pixels; raw tokens, before the final norm, unless `normed`."""
        return self.network(pixels, normed=normed)

    @torch.no_grad()
    def fingerprint(self) -> str:
        """Return the hex SHA-256 of the weights and the network's arguments, whatever file or device they are on.

        It identifies token caches. Taken once for a state of frozen weights: changed weights give another.
        """
        state = sorted(self.network.state_dict().items())
        seen = tuple((name, tensor.data_ptr(), tensor._version, tensor.dtype) for name, tensor in state)
        learns = any(parameter.requires_grad for parameter in self.network.parameters())
        if learns or self._fingerprint[0] != seen:  # fused optimisers change weights without counting it
            arguments = dict(getattr(self.network, "arguments", {}))
            arguments.pop("drop_path", None)  # of training alone
            digest = hashlib.sha256(repr(sorted(arguments.items())).encode())
            for name, tensor in state:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._fingerprint = (seen, digest.hexdigest())
        return self._fingerprint[1]


def load_encoder(name_or_path: str | Path) -> Backbone:
    """Load an encoder, frozen and in evaluation mode, on the CPU in fp32.

    Args:
        name_or_path: one of the forms of `FORMS`: ``pixio-robot-ti``, ``random:ti``, a ``.safetensors``, an official
            ``.pth``, a folder of transformers, ``facebook/pixio-vitb16``, ``hf:...`` or ``timm:...``. ``@128`` behind
            it resizes images to 128 px, which takes less time and shows less; position tables are interpolated.

    Raises:
        UnknownName: if it is none of the forms.
        BadInput: for a size that it cannot take.
        CheckpointError: if the weights are missing, damaged, gated, unreachable, or do not fit.
        MissingExtra: if it needs a package that is not installed.
    """
    name = str(name_or_path)
    source, _, side = name.rpartition("@")
    sized = bool(source) and side.isdecimal() and not Path(name).exists()
    network, preprocessing, weights = _load(source if sized else name)
    if sized:
        preprocessing = _at(int(side), network, preprocessing, name)
    if weights == "random":
        logger.warning("encoder %s has random weights: a reference row, not a trained encoder", name)
    backbone = Backbone(network, name, preprocessing, weights)
    return backbone.requires_grad_(False).eval()


def _load(name: str) -> tuple[PixioEncoder | baselines.Baseline, Preprocessing, str]:
    if name in WITHOUT_ENCODER:
        raise UnknownName(
            f"{name!r} is no encoder: it makes a {WITHOUT_ENCODER[name]}; train_bc, quickstart and benchmark take it"
        )
    if name in BUNDLED:
        return _read_ours(BUNDLED[name])
    kind, _, rest = name.partition(":")
    if kind == "random" and rest:
        return *_random(rest), "random"
    if kind == "hf" and rest:
        return *baselines.load_transformers(rest), "trained"
    if kind == "timm" and rest:
        return *baselines.load_timm(rest), "trained"
    path = Path(name).expanduser()
    if name and path.is_dir():
        return *read_transformers(path), "trained"
    if path.suffix == ".safetensors":
        return _read_ours(path)
    if path.suffix in (".pth", ".pt"):
        if not path.is_file():
            raise CheckpointError(f"no file {path}")
        network = read_official(path)
        side = network.arguments["image_size"]
        return network, Preprocessing(size=(int(side), int(side))), "trained"
    if hub.REPOSITORY.fullmatch(name) and not path.exists():
        return *read_transformers(hub.fetch(name)), "trained"
    known = [*BUNDLED, *PUBLISHED, *(f"random:{size}" for size in PRESETS), "none"]
    raise UnknownName(f"no encoder {name!r}{closest(name, known)}; {FORMS}")


def _at(side: int, network: PixioEncoder | baselines.Baseline, own: Preprocessing, name: str) -> Preprocessing:
    """Return preprocessing to squares of another side [px], with the same margin cut."""
    shorter = own.shorter and round(own.shorter * side / min(own.size))
    preprocessing = own._replace(size=(side, side), shorter=shorter)
    if not isinstance(network, PixioEncoder):
        baselines.check_size(network, preprocessing, name)
    elif side < network.patch or side % network.patch:
        raise BadInput(f"{name} cannot be: its patches are {network.patch} px, so the side must be a multiple of that")
    return preprocessing


def _random(rest: str) -> tuple[PixioEncoder | baselines.Baseline, Preprocessing]:
    what, _, last = rest.rpartition(":")
    what, seed = (what, int(last)) if what and last.isdecimal() else (rest, 0)
    if what.startswith("timm:"):
        return baselines.load_timm(what.removeprefix("timm:"), seed)
    with torch.device("meta"):  # draws nothing from the global generator
        encoder = PixioEncoder.preset(what)
    encoder.to_empty(device="cpu").initialise(torch.Generator().manual_seed(seed))
    return encoder, Preprocessing()


def _read_ours(path: Path) -> tuple[PixioEncoder, Preprocessing, str]:
    if path.name == "model.safetensors" and (path.parent / "config.json").is_file():  # as transformers names it
        return *read_transformers(path.parent), "trained"
    checkpoint = load_checkpoint(path, kind="encoder")
    try:
        arguments = checkpoint.arguments["encoder"]
        preprocessing = Preprocessing.from_arguments(checkpoint.arguments["preprocessing"])
        weights = str(checkpoint.arguments["weights"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how its encoder is built ({error!r}); write it again") from error
    return build_encoder(arguments, checkpoint.tensors, path), preprocessing, weights


def _pixio(encoder: Backbone | PixioEncoder) -> tuple[PixioEncoder, Preprocessing, str]:
    if isinstance(encoder, PixioEncoder):
        side = int(encoder.arguments["image_size"])
        return encoder, Preprocessing(size=(side, side)), "trained"
    if not isinstance(encoder.network, PixioEncoder):
        raise CheckpointError(f"{encoder.name!r} is no Pixio encoder; it stays in its own library's format")
    return encoder.network, encoder.preprocessing, encoder.weights


def save_encoder(
    encoder: Backbone | PixioEncoder,
    path: str | Path,
    settings: dict[str, Any] | None = None,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a Pixio encoder to `path` (``.safetensors``) with its arguments and preprocessing.

    Args:
        encoder: a bare network counts as trained, and its preprocessing is the default at its own image size.
        path: where to.
        settings: what trained it, ready for JSON.
        step: after how many training steps.
        dtype: of the weights in the file; half precision halves it. They are fp32 again when loaded.

    Raises:
        CheckpointError: if it is not a Pixio encoder.
    """
    network, preprocessing, weights = _pixio(encoder)
    arguments = dict(encoder=network.arguments, preprocessing=preprocessing._asdict(), weights=weights)
    tensors = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    save_checkpoint(path, Checkpoint("encoder", tensors, arguments, settings or {}, step))


def export_transformers(encoder: Backbone | PixioEncoder, folder: str | Path) -> None:
    """Write a Pixio encoder as a folder that ``transformers.AutoModel.from_pretrained`` reads, whole or not at all.

    Raises:
        CheckpointError: if it is not a Pixio encoder.
        BadInput: if the folder is there already and not empty.
    """
    network, preprocessing, _ = _pixio(encoder)
    write_transformers(network, preprocessing, Path(folder))

"""Encoders by name: `load_encoder` returns any of them with its preprocessing and fingerprint."""

import logging
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ..errors import CheckpointError, PixioError, UnknownName, closest
from ..plugins import find_plugin, plugin_names
from . import hub
from .baselines import load_timm
from .encoder import Backbone, EncoderNetwork, LoadedEncoder
from .official import build_encoder, read_official
from .pixio import PRESETS, PixioEncoder
from .preprocessing import Preprocessing
from .transformers_folders import read_transformers, write_transformers

logger = logging.getLogger(__name__)

PUBLISHED = tuple(f"facebook/pixio-{size}" for size in ("vitb16", "vitl16", "vith16", "vit1b16", "vit5b16"))
BUNDLED = {"pixio-robot-ti": Path(__file__).parent.parent / "weights" / "pixio-robot-ti.safetensors"}  # trained by us
WITHOUT_ENCODER = {  # baselines that `encoder=` names too
    "none": "proprioception only",
    "cnn": "small CNN, trained end to end",
    "state": "privileged simulator state",
}
_BUILT_IN = ("random", "hf", "timm")  # plug-ins that `forms` describes itself


def forms() -> str:
    """Return what `load_encoder` takes, a line for each form."""
    others = "".join(
        f"\n  {f'{name}:...':<33} from a plug-in" for name in plugin_names("encoders") if name not in _BUILT_IN
    )
    return f"""an encoder is one of
  {", ".join(BUNDLED):<33} bundled with this package, Apache-2.0
  random:SIZE or random:SIZE:SEED   random weights; sizes {", ".join(PRESETS)}
  PATH.safetensors                  a file written by pixio-robot
  PATH.pth                          an official Pixio file
  FOLDER or OWNER/NAME              a Pixio model of transformers, such as {PUBLISHED[0]}
  hf:FOLDER or hf:OWNER/NAME        another vision model of transformers
  timm:MODEL or random:timm:MODEL   a model of timm{others}
add @SIDE for images of another size [px], such as random:b@224"""


def load_encoder(name_or_path: str | Path) -> Backbone:
    """Load an encoder, frozen and in evaluation mode, on the CPU in fp32.

    Args:
        name_or_path: one of `forms`: ``pixio-robot-ti``, ``random:ti``, a ``.safetensors``, an official ``.pth``, a
            folder of transformers, ``facebook/pixio-vitb16``, ``hf:...``, ``timm:...`` or ``PLUGIN:...``. A suffix
            such as ``@128`` resizes images to 128 px, which is faster and less detailed; position tables are
            interpolated.

    Raises:
        UnknownName: if it is none of the forms.
        BadInput: if the encoder cannot take images of the size.
        CheckpointError: if the weights are missing, damaged, gated, unreachable, or do not fit.
        MissingExtra: if it needs a package that is not installed.
        PixioError: if a plug-in's loader fails or does not return a `LoadedEncoder`.
    """
    name = str(name_or_path)
    source, _, side = name.rpartition("@")
    sized = bool(source) and side.isdecimal() and not Path(name).exists()
    network, preprocessing, weights = _load(source if sized else name)
    if sized:
        preprocessing = _resized(preprocessing, int(side))
        network.check_size(preprocessing.size, name)
    if weights == "random":
        logger.warning("encoder %s has random weights: it is a reference, not a trained encoder", name)
    backbone = Backbone(network, name, preprocessing, weights)
    return backbone.requires_grad_(False).eval()


def _load(name: str) -> LoadedEncoder:
    if name in WITHOUT_ENCODER:
        raise UnknownName(
            f"{name!r} is a baseline without an encoder ({WITHOUT_ENCODER[name]}); only train_bc, quickstart and "
            "benchmark take it"
        )
    if name in BUNDLED:
        return _read_ours(BUNDLED[name])
    kind, _, rest = name.partition(":")
    if rest and kind in plugin_names("encoders"):
        return _from_plugin(kind, rest)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return LoadedEncoder(*read_transformers(path))
    if path.suffix == ".safetensors":
        return _read_ours(path)
    if path.suffix in (".pth", ".pt"):
        if not path.is_file():
            raise CheckpointError(f"no file {path}")
        network = read_official(path)
        side = int(network.arguments["image_size"])
        return LoadedEncoder(network, Preprocessing(size=(side, side)))
    if hub.REPOSITORY.fullmatch(name) and not path.exists():
        return LoadedEncoder(*read_transformers(hub.fetch(name)))
    known = [*BUNDLED, *PUBLISHED, *(f"random:{size}" for size in PRESETS), "none"]
    raise UnknownName(f"no encoder {name!r}{closest(name, known)}; {forms()}")


def _from_plugin(kind: str, text: str) -> LoadedEncoder:
    try:
        loaded = find_plugin("encoders", kind)(text)
    except PixioError:
        raise
    except Exception as error:  # any code of another package
        raise PixioError(f"encoder '{kind}:{text}' cannot be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(loaded, LoadedEncoder) or not isinstance(loaded.network, EncoderNetwork):
        what = type(loaded.network if isinstance(loaded, LoadedEncoder) else loaded).__name__
        raise PixioError(
            f"the plug-in of encoder '{kind}:{text}' returned a {what}; its loader must return a LoadedEncoder with an "
            "EncoderNetwork (pixio_robot/encoders/encoder.py)"
        )
    return loaded


def _resized(given: Preprocessing, side: int) -> Preprocessing:
    """Return preprocessing for square images of another side [px], with the same share of margin cut."""
    return given._replace(size=(side, side), shorter=given.shorter and round(given.shorter * side / min(given.size)))


def load_random(text: str) -> LoadedEncoder:
    """Load a Pixio encoder or a timm model with random weights; ``random:TEXT``.

    Args:
        text: ``SIZE``, ``SIZE:SEED``, ``timm:MODEL`` or ``timm:MODEL:SEED``; the seed is 0 if there is none.

    Raises:
        UnknownName: for a size or model that does not exist.
        MissingExtra: if timm is needed and not installed.
    """
    what, _, last = text.rpartition(":")
    what, seed = (what, int(last)) if what and last.isdecimal() else (text, 0)
    if what.startswith("timm:"):
        return load_timm(what.removeprefix("timm:"), seed)
    with torch.device("meta"):  # draws nothing from the global generator
        encoder = PixioEncoder.preset(what)
    encoder.to_empty(device="cpu").initialise(torch.Generator().manual_seed(seed))
    return LoadedEncoder(encoder, Preprocessing(), "random")


def _read_ours(path: Path) -> LoadedEncoder:
    if path.name == "model.safetensors" and (path.parent / "config.json").is_file():  # as transformers names it
        return LoadedEncoder(*read_transformers(path.parent))
    checkpoint = load_checkpoint(path, kind="encoder")
    try:
        arguments = checkpoint.arguments["encoder"]
        preprocessing = Preprocessing.from_arguments(checkpoint.arguments["preprocessing"])
        weights = str(checkpoint.arguments["weights"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how its encoder is built ({error!r}); write it again") from error
    return LoadedEncoder(build_encoder(arguments, checkpoint.tensors, path), preprocessing, weights)


def _pixio(encoder: Backbone | PixioEncoder) -> tuple[PixioEncoder, Preprocessing, str]:
    if isinstance(encoder, PixioEncoder):
        side = int(encoder.arguments["image_size"])
        return encoder, Preprocessing(size=(side, side)), "trained"
    if not isinstance(encoder.network, PixioEncoder):
        raise CheckpointError(f"{encoder.name!r} is not a Pixio encoder; it stays in the format of its library")
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
        encoder: a bare network counts as trained and gets the default preprocessing at its own image size.
        path: the file to write.
        settings: what trained it, ready for JSON.
        step: number of training steps it has had.
        dtype: of the weights in the file. Loading always returns fp32.

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
        BadInput: if the folder exists and is not empty.
    """
    network, preprocessing, _ = _pixio(encoder)
    write_transformers(network, preprocessing, Path(folder))

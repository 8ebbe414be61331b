"""Pixio in folders of transformers: the old and the new layout are read, the old one is written.

Files are JSON and safetensors. transformers is not needed, and no pickle code runs.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import read_safetensors
from ..errors import BadInput, CheckpointError
from .official import build_encoder
from .pixio import PixioEncoder
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

FIXED = {"hidden_act": "gelu", "mlp_ratio": 4, "qkv_bias": True, "layer_norm_eps": 1e-6, "num_channels": 3}

# transformers' names to ours; the first alternative is used on disk, the second in memory since version 5.9
RENAMES = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def read_transformers(folder: Path) -> tuple[PixioEncoder, Preprocessing]:
    """Read a Pixio folder in the layout of transformers.

    Raises:
        CheckpointError: if it is not Pixio, has no safetensors, is damaged, or differs from the paper's architecture.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "pixio":
        raise CheckpointError(f"{folder} holds a model of type {kind!r}, not 'pixio'; load it as 'hf:{folder}'")
    for key, needed in FIXED.items():
        if config.get(key, needed) != needed:
            raise CheckpointError(f"{folder}/config.json: {key} is {config[key]!r}; Pixio has {needed!r}")
    try:
        arguments = dict(
            dim=config["hidden_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            patch=_side(config.get("patch_size", 16)),
            image_size=_side(config.get("image_size", 256)),
            cls_tokens=config.get("n_cls_tokens", 8),
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json: missing or not square: {error}") from error
    encoder = build_encoder(arguments, _from_transformers(read_shards(folder)), folder)
    return encoder, read_preprocessing(folder, arguments["image_size"])


def _side(value: int | list[int]) -> int:
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1:
        raise ValueError(value)
    return sides.pop()


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``, or all the files its index names.

    Raises:
        CheckpointError: if a file is missing or damaged, or there are only pickles.
    """
    require_safetensors(folder)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return read_safetensors(folder / "model.safetensors")[1]
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or any(Path(str(name)).name != name for name in places.values()):
        raise CheckpointError(f"{index} has no valid weight_map; fetch it again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        tensors |= read_safetensors(folder / name)[1]
    return tensors


def require_safetensors(folder: Path) -> None:
    """Refuse a folder without safetensors.

    Raises:
        CheckpointError: the message says whether there are pickles instead.
    """
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.safetensors.index.json")):
        pickles = sorted(path.name for suffix in ("*.bin", "*.pth", "*.pt") for path in folder.glob(suffix))
        have = f"only {', '.join(pickles)}, which could run code when loaded" if pickles else "no weights"
        raise CheckpointError(f"{folder} has no model.safetensors; it has {have}. Convert it to safetensors")


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in renamed for part in parts):
            renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the layout that every transformers with Pixio reads: the legacy one."""
    pairs = [
        (r"^cls_token$", "embeddings.cls_token"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^blocks\.", "encoder.layer."),
        (r"^norm\.", "layernorm."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
    ]
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." not in name:
            result[name] = tensor.contiguous()
            continue
        for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            result[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = rows.clone()
    return result


PILLOW_BILINEAR = 2  # Pillow's constant, as in preprocessor files


def read_preprocessing(folder: Path, image_size: int | tuple[int, int]) -> Preprocessing:
    """Read ``preprocessor_config.json``; without one, ImageNet statistics at `image_size` [px].

    Resampling other than bilinear and bicubic becomes bicubic.
    """
    square = (image_size, image_size) if isinstance(image_size, int) else image_size
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Preprocessing(size=square)
    config = read_json(path)
    cuts = bool(config.get("do_center_crop")) and config.get("crop_size") is not None
    size = config.get("crop_size") if cuts else config.get("size")
    mode = "crop" if cuts or (isinstance(size, dict) and "shortest_edge" in size) else "squash"
    try:
        if isinstance(size, dict):
            side = size.get("shortest_edge")
            target = (int(size["height"]), int(size["width"])) if side is None else (int(side), int(side))
        else:
            target = square if size is None else (int(size), int(size))
        whole = config.get("size")
        edge = whole.get("shortest_edge") if isinstance(whole, dict) else whole
        shorter = int(edge) if cuts and edge is not None and int(edge) > min(target) else None
        plain = config.get("do_normalize") is False
        mean = (0.0, 0.0, 0.0) if plain else _triple(config.get("image_mean") or IMAGENET_MEAN)
        std = (1.0, 1.0, 1.0) if plain else _triple(config.get("image_std") or IMAGENET_STD)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: size, image_mean or image_std cannot be understood ({error!r})") from error
    interpolation = "bilinear" if config.get("resample") == PILLOW_BILINEAR else "bicubic"
    return Preprocessing(target, mode, mean, std, shorter, interpolation)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def write_transformers(encoder: PixioEncoder, preprocessing: Preprocessing, folder: Path) -> None:
    """Write config, weights and preprocessing as transformers reads them; the folder is complete or absent.

    Raises:
        BadInput: if the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists and is not empty; choose another folder")
    arguments = encoder.arguments
    config = {
        "architectures": ["PixioModel"],
        "model_type": "pixio",
        "hidden_size": arguments["dim"],
        "num_hidden_layers": arguments["depth"],
        "num_attention_heads": arguments["heads"],
        "patch_size": arguments["patch"],
        "image_size": arguments["image_size"],
        "n_cls_tokens": arguments["cls_tokens"],
        "drop_path_rate": 0.0,
        "dtype": str(encoder.cls_token.dtype).removeprefix("torch."),
        **FIXED,
    }
    height, width = preprocessing.size
    target = {"height": height, "width": width}
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)} if preprocessing.resize == "crop" else target,
        "resample": 3,  # bicubic
        "do_center_crop": preprocessing.resize == "crop",
        "crop_size": target,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (temporary / "config.json").write_text(json.dumps(config, indent=2))
        (temporary / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
        save_file(_to_transformers(encoder.state_dict()), temporary / "model.safetensors", metadata={"format": "pt"})
        temporary.chmod(0o755)  # mkdtemp creates it as private
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

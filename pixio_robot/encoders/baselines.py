"""Vision encoders of other libraries, as baselines: transformers (``hf:``) and timm (``timm:``).

All return `Tokens`. Register tokens are dropped. A network without class tokens returns its pooled output as the class
token, and a convolutional network returns its feature map as patches.

Shapes: B batch, K class tokens, D width, L sequence, h x w grid of patches.
"""

import inspect
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput, CheckpointError, MissingExtra, UnknownName, closest
from . import hub
from .encoder import EncoderNetwork, LoadedEncoder, Tokens, TokenShape
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from .torchvision_guard import declare_missing_operators
from .transformers_folders import read_preprocessing, require_safetensors


class Baseline(EncoderNetwork):
    """A network of another library that returns class tokens and a map of patches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def read(self, pixels: Tensor, normed: bool) -> tuple[Tensor, Tensor]:
        """Return class tokens (B, K, D) and the map of patches (B, D, h, w)."""

    def forward(self, pixels: Tensor, *, normed: bool = True) -> Tokens:
        cls, patches = self.read(pixels, normed)
        return Tokens(cls, patches.flatten(2).transpose(1, 2))

    @torch.no_grad()
    def token_shape(self, size: tuple[int, int]) -> TokenShape:
        """Return the token shape of an image of `size` (height, width) [px], by encoding a black one."""
        like = next(self.parameters())
        cls, patches = self.read(torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype), normed=True)
        return TokenShape(cls.shape[1], (patches.shape[2], patches.shape[3]), cls.shape[2])


def as_map(patches: Tensor, pixels: Tensor, patch: int) -> Tensor:
    """Fold (B, h * w, D) patches of `patch` [px] into (B, D, h, w)."""
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    return patches.transpose(1, 2).unflatten(2, (rows, columns))


class TransformersBaseline(Baseline):
    """A vision model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        self.registers = int(getattr(config, "num_register_tokens", 0) or 0)
        self.shuffles = config.model_type == "vit_mae"  # unless `read` gives it the order
        if self.shuffles:
            config.mask_ratio = 0.0
        # transformers norms the tokens of every family except CLIP, where it norms only the pooled token
        self.norms_itself = config.model_type != "clip_vision_model"
        patch = getattr(config, "patch_size", None)
        if config.model_type == "dinov3_convnext":  # returns a sequence, but is a pyramid
            patch = 2 ** (len(config.hidden_sizes) + 1)
        self.patch = int(patch[0] if isinstance(patch, list | tuple) else patch or 1)
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def read(self, pixels: Tensor, normed: bool) -> tuple[Tensor, Tensor]:
        height, width = pixels.shape[2:]
        more: dict[str, Any] = {"interpolate_pos_encoding": True} if self.interpolates else {}
        if self.shuffles:
            order = torch.arange((height // self.patch) * (width // self.patch), device=pixels.device)
            more["noise"] = order.float().expand(len(pixels), -1)
        output = self.model(pixels, output_hidden_states=not normed, **more)
        tokens = output.last_hidden_state if normed else output.hidden_states[-1]
        if tokens.ndim == 4:
            pooled = output.pooler_output.flatten(1) if normed else tokens.mean((2, 3))
            return pooled.unsqueeze(1), tokens
        if height % self.patch or width % self.patch:
            raise BadInput(f"pixels are {height}x{width}; both sides must be multiples of {self.patch}")
        if normed and not self.norms_itself:
            tokens = self.model.post_layernorm(tokens)  # type: ignore[operator]
        patches = (height // self.patch) * (width // self.patch)
        prefix, rest = tokens[:, : tokens.shape[1] - patches], tokens[:, tokens.shape[1] - patches :]
        cls = prefix[:, : prefix.shape[1] - self.registers]
        if cls.shape[1] == 0:
            pooled = getattr(output, "pooler_output", None)
            cls = (rest.mean(1) if pooled is None else pooled).unsqueeze(1)
        return cls, as_map(rest, pixels, self.patch)


class TimmBaseline(Baseline):
    """A model of timm."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(model)
        self.size = size
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        registers = getattr(model, "reg_token", None)  # (1, registers, D)
        self.registers = 0 if registers is None else int(registers.shape[1])
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def read(self, pixels: Tensor, normed: bool) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        if tuple(pixels.shape[2:]) != self.size:
            raise BadInput(f"pixels are {tuple(pixels.shape[2:])}; this timm model takes {self.size}")
        features = model.forward_features(pixels)
        if features.ndim == 4:
            patches = features.permute(0, 3, 1, 2) if self.channels_last else features
            pooled = model.forward_head(features, pre_logits=True).flatten(1) if normed else patches.mean((2, 3))
            if pooled.shape[1] != patches.shape[1]:  # a head with more channels, as in MobileNetV3
                pooled = patches.mean((2, 3))
            return pooled.unsqueeze(1), patches
        if not normed:
            (output,) = model.forward_intermediates(
                pixels, indices=1, return_prefix_tokens=True, norm=False, intermediates_only=True
            )
            patches, prefix = output if isinstance(output, tuple) else (output, features[:, :0])
        else:
            prefix = features[:, : self.prefix]
            side = self.size[0] * self.size[1] / (features.shape[1] - self.prefix)
            patches = as_map(features[:, self.prefix :], pixels, round(side**0.5))
        cls = prefix[:, : self.prefix - self.registers]
        if cls.shape[1] == 0:
            cls = model.forward_head(features, pre_logits=True).unsqueeze(1)
        return cls, patches


def load_transformers(place: str) -> LoadedEncoder:
    """Load a vision model of transformers from a folder or the hub; of an image-text model the image encoder.

    Raises:
        MissingExtra: if transformers is not installed.
        CheckpointError: if it cannot be fetched, has no safetensors, lacks weights, or is not a vision model.
    """
    declare_missing_operators()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra(f"encoder 'hf:{place}'", "hf") from error
    folder = Path(place).expanduser()
    if not folder.is_dir():
        if not hub.REPOSITORY.fullmatch(place):
            raise CheckpointError(f"no folder {place!r}, and it is not an OWNER/NAME on the hub")
        folder = hub.fetch(place)
    require_safetensors(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        with torch.random.fork_rng(devices=[]):
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except Exception as error:  # transformers raises many types
        raise CheckpointError(
            f"transformers cannot load {folder} ({type(error).__name__}: {error}); code from a model folder is not run"
        ) from error
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise CheckpointError(f"{folder} holds {type(model).__name__}, which does not take images")
    missing = sorted(report["missing_keys"])
    if any(key.startswith("pooler.") for key in missing):
        model.pooler = None  # it is not read, and random weights would change the fingerprint
    if missing := [key for key in missing if not key.startswith("pooler.")]:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of {type(model).__name__}: {missing[:3]}")
    image_size = getattr(config, "image_size", None) or 224
    square = (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))
    preprocessing = read_preprocessing(folder, square)
    network = TransformersBaseline(model)
    network.check_size(preprocessing.size, f"hf:{place}")
    return LoadedEncoder(network, preprocessing)


def load_timm(name: str, seed: int | None = None) -> LoadedEncoder:
    """Load a model of timm with its published weights, from safetensors only; with a `seed` random ones instead.

    Raises:
        MissingExtra: if timm is not installed.
        UnknownName: if timm has no such model.
        CheckpointError: if there are no safetensors for it, or they cannot be fetched.
    """
    declare_missing_operators()
    try:
        import timm
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise MissingExtra(f"encoder 'timm:{name}'", "timm") from error
    if not timm.is_model(name):
        raise UnknownName(f"timm {timm.__version__} has no model {name!r}{closest(name, timm.list_models())}")
    try:
        published = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UnknownName(f"timm {timm.__version__} has no weights {name!r} ({error})") from error
    overlay: dict[str, Any] = {}
    if seed is None:
        repository = published.hf_hub_id if published is not None else None
        if not repository:
            raise CheckpointError(f"timm has no weights on the hub for {name!r}; 'random:timm:{name}' needs none")
        folder = hub.fetch(repository, ["*model.safetensors"])
        files = [folder / file for file in ("model.safetensors", "open_clip_model.safetensors")]
        found = [file for file in files if file.is_file()]
        if not found:
            raise CheckpointError(f"{repository} has no model.safetensors; other formats could run code when loaded")
        overlay = dict(file=str(found[0]), custom_load=False, source="")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)
        try:
            model = timm.create_model(name, pretrained=seed is None, pretrained_cfg_overlay=overlay, num_classes=0)
        except Exception as error:  # timm raises many types
            raise CheckpointError(f"timm cannot load {name!r} ({type(error).__name__}: {error})") from error
    config: Any = model.pretrained_cfg
    height, width = config.get("input_size", (3, 224, 224))[1:]
    mode = "squash" if config.get("crop_mode") == "squash" else "crop"
    mean, std = (tuple(config.get(key, default)) for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    share = config.get("crop_pct") or 1.0  # share of the resized image that the crop keeps
    shorter = int(min(height, width) / share) if mode == "crop" and share < 1 else None
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    preprocessing = Preprocessing((height, width), mode, mean, std, shorter, interpolation)
    network = TimmBaseline(model, (height, width))
    network.check_size(preprocessing.size, f"timm:{name}")
    return LoadedEncoder(network, preprocessing, "trained" if seed is None else "random")

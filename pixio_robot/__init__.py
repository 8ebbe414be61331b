"""Robot learning on Pixio encoders.

Importing this package loads nothing: simulator workers must start without torch. The names below resolve on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import Backbone, load_encoder
    from .depth_estimation import DepthEstimator, load_depth
    from .embedding import Embedder
    from .encoder import PixioEncoder, Tokens
    from .envs.registry import make
    from .policies.visuomotor import Visuomotor, load_policy
    from .preprocessing import Preprocessing, preprocess
    from .runtime.runtime import Runtime
    from .schemas import EmbeddingSettings

_HOME = {
    "Backbone": "backbones",
    "load_encoder": "backbones",
    "DepthEstimator": "depth_estimation",
    "load_depth": "depth_estimation",
    "Embedder": "embedding",
    "EmbeddingSettings": "schemas",
    "PixioEncoder": "encoder",
    "Tokens": "encoder",
    "make": "envs.registry",
    "Visuomotor": "policies.visuomotor",
    "load_policy": "policies.visuomotor",
    "Preprocessing": "preprocessing",
    "preprocess": "preprocessing",
    "Runtime": "runtime.runtime",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pixio_robot' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)

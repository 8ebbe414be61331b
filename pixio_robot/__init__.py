"""Robot learning on Pixio encoders.

Importing this package loads nothing: simulator workers must start without torch. The names below resolve on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deploy.runtime import Runtime
    from .depth.estimator import DepthEstimator, load_depth
    from .encoders.load import Backbone, load_encoder
    from .encoders.pixio import PixioEncoder, Tokens
    from .encoders.preprocessing import Preprocessing, preprocess
    from .envs.registry import make
    from .policies.embedding import Embedder
    from .policies.settings import EmbeddingSettings
    from .policies.visuomotor import Visuomotor, load_policy

_HOME = {
    "Backbone": "encoders.load",
    "load_encoder": "encoders.load",
    "DepthEstimator": "depth.estimator",
    "load_depth": "depth.estimator",
    "Embedder": "policies.embedding",
    "EmbeddingSettings": "policies.settings",
    "PixioEncoder": "encoders.pixio",
    "Tokens": "encoders.pixio",
    "make": "envs.registry",
    "Visuomotor": "policies.visuomotor",
    "load_policy": "policies.visuomotor",
    "Preprocessing": "encoders.preprocessing",
    "preprocess": "encoders.preprocessing",
    "Runtime": "deploy.runtime",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pixio_robot' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)

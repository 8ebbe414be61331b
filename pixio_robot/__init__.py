"""Robot learning on Pixio encoders.

Importing this package loads nothing: simulator workers must start without torch. The names below resolve on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets.dataset import EpisodeDataset, Feature, open_dataset
    from .deploy.runtime import Runtime
    from .depth.estimator import DepthEstimator, load_depth
    from .encoders.encoder import Backbone, Tokens
    from .encoders.load import load_encoder
    from .encoders.pixio import PixioEncoder
    from .encoders.preprocessing import Preprocessing, preprocess
    from .envs.registry import make
    from .policies.loaded import LoadedPolicy, load_policy
    from .policies.policy import Batch, Policy, PolicySpec

_HOME = {
    "EpisodeDataset": "datasets.dataset",
    "Feature": "datasets.dataset",
    "open_dataset": "datasets.dataset",
    "Runtime": "deploy.runtime",
    "DepthEstimator": "depth.estimator",
    "load_depth": "depth.estimator",
    "Backbone": "encoders.encoder",
    "Tokens": "encoders.encoder",
    "load_encoder": "encoders.load",
    "PixioEncoder": "encoders.pixio",
    "Preprocessing": "encoders.preprocessing",
    "preprocess": "encoders.preprocessing",
    "make": "envs.registry",
    "LoadedPolicy": "policies.loaded",
    "load_policy": "policies.loaded",
    "Batch": "policies.policy",
    "Policy": "policies.policy",
    "PolicySpec": "policies.policy",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pixio_robot' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)

"""The encoder of a run: as it came, or learning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...encoders.load import Backbone, save_encoder
from ..visuomotor import EncoderIdentity
from .learner import extractor_of


class FrozenEncoder:
    """The encoder as it came, if there is one; its weights stay out of every file."""

    def __init__(self, backbone: Backbone | None, identity: EncoderIdentity | None) -> None:
        self.backbone, self.identity = backbone, identity

    def saved(self, policy: Path) -> EncoderIdentity | None:
        """Return what a policy's file says of it."""
        return self.identity


class FinetunedEncoder:
    """The encoder that learns; it is written beside each policy, which names it."""

    def __init__(self, model: Any, precision: str) -> None:
        self.model, self.precision = model, precision

    @property
    def backbone(self) -> Backbone:
        """The encoder as it is now."""
        learned = extractor_of(self.model).backbone
        assert learned is not None
        learned.weights = "trained"
        return learned

    @property
    def identity(self) -> EncoderIdentity:
        """What it is now."""
        return EncoderIdentity.of(self.backbone, self.precision)

    def saved(self, policy: Path) -> EncoderIdentity:
        """Write it beside a policy's file and return what that says of it."""
        path = policy.with_name(f"{policy.stem}-encoder.safetensors")
        save_encoder(self.backbone, path)
        return replace(self.identity, name=str(path))

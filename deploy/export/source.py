"""What is exported: a policy's checkpoint with its encoder, or an encoder alone."""

from dataclasses import dataclass
from pathlib import Path

from ...encoders.encoder import Backbone
from ...encoders.load import load_encoder
from ...errors import BadInput
from ...files import sha256_of
from ...policies.loaded import LoadedPolicy, load_policy


@dataclass(frozen=True)
class ExportSource:
    """A policy or an encoder, with the hash of what was read."""

    loaded: LoadedPolicy | None  # None for an encoder alone
    backbone: Backbone | None  # None for a policy without an encoder
    fingerprint: str  # SHA-256 of the checkpoint, or the encoder's fingerprint

    @classmethod
    def of_checkpoint(cls, checkpoint: Path | str) -> "ExportSource":
        """Load a policy with its encoder.

        Raises:
            CheckpointError: if the file is missing or damaged, or the encoder has other weights now.
        """
        loaded = load_policy(checkpoint)
        return cls(loaded, loaded.vision.encoder, sha256_of(Path(checkpoint)))

    @classmethod
    def of_encoder(cls, name: str) -> "ExportSource":
        """Load an encoder alone, as `load_encoder` takes it."""
        backbone = load_encoder(name)
        return cls(None, backbone, backbone.fingerprint())

    @property
    def policy(self) -> LoadedPolicy:
        """The policy.

        Raises:
            BadInput: for an encoder alone.
        """
        if self.loaded is None:
            raise BadInput("this is an encoder alone, which does not act; give checkpoint=FILE")
        return self.loaded

    @property
    def encoder(self) -> Backbone:
        """The encoder of a source without a policy.

        Raises:
            BadInput: if there is none.
        """
        if self.backbone is None:
            raise BadInput("nothing to export: give checkpoint=FILE (a policy) or encoder=NAME (an encoder alone)")
        return self.backbone

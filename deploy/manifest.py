"""A bundle: a folder with a program and ``manifest.json``, which describes the program's inputs and outputs.

``verification.json`` beside it holds the comparison with the policy that it was exported from. Shapes in a manifest are
those of one observation, without a batch axis.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, CheckpointError, closest
from ..files import replacing, sha256_of

FORMAT = "pixio-robot-bundle/1"
MANIFEST, VERIFICATION = "manifest.json", "verification.json"
STARTS = "starts"  # name of the input that is true at the first step of an episode
NOISE = "noise"  # name of the input of policies that start from noise


@dataclass
class TensorSpec:
    """An input or output array of a program."""

    name: str
    shape: tuple[int, ...]  # of one observation
    dtype: str  # "uint8", "float32" or "bool"
    unit: str = ""  # what its values are


@dataclass
class HistorySpec:
    """What is kept of earlier frames: the output `name` of one call is in the input `history` of the next call.

    `history` is (frames - 1, *shape) float32, oldest first.
    """

    name: str
    frames: int  # including the latest
    shape: tuple[int, ...]

    @property
    def history(self) -> TensorSpec:
        """The input that takes what is kept."""
        return TensorSpec(f"{self.name}_history", (self.frames - 1, *self.shape), "float32")


@dataclass
class Manifest:
    """What a bundle holds and how it is used."""

    kind: str  # "policy" or "encoder"
    target: str  # name of the export target, e.g. "onnx"; "torch" or "replay" for what is not a bundle
    precision: str  # "fp32", "fp16", "bf16" or "int8"
    program: str  # file that is run
    observation: list[TensorSpec]  # what an observation must hold
    outputs: list[TensorSpec]
    memory: list[HistorySpec] = field(default_factory=list)
    noise: TensorSpec | None = None  # standard normal noise that the program takes
    batch: int | None = 1  # observations per call; None is any number
    task: str | None = None  # that it was trained for
    image_size: int | None = None  # side of its images [px]
    control_period: float | None = None  # between two observations [s]
    horizon: int = 1  # actions in a chunk, one per control period
    action_low: list[float] = field(default_factory=list)  # (A,), in the action's own unit; [] if unknown
    action_high: list[float] = field(default_factory=list)  # (A,)
    action_names: list[str] | None = None  # of its axes, if known
    action_meanings: list[str] | None = None  # what an action a sets on each axis, if known
    normalisation: dict[str, Any] | None = None  # that the program applies; for information
    encoder: dict[str, Any] | None = None  # name, fingerprint, weights
    policy: dict[str, Any] | None = None  # kind, sha256 of its checkpoint, step
    options: dict[str, Any] = field(default_factory=dict)  # how the program was made and is to be run
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that made it
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file of the program
    format: str = FORMAT

    @property
    def actions(self) -> int:
        """The size A of an action; 0 for an encoder alone."""
        return next((each.shape[-1] for each in self.outputs if each.name == "action"), 0)

    @property
    def inputs(self) -> list[TensorSpec]:
        """All inputs of the program, in its order."""
        is_first = [TensorSpec(STARTS, (), "bool")] if any(each.frames > 1 for each in self.memory) else []
        noise = [] if self.noise is None else [self.noise]
        return [*self.observation, *noise, *is_first, *(each.history for each in self.memory if each.frames > 1)]

    def check(self, observation: Mapping[str, np.ndarray]) -> None:
        """Refuse an observation that the program cannot take. Additional arrays are allowed.

        Raises:
            BadInput: naming the first array that is missing, or of another shape or type.
        """
        for tensor in self.observation:
            if tensor.name not in observation:
                near = closest(tensor.name, observation)
                raise BadInput(f"the observation lacks {self._described(tensor)}; it has: {_listed(observation)}{near}")
            value = observation[tensor.name]
            if not isinstance(value, np.ndarray) or value.dtype != tensor.dtype or value.shape != tensor.shape:
                what = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
                raise BadInput(f"{self._described(tensor)} is needed; got {what}")

    def _described(self, tensor: TensorSpec) -> str:
        return f"{tensor.name!r}: {tensor.dtype} {tensor.shape}" + (f", {tensor.unit}" if tensor.unit else "")

    def write(self, folder: Path, files: list[str]) -> None:
        """Write ``manifest.json`` with the hashes of the program's `files`."""
        self.files = {name: sha256_of(folder / name) for name in sorted(files)}
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Manifest":
        """Return the manifest in a JSON object.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if it is not one.
        """
        values = dict(values)
        tensors: dict[str, Any] = {}
        for name in ("observation", "outputs"):
            tensors[name] = [_tensor(each) for each in values.pop(name)]
        memory = [HistorySpec(each["name"], each["frames"], tuple(each["shape"])) for each in values.pop("memory")]
        noise = values.pop("noise", None)
        return cls(**tensors, memory=memory, noise=None if noise is None else _tensor(noise), **values)

    @classmethod
    def read(cls, folder: Path | str, check: bool = True) -> "Manifest":
        """Read a bundle's manifest.

        Args:
            check: compare the files with their hashes.

        Raises:
            CheckpointError: if the folder is no bundle, of another version, or a file is missing or was changed.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise CheckpointError(f"{folder} is no bundle: it has no {MANIFEST}; make one with: pixio-robot export")
        try:
            values = json.loads((folder / MANIFEST).read_text())
            if values.get("format") != FORMAT:
                raise CheckpointError(
                    f"{folder} is a bundle of format {values.get('format')!r}, this version reads {FORMAT!r}; "
                    "export it again"
                )
            manifest = cls.of(values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / MANIFEST} is damaged ({error!r}); export the bundle again") from error
        for name, expected in manifest.files.items() if check else ():
            if not (folder / name).is_file() or sha256_of(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is not the file that was exported; export the bundle again")
        return manifest


def verification_problem(folder: Path | str) -> str:
    """Return why a bundle does not count as verified, as the end of a sentence; "" if it passed."""
    try:
        known = json.loads((Path(folder) / VERIFICATION).read_text())
    except FileNotFoundError:
        return "was never compared with the policy it came from"
    except (OSError, ValueError) as error:
        return f"has a {VERIFICATION} that cannot be read ({error})"
    return "" if isinstance(known, dict) and known.get("passed") is True else "did not pass verification"


def check_verified(folder: Path | str, allow_unverified: bool) -> None:
    """Refuse an int8 bundle that did not pass verification, unless `allow_unverified`.

    Raises:
        CheckpointError: saying what to do.
    """
    if allow_unverified or Manifest.read(folder, check=False).precision != "int8":
        return
    if problem := verification_problem(folder):
        raise CheckpointError(
            f"{folder} is int8 and {problem}; compare it first: pixio-robot verify bundle={folder} checkpoint=... "
            "demos=..., or give allow_unverified=true"
        )


def _tensor(values: dict[str, Any]) -> TensorSpec:
    return TensorSpec(values["name"], tuple(values["shape"]), values["dtype"], values["unit"])


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"

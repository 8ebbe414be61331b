"""A bundle: a folder with a program, ``card.json`` that says how it is used, and ``parity.json`` that says how well.

Shapes in a card are those of one observation, without a batch axis.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadInput, CheckpointError, closest
from ...files import replacing, sha256_of

FORMAT = "pixio-robot-bundle/1"
CARD, PARITY = "card.json", "parity.json"
STARTS = "starts"  # name of the input that says that an episode starts


@dataclass
class TensorSpec:
    """An array that goes in or comes out."""

    name: str
    shape: tuple[int, ...]  # of one observation
    dtype: str  # "uint8", "float32" or "bool"
    unit: str = ""  # what its numbers are


@dataclass
class HistorySpec:
    """What is kept of earlier frames: the program's output `name` of this frame is in its input `history` of the next.

    `history` is (frames - 1, *shape) float32, oldest first.
    """

    name: str
    frames: int  # with the newest
    shape: tuple[int, ...]

    @property
    def history(self) -> TensorSpec:
        """The input that takes what is kept."""
        return TensorSpec(f"{self.name}_history", (self.frames - 1, *self.shape), "float32")


@dataclass
class Manifest:
    """What a bundle is and how it is used."""

    kind: str  # "policy" or "encoder"
    target: str  # "onnx", "openvino", "aoti" or "tensorrt"
    precision: str  # "fp32", "fp16", "bf16" or "int8"
    program: str  # file that is run
    observation: list[TensorSpec]  # what an observation must hold
    outputs: list[TensorSpec]
    memory: list[HistorySpec] = field(default_factory=list)
    batch: int | None = 1  # observations a call; None is any number
    task: str | None = None  # it was trained for
    image_size: int | None = None  # side of its images [px]
    control_period: float | None = None  # between two observations [s]
    chunk: int = 1  # actions planned at once, one a control period
    action_low: list[float] = field(default_factory=list)  # (A,), the action's unit is the task's
    action_high: list[float] = field(default_factory=list)  # (A,)
    action_names: list[str] | None = None  # where known
    action_meanings: list[str] | None = None  # what an action a sets on each axis, where known
    normalisation: dict[str, Any] | None = None  # done by the program: for the record
    encoder: dict[str, Any] | None = None  # name, fingerprint, weights
    policy: dict[str, Any] | None = None  # kind, sha256 of its checkpoint, step
    options: dict[str, Any] = field(default_factory=dict)  # how the program is run and was made
    versions: dict[str, str] = field(default_factory=dict)  # of what made it
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file of the program
    format: str = FORMAT

    @property
    def actions(self) -> int:
        """The width A of an action."""
        return len(self.action_low)

    @property
    def inputs(self) -> list[TensorSpec]:
        """All that the program takes, in its order."""
        starts = [TensorSpec(STARTS, (), "bool")] if any(each.frames > 1 for each in self.memory) else []
        return [*self.observation, *starts, *(each.history for each in self.memory if each.frames > 1)]

    def check(self, observation: Mapping[str, np.ndarray]) -> None:
        """Refuse an observation that the program cannot take; what it does not ask for may be there.

        Raises:
            BadInput: naming the first array that is missing, or of another shape or type.
        """
        for port in self.observation:
            if port.name not in observation:
                near = closest(port.name, observation)
                raise BadInput(f"the observation lacks {self._described(port)}; it has: {_listed(observation)}{near}")
            value = observation[port.name]
            if not isinstance(value, np.ndarray) or value.dtype != port.dtype or value.shape != port.shape:
                what = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
                raise BadInput(f"{self._described(port)} is needed; got {what}")

    def _described(self, port: TensorSpec) -> str:
        return f"{port.name!r}: {port.dtype} {port.shape}" + (f", {port.unit}" if port.unit else "")

    def write(self, folder: Path, files: list[str]) -> None:
        """Write ``card.json`` with the hashes of the program's `files`."""
        self.files = {name: sha256_of(folder / name) for name in sorted(files)}
        with replacing(folder / CARD) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Manifest":
        """Return the card of a JSON object; raises ValueError, KeyError, TypeError or AttributeError if it is none."""
        values = dict(values)
        ports: dict[str, Any] = {}
        for name in ("observation", "outputs"):
            ports[name] = [_port(each) for each in values.pop(name)]
        memory = [HistorySpec(each["name"], each["frames"], tuple(each["shape"])) for each in values.pop("memory")]
        return cls(**ports, memory=memory, **values)

    @classmethod
    def read(cls, folder: Path | str, check: bool = True) -> "Manifest":
        """Read a bundle's card.

        Args:
            check: compare the files with their hashes.

        Raises:
            CheckpointError: if the folder is no bundle, of another version, or a file is missing or was changed.
        """
        folder = Path(folder)
        if not (folder / CARD).is_file():
            raise CheckpointError(f"{folder} is no bundle: it has no {CARD}; make one with: pixio-robot export")
        try:
            values = json.loads((folder / CARD).read_text())
            if values.get("format") != FORMAT:
                raise CheckpointError(
                    f"{folder} is a bundle of format {values.get('format')!r}, this version reads {FORMAT!r}; "
                    "export it again"
                )
            card = cls.of(values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / CARD} is damaged ({error!r}); export the bundle again") from error
        for name, expected in card.files.items() if check else ():
            if not (folder / name).is_file() or sha256_of(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is not the file that was exported; export the bundle again")
        return card


def gate_words(folder: Path | str) -> str:
    """Return what a bundle's ``parity.json`` has against it, in words; "" if it passed the gate."""
    try:
        known = json.loads((Path(folder) / PARITY).read_text())
    except FileNotFoundError:
        return "was never compared with the policy it came from"
    except (OSError, ValueError) as error:
        return f"has a {PARITY} that cannot be read ({error})"
    return "" if isinstance(known, dict) and known.get("passed") is True else "did not pass the gate"


def check_gate(folder: Path | str, allow_unverified: bool) -> None:
    """Refuse an int8 bundle that did not pass the gate, unless that is asked for.

    Raises:
        CheckpointError: saying what to do.
    """
    if (
        not allow_unverified
        and Manifest.read(folder, check=False).precision == "int8"
        and (words := gate_words(folder))
    ):
        raise CheckpointError(
            f"{folder} is int8 and {words}; compare it first: pixio-robot verify bundle={folder} checkpoint=... "
            "demos=..., or give allow_unverified=true"
        )


def _port(values: dict[str, Any]) -> TensorSpec:
    return TensorSpec(values["name"], tuple(values["shape"]), values["dtype"], values["unit"])


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"

"""The interface of an export target: it checks, writes and opens programs of one kind.

A target is a plug-in: an entry point ``NAME = "module:Class"`` in the group ``pixio_robot.targets``. Writing needs
torch. Opening must not need more than the library that runs the program, so this module and the built-in targets import
torch inside functions only.
"""

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import BadInput
from ..manifest import Manifest

if TYPE_CHECKING:
    from ..export.program import Program
    from ..recorded import Recorded

Arrays = dict[str, np.ndarray]
HALF_PRECISIONS = ("fp16", "bf16")


@dataclass(frozen=True)
class ProgramOptions:
    """How a program is written."""

    precision: str = "fp32"  # "fp32", "fp16", "bf16" or "int8"
    batch: int | None = 1  # observations per call; None leaves it open
    device: str = "cpu"  # where a compiled program will run: "cpu" or "cuda"
    calibration: "Recorded | None" = None  # frames that int8 takes its ranges from


class ExecutionContext(abc.ABC):
    """A program bound to arrays: fill the inputs in place, `run`, read the outputs."""

    inputs: Arrays
    outputs: Arrays

    @abc.abstractmethod
    def run(self) -> None:
        """Compute the outputs from the present inputs."""


class LoadedProgram(abc.ABC):
    """A program in memory. Several contexts may share it, each with its own arrays."""

    @abc.abstractmethod
    def bind(self, inputs: Arrays, outputs: Arrays) -> ExecutionContext:
        """Bind arrays of fixed shapes, batch axis included."""


class Target(abc.ABC):
    """Writes and opens programs of one kind."""

    program_file: ClassVar[str]  # name of the file that is run, inside the bundle
    library: ClassVar[str]  # module that runs it
    unsupported: ClassVar[dict[str, str]] = {}  # precision: why it cannot be written and what to use instead

    def check(self, program: "Program", precision: str) -> None:
        """Refuse what cannot be written, before anything is written.

        Raises:
            BadInput: saying what to use instead.
            MissingExtra: if a library is not installed.
        """
        if precision in self.unsupported:
            raise BadInput(self.unsupported[precision])
        if precision != "fp32":
            from ..export.precision import encoder_of

            encoder_of(program, precision)

    @abc.abstractmethod
    def write(self, program: "Program", folder: Path, options: ProgramOptions) -> dict[str, Any]:
        """Write a program into an empty folder; every file that is there afterwards belongs to the bundle.

        Args:
            program: in fp32, in evaluation mode; it may be changed.

        Returns:
            ``Manifest.options``: how it was made and is to be run.
        """

    @abc.abstractmethod
    def open(self, path: Path, manifest: Manifest, threads: int | None) -> LoadedProgram:
        """Load a program.

        Args:
            path: of the program file.
            threads: CPU threads; None is the library's choice.

        Raises:
            MissingExtra: if the library that runs it is not installed.
        """


def import_torch(purpose: str) -> Any:
    """Import torch for a target that needs it to run.

    Raises:
        BadInput: if it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise BadInput(f"{purpose} needs torch: pip install torch; ONNX and OpenVINO bundles do without") from error
    return torch

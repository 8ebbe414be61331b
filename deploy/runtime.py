"""Run exported programs: `Runtime.load(bundle)` needs numpy and the library of the bundle's target, no torch.

Shapes: Y, X image, P proprioception, H horizon, A action, K class tokens, N patches, D width.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import BadInput
from ..plugins import find_plugin
from .manifest import NOISE, STARTS, Manifest, TensorSpec, verification_problem
from .targets.target import LoadedProgram

log = logging.getLogger(__name__)
_WARM_UP = 2  # calls before the first that counts


class RunningPolicy(Protocol):
    """What drives a robot: it turns an observation into the next actions, and keeps what it needs of the past."""

    def reset(self) -> None:
        """Forget the past: the next observation is the first of an episode."""

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (H, A) float32, for one observation, each array without a batch axis."""


def open_program(manifest: Manifest, folder: Path, threads: int | None) -> LoadedProgram:
    """Load a bundle's program.

    Args:
        threads: CPU threads; None is the library's choice.

    Raises:
        MissingExtra: if the library is not installed.
        UnknownName: if no installed package has the target.
    """
    return find_plugin("targets", manifest.target)().open(folder / manifest.program, manifest, threads)


class Runtime:
    """A loaded bundle with its history; a `RunningPolicy`. Not for several threads at once: give each its `session`.

    Arrays are allocated once. A step copies the observation into them, computes, and returns a copy of the actions.
    """

    def __init__(self, manifest: Manifest, program: LoadedProgram) -> None:
        self.manifest, self._program = manifest, program
        batch = manifest.batch or 1
        inputs = {tensor.name: _zeros(tensor, batch) for tensor in manifest.inputs}
        outputs = {tensor.name: _zeros(tensor, batch) for tensor in manifest.outputs}
        self._bound = program.bind(inputs, outputs)
        self._histories = [
            (inputs[each.history.name], outputs[each.name], each.frames - 1)
            for each in manifest.memory
            if each.frames > 1
        ]
        self._starts = inputs.get(STARTS)
        self._noise = inputs.get(NOISE)
        self._rng = np.random.default_rng(0)
        self._first_step = True
        for _ in range(_WARM_UP):
            self._bound.run()
        self.reset()

    @classmethod
    def load(cls, folder: Path | str, threads: int | None = None, check: bool = True) -> "Runtime":
        """Load a bundle and warm it up.

        Args:
            folder: what ``pixio-robot export`` wrote.
            threads: CPU threads; None is the library's choice.
            check: compare the files with the hashes in the manifest, and warn if the bundle did not pass verification.

        Raises:
            CheckpointError: if the folder is no bundle, or a file was changed.
            MissingExtra: if the library that runs it is not installed.
        """
        manifest = Manifest.read(folder, check)
        if check and (problem := verification_problem(folder)):
            log.warning("%s %s; compare it with: pixio-robot verify", folder, problem)
        return cls(manifest, open_program(manifest, Path(folder), threads))

    def session(self) -> "Runtime":
        """Return another runtime on the same loaded program, with its own history."""
        return Runtime(self.manifest, self._program)

    def reset(self) -> None:
        """Forget the past: the next observation starts an episode."""
        self._first_step = True

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (H, A) float32 in the units of the data.

        Args:
            observation: ``rgb`` (Y, X, 3) uint8, ``depth`` (Y, X) float32 [m], ``proprio`` (P,) float32, and
                further cameras, as the manifest names them. Additional arrays are ignored. ``noise`` replaces the
                noise that is drawn for a policy that starts from noise.

        Raises:
            BadInput: if something is missing or has another shape or type, or the bundle is an encoder alone.
        """
        if self.manifest.kind != "policy":
            raise BadInput("this bundle is an encoder alone, which does not act; use encode, or export a checkpoint")
        self._run(observation)
        return self._bound.outputs["action"][0].copy()

    def encode(self, rgb: np.ndarray) -> dict[str, np.ndarray]:
        """Return the tokens of an image (Y, X, 3) uint8 from an encoder's bundle: ``cls`` (K, D), ``patches`` (N, D).

        Raises:
            BadInput: if the image has another shape or type, or the bundle is a policy.
        """
        if self.manifest.kind != "encoder":
            raise BadInput("this bundle is a policy; use act, or export encoder=NAME to get tokens")
        self._run({"rgb": rgb})
        return {name: values[0].copy() for name, values in self._bound.outputs.items()}

    def other_outputs(self) -> dict[str, np.ndarray]:
        """Return copies of the program's other outputs for the last observation, e.g. ``tokens`` (K or N, D)."""
        return {name: values[0].copy() for name, values in self._bound.outputs.items() if name != "action"}

    def _run(self, observation: Mapping[str, np.ndarray]) -> None:
        self.manifest.check(observation)
        inputs = self._bound.inputs
        for tensor in self.manifest.observation:
            inputs[tensor.name][:] = observation[tensor.name]
        if self._starts is not None:
            self._starts[:] = self._first_step
        if self._noise is not None:
            drawn = observation.get(NOISE)
            self._noise[:] = self._rng.standard_normal(self._noise.shape) if drawn is None else drawn
        self._bound.run()
        for history, latest, kept in self._histories:
            if self._first_step:
                history[:] = latest[:, None]
            else:
                for place in range(kept - 1):  # one by one: an overlapping copy would allocate
                    history[:, place] = history[:, place + 1]
                history[:, kept - 1] = latest
        self._first_step = False


def _zeros(tensor: TensorSpec, batch: int) -> np.ndarray:
    return np.zeros((batch, *tensor.shape), tensor.dtype)

"""`Runtime.load(bundle)`: an exported policy at work, with numpy and the library of its target alone.

Shapes: H, W image, P proprioception, T frames of history, C chunk, A action, K class tokens, N patches, D width.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...errors import BadInput
from .bundle import STARTS, Manifest, TensorSpec, gate_words
from .programs import Program, open_program

log = logging.getLogger(__name__)
_WARM_UP = 2  # calls before the first that counts


class Runtime:
    """A loaded bundle with its history; a `Policy`. Not for several threads at once: give each its `session`.

    Arrays are made once: a step copies the observation into them, computes, and returns a copy of the actions.
    """

    def __init__(self, card: Manifest, program: Program) -> None:
        self.card, self._program = card, program
        batch = card.batch or 1
        inputs = {port.name: _zeros(port, batch) for port in card.inputs}
        outputs = {port.name: _zeros(port, batch) for port in card.outputs}
        self._bound = program.bind(inputs, outputs)
        self._keeps = [
            (inputs[each.history.name], outputs[each.name], each.frames - 1) for each in card.memory if each.frames > 1
        ]
        self._starts = inputs.get(STARTS)
        self._fresh = True
        for _ in range(_WARM_UP):
            self._bound.run()
        self.reset()

    @classmethod
    def load(cls, folder: Path | str, threads: int | None = None, check: bool = True) -> "Runtime":
        """Load a bundle and warm it up.

        Args:
            folder: what ``pixio-robot export`` wrote.
            threads: CPU threads; None is the library's choice.
            check: compare the files with the hashes in the card, and warn of a bundle that did not pass the gate.

        Raises:
            CheckpointError: if the folder is no bundle, or a file was changed.
            MissingExtra: if the library that runs it is not installed.
        """
        card = Manifest.read(folder, check)
        if check and (words := gate_words(folder)):
            log.warning("%s %s; pixio-robot verify compares it", folder, words)
        return cls(card, open_program(card, Path(folder), threads))

    def session(self) -> "Runtime":
        """Return another runtime on the same loaded program, with a history of its own."""
        return Runtime(self.card, self._program)

    def reset(self) -> None:
        """Forget the past: the next observation starts an episode."""
        self._fresh = True

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (C, A) float32 within the card's limits.

        Args:
            observation: ``rgb`` (H, W, 3) uint8, ``depth`` (H, W) float32 [m], ``proprio`` (P,) float32, whichever of
                these the card names; more may be there.

        Raises:
            BadInput: if something is missing or has another shape or type, or the bundle is an encoder alone.
        """
        if self.card.kind != "policy":
            raise BadInput("this bundle is an encoder alone, which does not act; use encode, or export a checkpoint")
        self._run(observation)
        return self._bound.outputs["action"][0].copy()

    def encode(self, rgb: np.ndarray) -> dict[str, np.ndarray]:
        """Return the tokens of an image (H, W, 3) uint8 from an encoder's bundle: ``cls`` (K, D), ``patches`` (N, D).

        Raises:
            BadInput: if the image has another shape or type, or the bundle is a policy.
        """
        if self.card.kind != "encoder":
            raise BadInput("this bundle is a policy; use act, or export encoder=NAME to get tokens")
        self._run({"rgb": rgb})
        return {name: values[0].copy() for name, values in self._bound.outputs.items()}

    def seen(self) -> dict[str, np.ndarray]:
        """Return copies of the program's other outputs for the last observation, e.g. ``tokens`` (K or N, D)."""
        return {name: values[0].copy() for name, values in self._bound.outputs.items() if name != "action"}

    def _run(self, observation: Mapping[str, np.ndarray]) -> None:
        self.card.check(observation)
        inputs = self._bound.inputs
        for port in self.card.observation:
            inputs[port.name][:] = observation[port.name]
        if self._starts is not None:
            self._starts[:] = self._fresh
        self._bound.run()
        for history, newest, kept in self._keeps:
            if self._fresh:
                history[:] = newest[:, None]
            else:
                for place in range(kept - 1):  # one by one: a copy onto itself would need room
                    history[:, place] = history[:, place + 1]
                history[:, kept - 1] = newest
        self._fresh = False


def _zeros(port: TensorSpec, batch: int) -> np.ndarray:
    return np.zeros((batch, *port.shape), port.dtype)

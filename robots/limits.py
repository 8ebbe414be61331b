"""How far and how fast each axis may move: limits of the robot and of a file; the narrower one counts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..envs.action_spec import ActionSpec
from ..errors import BadInput, DataError, UnknownName, closest

EXAMPLE = '{"position": {"x": [-0.2, 0.2]}, "velocity": {"x": 0.4}, "step": {"x": 0.02}, "workspace": [[...], [...]]}'


@dataclass(frozen=True)
class Limits:
    """Bounds of the targets, (A,) in the axes' units; infinite where there is none."""

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray  # fastest change of a target [unit/s]
    step: np.ndarray  # largest change of a target in one command [unit]
    workspace: tuple[np.ndarray, np.ndarray] | None = None  # corners (3,) of the box the hand stays in [m]

    @classmethod
    def of(cls, commands: ActionSpec) -> "Limits":
        """Return a robot's own limits."""
        free = np.full(len(commands.names), np.inf)
        return cls(commands.low.copy(), commands.high.copy(), commands.speed.copy(), free)

    def narrowed(self, path: Path, commands: ActionSpec) -> "Limits":
        """Return these limits, narrowed by a file; it cannot widen them.

        Raises:
            DataError: if the file is missing or holds no JSON of limits.
            UnknownName: for an axis or a kind of limit that does not exist.
        """
        asked = _read(path)
        low, high, velocity, step = (each.copy() for each in (self.low, self.high, self.velocity, self.step))
        try:
            for at, (least, most) in _axes(asked, "position", commands, path):
                low[at], high[at] = max(low[at], _finite(least)), min(high[at], _finite(most))
            for name, values in (("velocity", velocity), ("step", step)):
                for at, most in _axes(asked, name, commands, path):
                    values[at] = min(values[at], _finite(most))
            box = self.workspace
            if "workspace" in asked:
                corners = np.array(asked["workspace"], float)
                if corners.shape != (2, 3) or not np.isfinite(corners).all():
                    raise ValueError("workspace is [[x, y, z], [x, y, z]]")
                box = (corners[0], corners[1])
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: a limit is not a number or pair of numbers ({error}), e.g. {EXAMPLE}") from error
        return replace(self, low=low, high=high, velocity=velocity, step=step, workspace=box)

    def check(self, commands: ActionSpec, robot: str, knows_hand: bool) -> None:
        """Refuse limits under which a robot must not be moved.

        Raises:
            BadInput: naming the axis whose limits are missing or leave no room.
        """
        for at, name in enumerate(commands.names):
            for what, missing in (
                ("position", not np.isfinite([self.low[at], self.high[at]]).all()),
                ("velocity", not np.isfinite(self.velocity[at]) and commands.units[at] != "1"),
            ):
                if missing:
                    raise BadInput(
                        f"{robot} has no {what} limit for axis {name!r} [{commands.units[at]}], so nothing may move; "
                        f"write it to a file and give limits=FILE, e.g. {EXAMPLE}"
                    )
            if not (self.low[at] < self.high[at] and self.velocity[at] > 0 and self.step[at] > 0):
                raise BadInput(
                    f"the limits of axis {name!r} leave no room: position {self.low[at]} to {self.high[at]}, velocity "
                    f"{self.velocity[at]}, step {self.step[at]} [{commands.units[at]}]"
                )
        if self.workspace is not None:
            if not knows_hand:
                raise BadInput(
                    f"{robot} does not know its end-effector position, so no workspace can be enforced; leave it out"
                )
            if not (self.workspace[0] < self.workspace[1]).all():
                raise BadInput(f"the workspace has no room between {self.workspace[0]} and {self.workspace[1]} [m]")


def _read(path: Path) -> dict[str, Any]:
    try:
        asked = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"no limits at {path} ({error.strerror}); an example of such a file: {EXAMPLE}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); limits look like {EXAMPLE}") from error
    known = ("position", "velocity", "step", "workspace")
    if not isinstance(asked, dict) or any(not isinstance(asked.get(name, {}), dict) for name in known[:3]):
        raise DataError(f"{path} holds no limits; they look like {EXAMPLE}")
    if unknown := [name for name in asked if name not in known]:
        raise UnknownName(f"{path}: no limit {unknown[0]!r}{closest(unknown[0], known)}; there are: {', '.join(known)}")
    return asked


def _finite(value: Any) -> float:
    if not np.isfinite(number := float(value)):
        raise ValueError(f"{number} limits nothing")
    return number


def _axes(asked: dict[str, Any], kind: str, commands: ActionSpec, path: Path) -> list[tuple[int, Any]]:
    found = []
    for name, value in asked.get(kind, {}).items():
        if name not in commands.names:
            near = closest(name, commands.names)
            raise UnknownName(f"{path}: no axis {name!r}{near}; the robot has: {', '.join(commands.names)}")
        found.append((commands.names.index(name), value))
    return found

"""The meaning of an action: axes, units and limits, so that limits can be enforced on a robot."""

from typing import NamedTuple

import numpy as np


class ActionSpec(NamedTuple):
    """Axes of an action, in [-1, 1] unless `action_low` and `action_high` say otherwise.

    Arrays are (A,), in the axis's own unit.

    The target of a relative axis is its set point plus `scale` times the action; that of an absolute axis is `offset`
    plus `scale` times the action. A relative axis whose set point is always 0 commands an effort, which rests at 0.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]  # "m", "rad"; "1" for a fraction of the full command
    scale: np.ndarray  # change of the target at an action of 1
    offset: np.ndarray  # target of an absolute axis at an action of 0
    relative: np.ndarray  # bool
    low: np.ndarray  # least target
    high: np.ndarray  # greatest target
    speed: np.ndarray  # largest rate of change of a target [unit/s]; infinite where unknown
    end_effector: tuple[float, float, float] | None = None  # its position when the first three targets are 0 [m]
    action_low: np.ndarray | None = None  # smallest action; None is -1
    action_high: np.ndarray | None = None  # largest action; None is 1

    def target(self, action: np.ndarray, set_point: np.ndarray) -> np.ndarray:
        """Return the targets (A,) float64 of an action (A,)."""
        return np.where(self.relative, set_point, self.offset) + self.scale * action

    def action(self, target: np.ndarray, set_point: np.ndarray) -> np.ndarray:
        """Return the action (A,) float32 that has these targets."""
        origin = np.where(self.relative, set_point, self.offset)
        return self.clip((target - origin) / self.scale).astype(np.float32)

    def clip(self, action: np.ndarray) -> np.ndarray:
        """Return the action (A,) within the range of actions."""
        return np.clip(action, *self.action_range)

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest action, (A,) each."""
        ones = np.ones(len(self.names), np.float32)
        low = -ones if self.action_low is None else self.action_low.astype(np.float32)
        return low, ones if self.action_high is None else self.action_high.astype(np.float32)

    @property
    def meanings(self) -> list[str]:
        """The target of each axis as a formula of the action a, e.g. "set point + 0.02 a m"."""
        origins = ["set point" if each else f"{zero:g}" for each, zero in zip(self.relative, self.offset, strict=True)]
        return [
            f"{origin} + {scale:g} a {unit}"
            for origin, scale, unit in zip(origins, self.scale, self.units, strict=True)
        ]

    @classmethod
    def positions(
        cls, names: tuple[str, ...], units: tuple[str, ...], low: np.ndarray, high: np.ndarray, speed: np.ndarray
    ) -> "ActionSpec":
        """Return absolute axes whose actions are the targets themselves, in the axes' units."""
        count = len(names)
        absolute = np.zeros(count, bool)
        return cls(
            names, units, np.ones(count), np.zeros(count), absolute, low, high, speed, action_low=low, action_high=high
        )

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        unit: str,
        scale: float,
        low: np.ndarray,
        high: np.ndarray,
        speed: float = np.inf,
        end_effector: tuple[float, float, float] | None = None,
    ) -> "ActionSpec":
        """Return relative axes that share unit, scale and speed."""
        count = len(names)
        return cls(
            names,
            (unit,) * count,
            np.full(count, scale),
            np.zeros(count),
            np.ones(count, bool),
            np.asarray(low, float),
            np.asarray(high, float),
            np.full(count, speed),
            end_effector,
        )

    @classmethod
    def plain(cls, count: int) -> "ActionSpec":
        """Return axes of unknown meaning: fractions of a full command that rest at 0."""
        names = tuple(f"a{index}" for index in range(count))
        return cls.of(names, "1", 1.0, -np.ones(count), np.ones(count))

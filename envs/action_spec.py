"""What the numbers of an action do to a robot, axis by axis and in units, so that limits can be laid on them."""

from typing import NamedTuple

import numpy as np


class ActionSpec(NamedTuple):
    """Axes of an action, in [-1, 1] unless `action_low` and `action_high` say otherwise.

    Arrays are (A,), in the axis's own unit.

    The target of a relative axis is its set point plus `scale` times the action, of another one `offset` plus `scale`
    times the action. A relative axis whose set point is always 0 takes efforts: they rest at 0.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]  # "m", "rad"; "1" for shares of a full command
    scale: np.ndarray  # of an action of 1
    offset: np.ndarray  # target of an action of 0, where it is not relative
    relative: np.ndarray  # bool
    low: np.ndarray  # least target
    high: np.ndarray  # greatest target
    speed: np.ndarray  # fastest change of a target [unit/s]; infinite where nothing is known
    hand: tuple[float, float, float] | None = None  # where the hand is when its three first targets are 0 [m]
    action_low: np.ndarray | None = None  # least action; None is -1
    action_high: np.ndarray | None = None  # greatest action; None is 1

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
        """What an action a sets on each axis, e.g. "set point + 0.02 a m"."""
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
        hand: tuple[float, float, float] | None = None,
    ) -> "ActionSpec":
        """Make relative axes of one unit and scale."""
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
            hand,
        )

    @classmethod
    def plain(cls, count: int) -> "ActionSpec":
        """Make axes of which nothing is known but that they take shares of a full command, and rest at 0."""
        names = tuple(f"a{index}" for index in range(count))
        return cls.of(names, "1", 1.0, -np.ones(count), np.ones(count))

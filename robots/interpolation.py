"""Commands between two steps of a policy: targets are interpolated, relative actions are split into equal parts.

Shapes: A action.
"""

import numpy as np

from ..envs.action_spec import ActionSpec


class Interpolation:
    """Commands between a policy's steps: targets are interpolated linearly, relative actions split into equal parts.

    Args:
        commands: what an action does.
        parts: commands per step of the policy.
    """

    def __init__(self, commands: ActionSpec, parts: int) -> None:
        self.parts, self._commands = parts, commands
        self._relative = commands.relative
        self._from: np.ndarray | None = None  # the action before
        self._to: np.ndarray | None = None
        self._part = 0

    def reset(self) -> None:
        """Forget the last action."""
        self._from = self._to = None

    def aim(self, action: np.ndarray) -> None:
        """Set the next action (A,) of the policy."""
        if self._to is not None and np.isfinite(self._to).all():
            self._from = self._to
        if self._from is None or not np.isfinite(self._from).all():
            self._from = action
        self._to, self._part = action, 0

    def next(self) -> np.ndarray | None:
        """Return the next command (A,); None after the step's last one."""
        if self._to is None or self._from is None or self._part == self.parts:
            return None
        self._part += 1
        if self.parts == 1:
            return self._to
        share = self._part / self.parts
        between = self._from + share * (self._to - self._from)
        return np.where(self._relative, self._to / self.parts, between).astype(np.float32)

    def whole(self, sent: list[np.ndarray]) -> np.ndarray:
        """Return the action (A,) that equals a step's commands: sums of relative ones, the last of absolute ones."""
        stacked = np.stack(sent)
        return np.where(self._relative, self._commands.clip(stacked.sum(0)), stacked[-1]).astype(np.float32)

"""The emergency stop: a file that latches. Whoever creates it stops the robot; only a person's reset removes it."""

import json
import time
from pathlib import Path

from ..errors import EmergencyStopped
from ..files import replacing


class EmergencyStop:
    """A latch that outlives the process. It is checked before every command; `touch FILE` triggers it from outside.

    Args:
        path: of the file; its folder is created, so that a person can `touch` it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # independent of the working directory
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def latched(self) -> bool:
        """Whether nothing may be sent."""
        return self.path.exists()

    def trigger(self, reason: str) -> None:
        """Latch; a stop that is already latched keeps its reason."""
        if not self.latched:
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"reason": reason, "time": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")

    def check(self) -> None:
        """Refuse if it is latched.

        Raises:
            EmergencyStopped: if it is latched, with the reason and how to reset it.
        """
        if self.latched:
            raise EmergencyStopped(
                f"the emergency stop is latched ({self._reason()}, {self.path}); nothing is sent. Check the robot, "
                "then reset it: estop_reset=true"
            )

    def reset(self) -> str:
        """Unlatch and return why it was latched; "" if it was not."""
        reason = self._reason() if self.latched else ""
        self.path.unlink(missing_ok=True)
        return reason

    def _reason(self) -> str:
        try:
            known = json.loads(self.path.read_text())
            return f"{known['reason']}, {known['time']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "by hand"  # an empty file is enough

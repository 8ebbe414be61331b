"""The emergency stop: a file that latches. Whoever makes it stops the robot; only a reset by a person removes it."""

import json
import time
from pathlib import Path

from ..errors import EmergencyStopped
from ..files import replacing


class EmergencyStop:
    """A latch that outlives the process. It is looked at before every command; `touch FILE` triggers it from outside.

    Args:
        path: of the file; its folder is made, so that a person can `touch` it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # whatever folder the program goes to
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def latched(self) -> bool:
        """Whether nothing may be sent."""
        return self.path.exists()

    def trigger(self, reason: str) -> None:
        """Latch; a stop that is latched already keeps its reason."""
        if not self.latched:
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"reason": reason, "time": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")

    def check(self) -> None:
        """Let pass, or refuse.

        Raises:
            EmergencyStopped: if it is latched, saying why and how to go on.
        """
        if self.latched:
            raise EmergencyStopped(
                f"the emergency stop is latched ({self._told()}, {self.path}); nothing is sent. Look at the robot, "
                "then reset it: estop_reset=true"
            )

    def reset(self) -> str:
        """Unlatch and return why it was latched; "" if it was not."""
        told = self._told() if self.latched else ""
        self.path.unlink(missing_ok=True)
        return told

    def _told(self) -> str:
        try:
            known = json.loads(self.path.read_text())
            return f"{known['reason']}, {known['time']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "by hand"  # an empty file will do

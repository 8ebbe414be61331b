"""A task suite: what an entry point in the group ``pixio_robot.suites`` provides."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .task import Task


@dataclass(frozen=True)
class Suite:
    """A family of tasks behind one name. The entry point has the same name and gives an instance of this class.

    Importing the module that holds it must be cheap and must not import the simulator: the table of tasks is read
    where the simulator may be missing.

    Attributes:
        name: the part of a task's name before the slash.
        requires: the importable package that runs the simulation, e.g. "metaworld".
        tasks: the names of the tasks, without the suite.
        make: builds a task from its name without the suite; it raises `MissingExtra` if the package is missing.
    """

    name: str
    requires: str
    tasks: tuple[str, ...]
    make: "Callable[[str], Task]"

    @property
    def is_installed(self) -> bool:
        """Whether the package that runs the simulation is installed."""
        try:
            return importlib.util.find_spec(self.requires) is not None
        except ModuleNotFoundError:  # a package above it is missing
            return False

"""A command of the command line: its settings, the function that runs it, the config groups it takes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


class Command(NamedTuple):
    """One command. Each folder's ``commands.py`` lists its own in ``COMMANDS``."""

    settings: type  # the dataclass of its keys
    run: Callable[[Any], int]  # takes the settings, prints what came of it, returns the exit status
    groups: Mapping[str, str] = {}  # config groups and their default option
    values: Mapping[str, Any] = {}  # defaults that differ from the dataclass's
    sweep: Callable[[list[str]], int] | None = None  # how ``-m`` is run; None is one job after the other, by Hydra

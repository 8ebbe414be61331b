"""What a command is: its settings, the function that runs it, its config groups."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

INTERRUPTED = 130  # exit status after Ctrl-C, as in shells


class Command(NamedTuple):
    """One command. Each folder's ``commands.py`` lists its own in ``COMMANDS``."""

    settings: type  # the dataclass of its keys
    run: Callable[[Any], int]  # takes the settings, prints the result, returns the exit status
    groups: Mapping[str, str] = {}  # config groups and their default option
    values: Mapping[str, Any] = {}  # defaults that differ from the dataclass's
    sweep: Callable[[list[Any]], int] | None = None  # runs the jobs of ``-m``; None is one after the other, by Hydra

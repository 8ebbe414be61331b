"""A least-recently-used cache of open files of one process; forks and unpickled copies start empty."""

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Handle = TypeVar("Handle")


class Handles(Generic[Key, Handle]):
    """Opens files on demand and closes the least recently used.

    Args:
        opener: opens a handle; a function of a module, so that it can be pickled.
        closer: closes a handle.
        most: number of handles to keep open.
    """

    def __init__(self, opener: Callable[[Key], Handle], closer: Callable[[Handle], Any], most: int) -> None:
        self._opener, self._closer, self._most = opener, closer, most
        self._open: OrderedDict[Key, Handle] = OrderedDict()
        self._process = os.getpid()
        self._inherited: list[object] = []

    def get(self, key: Key) -> Handle:
        """Return the open handle of `key`."""
        if self._process != os.getpid():  # never seek or close the parent's files
            self._inherited.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()
        if key not in self._open:
            handle = self._opener(key)
            while len(self._open) >= self._most:
                self._closer(self._open.popitem(last=False)[1])
            self._open[key] = handle
        self._open.move_to_end(key)
        return self._open[key]

    def close(self) -> None:
        """Close all handles of this process."""
        while self._open and self._process == os.getpid():
            self._closer(self._open.popitem()[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return Handles, (self._opener, self._closer, self._most)

    def __del__(self) -> None:
        self.close()

"""The exceptions of this package. Every message says what was asked, what exists and what to do.

The command line prints these without a traceback and exits with 1.
"""

import difflib
from collections.abc import Iterable


class PixioError(Exception):
    """Base class of all errors that this package raises."""


class UnknownName(PixioError):
    """A task, encoder, fusion, preset or setting that does not exist."""


class MissingExtra(PixioError):
    """An optional dependency is needed and is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'pixio-robot[{extra}]'")
        self._arguments = (what, extra)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # workers pickle it for their parent process
        return MissingExtra, self._arguments


class RenderingUnavailable(PixioError):
    """No OpenGL context could be made."""


class ContractError(PixioError):
    """A plug-in that does not do what it declares, or breaks a rule of its contract."""


class BadInput(PixioError):
    """An argument has the wrong shape, type or value."""


class CheckpointError(PixioError):
    """A weight file that is missing, truncated, of the wrong kind or with unexpected keys."""


class DataError(PixioError):
    """A dataset or token cache that is missing, damaged, or does not fit the request."""


class UnsafePickle(DataError):
    """A pickle that would call a function or set an attribute. Nothing in it was run."""


class Unreadable(DataError):
    """An image that cannot be decoded; other images of the set may be fine."""


class WorkerLost(PixioError):
    """A worker process was killed."""


class CameraError(PixioError):
    """A camera that cannot be opened, is disconnected, or returns no frame in time."""


class EndOfStream(CameraError):
    """A recording has no more frames."""


class StaleFrame(CameraError):
    """The latest frame of a camera is older than allowed."""


class RobotError(PixioError):
    """A robot that cannot be reached or does not answer in time."""


class OutOfControl(RobotError):
    """An axis is at a position that no command of ours can explain; nothing was sent."""


class EmergencyStopped(RobotError):
    """The emergency stop is latched; nothing is sent until it is reset."""


class RemoteError(PixioError):
    """A policy on another machine that cannot be reached, refuses, or does not answer in time."""


class Stopped(PixioError):
    """A run was stopped early on request, after it saved the state that it needs to resume."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss, else an empty string.

    >>> closest("drawer-opne", ["drawer-open", "hammer"])
    "; did you mean 'drawer-open'?"
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""

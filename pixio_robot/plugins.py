"""Plug-ins: what a name on the command line stands for, ours and other packages' alike.

A plug-in is an entry point, ``NAME = "module:attribute"``, in the group ``pixio_robot.<group>``. Built-in plug-ins are
entry points of this package (see pyproject.toml) and are found in the same way, so another package adds a policy, a
data format, a task suite, an encoder, a camera, a robot or an export target without a change here.
"""

from functools import cache
from importlib import metadata
from typing import Any

from .errors import PixioError, UnknownName, closest

GROUPS = {
    "policies": "policy",
    "datasets": "data format",
    "suites": "task suite",
    "encoders": "kind of encoder",
    "cameras": "camera driver",
    "robots": "robot driver",
    "targets": "export target",
}


@cache
def _entries(group: str) -> dict[str, metadata.EntryPoint]:
    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=f"pixio_robot.{group}"):
        if entry.name in found and found[entry.name].value != entry.value:
            raise PixioError(
                f"two installed packages have a {GROUPS[group]} {entry.name!r}: {found[entry.name].value} and "
                f"{entry.value}; uninstall one of them"
            )
        found[entry.name] = entry
    return found


def plugin_names(group: str) -> list[str]:
    """Return the names of all plug-ins of a group, sorted.

    Args:
        group: one of `GROUPS`.
    """
    return sorted(_entries(group))


def find_plugin(group: str, name: str) -> Any:
    """Import a plug-in and return it.

    Args:
        group: one of `GROUPS`.
        name: of the entry point.

    Raises:
        UnknownName: if there is none of this name; the message lists what there is.
        PixioError: if the package that provides it cannot be imported.
    """
    entries = _entries(group)
    if name not in entries:
        raise UnknownName(
            f"no {GROUPS[group]} {name!r}{closest(name, entries)}; there are: {', '.join(plugin_names(group))}"
        )
    try:
        return entries[name].load()
    except PixioError:
        raise
    except Exception as error:  # any code of another package
        raise PixioError(f"the {GROUPS[group]} {name!r} ({entries[name].value}) cannot be imported: {error}") from error

"""The files that every run writes: settings, environment, metrics and results, so that it can be repeated."""

import hashlib
import json
import logging
import platform
import subprocess
import sys
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import DataError
from .files import replacing

log = logging.getLogger(__name__)

_PACKAGES = (
    *("pixio-robot", "torch", "numpy", "mujoco", "gymnasium", "metaworld", "dm_control", "gymnasium-robotics"),
    *("pybullet", "h5py", "transformers"),
)


def digest(*values: Any) -> str:
    """Return 12 hex digits that name a JSON value; run folders are named after their settings."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def settings_digest(command: Any, inputs: str = "") -> str:
    """Return the digest of a command's settings and inputs, without the keys that may change when it resumes."""
    return digest(binding_settings(command), inputs)


def binding_settings(command: Any) -> dict[str, Any]:
    """Return the settings that identify a run."""
    free = {each.name for each in fields(command) if each.metadata.get("free")}
    return {name: value for name, value in asdict(command).items() if name not in free}


def open_run(out: Path, command: Any, inputs: str = "") -> None:
    """Create a run folder with ``config.yaml`` and ``environment.json``.

    If the run is resumed with other package versions or on another machine, ``environment.json`` keeps the first
    environment and the other one is written beside it.

    Args:
        inputs: hash of files the run depends on; part of its identity.

    Raises:
        DataError: if the folder belongs to a run with other settings, naming them.
    """
    from omegaconf import OmegaConf

    identity = out / "identity.json"
    mine = {"command": type(command).__name__, "digest": settings_digest(command, inputs)}
    if identity.is_file() and (theirs := json.loads(identity.read_text())) != mine:
        raise DataError(
            f"{out} holds a {theirs['command']} run with {_difference(out / 'config.yaml', command)}; "
            "choose another out= or delete the folder"
        )
    write_json(identity, mine)
    with replacing(out / "config.yaml") as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.structured(command)))
    now, first = environment(), read_json(out / "environment.json")
    if first and first != now:
        log.warning("%s was started in another environment; this one is written beside environment.json", out)
        write_json(out / f"environment-{digest(now)}.json", now)
    else:
        write_json(out / "environment.json", now)


def _difference(config: Path, command: Any) -> str:
    """Return which settings of an earlier run differ from those of `command`."""
    from omegaconf import OmegaConf

    theirs: Any = OmegaConf.to_container(OmegaConf.load(config)) if config.is_file() else {}
    mine, changed = asdict(command), []
    for name in binding_settings(command):
        value, found = mine[name], theirs.get(name, mine[name])
        if isinstance(value, dict) and isinstance(found, dict):
            found = value | found  # keys added after it was written had their defaults
        if found != value:
            changed.append(f"{name} {found!r} instead of {value!r}")
    return ", ".join(changed) or "other inputs: files that it reads have changed (see its config.yaml)"


def environment() -> dict[str, Any]:
    """Return versions, commit and hardware."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "gpu": _gpu(),
        "commit": _commit(),
        "packages": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _gpu() -> str:
    try:
        import torch
    except ImportError:  # a robot may run exported bundles without torch
        return "unknown"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _commit() -> str:
    """Return the commit of the checkout this runs from, or "installed package"."""
    home = Path(__file__).resolve().parent
    command = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        tracked = subprocess.run(
            ["git", "-C", str(home), "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
        )
        if tracked.returncode:
            return "installed package"
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "installed package"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return a JSON file's value, or {} if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}

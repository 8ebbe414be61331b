"""Check the installation: packages, rendering, devices, known conflicts, and the command that fixes each."""

import importlib.util
import os
import re
import sys
from importlib import metadata
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .envs.rendering import check_rendering
from .errors import RenderingUnavailable

OPENCV_PACKAGES = "libgl1 libglib2.0-0 libxcb1"


class Finding(NamedTuple):
    """One line of the table."""

    what: str
    state: str  # "ok", "missing" (optional), "broken"
    detail: str


def examine(system_only: bool = False) -> int:
    """Print the findings; return 1 if something that is installed is broken, else 0.

    Args:
        system_only: only check the libraries of the operating system.
    """
    findings = [_rendering(), _opencv()]
    if not system_only:
        findings = [_python(), _torch(), *findings, *_extras(), *_conflicts()]
    table = Table(title="pixio-robot doctor")
    for column in Finding._fields:
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    for finding in findings:
        table.add_row(finding.what, f"[{colours[finding.state]}]{finding.state}[/]", escape(finding.detail))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    return int(any(finding.state == "broken" for finding in findings))


def extras() -> dict[str, list[str]]:
    """Return the distributions that each extra of this package needs."""
    needed: dict[str, list[str]] = {}
    for requirement in metadata.requires("pixio-robot") or []:
        name, _, condition = requirement.partition(";")
        if match := re.search(r"extra == ['\"]([\w-]+)['\"]", condition):
            needed.setdefault(match[1], []).append(re.split(r"[\s<>=!~\[]", name.strip())[0])
    named = {extra: [name for name in names if name != "pixio-robot"] for extra, names in needed.items()}
    return {extra: names for extra, names in named.items() if names}


def _rendering() -> Finding:
    try:
        check_rendering()
    except RenderingUnavailable as error:
        return Finding("rendering", "broken", str(error))
    return Finding("rendering", "ok", f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '(unset)')}")


def _opencv() -> Finding:
    if reason := _import_error("cv2"):
        return Finding("opencv", "broken", f"{reason}; on Debian or Ubuntu: apt-get install -y {OPENCV_PACKAGES}")
    return Finding("opencv", "ok", metadata.version("opencv-python"))


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _torch() -> Finding:
    import torch

    gpu = "no GPU"
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.get_device_name()}, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
    elif torch.backends.mps.is_available():
        gpu = "Apple GPU (mps)"
    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}")


def _extras() -> list[Finding]:
    findings = []
    for extra, names in extras().items():
        versions, absent = [], []
        for name in names:
            try:
                versions.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                absent.append(name)
        if absent:
            findings.append(Finding(f"extra {extra}", "missing", f"pip install 'pixio-robot[{extra}]'"))
        else:
            findings.append(Finding(f"extra {extra}", "ok", ", ".join(versions)))
    return findings


def _conflicts() -> list[Finding]:
    """Return known conflicts between installed packages."""
    findings = []
    for package, pins in (
        ("metaworld", "mujoco==3.3.0 metaworld==3.1.1"),
        ("dm_control", "mujoco==3.3.0 dm_control==1.0.28"),
    ):
        if importlib.util.find_spec(package) and (reason := _import_error(package)):
            findings.append(Finding(package, "broken", f"{reason}; in one call: pip install {pins}"))
    if importlib.util.find_spec("torchvision") and (reason := _import_error("torchvision")):
        findings.append(
            Finding(
                "torchvision",
                "ok",
                f"does not match this torch ({reason}); not needed, worked around",
            )
        )
    return findings


def _import_error(package: str) -> str:
    """Return why a fresh interpreter cannot import a package, or ""."""
    import subprocess

    command = [sys.executable, "-W", "ignore", "-c", f"import {package}"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    return outcome.stderr.strip().splitlines()[-1] if outcome.returncode else ""

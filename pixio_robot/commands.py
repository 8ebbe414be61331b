"""The commands report and doctor."""

from dataclasses import dataclass

from .command import Command
from .settings import MISSING, key


@dataclass
class Report:
    """Rebuild report.html of a run folder."""

    run: str = key(MISSING, "run folder")
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Doctor:
    """Check the installation: packages, OpenGL, GPU, known conflicts, and how to fix them."""

    system_only: bool = key(False, "only check the libraries of the operating system")
    debug: bool = key(False, "show tracebacks", free=True)


def run_report(settings: Report) -> int:
    from pathlib import Path

    from .report.page import write_report

    print(write_report(Path(settings.run)))
    return 0


def run_doctor(settings: Doctor) -> int:
    from .doctor import examine

    return examine(settings.system_only)


COMMANDS = {
    "report": Command(Report, run_report),
    "doctor": Command(Doctor, run_doctor),
}

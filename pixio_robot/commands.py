"""The commands report and doctor."""

from dataclasses import dataclass

from .command import Command
from .settings import MISSING, key


@dataclass
class Report:
    """Write a run folder's report.html again."""

    run: str = key(MISSING, "run folder")
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Doctor:
    """Say what is installed, which GL and GPU there are, what conflicts, and how to mend it."""

    system_only: bool = key(False, "only check what the operating system must provide")
    debug: bool = key(False, "show tracebacks", free=True)


def _report(command: Report) -> int:
    from pathlib import Path

    from .report.page import write_report

    print(write_report(Path(command.run)))
    return 0


def _doctor(command: Doctor) -> int:
    from .doctor import examine

    return examine(command.system_only)


COMMANDS = {
    "report": Command(Report, _report),
    "doctor": Command(Doctor, _doctor),
}

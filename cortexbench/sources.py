"""Where each task's demonstrations come from: recorded by an expert, or given in files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets.dataset import open_dataset
from ..envs.dapg import load_dapg
from ..envs.registry import installed
from ..errors import BadInput, DataError, MissingExtra
from ..files import sha256_of
from ..policies.evaluate import task_of
from .protocol import SMOKE_SUITE, protocol_of
from .run import Paths

DAPG = "https://github.com/aravindr93/hand_dapg"  # Adroit's experts
ADROIT = (
    f"Adroit's demonstrations need its published experts ({DAPG}, Apache-2.0): add experts=FOLDER with pen-v0.pickle "
    "and relocate-v0.pickle, or experts={adroit/pen: FILE, ...}; or demos=FOLDER with demonstrations that you have"
)


@dataclass(frozen=True)
class Sources:
    """What the user gives."""

    demos: str | None  # folder of demonstrations
    experts: str | Mapping[str, Any] | None  # folder of Adroit's experts, or files by task
    device: str


@dataclass(frozen=True)
class Skipped:
    """A requested combination that cannot be run."""

    task: str
    policy: str  # row of the table, or "all"
    why: str


def group_skipped(skipped: Sequence[Skipped]) -> list[Skipped]:
    """Return one entry for tasks of a suite that are left out for the same reason.

    >>> group_skipped([Skipped("dmc/a", "none", "no"), Skipped("dmc/b", "none", "no"), Skipped("dmc/b", "cnn", "no")])
    [Skipped(task='dmc/a, b', policy='none', why='no'), Skipped(task='dmc/b', policy='cnn', why='no')]
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in skipped:
        suite, name = each.task.split("/")
        found.setdefault((suite, each.policy, each.why), []).append(name)
    return [Skipped(f"{suite}/{', '.join(names)}", policy, why) for (suite, policy, why), names in found.items()]


def find_paths(sources: Sources, tasks: Sequence[str], root: Path, skipped: list[Skipped]) -> dict[str, Paths]:
    """Return where each task's demonstrations come from; tasks without a source are added to `skipped`."""
    given = _demo_files(sources.demos) if sources.demos else {}
    experts = _experts(sources.experts, tasks)
    available = {task for task in installed() if task in tasks}
    found = {}
    for task in tasks:
        suite = task.split("/")[0]
        paths = Paths(str(root.absolute()), str(given.get(task, "")), experts.get(task, ""), sources.device)
        if task not in available and suite != SMOKE_SUITE:
            skipped.append(Skipped(task, "all", str(MissingExtra(task, suite))))
        elif suite == "adroit" and not paths.demos and not paths.expert:
            skipped.append(Skipped(task, "all", ADROIT))
        else:
            found[task] = paths
    return found


def source_of(paths: Paths, is_expert: bool) -> str:
    """Return the SHA-256 of the file that a run's demonstrations or expert come from; "" without one."""
    file = paths.expert if is_expert else paths.demos or paths.expert
    return sha256_of(Path(file)) if file else ""


def _demo_files(folder: str) -> dict[str, Path]:
    """Return the demonstration files of a folder by their task.

    Raises:
        DataError: if there is none.
        BadInput: if two are of the same task.
    """
    found: dict[str, Path] = {}
    files = sorted(Path(folder).glob("*.hdf5"))
    if not files:
        raise DataError(f"no demonstrations (*.hdf5) in demos={folder}; pixio-robot collect and convert write them")
    for file in files:
        task = task_of(open_dataset(file).provenance, str(file)).task
        if task in found:
            raise BadInput(f"{found[task]} and {file} are both of {task}; leave one of them in demos={folder}")
        found[task] = file.absolute()
    return found


def _experts(given: str | Mapping[str, Any] | None, tasks: Sequence[str]) -> dict[str, str]:
    """Return the experts' files by task. Each is read once, so that a wrong one is refused early.

    Raises:
        BadInput: if `given` is neither a folder nor names of tasks with files.
        DataError: if a folder has no expert, or a file is missing or holds none.
    """
    if given is None:
        return {}
    if isinstance(given, str):
        given = _experts_in(given)
    found = {}
    for task, path in dict(given).items():
        protocol_of(task)
        if not task.startswith("adroit/"):
            raise BadInput(f"experts= names {task}, which takes no expert from a file; only Adroit's tasks do")
        if task in tasks:
            if not Path(path).is_file():
                raise DataError(f"no file {path} for the expert of {task}")
            load_dapg(path)
            found[task] = str(Path(path).absolute())
    return found


def _experts_in(folder: str) -> dict[str, Path]:
    """Return the DAPG policies below a folder by task."""
    if not Path(folder).is_dir():
        raise BadInput(f"experts={folder} is no folder; give one with pen-v0.pickle, or experts={{adroit/pen: FILE}}")
    names = {f"{name}-v0.pickle": f"adroit/{name}" for name in ("pen", "relocate", "door", "hammer")}
    found = {names[path.name]: path for path in sorted(Path(folder).rglob("*-v0.pickle")) if path.name in names}
    if not found:
        raise DataError(f"no DAPG policy anywhere in experts={folder}; these are: {', '.join(names)}")
    return found

"""From what was asked to cells: names are checked, encoders looked at, what cannot run is said before anything does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..datasets.robomimic import DemoSet
from ..encoders.load import WITHOUT_ENCODER, load_encoder
from ..encoders.pixio import TokenShape
from ..envs.dapg import load_dapg
from ..envs.registry import installed
from ..errors import BadInput, DataError, MissingExtra, UnknownName, closest
from ..files import sha256_of
from ..policies.embedding import Embedder
from ..policies.settings import FUSIONS
from .cell import EXPERT, Paths, RunSpec
from .commands import Benchmark
from .protocol import BUDGETS, COLUMNS, HAS_PROPRIO, SMOKE_SUITE, SUITES, TASKS, protocol_of

DAPG = "https://github.com/aravindr93/hand_dapg"  # where Adroit's experts are
ADROIT = (
    f"Adroit's demonstrations need its published experts ({DAPG}, Apache-2.0): add experts=FOLDER with pen-v0.pickle "
    "and relocate-v0.pickle, or experts={adroit/pen: FILE, ...}; or demos=FOLDER with demonstrations that you have"
)


@dataclass(frozen=True)
class Vision:
    """What is known of an encoder without running it."""

    weights: str  # fingerprint
    parameters: int
    tokens: TokenShape


@dataclass(frozen=True)
class Skipped:
    """What was asked for and cannot be run."""

    task: str
    policy: str
    why: str


def grouped(skipped: Sequence[Skipped]) -> list[Skipped]:
    """Return one entry for tasks of a suite that are left out for the same reason.

    >>> grouped([Skipped("dmc/a", "none", "no"), Skipped("dmc/b", "none", "no"), Skipped("dmc/b", "state", "no")])[0]
    Skipped(task='dmc/a, b', policy='none', why='no')
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in skipped:
        suite, name = each.task.split("/")
        found.setdefault((suite, each.policy, each.why), []).append(name)
    return [Skipped(f"{suite}/{', '.join(names)}", policy, why) for (suite, policy, why), names in found.items()]


@dataclass(frozen=True)
class Grid:
    """What a benchmark consists of."""

    cells: list[tuple[RunSpec, Paths]]
    skipped: list[Skipped]
    visions: dict[str, Vision]  # by encoder


def make_grid(command: Benchmark, root: Path) -> Grid:
    """Return all cells; those of different tasks follow each other, so that few wait for the same demonstrations.

    Raises:
        UnknownName: for a suite, task, encoder, fusion, budget or protocol that does not exist.
        MissingExtra: if the packages of all suites asked for are missing.
        BadInput: if nothing is left to run.
    """
    for what, name, known in (("budget", command.budget, BUDGETS), ("protocol", command.protocol, COLUMNS)):
        if name not in known:
            raise UnknownName(f"no {what} {name!r}{closest(name, known)}; there are: {', '.join(known)}")
    tasks = task_names(command.tasks)
    for name in command.fusions:
        if name not in FUSIONS:
            raise UnknownName(f"no fusion {name!r}{closest(name, FUSIONS)}; there are: {', '.join(FUSIONS)}")
    if not command.encoders or not command.fusions:
        raise BadInput("encoders= and fusions= each need at least one name")
    encoders = [_absolute(name) for name in dict.fromkeys(command.encoders)]
    visions = {name: inspect_encoder(name) for name in encoders if name not in (*WITHOUT_ENCODER, EXPERT)}
    for vision in visions.values():
        for fusion in command.fusions:
            Embedder(
                vision.tokens, replace(protocol_of(tasks[0]).embedding, fusion=fusion), 0
            )  # refuses what cannot be
    skipped: list[Skipped] = []
    places = _places(tasks, command, root, skipped)
    seeds = command.seeds or list(BUDGETS[command.budget].seeds)
    cells = []
    for encoder in encoders:
        for fusion in command.fusions if encoder in visions else [""]:
            runs = [task for task in places if _can_run(task, encoder, places[task], command.protocol, skipped)]
            for seed in seeds[:1] if encoder == EXPERT else dict.fromkeys(seeds):
                for task in runs:
                    weights = visions[encoder].weights if encoder in visions else ""
                    file = places[task].expert if encoder == EXPERT else places[task].demos or places[task].expert
                    source = sha256_of(Path(file)) if file else ""
                    settings = (command.budget, command.protocol, command.precision, weights, source)
                    cells.append((RunSpec(task, encoder, fusion, seed, *settings), places[task]))
    if not cells:
        raise _nothing(skipped)
    return Grid(cells, skipped, visions)


def task_names(asked: Any) -> list[str]:
    """Return tasks by name: all of CortexBench's 14, of a suite, or single ones.

    >>> task_names(["trifinger", "dmc/walker_walk", "trifinger/reach_cube"])
    ['trifinger/reach_cube', 'trifinger/move_cube', 'dmc/walker_walk']
    """
    names: list[str] = []
    for each in [asked] if isinstance(asked, str) else asked or []:
        if each == "all":
            names += TASKS
        elif each in SUITES:
            names += [task for task in TASKS if task.startswith(f"{each}/")]
        elif "/" in str(each):
            protocol_of(each)
            names.append(each)
        else:
            known = ["all", *SUITES]
            raise UnknownName(
                f"no suite {each!r}{closest(str(each), known)}; there are: {', '.join(known)}, or SUITE/TASK"
            )
    if not names:
        raise BadInput(f"tasks= names nothing; it takes all, a suite ({', '.join(SUITES)}), SUITE/TASK, or a list")
    return list(dict.fromkeys(names))


def inspect_encoder(name: str) -> Vision:
    """Return what there is to know of an encoder, by loading it."""
    backbone = load_encoder(name)
    return Vision(backbone.fingerprint(), sum(each.numel() for each in backbone.parameters()), backbone.token_shape)


def _absolute(name: str) -> str:
    """Return an encoder's name so that it means the same from everywhere."""
    file = name if Path(name).exists() else name.rpartition("@")[0]
    return str(Path(file).absolute()) + name.removeprefix(file) if file and Path(file).exists() else name


def _places(tasks: Sequence[str], command: Benchmark, root: Path, skipped: list[Skipped]) -> dict[str, Paths]:
    """Return where each task's demonstrations come from, for tasks that have any."""
    given = _demo_files(command.demos) if command.demos else {}
    experts = _experts(command.experts, tasks)
    there = {task for task in installed() if task in tasks}
    found = {}
    for task in tasks:
        suite = task.split("/")[0]
        place = Paths(str(root.absolute()), str(given.get(task, "")), experts.get(task, ""), command.device)
        if task not in there and suite != SMOKE_SUITE:
            skipped.append(Skipped(task, "all", str(MissingExtra(task, suite))))
        elif suite == "adroit" and not place.demos and not place.expert:
            skipped.append(Skipped(task, "all", ADROIT))
        else:
            found[task] = place
    return found


def _can_run(task: str, encoder: str, place: Paths, protocol: str, skipped: list[Skipped]) -> bool:
    """Return whether a policy makes sense on a task; if not, say why."""
    suite, why = task.split("/")[0], ""
    if encoder == "none" and suite not in HAS_PROPRIO:
        why = "the suite has no proprioception, so a blind policy would know nothing"
    elif encoder == EXPERT and protocol == "cortexbench":
        why = "it does not learn, so there is nothing to judge while it learns; protocol=honest has it"
    elif encoder == EXPERT and suite == "adroit" and not place.expert:
        why = ADROIT
    elif place.demos and encoder != EXPERT:
        demos = DemoSet(place.demos)
        if encoder == "state" and "state" not in demos.widths:
            why = f"{place.demos} does not hold the known state"
        try:
            demos.images(protocol_of(task).embedding.cameras)
        except UnknownName as error:
            why = str(error)
    if why:
        skipped.append(Skipped(task, encoder, why))
    return not why


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
        demos = DemoSet(file)
        task = demos.request.task
        if task in found:
            raise BadInput(f"{found[task]} and {file} are both of {task}; leave one of them in demos={folder}")
        found[task] = file.absolute()
    return found


def _experts(given: Any, tasks: Sequence[str]) -> dict[str, str]:
    """Return the experts' files by task; each is read once, so that a wrong one is refused at once.

    Raises:
        BadInput: if `given` is neither a folder nor names of tasks with files.
        DataError: if a folder has no expert, or a file is missing or holds none.
    """
    if given is None:
        return {}
    if isinstance(given, str):
        folder = given
        if not Path(folder).is_dir():
            raise BadInput(
                f"experts={folder} is no folder; give one with pen-v0.pickle, or experts={{adroit/pen: FILE}}"
            )
        names = {f"{name}-v0.pickle": f"adroit/{name}" for name in ("pen", "relocate", "door", "hammer")}
        given = {names[path.name]: path for path in sorted(Path(given).rglob("*-v0.pickle")) if path.name in names}
        if not given:
            raise DataError(f"no DAPG policy anywhere in experts={folder}; these are: {', '.join(names)}")
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


def _nothing(skipped: Sequence[Skipped]) -> Exception:
    """Return the error of a benchmark without a cell."""
    missing = sorted({each.task.split("/")[0] for each in skipped if "needs the extra" in each.why})
    if len(missing) == 1 and all("needs the extra" in each.why for each in skipped):
        return MissingExtra(f"benchmark tasks={missing[0]}", missing[0])
    return BadInput("nothing can be run: " + "; ".join(f"{each.task}, {each.policy}: {each.why}" for each in skipped))

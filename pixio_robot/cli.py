"""The command line: ``pixio-robot COMMAND key=value ...``. One branch a command; each imports what it needs.

Hydra composes ``configs/<command>.yaml`` with the overrides and checks types; a plain dataclass goes on from here.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from . import schemas
from .errors import BadInput, PixioError, Stopped, UnknownName, closest

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def main() -> None:
    """Entry point of ``pixio-robot``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status; errors become one message, never a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("pixio_robot").setLevel(logging.INFO)
    debug = "debug=true" in (argument.lower() for argument in arguments)
    return _in_words(lambda: _dispatch(arguments), debug)


def _in_words(work: Callable[[], int], debug: bool, about: str = "") -> int:
    """Return what `work` returns, or the exit status of what went wrong, said in words."""
    try:
        return work()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal  # as shells have it
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"error: {about}{_message(error)}", file=sys.stderr)
        return 1


def _message(error: Exception) -> str:
    if isinstance(error, PixioError):
        return str(error)
    if isinstance(error, OSError):
        return _explain(error)
    return (
        f"{type(error).__name__}: {error}\nthis is not a message we wrote, so it may be a bug; "
        "run again with debug=true and report the traceback"
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("pixio-robot"))
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in schemas.COMMANDS:
        known = schemas.COMMANDS
        raise UnknownName(f"no command {name!r}{closest(name, known)}; there are: {', '.join(known)}")
    if any(argument in ("-h", "--help") for argument in rest):
        print(command_help(name))
        return 0
    if any(argument in ("-m", "--multirun") for argument in rest):
        return _sweep(name, rest)
    return _COMMANDS[name](compose(name, rest))


def overview() -> str:
    """Return the text of ``pixio-robot --help``."""
    lines = ["pixio-robot COMMAND key=value ...", "", "Commands (pixio-robot COMMAND --help lists its keys):"]
    for name, schema in schemas.COMMANDS.items():
        lines.append(f"  {name:<12} {(schema.__doc__ or '').strip()}")
    lines += ["", "  -m           sweep: key=a,b,c runs one job a combination", "  debug=true   show tracebacks"]
    return "\n".join(lines)


def command_help(name: str) -> str:
    """Return the text of ``pixio-robot COMMAND --help``: a line a key, with its value and meaning."""
    lines = [f"pixio-robot {name} key=value ...", "", (schemas.COMMANDS[name].__doc__ or "").strip(), "", "Keys:"]
    values = compose(name, [], complete=False)
    rows = list(_keys(values, schemas.COMMANDS[name], ""))
    width = max(len(f"{key}={value}") for key, value, _ in rows)
    lines += [f"  {f'{key}={value}':<{width}}  {text}" for key, value, text in rows]
    for group, options in _groups(name).items():
        default, *others = options
        lines += ["", f"Groups: {group}={default} (default)" + "".join(f", {group}={each}" for each in others)]
    return "\n".join(lines)


def _keys(values: Any, schema: type, prefix: str) -> Any:
    for each in fields(schema):
        value = values[each.name]
        if is_dataclass(each.type):
            assert isinstance(each.type, type)
            yield from _keys(value, each.type, f"{prefix}{each.name}.")
        else:
            shown = {None: "null", True: "true", False: "false"}.get(value) if _is_constant(value) else value
            yield f"{prefix}{each.name}", shown, each.metadata.get("help", "")


def _groups(name: str) -> dict[str, list[str]]:
    """Return the config groups of a command and their options, the default first."""
    from importlib import resources

    from omegaconf import OmegaConf

    folder = resources.files("pixio_robot.configs")
    entries: Any = OmegaConf.to_container(OmegaConf.create(folder.joinpath(f"{name}.yaml").read_text()))
    defaults = {
        str(group): option
        for each in entries["defaults"]
        if not isinstance(each, str)
        for group, option in each.items()
    }
    options = {
        group: sorted(file.name.removesuffix(".yaml") for file in folder.joinpath(group).iterdir())
        for group in defaults
    }
    return {
        group: [defaults[group], *(each for each in options[group] if each != defaults[group])] for group in options
    }


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def compose(name: str, overrides: list[str], complete: bool = True) -> Any:
    """Compose a command's settings.

    Args:
        name: the command.
        overrides: ``key=value`` strings.
        complete: False returns a plain dict in which mandatory keys may be missing.

    Raises:
        UnknownName: for a key that does not exist.
        BadInput: for a value of the wrong type, a malformed override or a missing mandatory key.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _register()
    for override in overrides:
        if "=" not in override:
            raise BadInput(f"{override!r} is not key=value; see: pixio-robot {name} --help")
    try:
        with initialize_config_module("pixio_robot.configs", version_base="1.3"):
            config = hydra_compose(name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise _config_error(name, overrides, error) from error
    if not complete:
        return OmegaConf.to_container(config, throw_on_missing=False)
    _check_mandatory(name, config)
    settings = OmegaConf.to_object(config)
    _check_least(settings, "")
    return settings


def _check_mandatory(name: str, config: Any) -> None:
    from omegaconf import OmegaConf

    if missing := sorted(str(each) for each in OmegaConf.missing_keys(config)):
        hint = f"; e.g. {_EXAMPLES[missing[0]]}" if missing[0] in _EXAMPLES else ""
        raise BadInput(f"{name} needs {', '.join(f'{each}=...' for each in missing)}{hint}")


def _check_least(settings: Any, prefix: str) -> None:
    for each in fields(settings):
        value, least = getattr(settings, each.name), each.metadata.get("least")
        if is_dataclass(value):
            _check_least(value, f"{prefix}{each.name}.")
        elif least is not None and value is not None and value < least:
            raise BadInput(f"{prefix}{each.name}={value} is too small; it must be at least {least}")


_EXAMPLES = {
    "task": "task=metaworld/drawer-open",
    "demos": "demos=runs/demos/toy-reach-25-fast.hdf5 (made by: pixio-robot collect)",
    "checkpoint": "checkpoint=runs/train_bc/.../checkpoints/bc/last.safetensors",
    "run": "run=runs/quickstart/...",
    "images": "images=photos (a folder of images, shards or videos) or images=procedural",
}


def _register() -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for name, schema in schemas.COMMANDS.items():
        store.store(name=f"{name}_schema", node=schema)
    store.store(group="policy", name="policy_schema", node=schemas.PolicySettings)


def _config_error(name: str, overrides: list[str], error: Exception) -> PixioError:
    """Say in our words what Hydra refused."""
    known = [key for key, _, _ in _keys(compose(name, [], complete=False), schemas.COMMANDS[name], "")]
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key not in known and key not in _groups(name) and not any(each.startswith(f"{key}.") for each in known):
            return UnknownName(f"{name} has no key {key!r}{closest(key, known)}; it has: {', '.join(known)}")
        if key in _groups(name) and (value := override.split("=", 1)[1]) not in (options := _groups(name)[key]):
            return UnknownName(f"no {key} {value!r}{closest(value, options)}; there are: {', '.join(options)}")
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    where = next((line.removeprefix("full_key: ") + ": " for line in lines if line.startswith("full_key: ")), "")
    what = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
    return BadInput(f"{where}{what} (in: pixio-robot {name} {' '.join(overrides)})")


def _sweep(name: str, arguments: list[str]) -> int:
    """Run one job a combination, through Hydra's multirun and launchers; return the worst exit status."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    compose(name, _first_job(overrides))  # to refuse in words what no job could run
    debug = "debug=true" in overrides
    statuses: list[int] = []

    def job(config: DictConfig) -> None:
        about = HydraConfig.get().job.override_dirname

        def work() -> int:
            settings = OmegaConf.to_object(config)
            _check_least(settings, "")
            return _COMMANDS[name](settings)

        statuses.append(_in_words(work, debug, f"{about}: "))
        if statuses[-1] == INTERRUPTED:
            raise KeyboardInterrupt
        if statuses[-1] > 128:  # a signal ends the whole sweep
            raise Stopped("the sweep ends here; the same command goes on", statuses[-1] - 128)

    before = sys.argv
    sys.argv = ["pixio-robot", "--multirun", *overrides]
    try:
        hydra.main(config_path="pkg://pixio_robot.configs", config_name=name, version_base="1.3")(job)()
    finally:
        sys.argv = before
    return max(statuses, default=1)


def _first_job(overrides: list[str]) -> list[str]:
    """Return the overrides of a sweep's first job."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    first = []
    for override in overrides:
        if override.startswith("hydra"):
            continue
        try:
            (parsed,) = OverridesParser.create().parse_overrides([override])
        except OverrideParseException as error:
            raise BadInput(f"{override!r} is not key=value or key=a,b,c") from error
        value = next(iter(parsed.sweep_string_iterator())) if parsed.is_sweep_override() else None
        first.append(override if value is None else f"{parsed.get_key_element()}={value}")
    return first


def _explain(error: OSError) -> str:
    """Say in words what an operating system error means; HDF5 hides the number in its message."""
    if error.errno == errno.ENOSPC or f"errno = {errno.ENOSPC}" in str(error):
        place = os.path.abspath(error.filename or ".")
        return f"no space left for {place} ({error.strerror or error}); free some, or choose another out= or cache="
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"may not write {error.filename}; choose another out="
    return str(error)


def _quickstart(command: schemas.Quickstart) -> int:
    from .policies.quickstart import run_quickstart
    from .progress import Progress
    from .tables import print_quickstart

    out, result = run_quickstart(command, Progress())
    print_quickstart(out, result)
    return 0


def _collect(command: schemas.Collect) -> int:
    from .policies.runs import run_collect
    from .progress import Progress

    report = run_collect(command, Progress())
    state = "reused" if report.reused else f"recorded in {report.attempts} episodes"
    print(f"{report.path}: {command.demos} + {command.valid} demonstrations of {command.task}, {state}")
    return 0


def _embed(command: schemas.Embed) -> int:
    from .policies.runs import run_embed
    from .progress import Progress

    cache = run_embed(command, Progress())
    shape = " x ".join(map(str, cache.cls.shape))
    print(f"{cache.folder}: class tokens {shape} float16{', reused' if cache.reused else ''}")
    return 0


def _train_bc(command: schemas.TrainBC) -> int:
    from .policies.runs import run_train_bc
    from .progress import Progress

    _, result = run_train_bc(command, Progress())
    state = ", reused" if result.reused else ""
    print(f"{result.last}: train loss {result.train_loss:.5f}, validation loss {result.valid_loss:.5f}{state}")
    print(f"evaluate it with: pixio-robot evaluate checkpoint={result.last}")
    return 0


def _evaluate(command: schemas.Evaluate) -> int:
    from .policies.runs import run_evaluate
    from .progress import Progress
    from .tables import print_evaluation

    out, evaluation = run_evaluate(command, Progress())
    print_evaluation(out, evaluation.rows[0], evaluation.summary())
    return 0


def _pretrain(command: schemas.Pretrain) -> int:
    from .pretrain.parallel import is_first_process
    from .pretrain.runs import run_plan, run_pretrain
    from .progress import Progress
    from .tables import print_plan

    if command.plan:
        cost = run_plan(command)
        print_plan(cost.rows, cost.assumptions)
        return 0
    out, result = run_pretrain(command, Progress())
    if is_first_process():
        loss = result.numbers["valid/loss"]
        print(f"{result.encoder}: held-out loss {loss:.4f} after {result.position.samples} images")
        print(f"{out / 'report.html'}: curves and reconstructions; load it with encoder={result.encoder}")
    return 0


def _report(command: schemas.Report) -> int:
    from pathlib import Path

    from .report import write_report

    print(write_report(Path(command.run)))
    return 0


def _doctor(command: schemas.Doctor) -> int:
    from .doctor import examine

    return examine(command.system_only)


_COMMANDS: dict[str, Callable[[Any], int]] = {
    "quickstart": _quickstart,
    "collect": _collect,
    "embed": _embed,
    "train_bc": _train_bc,
    "evaluate": _evaluate,
    "pretrain": _pretrain,
    "report": _report,
    "doctor": _doctor,
}

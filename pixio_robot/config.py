"""From ``key=value`` words to a command's settings, and the help that lists them.

Hydra composes a command's settings and config groups with the overrides and checks types; a plain dataclass goes on
from here. Groups are the folders of ``configs/``.
"""

import itertools
from dataclasses import fields, is_dataclass
from typing import Any

from .command_table import find_command
from .errors import BadInput, PixioError, UnknownName, closest


def command_help(name: str) -> str:
    """Return the text of ``pixio-robot COMMAND --help``: a line a key, with its value and meaning."""
    lines = [f"pixio-robot {name} key=value ...", "", (find_command(name).settings.__doc__ or "").strip(), "", "Keys:"]
    values = compose(name, [], complete=False)
    rows = list(_keys(values, find_command(name).settings, ""))
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

    folder, found = resources.files("pixio_robot.configs"), {}
    for group, default in find_command(name).groups.items():
        options = sorted(file.name.removesuffix(".yaml") for file in folder.joinpath(group).iterdir())
        found[group] = [default, *(each for each in options if each != default)]
    return found


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

    register(name)
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
    check_least(settings, "")
    return settings


def _check_mandatory(name: str, config: Any) -> None:
    from omegaconf import OmegaConf

    if missing := sorted(str(each) for each in OmegaConf.missing_keys(config)):
        hint = f"; e.g. {_EXAMPLES[missing[0]]}" if missing[0] in _EXAMPLES else ""
        raise BadInput(f"{name} needs {', '.join(f'{each}=...' for each in missing)}{hint}")


def check_least(settings: Any, prefix: str) -> None:
    for each in fields(settings):
        value, least = getattr(settings, each.name), each.metadata.get("least")
        if is_dataclass(value):
            check_least(value, f"{prefix}{each.name}.")
        elif least is not None and value is not None and value < least:
            raise BadInput(f"{prefix}{each.name}={value} is too small; it must be at least {least}")


_EXAMPLES = {
    "task": "task=metaworld/drawer-open",
    "source": "source=metaworld-expert-v1.0.zip",
    "camera": "camera=realsense, camera=opencv:0, camera=recording.bag or camera=task:toy/reach",
    "scenes": "scenes=[metaworld,robot.xml]",
    "demos": "demos=runs/demos/toy-reach-25-fast.hdf5 (made by: pixio-robot collect)",
    "checkpoint": "checkpoint=runs/train_bc/.../checkpoints/bc/last.safetensors",
    "bundle": "bundle=runs/export/... (made by: pixio-robot export)",
    "students": "students=[s,ti] or students={small:{size:128x6x4}}",
    "teacher": "teacher=runs/pretrain/.../encoder.safetensors",
    "robot": "robot=task:toy/reach or robot=ros:arm.json",
    "run": "run=runs/quickstart/...",
    "runs": "runs=[runs/train_rl/...,runs/train_rl/...]",
    "model": "model=runs/pretrain/... (a run folder of pixio-robot pretrain)",
    "encoder": "encoder=runs/pretrain/.../encoder.safetensors or encoder=pixio-robot-ti",
    "images": "images=photos (a folder of images, shards or videos) or images=procedural",
}


def register(name: str) -> None:
    """Tell Hydra of a command: its schema, and the config that joins schema, groups and defaults of its own."""
    from hydra.core.config_store import ConfigStore

    from .policies.rl.settings import AlgorithmSettings
    from .policies.settings import PolicySettings

    store, command = ConfigStore.instance(), find_command(name)
    store.store(name=f"{name}_schema", node=command.settings)
    groups = [{group: default} for group, default in command.groups.items()]
    store.store(name=name, node={"defaults": [f"{name}_schema", *groups, "_self_"], **command.values})
    store.store(group="policy", name="policy_schema", node=PolicySettings)
    store.store(group="algorithm", name="algorithm_schema", node=AlgorithmSettings)


def _config_error(name: str, overrides: list[str], error: Exception) -> PixioError:
    """Say in our words what Hydra refused."""
    known = [key for key, _, _ in _keys(compose(name, [], complete=False), find_command(name).settings, "")]
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


def first_job(overrides: list[str]) -> list[str]:
    """Return the overrides of a sweep's first job."""
    return sweep_jobs(overrides)[0]


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep: all combinations, the last key's values in turn.

    Raises:
        BadInput: for a malformed override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    choices = []
    for override in overrides:
        if override.startswith("hydra"):
            continue
        try:
            (parsed,) = OverridesParser.create().parse_overrides([override])
        except OverrideParseException as error:
            raise BadInput(f"{override!r} is not key=value or key=a,b,c") from error
        values = parsed.sweep_string_iterator() if parsed.is_sweep_override() else None
        choices.append([override] if values is None else [f"{parsed.get_key_element()}={value}" for value in values])
    return [list(job) for job in itertools.product(*choices)]

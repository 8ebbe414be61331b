"""From ``key=value`` arguments to a command's settings, and the help that lists its keys.

Hydra composes the settings dataclass of a command with its config groups and the overrides, and checks types. The
result is a plain dataclass; nothing else in the package sees Hydra's objects.

The options of a config group are the files ``configs/<group>/*.yaml`` and, for groups in `PLUGINS`, the plug-ins: the
option ``policy=act`` is the dataclass ``Config`` of the class that the plug-in ``act`` of the group ``policies`` names.
A file builds on a plug-in with ``defaults: [act, _self_]``.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from .command_table import find_command
from .errors import BadInput, PixioError, UnknownName, closest
from .plugins import find_plugin, plugin_names

CONFIGS = "pixio_robot.configs"  # the package that holds the folders of YAML files
PLUGINS = {"policy": "policies"}  # config group: plug-in group whose classes are options too


def command_help(name: str, overrides: Sequence[str] = ()) -> str:
    """Return the text of ``pixio-robot COMMAND --help``: one line for each key, with its value and meaning.

    Args:
        overrides: ``key=value`` strings; options of groups, such as ``policy=NAME``, decide which keys there are.

    Raises:
        UnknownName: for an option that its group does not have.
    """
    lines = [f"pixio-robot {name} key=value ...", "", (find_command(name).settings.__doc__ or "").strip(), "", "Keys:"]
    chosen = [each for each in overrides if each.partition("=")[0] in find_command(name).groups]
    rows = list(_keys(_composed_or_refused(name, chosen)))
    width = max(len(f"{key}={value}") for key, value, _ in rows)
    lines += [f"  {f'{key}={value}':<{width}}  {text}" for key, value, text in rows]
    for group, options in _groups(name).items():
        default, *others = options
        lines += ["", f"Groups: {group}={default} (default)" + "".join(f", {group}={each}" for each in others)]
    return "\n".join(lines)


def _keys(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and help text of each field of a composed config, nested ones by their dotted name."""
    from omegaconf import DictConfig, OmegaConf

    plain: Any = OmegaConf.to_container(config, throw_on_missing=False)
    for each in fields(OmegaConf.get_type(config)):  # type: ignore[arg-type]
        nested = None if OmegaConf.is_missing(config, each.name) else config[each.name]
        if isinstance(nested, DictConfig) and is_dataclass(OmegaConf.get_type(nested)):
            yield from _keys(nested, f"{prefix}{each.name}.")
        else:
            value = plain[each.name]
            shown = {None: "null", True: "true", False: "false"}.get(value) if _is_constant(value) else value
            yield f"{prefix}{each.name}", shown, each.metadata.get("help", "")


def _groups(name: str) -> dict[str, list[str]]:
    """Return the config groups of a command and their options, the default first."""
    found = {}
    for group, default in find_command(name).groups.items():
        options = {*_files(group), *plugin_names(PLUGINS[group])} if group in PLUGINS else _files(group)
        found[group] = [default, *sorted(options - {default})]
    return found


def _files(group: str) -> set[str]:
    """Return the names of a group's YAML files."""
    from importlib import resources

    folder = resources.files(CONFIGS).joinpath(group)
    return {file.name.removesuffix(".yaml") for file in folder.iterdir()} if folder.is_dir() else set()


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
        PixioError: if a plug-in that is chosen cannot be imported or has no `Config`.
    """
    from omegaconf import OmegaConf

    for override in overrides:
        if "=" not in override:
            raise BadInput(f"{override!r} is not key=value; see: pixio-robot {name} --help")
    config = _composed_or_refused(name, overrides)
    if not complete:
        return OmegaConf.to_container(config, throw_on_missing=False)
    _check_mandatory(name, config)
    settings = OmegaConf.to_object(config)
    check_least(settings, "")
    return settings


def _composed_or_refused(name: str, overrides: list[str]) -> Any:
    """Return what `_composed` does, with errors in the words of this project."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return _composed(name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise _config_error(name, overrides, error) from error


def _composed(name: str, overrides: list[str]) -> Any:
    """Return a command's settings as Hydra composes them."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    register(name, overrides)
    with initialize_config_module(CONFIGS, version_base="1.3"):
        return hydra_compose(name, overrides)


def _check_mandatory(name: str, config: Any) -> None:
    from omegaconf import OmegaConf

    if missing := sorted(str(each) for each in OmegaConf.missing_keys(config)):
        hint = f"; e.g. {_EXAMPLES[missing[0]]}" if missing[0] in _EXAMPLES else ""
        raise BadInput(f"{name} needs {', '.join(f'{each}=...' for each in missing)}{hint}")


def check_least(settings: Any, prefix: str) -> None:
    """Refuse numbers below the least value of their key.

    Raises:
        BadInput: naming the key, with `prefix` before it.
    """
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
    "checkpoint": "checkpoint=runs/train_bc/.../checkpoints/mlp/last.safetensors",
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


def register(name: str, overrides: list[str]) -> None:
    """Register a command with Hydra: its settings, its config groups, and the plug-ins that they use.

    Plug-ins that are not chosen are not imported.

    Args:
        name: the command.
        overrides: ``key=value`` strings; those of a group may be sweeps, ``policy=act,mlp``.

    Raises:
        PixioError: if a plug-in that is chosen cannot be imported or has no `Config`.
    """
    from hydra.core.config_store import ConfigStore

    store, command = ConfigStore.instance(), find_command(name)
    store.store(name=f"{name}_schema", node=command.settings)
    groups = [{group: default} for group, default in command.groups.items()]
    store.store(name=name, node={"defaults": [f"{name}_schema", *groups, "_self_"], **command.values})
    for each in fields(command.settings):
        if each.name in command.groups and is_dataclass(each.type):
            store.store(group=each.name, name=f"{each.name}_schema", node=each.type)
    for group in command.groups:
        for plugin in _chosen_plugins(group, command.groups[group], overrides):
            store.store(group=group, name=plugin, node=_config_class(group, plugin))


def _chosen_plugins(group: str, default: str, overrides: list[str]) -> set[str]:
    """Return the plug-ins among a group's chosen options and among the defaults of chosen YAML files."""
    from importlib import resources

    from omegaconf import OmegaConf

    if group not in PLUGINS:
        return set()
    given = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == group]
    files, found, open_ones = _files(group), set(), [default, *(each for value in given for each in value.split(","))]
    while open_ones:
        option = open_ones.pop()
        if option in files:
            text = resources.files(CONFIGS).joinpath(group, f"{option}.yaml").read_text(encoding="utf-8")
            content: Any = OmegaConf.to_container(OmegaConf.create(text))
            defaults = [each for each in content.get("defaults", []) if isinstance(each, str)]
            open_ones += [each for each in defaults if each not in (option, "_self_")]
        elif option in plugin_names(PLUGINS[group]):
            found.add(option)
    return found


def _config_class(group: str, plugin: str) -> type:
    config = getattr(find_plugin(PLUGINS[group], plugin), "Config", None)
    if not (isinstance(config, type) and is_dataclass(config)):
        raise PixioError(f"{group}={plugin}: the plug-in's class must have a dataclass Config with its settings")
    return config


def _config_error(name: str, overrides: list[str], error: Exception) -> PixioError:
    """Return our error for what Hydra refused."""
    groups = _groups(name)
    for override in overrides:
        key, _, value = override.partition("=")
        if key in groups and value not in groups[key]:
            return UnknownName(f"no {key} {value!r}{closest(value, groups[key])}; there are: {', '.join(groups[key])}")
    chosen = [override for override in overrides if override.partition("=")[0] in groups]
    known = [key for key, _, _ in _keys(_composed(name, chosen))]
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key not in known and key not in groups and not any(each.startswith(f"{key}.") for each in known):
            return UnknownName(f"{name} has no key {key!r}{closest(key, known)}; it has: {', '.join(known)}")
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    where = next((line.removeprefix("full_key: ") + ": " for line in lines if line.startswith("full_key: ")), "")
    what = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
    return BadInput(f"{where}{what} (in: pixio-robot {name} {' '.join(overrides)})")


def first_job(overrides: list[str]) -> list[str]:
    """Return the overrides of a sweep's first job."""
    return sweep_jobs(overrides)[0]


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep: all combinations, the last key varying fastest.

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

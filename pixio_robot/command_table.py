"""Which folder's ``commands.py`` defines which command. A folder is imported when one of its commands is used."""

from importlib import import_module

from .command import Command
from .errors import UnknownName, closest

_HOMES = {
    "quickstart": "policies",
    "collect": "policies",
    "convert": "cortexbench",
    "render_frames": "envs",
    "embed": "policies",
    "train_bc": "policies",
    "train_rl": "policies.rl",
    "learning_curves": "policies.rl",
    "evaluate": "policies",
    "benchmark": "cortexbench",
    "pretrain": "pretrain",
    "distill": "pretrain",
    "score": "pretrain.curation",
    "curate": "pretrain.curation",
    "probe": "pretrain.probes",
    "record": "cameras",
    "camera_view": "cameras",
    "camera_check": "cameras",
    "calibrate": "cameras",
    "stream": "deploy",
    "run": "robots",
    "export": "deploy",
    "verify": "deploy",
    "serve": "deploy",
    "latency": "deploy",
    "report": "",
    "doctor": "",
}
NAMES = tuple(_HOMES)


def find_command(name: str) -> Command:
    """Return a command.

    Raises:
        UnknownName: if there is none of this name.
    """
    if name not in _HOMES:
        raise UnknownName(f"no command {name!r}{closest(name, NAMES)}; there are: {', '.join(NAMES)}")
    home = f".{_HOMES[name]}.commands" if _HOMES[name] else ".commands"
    commands: dict[str, Command] = import_module(home, __package__).COMMANDS
    return commands[name]

"""Settings from key=value words: config groups have YAML files and plug-ins as options."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pixio_robot import config
from pixio_robot.command import Command
from pixio_robot.errors import BadInput, PixioError, UnknownName
from pixio_robot.run_folder import binding_settings, open_run
from pixio_robot.settings import key


class Tiny:
    """A policy of another package."""

    @dataclass
    class Config:
        width: int = key(8, "width of its layer", least=1)
        shape: list[int] = key([2, 3], "two numbers")


class Wide:
    """Another."""

    @dataclass
    class Config:
        heads: int = key(4, "attention heads")
        width: int = key(64, "width of its layers")


class Bare:
    """One without settings."""


@dataclass
class Train:
    """Train."""

    demos: str = key("x.hdf5", "demonstration file")
    policy: Any = key(None, "the policy")


@pytest.fixture
def command(
    entries: list[metadata.EntryPoint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str], Any]]:
    """Compose a command whose group `policy` has the file `small` and the plug-ins tiny, wide, bare and broken."""
    module = ModuleType("other_package")
    module.__dict__.update(Tiny=Tiny, Wide=Wide, Bare=Bare)
    monkeypatch.setitem(sys.modules, "other_package", module)
    for name, value in (("tiny", "Tiny"), ("wide", "Wide"), ("bare", "Bare"), ("broken", "NotThere")):
        entries.append(metadata.EntryPoint(name, f"other_package:{value}", "pixio_robot.policies"))
    folder = tmp_path / "test_configs" / "policy"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "small.yaml").write_text("defaults:\n  - wide\n  - _self_\nwidth: 5\n")
    (folder / "smaller.yaml").write_text("defaults:\n  - small\n  - _self_\nheads: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(config, "CONFIGS", "test_configs")
    monkeypatch.setattr(config, "find_command", lambda name: Command(Train, lambda _: 0, {"policy": "small"}))
    yield lambda *overrides: config.compose("train", list(overrides))
    for name in [name for name in sys.modules if name.partition(".")[0] == "test_configs"]:
        del sys.modules[name]


def test_an_option_is_a_file_or_a_plugin(command: Callable[..., Any]) -> None:
    assert command().policy == Wide.Config(heads=4, width=5)
    assert command("policy=smaller").policy == Wide.Config(heads=1, width=5)
    assert command("policy=wide", "policy.heads=2").policy == Wide.Config(heads=2, width=64)
    tiny = command("policy=tiny", "policy.shape=[4]").policy
    assert type(tiny) is Tiny.Config and tiny == Tiny.Config(shape=[4])


def test_its_own_keys_are_checked(command: Callable[..., Any]) -> None:
    with pytest.raises(UnknownName, match=r"no key 'policy.widht'; did you mean 'policy.width'"):
        command("policy=tiny", "policy.widht=3")
    with pytest.raises(UnknownName, match=r"no key 'policy.heads'.*it has: demos, policy.width, policy.shape"):
        command("policy=tiny", "policy.heads=3")
    with pytest.raises(BadInput, match=r"policy.width: Value 'a' of type 'str'"):
        command("policy=tiny", "policy.width=a")
    with pytest.raises(BadInput, match=r"policy.width=0 is too small"):
        command("policy=tiny", "policy.width=0")
    with pytest.raises(
        UnknownName, match=r"no policy .tini.; did you mean .tiny.\?; there are: small, bare, broken, smaller, tiny"
    ):
        command("policy=tini")


def test_only_what_is_chosen_is_imported(command: Callable[..., Any]) -> None:
    with pytest.raises(PixioError, match=r"'broken' \(other_package:NotThere\) cannot be imported"):
        command("policy=broken")
    with pytest.raises(PixioError, match="policy=bare: the plug-in's class must have a dataclass Config"):
        command("policy=bare")
    config.register("train", ["policy=tiny,wide"])  # a sweep


def test_help_lists_the_options_and_the_keys_of_the_default(command: Callable[..., Any]) -> None:
    text = config.command_help("train")
    assert "policy.heads=4" in text and "policy.width=5" in text and "attention heads" in text
    assert "Groups: policy=small (default), policy=bare, policy=broken, policy=smaller, policy=tiny" in text


def test_a_run_is_identified_by_the_settings_of_its_policy(command: Callable[..., Any], tmp_path: Path) -> None:
    one, other = command("policy=tiny"), command("policy=tiny", "policy.width=9")
    assert binding_settings(one)["policy"] == {"width": 8, "shape": [2, 3]} != binding_settings(other)["policy"]
    open_run(tmp_path / "run", one)
    open_run(tmp_path / "run", one)
    with pytest.raises(PixioError, match="policy"):
        open_run(tmp_path / "run", other)

"""One look-up for every kind of plug-in."""

from importlib import metadata

import pytest

from pixio_robot import plugins
from pixio_robot.errors import PixioError, UnknownName


def _entry(name: str, value: str, group: str = "cameras") -> metadata.EntryPoint:
    return metadata.EntryPoint(name, value, f"pixio_robot.{group}")


def test_a_plugin_is_found_in_its_own_group(entries: list[metadata.EntryPoint]) -> None:
    entries += [_entry("one", "pathlib:Path"), _entry("one", "json:dumps", "robots")]
    assert plugins.find_plugin("cameras", "one").__name__ == "Path"
    assert plugins.find_plugin("robots", "one").__name__ == "dumps"
    assert plugins.plugin_names("cameras") == ["one"]


def test_an_unknown_name_lists_what_there_is(entries: list[metadata.EntryPoint]) -> None:
    entries += [_entry("zebra", "pathlib:Path"), _entry("lion", "pathlib:Path")]
    with pytest.raises(UnknownName, match=r"no camera driver 'zebr'.*zebra.*there are: lion, zebra"):
        plugins.find_plugin("cameras", "zebr")


def test_a_package_that_does_not_import_is_named(entries: list[metadata.EntryPoint]) -> None:
    entries.append(_entry("broken", "no_such_module_here:Thing"))
    with pytest.raises(PixioError, match=r"'broken' \(no_such_module_here:Thing\) cannot be imported: No module"):
        plugins.find_plugin("cameras", "broken")


def test_two_packages_with_one_name_are_refused(entries: list[metadata.EntryPoint]) -> None:
    entries += [_entry("same", "pathlib:Path"), _entry("same", "json:dumps")]
    with pytest.raises(PixioError, match=r"two installed packages .* 'same': pathlib:Path and json:dumps"):
        plugins.plugin_names("cameras")


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_built_in_plugins_are_entry_points(group: str) -> None:
    ours = [name for name in plugins.plugin_names(group) if plugins._entries(group)[name].value.startswith("pixio_")]
    for name in ours:
        module = plugins._entries(group)[name].value.partition(":")[0]
        assert module.startswith("pixio_robot.")

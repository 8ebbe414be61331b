"""The folders at the top, the links inside the package and the wheel's mapping are one and the same."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pixio_robot

HOME = Path(pixio_robot.__file__).resolve().parent
ROOT = HOME.parent
CODE = ("datasets", "envs", "cameras", "policies", "pretrain", "deploy", "robots", "cortexbench")
FOLDERS = (*CODE, "configs")
# who may import whom; the core is everything inside pixio_robot/ itself but the command line
BELOW = {
    "core": set(),
    "datasets": {"core"},
    "envs": {"datasets", "core"},
    "cameras": {"envs", "datasets", "core"},
    "policies": {"cameras", "envs", "datasets", "core"},
    "pretrain": {"datasets", "core"},
    "deploy": {"policies", "cameras", "envs", "datasets", "core"},
    "robots": {"deploy", "policies", "cameras", "envs", "datasets", "core"},
    "cortexbench": {"policies", "cameras", "envs", "datasets", "core"},
    "cli": {*CODE, "core"},
}
COMMAND_LINE = ("cli", "commands", "command_table", "config", "doctor")

checkout = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="runs in a checkout")


@checkout
def test_links_mapping_and_packages_agree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    homes = [file.parent.relative_to(ROOT) for name in FOLDERS for file in (ROOT / name).rglob("__init__.py")]
    mapped = {".".join(["pixio_robot", *home.parts]): str(home) for home in homes}
    inner = [file.parent.relative_to(ROOT) for file in HOME.rglob("__init__.py")]
    mapped |= {".".join(home.parts): str(home) for home in inner}
    assert settings["package-dir"] == mapped
    assert set(settings["packages"]) == set(settings["package-dir"])
    for name in FOLDERS:
        link = HOME / name
        assert link.is_symlink() and str(link.readlink()) == f"../{name}", (
            f"{link} must be a relative link to ../{name}"
        )
        assert (ROOT / name / "__init__.py").is_file()


@checkout
def test_every_folder_with_code_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for name in FOLDERS:
        for file in (ROOT / name).rglob("*.py"):
            package = ".".join(["pixio_robot", *file.parent.relative_to(ROOT).parts])
            assert package in settings["packages"], f"{file} is in no package of the wheel"


def _layer(module: str) -> str:
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in CODE:
        return parts[1]
    return "cli" if parts[1:2] and parts[1] in COMMAND_LINE else "core"


def _imports(file: Path, package: str) -> set[str]:
    """Return the modules of this package that a file imports when it runs, lazily or not; type-only ones excepted."""
    tree = ast.parse(file.read_text())
    typing_only = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{name}.{alias.name}" for alias in node.names} | {name}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "pixio_robot" and name != "pixio_robot"}


def _modules() -> list[tuple[str, Path]]:
    """Return every module of the package, in folders of any depth, installed or in a checkout."""
    found = []
    for name in ("", *FOLDERS):
        home = (HOME / name).resolve()
        for file in sorted(home.rglob("*.py")):
            parts = [*([name] if name else []), *file.relative_to(home).with_suffix("").parts]
            if name or parts[0] not in FOLDERS:
                found.append((".".join(["pixio_robot", *parts]), file))
    return found


def _upward(module: str, file: Path) -> list[str]:
    """Return what a module imports of a layer above its own."""
    mine = _layer(module)
    allowed = BELOW[mine] | {mine}
    return [name for name in _imports(file, module.rpartition(".")[0]) if _layer(name) not in allowed]


def test_imports_point_down() -> None:
    modules = [each for each in _modules() if each[0] not in ("pixio_robot.__init__", "pixio_robot.__main__")]
    assert len(modules) > 200
    found = {module: up for module, file in modules if (up := _upward(module, file))}
    assert not found


@checkout
def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    """Other distributions own the names `envs`, `policies` and the like."""
    for file in [*(file for _, file in _modules()), *ROOT.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & set(FOLDERS), f"{file}: import pixio_robot.<folder>"


def test_simulators_and_the_command_line_start_without_torch() -> None:
    code = (
        "import sys, pixio_robot.cli\n"
        "pixio_robot.cli.overview()\n"
        "heavy = {'torch', 'stable_baselines3', 'transformers', 'robomimic', 'hydra', 'matplotlib'}\n"
        "assert not (heavy | {'mujoco', 'numpy'}) & set(sys.modules)\n"
        "from pixio_robot.envs import contract, registry, rollout\n"
        "[registry.make(task, observe=('proprio',)).reset(seed=0) for task in ('toy/reach', 'metaworld/reach')\n"
        " if task in registry.installed()]\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_importing_the_package_loads_nothing_and_names_resolve() -> None:
    code = "import sys, pixio_robot; sys.exit(len([m for m in sys.modules if m.startswith('pixio_robot')]) - 1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in pixio_robot.__all__:
        assert getattr(pixio_robot, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pixio_robot.nonsense


@pytest.mark.parametrize("module", [name for name, _ in _modules() if not name.endswith("__main__")])
def test_doctests(module: str) -> None:
    name = module.removesuffix(".__init__")
    if name.startswith("pixio_robot.policies.rl."):  # the one folder whose modules import an extra at their top
        pytest.importorskip("stable_baselines3")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_no_file_is_a_drawer() -> None:
    names = {each.name for each in pkgutil.walk_packages([str(HOME)])}
    assert not names & {"utils", "helpers", "common", "misc"}

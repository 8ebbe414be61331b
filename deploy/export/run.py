"""`pixio-robot export`: from a checkpoint or an encoder to a bundle, whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ...encoders.load import Backbone, load_encoder
from ...envs.registry import new_task, tasks
from ...errors import BadInput, CheckpointError, DataError, MissingExtra, UnknownName, closest
from ...files import sha256_of
from ...policies.visuomotor import LoadedPolicy, load_policy, load_policy_encoder
from ...progress import stage
from ...run_folder import read_json, settings_digest, write_json
from ..commands import Export, Verify
from ..runtime.bundle import PARITY, Manifest
from ..runtime.runtime import Runtime
from ..settings import BUNDLE_PRECISIONS, TARGETS, Gate
from .closed_loop import run_episodes
from .parity import Check, Parity, check_episodes, compare_encoder, compare_episodes, compare_recorded
from .program import EncoderProgram, Program, program_of
from .recorded import Recorded, read_recorded
from .targets import PROGRAMS, check_target, write_program

ROWS = "episodes.jsonl"
_MADE_WITH = ("pixio-robot", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "tensorrt")


@dataclass
class Exported:
    """A bundle in its place, or refused, and what the gate found."""

    out: Path
    parity: Parity | None  # None where it was not compared
    placed: bool
    reused: bool = False


def run_export(command: Export) -> Exported:
    """Write a bundle, compare it, and put it in place if it passes.

    Raises:
        BadInput, UnknownName, DataError, MissingExtra: before anything is written, for what cannot be.
    """
    check_names(command)
    loaded, backbone, inputs = sources(command)
    digest = settings_digest(command, inputs)
    out = Path(command.out or f"runs/export/{digest}")
    if out.exists():
        if (card := Manifest.read(out)).options.get("digest") != digest:
            what = f"another bundle ({card.target}, {card.precision})"
            raise DataError(f"{out} holds {what}; choose another out= or delete it")
        return Exported(out, read_parity(out), placed=True, reused=True)
    program, card = described(command, loaded, backbone, inputs)
    check_target(program, command.target, command.precision)
    recorded = gate_frames(command, card, loaded) if command.gate else None
    calibration = calibration_frames(command, card, loaded) if command.precision == "int8" else None
    with new_folder(out) as folder:
        with stage(f"export {command.target} {command.precision}", 1) as bar:
            files, options = write_program(
                program, folder, command.target, command.precision, command.batch, command.device, calibration
            )
            bar.advance(1)
        card.options = {**options, "digest": digest}
        card.write(folder, files)
        parity = None
        if recorded is not None:
            parity = compare(command, folder, loaded, backbone, recorded)
            write_json(folder / PARITY, parity.as_json())
            if not (parity.passed or command.force):
                refused = out.with_name(f"{out.name}-refused.json")
                write_json(refused, parity.as_json())
                shutil.rmtree(folder)
                return Exported(refused, parity, placed=False)
        folder.rename(out)
    return Exported(out, parity, placed=True)


def run_verify(command: Verify) -> Parity:
    """Compare an existing bundle anew; its ``parity.json`` is replaced.

    Raises:
        CheckpointError: if the folder is no bundle, or the checkpoint another than it was exported from.
    """
    folder = Path(command.bundle)
    card = Manifest.read(folder)
    if card.kind == "policy":
        assert card.policy is not None
        if command.checkpoint is None:
            raise BadInput("give checkpoint=FILE, the policy that the bundle was exported from")
        if sha256_of(Path(command.checkpoint)) != card.policy["sha256"]:
            raise CheckpointError(f"{folder} was exported from another checkpoint than {command.checkpoint}")
        loaded: LoadedPolicy | None = load_policy(command.checkpoint)
        assert loaded is not None
        backbone = None if loaded.encoder is None else load_policy_encoder(loaded.encoder)
    else:
        assert card.encoder is not None
        loaded, backbone = None, load_encoder(card.encoder["name"])
        if backbone.fingerprint() != card.encoder["fingerprint"]:
            raise CheckpointError(f"{folder} was exported from other weights than {card.encoder['name']!r} has now")
    (folder / ROWS).unlink(missing_ok=True)
    parity = compare(command, folder, loaded, backbone, gate_frames(command, card, loaded))
    write_json(folder / PARITY, parity.as_json())
    return parity


def compare(
    command: Gate,
    folder: Path,
    loaded: LoadedPolicy | None,
    backbone: Backbone | None,
    recorded: Recorded,
) -> Parity:
    """Run the gate on a bundle: recorded frames first, episodes only if these pass."""
    runtime = Runtime.load(folder, command.threads, check=False)  # it was, and this is the gate
    parity = Parity(runtime.card.precision)
    if loaded is None:
        assert backbone is not None
        compare_encoder(parity, runtime, backbone, recorded)
        return parity
    with stage("compare actions", 1) as bar:
        compare_recorded(parity, runtime, loaded, backbone, recorded)
        bar.advance(1)
    if not parity.passed:
        parity.words.append("no episodes were run, since recorded frames differ too much already")
        return parity
    check_episodes(parity, command.episodes)
    if command.episodes:
        rows = run_episodes(
            runtime,
            loaded,
            backbone,
            folder,
            episodes=command.episodes,
            first_seed=command.first_seed,
            width=command.envs,
            cache=Path(command.cache),
        )
        compare_episodes(parity, *rows)
    return parity


def gate_frames(command: Gate, card: Manifest, loaded: LoadedPolicy | None) -> Recorded:
    """Read the frames that the gate compares on.

    Raises:
        BadInput: if none are given, or episodes are asked for of what cannot be simulated.
    """
    if loaded is not None and command.episodes and loaded.request.task not in tasks():
        raise BadInput(
            f"{loaded.request.task} cannot be simulated, so no episodes can be compared; give episodes=0, and the gate "
            "compares tokens and actions alone"
        )
    if command.demos is None:
        raise BadInput(
            "the gate compares on recorded frames: give demos=FILE, e.g. what the policy was trained on; "
            "export with gate=false writes a bundle that nobody compared"
        )
    return read_recorded(command.demos, card.observation, command.frames, 0.5, loaded)


def calibration_frames(command: Export, card: Manifest, loaded: LoadedPolicy | None) -> Recorded:
    """Read the frames that int8 is calibrated on; from the same file other clips than the gate's.

    Raises:
        BadInput: if none are given.
    """
    source = command.calibration or command.demos
    if source is None:
        raise BadInput("int8 takes its ranges from recorded frames: give calibration=FILE or demos=FILE")
    return read_recorded(source, card.observation, command.calibration_frames, 0.0, loaded)


def read_parity(folder: Path) -> Parity | None:
    """Return what the gate found of a bundle; None if it was not compared."""
    if not (values := read_json(folder / PARITY)):
        return None
    checks = [Check(**each) for each in values["checks"]]
    return Parity(values["precision"], checks, values["words"], values["details"])


def check_names(command: Export) -> None:
    """Refuse an unknown target or precision, and more or less than one thing to export.

    Raises:
        UnknownName: naming what there is.
        BadInput: if there is nothing to export, or too much.
    """
    for what, name, known in (
        ("target", command.target, TARGETS),
        ("precision", command.precision, BUNDLE_PRECISIONS),
    ):
        if name not in known:
            raise UnknownName(f"no {what} {name!r}{closest(name, known)}; there are: {', '.join(known)}")
    if (command.checkpoint is None) == (command.encoder is None):
        raise BadInput("export one thing: checkpoint=FILE (a policy), or encoder=NAME (tokens out)")


def sources(command: Export) -> tuple[LoadedPolicy | None, Backbone | None, str]:
    """Return the policy, its encoder or the one asked for, and the hash of what was read."""
    if command.checkpoint is None:
        assert command.encoder is not None
        backbone = load_encoder(command.encoder)
        return None, backbone, backbone.fingerprint()
    loaded = load_policy(command.checkpoint)
    encoder = None if loaded.encoder is None else load_policy_encoder(loaded.encoder)
    return loaded, encoder, sha256_of(Path(command.checkpoint))


def described(
    command: Export, loaded: LoadedPolicy | None, backbone: Backbone | None, inputs: str
) -> tuple[Program, Manifest]:
    """Return the program to write and its card, without files."""
    about: dict[str, Any] = {}
    if backbone is not None:
        about["normalisation"] = backbone.preprocessing._asdict()
        about["encoder"] = dict(name=backbone.name, fingerprint=backbone.fingerprint(), weights=backbone.weights)
    program: Program
    if loaded is None:
        assert backbone is not None
        size = command.image_size or max(backbone.preprocessing.size)
        program = EncoderProgram(backbone, size).eval().requires_grad_(False)
        about |= dict(image_size=size)
    else:
        if command.image_size not in (None, loaded.request.image_size):
            raise BadInput(f"the policy was trained on {loaded.request.image_size} px; leave image_size out")
        program = program_of(loaded, backbone)
        width = loaded.policy.actions
        about |= dict(
            task=loaded.request.task,
            image_size=loaded.request.image_size,
            **acting(loaded),
            chunk=program.outputs[0].shape[0],
            action_low=[-1.0] * width,
            action_high=[1.0] * width,
            policy=dict(kind=loaded.policy.kind, sha256=inputs, step=loaded.step),
        )
    card = Manifest(
        kind="encoder" if loaded is None else "policy",
        target=command.target,
        precision=command.precision,
        program=PROGRAMS[command.target],
        observation=program.observation,
        outputs=program.outputs,
        memory=program.memory,
        batch=command.batch,
        versions=versions(),
        **about,
    )
    return program, card


def acting(loaded: LoadedPolicy) -> dict[str, Any]:
    """Return a policy's ``control_period`` [s], ``action_names`` and ``action_meanings``.

    As its robot's recording has them, else as its task does.

    None where neither is known: recorded by an older version, or the suite is not installed.
    """
    robot = loaded.training.get("robot") or {}
    rate, names, meanings = (robot.get(key) for key in ("control_hz", "axes", "actions"))
    if loaded.request.task in tasks() and None in (rate, names, meanings):
        with suppress(MissingExtra), closing(new_task(loaded.request.task)) as task:
            commands = task.action_spec()
            rate, names, meanings = (
                rate or task.control_hz,
                names or list(commands.names),
                meanings or commands.meanings,
            )
    return dict(control_period=1 / rate if rate else None, action_names=names, action_meanings=meanings)


def versions() -> dict[str, str]:
    """Return the versions of what makes and runs programs."""
    found = {}
    for package in _MADE_WITH:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, to be renamed; what has not been is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""`pixio-robot export`: from a checkpoint or an encoder to a bundle, whole or not at all."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ...backbones import Backbone, load_encoder
from ...envs.registry import new_task
from ...errors import BadInput, DataError, MissingExtra, UnknownName, closest
from ...export_schemas import BUNDLE_PRECISIONS, TARGETS, Export
from ...files import sha256_of
from ...run_folder import settings_digest
from ...runtime.bundle import Card
from ..visuomotor import LoadedPolicy, load_policy, load_policy_encoder
from .onnx_file import OPSET, write_onnx
from .program import EncoderProgram, Exported, program_of

log = logging.getLogger(__name__)
_MADE_WITH = ("pixio-robot", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "tensorrt")


def run_export(command: Export) -> Path:
    """Write a bundle; return its folder."""
    check_names(command)
    loaded, backbone, inputs = sources(command)
    digest = settings_digest(command, inputs)
    out = Path(command.out or f"runs/export/{digest}")
    if out.exists():
        if (card := Card.read(out)).options.get("digest") == digest:
            log.info("%s is there already", out)
            return out
        raise DataError(f"{out} holds another bundle ({card.target}, {card.precision}); choose another out= or delete it")
    program, card = described(command, loaded, backbone, inputs)
    card.options["digest"] = digest
    with new_folder(out) as folder:
        files = write_onnx(program, folder / card.program, command.batch)
        card.options["opset"] = OPSET
        card.write(folder, files)
    return out


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
) -> tuple[Exported, Card]:
    """Return the program to write and its card, without files."""
    about: dict[str, Any] = {}
    if backbone is not None:
        about["normalisation"] = backbone.preprocessing._asdict()
        about["encoder"] = dict(name=backbone.name, fingerprint=backbone.fingerprint(), weights=backbone.weights)
    program: Exported
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
            control_period=control_period(loaded.request.task),
            chunk=program.outputs[0].shape[0],
            action_low=[-1.0] * width,
            action_high=[1.0] * width,
            policy=dict(kind=loaded.policy.kind, sha256=inputs, step=loaded.step),
        )
    card = Card(
        kind="encoder" if loaded is None else "policy",
        target=command.target,
        precision=command.precision,
        program="program.onnx",
        observation=program.observation,
        outputs=program.outputs,
        memory=program.memory,
        batch=command.batch,
        versions=versions(),
        **about,
    )
    return program, card


def control_period(task: str) -> float | None:
    """Return the time between two observations of a task [s]; None where its suite is not installed."""
    try:
        made = new_task(task)
    except MissingExtra:
        return None
    try:
        return 1 / made.control_hz
    finally:
        made.close()


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
    """Yield a temporary folder beside `out`; on success it becomes `out`, on any error it is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

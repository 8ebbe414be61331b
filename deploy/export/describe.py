"""The program of a policy or an encoder, and the manifest that describes it; no file is written here."""

from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ...envs.registry import new_task, tasks
from ...errors import BadInput, MissingExtra
from ...plugins import find_plugin
from ...policies.visuomotor import LoadedPolicy
from ..manifest import Manifest
from .program import EncoderProgram, Program, program_of
from .source import ExportSource

_MADE_WITH = ("pixio-robot", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "tensorrt")


@dataclass(frozen=True)
class BundleOptions:
    """How a bundle is written."""

    target: str = "onnx"
    precision: str = "fp32"
    batch: int | None = 1  # observations per call; None leaves it open
    image_size: int | None = None  # side of an encoder's images [px]; None is its own
    device: str = "cpu"  # where an aoti program will run


def describe(source: ExportSource, options: BundleOptions) -> tuple[Program, Manifest]:
    """Return the program to write and its manifest, without files.

    Raises:
        BadInput: if the policy has no program, or the image size does not fit.
    """
    loaded, backbone = source.loaded, source.backbone
    about: dict[str, Any] = {}
    if backbone is not None:
        about["normalisation"] = backbone.preprocessing._asdict()
        about["encoder"] = dict(name=backbone.name, fingerprint=backbone.fingerprint(), weights=backbone.weights)
    program: Program
    if loaded is None:
        size = options.image_size or max(source.encoder.preprocessing.size)
        program = EncoderProgram(source.encoder, size).eval().requires_grad_(False)
        about |= dict(image_size=size)
    else:
        if options.image_size not in (None, loaded.request.image_size):
            raise BadInput(f"the policy was trained on {loaded.request.image_size} px; leave image_size out")
        program = program_of(loaded, backbone)
        width = loaded.policy.actions
        about |= dict(
            task=loaded.request.task,
            image_size=loaded.request.image_size,
            **control_of(loaded),
            horizon=program.outputs[0].shape[0],
            action_low=[-1.0] * width,
            action_high=[1.0] * width,
            policy=dict(kind=loaded.policy.kind, sha256=source.fingerprint, step=loaded.step),
        )
    manifest = Manifest(
        kind="encoder" if loaded is None else "policy",
        target=options.target,
        precision=options.precision,
        program=find_plugin("targets", options.target).program_file,
        observation=program.observation,
        outputs=program.outputs,
        memory=program.memory,
        batch=options.batch,
        versions=versions(),
        **about,
    )
    return program, manifest


def control_of(loaded: LoadedPolicy) -> dict[str, Any]:
    """Return a policy's ``control_period`` [s], ``action_names`` and ``action_meanings``.

    They come from the recording of the robot, otherwise from the task. They are None where neither has them: the
    demonstrations were recorded by an older version, or the suite is not installed.
    """
    robot = loaded.training.get("robot") or {}
    rate, names, meanings = (robot.get(key) for key in ("control_hz", "axes", "actions"))
    if loaded.request.task in tasks() and None in (rate, names, meanings):
        with suppress(MissingExtra), closing(new_task(loaded.request.task)) as task:
            commands = task.action_spec()
            rate = rate or task.control_hz
            names = names or list(commands.names)
            meanings = meanings or commands.meanings
    return dict(control_period=1 / rate if rate else None, action_names=names, action_meanings=meanings)


def versions() -> dict[str, str]:
    """Return the versions of the packages that make and run programs."""
    found = {}
    for package in _MADE_WITH:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found

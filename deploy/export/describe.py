"""The program of a policy or an encoder, and the manifest that describes it; no file is written here."""

from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ...encoders.encoder import Backbone
from ...envs.registry import new_task, tasks
from ...errors import BadInput, MissingExtra
from ...plugins import find_plugin
from ...policies.loaded import LoadedPolicy
from ..manifest import Manifest, TensorSpec
from .program import EncoderProgram, Program, observation_specs, program_of
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
    program: Program
    if source.loaded is None:
        size = options.image_size or max(source.encoder.preprocessing.size)
        program = EncoderProgram(source.encoder, size).eval().requires_grad_(False)
        manifest = Manifest("encoder", "", "", "", program.observation, program.outputs, image_size=size)
        _describe_encoder(manifest, source.encoder)
    else:
        manifest = describe_policy(source.loaded, source.fingerprint)
        if options.image_size not in (None, manifest.image_size):
            raise BadInput(f"the policy was trained on {manifest.image_size} px; leave image_size out")
        program = program_of(source.loaded)
        manifest.outputs, manifest.memory, manifest.noise = program.outputs, program.memory, program.noise
    manifest.target, manifest.precision, manifest.batch = options.target, options.precision, options.batch
    manifest.program = find_plugin("targets", options.target).program_file
    manifest.versions = versions()
    return program, manifest


def describe_policy(loaded: LoadedPolicy, fingerprint: str) -> Manifest:
    """Return the manifest of a policy that torch computes, whether it can be exported or not."""
    spec, width = loaded.spec, loaded.spec.action_dim
    images = [feature.shape[0] for feature in spec.observation.values() if feature.kind in ("image", "depth")]
    manifest = Manifest(
        kind="policy",
        target="torch",
        precision="fp32",
        program="",
        observation=observation_specs(loaded),
        outputs=[TensorSpec("action", (spec.horizon, width), "float32", "in the units of the data")],
        task=loaded.task or None,
        image_size=images[0] if images else None,
        horizon=spec.horizon,
        policy=dict(kind=loaded.label, sha256=fingerprint, step=loaded.step),
        **control_of(loaded),
    )
    robot = loaded.provenance.get("robot") or {}
    if {"action_low", "action_high"} <= robot.keys():
        manifest.action_low, manifest.action_high = robot["action_low"], robot["action_high"]
    elif loaded.provenance.get("environment"):  # recorded by this package: actions are those of its ActionSpec
        manifest.action_low, manifest.action_high = [-1.0] * width, [1.0] * width
    if loaded.vision.encoder is not None:
        _describe_encoder(manifest, loaded.vision.encoder)
    return manifest


def _describe_encoder(manifest: Manifest, backbone: Backbone) -> None:
    manifest.normalisation = backbone.preprocessing._asdict()
    manifest.encoder = dict(name=backbone.name, fingerprint=backbone.fingerprint(), weights=backbone.weights)


def control_of(loaded: LoadedPolicy) -> dict[str, Any]:
    """Return a policy's ``control_period`` [s], ``action_names`` and ``action_meanings``.

    They come from the recording of the robot, otherwise from the task. They are None where neither has them, or the
    suite is not installed.
    """
    robot = loaded.provenance.get("robot") or {}
    rate, names, meanings = (robot.get(key) for key in ("control_hz", "axes", "actions"))
    if loaded.task in tasks() and None in (rate, names, meanings):
        with suppress(MissingExtra), closing(new_task(loaded.task)) as task:
            action = task.action_spec()
            rate = rate or task.control_hz
            names = names or list(action.names)
            meanings = meanings or action.meanings
    return dict(control_period=1 / rate if rate else None, action_names=names, action_meanings=meanings)


def versions() -> dict[str, str]:
    """Return the versions of the packages that make and run programs."""
    found = {}
    for package in _MADE_WITH:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found

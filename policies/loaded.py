"""Trained policies in files, and as objects that act on numpy observations."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..encoders.encoder import Backbone
from ..encoders.load import load_encoder
from ..encoders.preprocessing import Preprocessing
from ..errors import BadInput, CheckpointError, UnknownName
from ..plugins import find_plugin, plugin_names
from .build import VisionPolicy
from .policy import EncoderIdentity, Policy, PolicySpec
from .vision import Vision, VisionSpec, spec_json

if TYPE_CHECKING:
    from .agent import Agent

LAYOUT = 2  # of the arguments of a policy checkpoint


@dataclass
class LoadedPolicy:
    """A trained policy with its encoder.

    ``act`` is all that is needed to run it: observations in the units of the data in, actions in these units out.
    """

    model: VisionPolicy
    provenance: dict[str, Any]  # what recorded its demonstrations: task, environment, cameras, robot; may be empty
    training: dict[str, Any]  # what trained it
    step: int
    _agent: "Agent | None" = None
    _fresh: bool = True

    @property
    def policy(self) -> Policy:
        """The policy network."""
        return self.model.policy

    @property
    def vision(self) -> Vision:
        """The part that turns images into tokens."""
        return self.model.vision

    @property
    def spec(self) -> PolicySpec:
        """Shapes, units and statistics of observations and actions."""
        return self.model.spec

    @property
    def task(self) -> str:
        """The task or robot it was trained for; "" where the data did not say."""
        return str(self.provenance.get("task", ""))

    @property
    def label(self) -> str:
        """Short name in tables: the algorithm that trained it, or the policy or baseline."""
        return str(self.training.get("algorithm") or self.training.get("label") or self.policy.config.name)

    def reset(self) -> None:
        """Forget the past: the next observation starts an episode."""
        self._fresh = True

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action of this control step, (A,), or (B, A) for a batch of episodes that run in step.

        Call it at every control step, and `reset` before each episode. Actions of a chunk are executed one by one
        before the policy predicts again.

        Args:
            observation: the features of `spec.observation`, each as recorded, or all with a batch axis in front.

        Raises:
            BadInput: if a feature is missing or has another shape.
        """
        from .agent import Agent

        batched = self._is_batch(observation)
        values = {key: np.asarray(value) if batched else np.asarray(value)[None] for key, value in observation.items()}
        count = len(values[next(iter(self.spec.observation))])
        if self._agent is None:
            self._agent = Agent(self, torch.device("cpu"))
        mask = np.full(count, self._fresh)
        self._fresh = False
        actions = self._agent.act(values, mask, np.ones(count, bool))
        return actions if batched else actions[0]

    def _is_batch(self, observation: Mapping[str, np.ndarray]) -> bool:
        found = set()
        for key, feature in self.spec.observation.items():
            if key not in observation:
                raise BadInput(f"the observation lacks {key!r}; it has: {', '.join(observation) or 'nothing'}")
            ndim = np.ndim(observation[key]) - len(feature.shape)
            wrong = feature.kind == "vector" and np.shape(observation[key])[-1:] != feature.shape
            if ndim not in (0, 1) or wrong:
                raise BadInput(f"{key!r} has shape {np.shape(observation[key])}; the policy takes {feature.shape}")
            found.add(bool(ndim))
        if len(found) > 1:
            raise BadInput("give all features of the observation with a batch axis, or none of them")
        return bool(found) and found.pop()


def save_policy(
    path: Path, model: VisionPolicy, provenance: Mapping[str, Any], training: Mapping[str, Any], step: int
) -> None:
    """Write a policy with all it needs to be rebuilt and evaluated; a frozen encoder's weights stay out."""
    kept = {name: provenance.get(name) for name in ("task", "environment", "cameras", "robot")}
    arguments = dict(
        layout=LAYOUT,
        policy=model.policy.config.name,
        config=asdict(model.policy.config),
        spec=model.spec.as_json(),
        vision=spec_json(model.vision.spec),
        provenance=kept,
    )
    save_checkpoint(path, Checkpoint("policy", dict(model.state_dict()), arguments, dict(training), step))


def load_policy(path: Path | str, backbone: Backbone | None = None) -> LoadedPolicy:
    """Read a policy checkpoint and its encoder.

    Args:
        backbone: the encoder, if it is loaded already.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind or an older version, or its encoder has other
            weights now.
        UnknownName: if no installed package provides its policy.
    """
    checkpoint = load_checkpoint(path, "policy")
    arguments = checkpoint.arguments
    if arguments.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{path} was written by pixio-robot {checkpoint.version} in policy layout {arguments.get('layout', 1)}; "
            f"this version reads layout {LAYOUT}: train the policy again"
        )
    if arguments["policy"] not in plugin_names("policies"):
        raise UnknownName(
            f"{path} holds a policy {arguments['policy']!r}, and no installed package provides it; install the package "
            f"it was trained with. Installed are: {', '.join(plugin_names('policies'))}"
        )
    kind: type[Policy] = find_plugin("policies", arguments["policy"])
    try:
        spec, vision_spec = PolicySpec.from_json(arguments["spec"]), VisionSpec.from_json(arguments["vision"])
        config = kind.Config(**arguments["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} was written by pixio-robot {checkpoint.version} and does not fit this version or this version of "
            f"the policy {arguments['policy']!r} ({error}); train the policy again"
        ) from error
    if spec.encoder is not None:
        backbone = _encoder_of(spec.encoder, vision_spec, backbone)
    vision = Vision(vision_spec, backbone if spec.encoder is not None else None)
    model = VisionPolicy(vision, kind(config, spec))
    load_strictly(model, checkpoint.tensors, path)
    return LoadedPolicy(model.eval(), arguments["provenance"], checkpoint.settings, checkpoint.step)


def _encoder_of(identity: EncoderIdentity, spec: VisionSpec, backbone: Backbone | None) -> Backbone:
    """Return the encoder that a policy was trained on, with the preprocessing it was trained with.

    The weights of a tuned encoder are part of the policy's file; the name then gives the architecture.

    Raises:
        CheckpointError: if the name now gives other weights.
    """
    if backbone is None or spec.tune != "frozen":
        backbone = load_encoder(identity.name)
    if spec.tune == "frozen" and backbone.fingerprint() != identity.fingerprint:
        raise CheckpointError(
            f"encoder {identity.name!r} has weights {backbone.fingerprint()[:12]}, the policy was trained on "
            f"{identity.fingerprint[:12]}; give it the encoder it was trained on"
        )
    backbone.preprocessing = Preprocessing.from_arguments(identity.preprocessing)
    return backbone

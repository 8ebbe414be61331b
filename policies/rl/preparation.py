"""What is decided before anything of a run is written: what it sees, learns and is called, and whether it can run."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...encoders.load import Backbone
from ...envs.registry import TaskSpec
from ...envs.rendering import check_rendering
from ...errors import BadInput, CheckpointError, UnknownName, closest
from ...files import sha256_of
from ...hardware import choose_device, choose_precision
from ...run_folder import read_json, settings_digest
from ..bc import new_policy
from ..runs import load_backbone
from ..visuomotor import EncoderIdentity, LoadedPolicy, Visuomotor, load_policy
from .commands import TrainRL
from .embedded_env import embedded_space
from .learner import check_algorithm, head_settings
from .replay import require_memory
from .states import latest_state

OBSERVATIONS = ("tokens", "state", "rgb")


@dataclass
class Preparation:
    """A run that can begin."""

    kind: str  # of policy, as `Visuomotor` has it
    request: TaskSpec
    policy: Visuomotor  # what the actor is written into
    normalise: bool  # embeddings are scaled by running statistics
    begun: LoadedPolicy | None  # what the actor begins as
    backbone: Backbone | None
    identity: EncoderIdentity | None  # the encoder it begins with
    precision: str
    device: torch.device
    inputs: str  # hashes of the files that it depends on
    out: Path  # the run folder
    buffer: int  # memory of the buffer [bytes]

    @property
    def images(self) -> bool:
        """Whether its environments draw."""
        return "rgb" in self.request.observe


def prepare(command: TrainRL) -> Preparation:
    """Load what a run begins with and refuse what cannot run, without leaving anything behind.

    Raises:
        UnknownName: for an algorithm, observation or task that does not exist.
        BadInput: for settings that do not go together, or a buffer that does not fit into memory.
        CheckpointError: if its encoder is not the one of ``init=`` or of the state it would go on from.
    """
    _check(command)
    check_algorithm(command.algorithm, command.envs)
    device = choose_device(command.device)
    kind = {"state": "state", "rgb": "cnn"}.get(command.obs, "blind" if command.encoder == "none" else "bc")
    backbone = load_backbone(command.encoder) if kind == "bc" else None
    if backbone is not None and command.finetune and not backbone.network.can_finetune:
        raise BadInput(f"finetune=true: {command.encoder} cannot be fine-tuned; use a Pixio encoder")
    request = _request(command, kind)
    policy, normalise = _new_policy(command, request, kind, backbone)
    space = embedded_space(policy, command.image_size if command.finetune else None)
    buffer = require_memory(space, policy.actions, command.algorithm)
    begun = None if command.init is None else load_policy(command.init)
    files = [Path(each) for each in (command.demos, command.init) if each is not None and Path(each).is_file()]
    inputs = " ".join(map(sha256_of, files))
    out = Path(command.out or f"runs/train_rl/{settings_digest(command, inputs)}")
    precision = choose_precision(command.precision, device)
    identity = None if backbone is None else EncoderIdentity.of(backbone, precision)
    if begun is not None:
        _check_same_encoder(identity, begun.encoder, f"init={command.init}")
    if state := latest_state(out / "checkpoints" / command.algorithm.name):
        theirs = read_json(state / "state.json")["numbers"]["encoder"]
        _check_same_encoder(identity, None if theirs is None else EncoderIdentity(**theirs), str(state))
    if "rgb" in request.observe:
        check_rendering()
    return Preparation(
        kind, request, policy, normalise, begun, backbone, identity, precision, device, inputs, out, buffer
    )


def _check(command: TrainRL) -> None:
    """Refuse settings that do not go together."""
    if command.obs not in OBSERVATIONS:
        raise UnknownName(
            f"no obs {command.obs!r}{closest(command.obs, OBSERVATIONS)}; there are: {', '.join(OBSERVATIONS)}"
        )
    if command.obs == "tokens" and command.encoder in ("cnn", "state"):
        raise BadInput(
            f"encoder={command.encoder} is no encoder; use obs={'rgb' if command.encoder == 'cnn' else 'state'}"
        )
    if command.finetune and (command.obs != "tokens" or command.encoder == "none"):
        raise BadInput("finetune=true needs obs=tokens and an encoder; obs=rgb learns to see anyway")
    if command.demos is not None and command.algorithm.name == "ppo":
        raise BadInput("ppo learns from its own steps alone, demos cannot be replayed; take algorithm=sac, or init=")
    if command.demos is not None and command.finetune:
        raise BadInput("demos= and finetune=true do not go together: demonstrations are kept as tokens")
    if command.embedding.depth != "none":
        raise BadInput(f"embedding.depth={command.embedding.depth} is for cloning; train_rl looks at colour alone")
    if not 0 <= command.demo_ratio < 1:
        raise BadInput(f"demo_ratio={command.demo_ratio} must be at least 0 and below 1")


def _request(command: TrainRL, kind: str) -> TaskSpec:
    felt = "state" if kind == "state" else "proprio"
    return TaskSpec(
        task=command.task,
        observe=("rgb", felt) if kind in ("bc", "cnn") else (felt,),
        cameras=tuple(command.embedding.cameras),
        image_size=command.image_size,
        render=command.render,
        horizon=command.horizon,
    )


def _new_policy(command: TrainRL, request: TaskSpec, kind: str, backbone: Backbone | None) -> tuple[Visuomotor, bool]:
    """Return the policy that the actor is written into, and whether embeddings are scaled by running statistics."""
    env = replace(request, observe=("proprio", "state")).make()
    widths = {"actions": env.task.action_dim, "proprio": env.task.proprio_dim, "state": env.task.state_dim}
    cameras = env.cameras
    env.close()
    images = tuple("rgb" if camera == cameras[0] else f"rgb_{camera}" for camera in cameras)
    tokens = None if backbone is None else backbone.token_shape

    def make(normalise: bool) -> Visuomotor:
        settings = head_settings(command.algorithm, normalise)
        return new_policy(tokens, command.embedding, widths, settings, command.seed, kind, images)

    normalise = command.algorithm.normalise and not command.finetune and not make(True).has_trainable_encoder
    return make(normalise), normalise


def _check_same_encoder(mine: EncoderIdentity | None, theirs: EncoderIdentity | None, where: str) -> None:
    """Refuse another encoder than a checkpoint's.

    Raises:
        CheckpointError: with both hashes.
    """
    if (mine is None) != (theirs is None) or (mine and theirs and mine.fingerprint != theirs.fingerprint):
        said = ["none" if each is None else f"{each.name} ({each.fingerprint})" for each in (mine, theirs)]
        raise CheckpointError(f"the encoder is {said[0]}, that of {where} is {said[1]}; give the one it was trained on")

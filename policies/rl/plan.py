"""What a run of reinforcement learning does, as values: the task, the algorithm, the policy and the schedule."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ...envs.registry import TaskSpec
from ...errors import BadInput, UnknownName, closest
from ..build import PolicyDesign
from .settings import AlgorithmSettings

OBSERVATIONS = ("tokens", "state", "rgb")


@dataclass(frozen=True)
class Schedule:
    """When a run logs, evaluates and saves [environment steps]."""

    steps: int  # where training ends
    log_every: int
    eval_every: int
    save_every: int


@dataclass(frozen=True)
class Episodes:
    """Held-out episodes of a run."""

    curve: int  # of each evaluation of the learning curve
    final: int  # of the last policy
    videos: bool  # of the last policy's first success and first failure


@dataclass(frozen=True)
class ReplaySetup:
    """What is replayed beside the learner's own steps."""

    demos: Path | None = None  # demonstrations; None for none
    demo_ratio: float = 0.5  # share of a batch that they are
    shift: bool = False  # shift small images by a few random pixels


@dataclass(frozen=True)
class RLPlan:
    """A run of `train_rl`."""

    task: TaskSpec  # what the environments give
    algorithm: AlgorithmSettings
    design: PolicyDesign
    schedule: Schedule
    episodes: Episodes
    replay: ReplaySetup
    init_from: str | None  # policy checkpoint that initialises the actor
    seed: int
    envs: int
    processes: bool  # run each environment in a separate process
    device: torch.device
    cache: Path
    out: Path
    inputs: str  # hashes of the files that the run reads

    @property
    def finetune(self) -> bool:
        """Whether the encoder learns too."""
        return self.design.tune != "frozen"

    @property
    def observes(self) -> str:
        """What the policy observes, one of `OBSERVATIONS`."""
        return {"state": "state", "cnn": "rgb"}.get(self.design.encoder, "tokens")

    @property
    def folder(self) -> Path:
        """The folder of checkpoints and states."""
        return self.out / "checkpoints" / self.algorithm.name


def design_encoder(obs: str, encoder: str, finetune: bool) -> str:
    """Return the encoder or baseline of a policy that observes `obs`.

    Raises:
        UnknownName: unless `obs` is one of `OBSERVATIONS`.
        BadInput: if the three do not go together.
    """
    if obs not in OBSERVATIONS:
        raise UnknownName(f"no obs {obs!r}{closest(obs, OBSERVATIONS)}; there are: {', '.join(OBSERVATIONS)}")
    if obs == "tokens" and encoder in ("cnn", "state"):
        other = "rgb" if encoder == "cnn" else encoder
        raise BadInput(f"encoder={encoder} is a baseline without an encoder; use obs={other}")
    if finetune and (obs != "tokens" or encoder == "none"):
        raise BadInput("finetune=true needs obs=tokens and an encoder; obs=rgb always trains its own network")
    return {"state": "state", "rgb": "cnn"}.get(obs, encoder)


def check_plan(plan: RLPlan) -> None:
    """Refuse settings that do not go together.

    Raises:
        BadInput: with the keys to change.
    """
    replay, depth = plan.replay, plan.design.observation.depth
    if replay.demos is not None and plan.algorithm.name == "ppo":
        raise BadInput("demos= needs a replay buffer, and ppo has none; use algorithm=sac or td3, or init_from=")
    if replay.demos is not None and plan.finetune:
        raise BadInput("demos= and finetune=true do not go together: demonstrations are replayed as tokens")
    if depth != "none":
        raise BadInput(f"observation.depth={depth} is for train_bc; train_rl observes colour images only")
    if not 0 <= replay.demo_ratio < 1:
        raise BadInput(f"demo_ratio={replay.demo_ratio} must be at least 0 and below 1")

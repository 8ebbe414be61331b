"""What `train_rl` does, from its settings to its files. Reads downwards; the work is in the files it calls."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...backbones import Backbone, save_encoder
from ...envs.registry import EnvRequest
from ...envs.rendering import check_rendering
from ...envs.rollout import EpisodePlan, plan_episodes
from ...errors import BadInput, CheckpointError, DataError, MissingExtra, UnknownName, closest
from ...files import sha256_of
from ...hardware import choose_device, choose_precision
from ...metrics import mean_score, success_rate
from ...progress import Progress
from ...report import write_report
from ...run_folder import open_run, read_json, settings_digest, write_json
from ...schemas import CURVE_SEED, HELD_OUT_SEED, TrainRL
from ..bc import new_policy
from ..demos import DemoSet
from ..evaluate import Evaluation
from ..runs import cache_for, check_held_out, evaluate_policy, load_backbone
from ..visuomotor import EncoderIdentity, LoadedPolicy, Perception, Visuomotor, load_policy

log = logging.getLogger(__name__)
OBSERVATIONS = ("tokens", "state", "rgb")
SEEDS = 10_000_000  # training episodes of seed s have the seeds from SEEDS * (s + 1) on


def run_train_rl(command: TrainRL, progress: Progress) -> tuple[Path, Path, Evaluation]:
    """Train, evaluate and report; return the run folder, the last policy's file and its evaluation."""
    if importlib.util.find_spec("stable_baselines3") is None:
        raise MissingExtra("train_rl", "rl")
    with _own_randomness():
        return _run(command, progress)


def _run(command: TrainRL, progress: Progress) -> tuple[Path, Path, Evaluation]:
    from .embedded_env import EmbeddedVecEnv
    from .learner import begin_from, check_algorithm, new_learner
    from .states import latest_state
    from .task_vec_env import TaskVecEnv
    from .train import Schedule, train

    _check(command)
    check_algorithm(command.algorithm, command.envs)
    device = choose_device(command.device)
    kind = {"state": "state", "rgb": "cnn"}.get(command.obs, "blind" if command.encoder == "none" else "bc")
    backbone = load_backbone(command.encoder) if kind == "bc" else None
    precision = choose_precision(command.precision, device)
    identity = None if backbone is None else EncoderIdentity.of(backbone, precision)
    request = _request(command, kind)
    policy, normalise = _new_policy(command, request, kind, backbone)
    begun = None if command.init is None else load_policy(command.init)
    if begun is not None:
        _check_same_encoder(identity, begun.encoder, f"init={command.init}")
    files = [Path(each) for each in (command.demos, command.init) if each is not None and Path(each).is_file()]
    inputs = " ".join(map(sha256_of, files))
    out = Path(command.out or f"runs/train_rl/{settings_digest(command, inputs)}")
    name = command.algorithm.name
    folder = out / "checkpoints" / name
    if found := latest_state(folder):
        theirs = read_json(found / "state.json")["numbers"]["encoder"]
        _check_same_encoder(identity, None if theirs is None else EncoderIdentity(**theirs), str(found))
    if "rgb" in request.observe:
        check_rendering()
    open_run(out, command, inputs)
    first_seed = SEEDS * (command.seed + 1)
    demos = None if command.demos is None else DemoSet(command.demos)
    curve = plan_episodes(request, command.eval_episodes, CURVE_SEED)
    plans = plan_episodes(request, command.episodes, HELD_OUT_SEED)
    transitions = None
    if demos is not None:
        transitions = _transitions(command, demos, policy, backbone, device, precision, [*curve, *plans], progress)
    training = dict(
        **asdict(command.algorithm),
        algorithm=name,
        seed=command.seed,
        task=command.task,
        starts=[] if demos is None else demos.starts,
    )
    pictures = "rgb" in request.observe
    processes = pictures if command.processes is None else command.processes
    width = command.envs if pictures else 1  # a worker takes longer to start than a few episodes without pictures
    tasks = TaskVecEnv(request, command.envs, first_seed, processes)
    try:
        perception = Perception(policy, None if command.finetune else backbone, precision, device)
        venv = EmbeddedVecEnv(tasks, perception, pictures=command.finetune)
        model = new_learner(
            command.algorithm,
            venv,
            policy,
            normalise=normalise,
            backbone=backbone if command.finetune else None,
            demos=transitions,
            demo_ratio=command.demo_ratio,
            shift=command.shift and kind == "cnn",
            begun=begun is not None,
            seed=command.seed,
            device=device,
        )
        if begun is not None:
            begin_from(model, begun.policy.to(device), f"init={command.init}")
        seeing = _Seeing(model, backbone, identity) if command.finetune else _Frozen(backbone, identity)

        def measure(trained: Visuomotor, step: int) -> dict[str, float]:
            loaded = LoadedPolicy(trained, seeing.identity, request, training, step)
            where = out / "curve" / f"{step:09d}"
            rows = evaluate_policy(
                loaded, seeing.backbone, request, curve, device, where, width, False, Progress.silent()
            ).rows
            score, rate = mean_score(row.score for row in rows), success_rate(row.success_last for row in rows)
            mean_return = float(np.mean([row.episode_return for row in rows]))
            return {"eval/score": score.value, "eval/success": rate.value, "eval/return": mean_return}

        def save(trained: Visuomotor, path: Path, step: int) -> None:
            described = {**training, "seeds": [first_seed, first_seed + tasks.begun], "environment_steps": step}
            trained.save(path, seeing.saved(path), request, described, step)

        seconds = train(
            model,
            venv,
            policy,
            Schedule(command.steps, command.log_every, command.eval_every, command.save_every),
            name=name,
            normalise=normalise and begun is None,
            measure=measure,
            save=save,
            folder=folder,
            out=out,
            identity={"encoder": None if identity is None else asdict(identity)},
            progress=progress,
        )
    finally:
        tasks.close()
    last = folder / "last.safetensors"
    loaded = load_policy(last)
    evaluation = evaluate_policy(loaded, seeing.backbone, request, plans, device, out, width, command.videos, progress)
    _report(command, out, evaluation, seconds)
    return out, last, evaluation


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
    if not 0 <= command.demo_ratio < 1:
        raise BadInput(f"demo_ratio={command.demo_ratio} must be at least 0 and below 1")


def _request(command: TrainRL, kind: str) -> EnvRequest:
    felt = "state" if kind == "state" else "proprio"
    return EnvRequest(
        task=command.task,
        observe=("rgb", felt) if kind in ("bc", "cnn") else (felt,),
        cameras=tuple(command.embedding.cameras),
        image_size=command.image_size,
        render=command.render,
        horizon=command.horizon,
    )


def _new_policy(command: TrainRL, request: EnvRequest, kind: str, backbone: Backbone | None) -> tuple[Visuomotor, bool]:
    """Return the policy that the actor is written into, and whether embeddings are scaled by running statistics."""
    from .learner import head_settings

    env = replace(request, observe=("proprio", "state")).make()
    widths = {"actions": env.task.action_dim, "proprio": env.task.proprio_dim, "state": env.task.state_dim}
    cameras = env.cameras
    env.close()
    pictures = tuple("rgb" if camera == cameras[0] else f"rgb_{camera}" for camera in cameras)
    if backbone is not None and command.finetune:
        from ...encoder import PixioEncoder

        if not isinstance(backbone.network, PixioEncoder):
            raise BadInput(f"finetune=true takes Pixio encoders; {command.encoder} is none")
    tokens = None if backbone is None else backbone.token_shape

    def make(normalise: bool) -> Visuomotor:
        settings = head_settings(command.algorithm, normalise)
        return new_policy(tokens, command.embedding, widths, settings, command.seed, kind, pictures)

    normalise = command.algorithm.normalise and not command.finetune and not make(True).learns_to_see
    return make(normalise), normalise


def _check_same_encoder(mine: EncoderIdentity | None, theirs: EncoderIdentity | None, where: str) -> None:
    """Refuse another encoder than a checkpoint's.

    Raises:
        CheckpointError: with both hashes.
    """
    if (mine is None) != (theirs is None) or (mine and theirs and mine.fingerprint != theirs.fingerprint):
        said = ["none" if each is None else f"{each.name} ({each.fingerprint})" for each in (mine, theirs)]
        raise CheckpointError(f"the encoder is {said[0]}, that of {where} is {said[1]}; give the one it was trained on")


def _transitions(
    command: TrainRL,
    demos: DemoSet,
    policy: Visuomotor,
    backbone: Backbone | None,
    device: torch.device,
    precision: str,
    plans: list[EpisodePlan],
    progress: Progress,
) -> Any:
    from .demonstrations import demo_transitions

    if demos.task != command.task:
        raise DataError(f"{demos.path} holds demonstrations of {demos.task}; the task is {command.task}")
    check_held_out(demos.starts, plans)
    cache = None
    if backbone is not None:
        cache = cache_for(backbone, demos, command.embedding, Path(command.cache), device, precision, progress)
    return demo_transitions(demos, cache, policy)


class _Frozen:
    """The encoder as it came; its weights stay out of every file."""

    def __init__(self, backbone: Backbone | None, identity: EncoderIdentity | None) -> None:
        self.backbone, self.identity = backbone, identity

    def saved(self, policy: Path) -> EncoderIdentity | None:
        return self.identity


class _Seeing:
    """The encoder that learns; it is written beside each policy, which names it."""

    def __init__(self, model: Any, start: Backbone | None, identity: EncoderIdentity | None) -> None:
        assert start is not None and identity is not None
        self.model, self.start, self.precision = model, start, identity.precision

    @property
    def backbone(self) -> Backbone:
        from .learner import extractor_of

        learned = extractor_of(self.model).backbone
        assert learned is not None
        learned.weights = "trained"
        return learned

    @property
    def identity(self) -> EncoderIdentity:
        return EncoderIdentity.of(self.backbone, self.precision)

    def saved(self, policy: Path) -> EncoderIdentity:
        path = policy.with_name(f"{policy.stem}-encoder.safetensors")
        save_encoder(self.backbone, path)
        return replace(self.identity, name=str(path))


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave torch's and NumPy's global generators as they were; stable-baselines3 seeds and uses them."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(state)


def _report(command: TrainRL, out: Path, evaluation: Evaluation, seconds: dict[str, float]) -> None:
    label, algorithm = evaluation.rows[0], command.algorithm.name
    write_json(
        out / "result.json",
        {
            "title": f"{command.task} · {algorithm} from {command.obs}, {command.steps:,} environment steps",
            "task": command.task,
            "headline": label.policy,
            "success_rule": "last",
            "policies": {label.policy: evaluation.summary()},
            "encoder": label.encoder,
            "weights": label.weights,
            "fusion": label.fusion,
            "render": label.render,
            "stages": {
                "learn": {"seconds": round(seconds["learning"], 1)},
                "evaluate": {"seconds": round(seconds["evaluating"], 1)},
            },
        },
    )
    write_report(out)

"""What each command does, from its settings to its files. Reads downwards; the work is in the files it calls."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch

from ..cameras.camera import Camera
from ..cameras.capture import Capture
from ..cameras.playback import RealTimePlayback
from ..cameras.settings import requested_camera
from ..datasets.robomimic import DemoSet
from ..datasets.token_cache import TokenCache, side_by_side, token_cache
from ..deploy.commands import Stream
from ..deploy.stream import StreamStep, check_policy, stream, timing
from ..encoders.load import WITHOUT_ENCODER, Backbone, load_encoder
from ..envs.registry import TaskSpec
from ..envs.rollout import EpisodePlan, default_width, plan_episodes
from ..errors import DataError, UnknownName, closest
from ..files import replacing, sha256_of
from ..hardware import choose_device, choose_precision
from ..report.page import write_report
from ..run_folder import open_run, settings_digest, write_json
from .agent import Agent
from .bc import BCResult, new_policy, train_bc
from .collect import CollectReport, collect
from .commands import Collect, Embed, Evaluate, TrainBC
from .depth_inputs import check_depth_encoder, predicted_depth, recorded_depth
from .evaluate import Evaluation, Label, evaluate
from .settings import OBSERVATION_MODES, EmbeddingSettings
from .visuomotor import EncoderIdentity, LoadedPolicy, load_policy, load_policy_encoder, policy_kind

log = logging.getLogger(__name__)


def run_collect(command: Collect) -> CollectReport:
    """Record demonstrations."""
    request = TaskSpec(
        task=command.task,
        observe=("rgb", "depth", "proprio", "state") if has_depth(command.obs) else ("rgb", "proprio", "state"),
        cameras=tuple(command.cameras),
        image_size=command.image_size,
        render=command.render,
        horizon=command.horizon,
        depth_sensor=command.depth_sensor,
    )
    out = command.out or f"runs/demos/{command.task.replace('/', '-')}-{command.demos}-{command.render}.hdf5"
    return collect(
        request,
        command.demos,
        command.valid,
        command.first_seed,
        Path(out),
        command.workers,
        command.expert,
    )


def run_embed(command: Embed) -> TokenCache:
    """Fill the token cache."""
    device = choose_device(command.device)
    return token_cache(
        Path(command.cache),
        load_encoder(command.encoder),
        DemoSet(command.demos),
        normed=command.normed,
        patches=command.patches,
        precision=choose_precision(command.precision, device),
        device=device,
        batch=command.batch,
    )


def run_train_bc(command: TrainBC) -> tuple[Path, BCResult]:
    """Train a policy; return its run folder and result."""
    if has_depth(command.obs) and command.embedding.depth == "none":
        command = replace(command, embedding=replace(command.embedding, depth="late"))
    device = choose_device(command.device)
    out = Path(command.out or f"runs/train_bc/{settings_digest(command)}")
    demos = DemoSet(command.demos)
    backbone, kind = load_backbone(command.encoder), policy_kind(command.encoder)
    tokens = None if backbone is None else backbone.token_shape
    log.info("%d demonstrations of %s", len(demos.names), demos.request.task)
    images = demos.images(command.embedding.cameras, recorded_depth(command.embedding))
    check_depth_encoder(command.embedding, backbone)
    new_policy(tokens, command.embedding, demos.widths, command.policy, command.seed, kind, images)  # refuses early
    open_run(out, command)
    precision = choose_precision(command.precision, device)
    cache = None
    if backbone is not None:
        cache = cache_for(backbone, demos, command.embedding, Path(command.cache), device, precision)
    result = train_bc(
        demos,
        cache,
        None if backbone is None else EncoderIdentity.of(backbone, precision),
        tokens,
        embedding=command.embedding,
        settings=command.policy,
        seed=command.seed,
        device=device,
        out=out,
        kind=kind,
        save_every=command.save_every,
        backbone=backbone,
        depths=predicted_depth(Path(command.cache), command.embedding, demos, device),
    )
    return out, result


def run_evaluate(command: Evaluate) -> tuple[Path, Evaluation]:
    """Evaluate a checkpoint; return its run folder and rows."""
    device = choose_device(command.device)
    loaded = load_policy(command.checkpoint)
    request = loaded.request if command.render is None else replace(loaded.request, render=command.render)
    inputs = sha256_of(Path(command.checkpoint))
    out = Path(command.out or f"runs/evaluate/{settings_digest(command, inputs)}")
    plans = plan_episodes(request, command.episodes, command.first_seed)
    check_held_out(loaded.training["starts"], plans, loaded.training.get("seeds", (0, 0)))
    open_run(out, command, inputs)
    backbone = None if loaded.encoder is None else load_policy_encoder(loaded.encoder)
    evaluation = evaluate_policy(
        loaded, backbone, request, plans, device, out, command.envs, command.videos, command.n_action_steps
    )
    label = evaluation.rows[0]
    write_json(
        out / "result.json",
        {
            "title": f"{request.task} · {Path(command.checkpoint).name}",
            "task": request.task,
            "headline": label.policy,
            "success_rule": "last",
            "policies": {label.policy: evaluation.summary()},
            "encoder": label.encoder,
            "weights": label.weights,
            "fusion": label.fusion,
            "render": request.render,
        },
    )
    write_report(out)
    return out, evaluation


def run_stream(command: Stream) -> tuple[list[StreamStep], dict[str, dict[str, float]]]:
    """Run a policy on a camera; return its steps and percentiles of their times [ms]."""
    device = choose_device(command.device)
    loaded = load_policy(command.checkpoint)
    check_policy(loaded)
    backbone = None if loaded.encoder is None else load_policy_encoder(loaded.encoder)
    agent = Agent(loaded, backbone, device)
    if command.camera.startswith("task:"):  # as it was trained
        own = loaded.request
        command = replace(command, width=command.width or own.image_size, render=command.render or own.render)
    source = requested_camera(command)
    source.open()
    live = source.spec.live or command.real_time
    camera: Camera = (
        Capture(RealTimePlayback(source) if command.real_time else source, command.max_skew) if live else source
    )
    max_age = command.max_age or (0.1 if live else None)
    with camera:
        moments = list(islice(stream(agent, camera, max_age, command.rate, command.zeros), command.frames))
    faults = camera.counters().faults() if isinstance(camera, Capture) else ""
    if not moments:
        raise DataError(f"{command.camera} gave no frame to act on{faults and f'; of its frames {faults}'}")
    if faults:
        log.warning("of the frames of %s: %s", command.camera, faults)
    if command.out is not None:
        with replacing(Path(command.out)) as temporary:
            temporary.write_text("".join(f"{json.dumps(_row(each))}\n" for each in moments))
    return moments, timing(moments)


def _row(moment: StreamStep) -> dict[str, object]:
    return {**asdict(moment), "action": None if moment.action is None else moment.action.tolist()}


def has_depth(obs: str) -> bool:
    """Return whether `obs=` asks for depth.

    Raises:
        UnknownName: unless it is rgb or rgbd.
    """
    if obs not in OBSERVATION_MODES:
        raise UnknownName(f"no obs {obs!r}{closest(obs, OBSERVATION_MODES)}; there are: {', '.join(OBSERVATION_MODES)}")
    return obs == "rgbd"


def load_backbone(name: str) -> Backbone | None:
    """Load an encoder, or return None for a kind of policy without one: none, cnn, state."""
    return None if name in WITHOUT_ENCODER else load_encoder(name)


def cache_for(
    backbone: Backbone,
    demos: DemoSet,
    embedding: EmbeddingSettings,
    root: Path,
    device: torch.device,
    precision: str,
) -> TokenCache:
    """Return the tokens that an embedding reads, from the caches of its cameras."""
    return side_by_side(
        [
            token_cache(
                root,
                backbone,
                demos,
                image_key=key,
                normed=embedding.normed,
                patches=embedding.fusion == "spatial",
                precision=precision,
                depth_code=(embedding.depth_code, embedding.depth_range[0], embedding.depth_range[1]),
                device=device,
            )
            for key in demos.images(embedding.cameras, recorded_depth(embedding))
        ]
    )


def evaluate_policy(
    loaded: LoadedPolicy,
    backbone: Backbone | None,
    request: TaskSpec,
    plans: Sequence[EpisodePlan],
    device: torch.device,
    out: Path,
    width: int | None,
    videos: bool,
    n_action_steps: int | None = None,
) -> Evaluation:
    """Run a loaded policy on planned episodes; without images where it does not look at them.

    Args:
        n_action_steps: as `Agent` takes it.
    """
    identity, kind = loaded.encoder, loaded.policy.kind
    name = loaded.training.get("algorithm", kind)  # policies of train_rl are called after what trained them
    label = Label(name)
    if identity is not None:
        settings = loaded.policy.embedder.settings
        fusion = settings.fusion if settings.depth == "none" else f"{settings.fusion}, depth {settings.depth}"
        label = Label(
            name, identity.name, identity.weights, fusion + (" predicted" if loaded.policy.depth_head else "")
        )
    request = policy_request(loaded, request)
    agent = Agent(loaded, None if identity is None else backbone, device, n_action_steps)
    width = width or 2 * default_width()
    evaluation = evaluate(agent.act, request, plans, label, out, width=width, videos=videos)
    evaluation.seconds |= agent.seconds
    return evaluation


def policy_request(loaded: LoadedPolicy, request: TaskSpec) -> TaskSpec:
    """Return a request for what a policy looks at, and nothing else that would have to be drawn."""
    policy = loaded.policy
    seen = [*(["rgb"] if policy.needs_colour else []), *(["depth"] if policy.needs_depth else [])]
    return replace(request, observe=(*seen, policy.felt))


def check_held_out(starts: Sequence[str], plans: Sequence[EpisodePlan], seeds: Sequence[int] = (0, 0)) -> None:
    """Refuse to evaluate on starts that were trained on.

    Args:
        starts: digests of the demonstrations' starts.
        seeds: the first of reinforcement learning's episodes, and the one after its last.

    Raises:
        DataError: naming the seeds that are in both.
    """
    known, trained = set(starts), range(seeds[0], seeds[1])
    for what, shared in (
        ("demonstrations", [plan.seed for plan in plans if plan.initial_state_hash in known]),
        ("training episodes", [plan.seed for plan in plans if plan.seed in trained]),
    ):
        if shared:
            raise DataError(f"evaluation seeds {shared[:5]} start where {what} start; choose another first_seed=")

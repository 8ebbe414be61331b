"""Reinforcement learning: what is stored is what is seen, actors become policies, and stopped runs go on exactly."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from pixio_robot import cli
from pixio_robot.backbones import Backbone, load_encoder
from pixio_robot.checkpoint import load_checkpoint
from pixio_robot.envs.registry import EnvRequest
from pixio_robot.envs.rollout import plan_episodes
from pixio_robot.envs.state_actor import StateActor
from pixio_robot.errors import BadInput, CheckpointError, DataError, Stopped, UnknownName
from pixio_robot.policies.bc import new_policy
from pixio_robot.policies.cache import TokenCache
from pixio_robot.policies.collect import collect
from pixio_robot.policies.demos import DemoSet
from pixio_robot.policies.rl.demonstrations import demo_transitions
from pixio_robot.policies.rl.embedded_env import FELT, TOKENS, EmbeddedVecEnv
from pixio_robot.policies.rl.extractor import RunningNorm
from pixio_robot.policies.rl.learner import begin_from, copy_actor, extractor_of, head_settings, new_learner
from pixio_robot.policies.rl.replay import require_memory
from pixio_robot.policies.rl.run import run_train_rl
from pixio_robot.policies.rl.task_vec_env import TaskVecEnv
from pixio_robot.policies.runs import run_evaluate
from pixio_robot.policies.visuomotor import Agent, EncoderIdentity, LoadedPolicy, Perception, Visuomotor, load_policy
from pixio_robot.progress import Progress
from pixio_robot.schemas import AlgorithmSettings, EmbeddingSettings, Evaluate, PolicySettings, TrainRL

CPU = torch.device("cpu")
TINY = dict(layers=[16, 16], batch=16, buffer=500, warmup=40, rollout=48)
WIDTHS = {"actions": 3, "proprio": 3, "state": 6}
ALGORITHMS = ("sac", "td3", "ppo")


def _settings(name: str, **changes: Any) -> AlgorithmSettings:
    return AlgorithmSettings(**{**TINY, "name": name, **changes})


def _request(kind: str, horizon: int = 5) -> EnvRequest:
    observe = {"state": ("state",), "blind": ("proprio",)}.get(kind, ("rgb", "proprio"))
    return EnvRequest("toy/reach", observe, image_size=32, render="fast", horizon=horizon)


def _policy(
    kind: str, backbone: Backbone | None = None, settings: PolicySettings | None = None, **how: Any
) -> Visuomotor:
    embedding = EmbeddingSettings(**{"history": 2, **how})
    tokens = None if backbone is None else backbone.token_shape
    settings = settings or PolicySettings(layers=[16, 16], squash=True)
    return new_policy(tokens, embedding, WIDTHS, settings, 0, kind).eval()


class World:
    """Environments and a learner on them, closed at the end of a test."""

    def __init__(self) -> None:
        self.open: list[TaskVecEnv] = []

    def embedded(
        self, policy: Visuomotor, backbone: Backbone | None, count: int = 2, pictures: bool = False, seed: int = 7
    ) -> EmbeddedVecEnv:
        tasks = TaskVecEnv(_request(policy.kind), count, seed, processes=False)
        self.open.append(tasks)
        return EmbeddedVecEnv(tasks, Perception(policy, backbone, "fp32", CPU), pictures)

    def learner(
        self, name: str, policy: Visuomotor, backbone: Backbone | None = None, normalise: bool = True, **more: Any
    ) -> Any:
        learned = more.pop("learned", None)
        venv = self.embedded(policy, backbone, pictures=learned is not None)
        settings = more.pop("settings", _settings(name))
        return new_learner(settings, venv, policy, normalise=normalise, backbone=learned, seed=0, device=CPU, **more)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    world = World()
    request.addfinalizer(lambda: [tasks.close() for tasks in world.open])
    return world


def _actions(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# environments


def test_seeds_count_up_over_environments_and_both_keys_say_success(world: World) -> None:
    tasks = TaskVecEnv(_request("state", horizon=3), 2, first_seed=40, processes=False)
    world.open.append(tasks)
    starts = {plan.seed: plan.start for plan in plan_episodes(tasks.request, 5, 40)}
    env = tasks.request.make()
    first = {seed: env.reset(seed=seed)[0]["state"] for seed in starts}
    assert np.array_equal(tasks.reset()["state"], np.stack([first[40], first[41]]))
    for step in range(3):
        observations, rewards, dones, infos = tasks.step(_actions(step, (2, 3)))
        assert all(info["success"] == info["is_success"] for info in infos) and rewards.dtype == np.float32
    assert dones.all() and np.array_equal(observations["state"], np.stack([first[42], first[43]]))
    assert infos[0]["TimeLimit.truncated"] and infos[0]["episode"]["l"] == 3
    assert not np.array_equal(infos[0]["terminal_observation"]["state"], observations["state"][0])


def test_episodes_under_way_are_taken_up_again(world: World) -> None:
    one, other = (TaskVecEnv(_request("state", horizon=4), 3, 11, processes=False) for _ in range(2))
    world.open += [one, other]
    one.reset()
    for step in range(6):
        one.step(_actions(step, (3, 3)))
    told = one.under_way()
    assert told["lengths"].tolist() == [2, 2, 2] and told["begun"].tolist() == [6, 18]
    other.take_up(told)
    for step in range(6, 12):
        mine, theirs = one.step(_actions(step, (3, 3))), other.step(_actions(step, (3, 3)))
        assert np.array_equal(mine[0]["state"], theirs[0]["state"]) and np.array_equal(mine[1], theirs[1])
    with pytest.raises(DataError, match="another simulator version"):
        other.take_up({**told, "returns": told["returns"] + 1})


@pytest.mark.parametrize("fusion", ["mean", "concat", "spatial"])
def test_what_is_stored_is_what_an_agent_sees(world: World, tiny: Backbone, fusion: str) -> None:
    """Embeddings of stored observations, last ones of episodes too, give the agent's actions; the encoder runs once."""
    policy = _policy("bc", tiny, fusion=fusion, frames="flare")
    venv = world.embedded(policy, tiny)
    calls: list[int] = []
    tiny.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    loaded = LoadedPolicy(policy, EncoderIdentity.of(tiny, "fp32"), _request("bc"), {}, 0)
    agent = Agent(loaded, tiny, CPU)
    env = _request("bc").make()
    raw, _ = env.reset(seed=7)
    alone = np.ones(1, bool)

    def acted(observation: dict[str, np.ndarray]) -> np.ndarray:
        tokens, felt = torch.from_numpy(observation[TOKENS]), torch.from_numpy(observation[FELT])
        with torch.no_grad():
            return policy(tokens[None].float(), felt[None]).clamp(-1, 1).numpy()

    seen = venv.reset()
    assert venv.observation_space[TOKENS].dtype == np.float16 and seen[TOKENS].dtype == np.float16  # type: ignore[index]
    for step in range(5):
        expected = agent.act({key: value[None] for key, value in raw.items()}, np.array([step == 0]), alone)
        np.testing.assert_allclose(acted({key: value[0] for key, value in seen.items()}), expected, atol=2e-5)
        actions = _actions(step, (2, 3))
        calls.clear()
        seen, _, dones, infos = venv.step(actions)
        assert calls == [4 if dones.all() else 2]
        raw = env.step(actions[0])[0]
    assert dones.all()
    expected = agent.act({key: value[None] for key, value in raw.items()}, ~alone, alone)
    np.testing.assert_allclose(acted(infos[0]["terminal_observation"]), expected, atol=2e-5)


def test_demonstrations_become_the_transitions_that_would_have_been_stored(
    world: World, toy_demos: DemoSet, toy_cache: TokenCache, tiny: Backbone
) -> None:
    policy = _policy("bc", tiny, frames="stack", history=3)
    transitions = demo_transitions(toy_demos, toy_cache, policy)
    tasks = TaskVecEnv(toy_demos.request, 1, toy_demos.seeds[0], processes=False)
    world.open.append(tasks)
    venv = EmbeddedVecEnv(tasks, Perception(policy, tiny, "fp32", CPU))
    seen = venv.reset()
    for step in range(6):
        for stored, mine in ((transitions.observations, seen),):
            np.testing.assert_allclose(stored[TOKENS][step], mine[TOKENS][0], atol=2e-3)
            np.testing.assert_array_equal(stored[FELT][step], mine[FELT][0])
        seen, rewards, _, _ = venv.step(transitions.actions[step : step + 1])
        np.testing.assert_allclose(transitions.rewards[step, 0], rewards[0], atol=1e-6)
        np.testing.assert_allclose(transitions.next_observations[TOKENS][step], seen[TOKENS][0], atol=2e-3)
    rows = toy_demos.rows("train")
    assert len(transitions.actions) == len(rows) - len(toy_demos.members("train"))


# learners


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kind", ["state", "bc", "cnn"])
def test_the_actor_becomes_a_policy(world: World, tiny: Backbone, name: str, kind: str) -> None:
    """After learning, the exported policy gives the algorithm's own deterministic action."""
    normalise = kind != "cnn"
    policy = _policy(kind, tiny if kind == "bc" else None, head_settings(_settings(name), normalise))
    model = world.learner(name, policy, tiny if kind == "bc" else None, normalise, shift=kind == "cnn")
    model.learn(60, log_interval=None)
    if normalise:
        extractor_of(model).norm.update(torch.randn(50, policy.embedder.dim) * 2 + 1)
        model.learn(50, log_interval=None, reset_num_timesteps=False)
    copy_actor(model, policy)
    observation = model.env.reset()
    expected = np.clip(model.predict(observation, deterministic=True)[0], -1, 1)
    tokens = torch.from_numpy(observation[TOKENS]) if TOKENS in observation else None
    felt = torch.from_numpy(observation[FELT])
    with torch.no_grad():
        found = policy.eval()(tokens, felt).clamp(-1, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert model.num_timesteps >= 60


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_actor_and_critics_share_what_sees_and_critics_teach_it(world: World, name: str) -> None:
    model = world.learner(name, _policy("cnn", None, head_settings(_settings(name), False)), normalise=False)
    actor = {id(parameter) for group in model.actor.optimizer.param_groups for parameter in group["params"]}
    critic = {id(parameter) for group in model.critic.optimizer.param_groups for parameter in group["params"]}
    seeing = {id(parameter) for parameter in extractor_of(model).parameters()}
    assert seeing and seeing <= critic and not seeing & actor
    before = [parameter.clone() for parameter in extractor_of(model).pixels.parameters()]
    model.learn(80, log_interval=None)
    assert all(not torch.equal(*pair) for pair in zip(before, extractor_of(model).pixels.parameters(), strict=True))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_frozen_encoder_is_nowhere_in_the_learner(world: World, tiny: Backbone, name: str) -> None:
    model = world.learner(name, _policy("bc", tiny), tiny)
    count = sum(parameter.numel() for parameter in model.policy.parameters())
    assert count < 40_000 < sum(parameter.numel() for parameter in tiny.parameters()) + 30_000
    assert not any("backbone" in key or "network" in key for key in model.policy.state_dict())


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_an_encoder_that_learns_keeps_its_weights_at_first_and_then_moves(
    world: World, tiny: Backbone, name: str
) -> None:
    """PPO's orthogonal initialisation must not touch it."""
    settings = _settings(name, batch=4, rollout=8, epochs=1)
    policy = _policy("bc", tiny, head_settings(settings, False))
    model = world.learner(name, policy, tiny, False, learned=tiny, settings=settings)
    mine = extractor_of(model).backbone
    assert mine is not tiny and mine.fingerprint() == tiny.fingerprint()
    assert model.observation_space[TOKENS].dtype == np.uint8
    model.learn(48, log_interval=None)
    assert mine.fingerprint() != tiny.fingerprint()


def test_running_statistics_are_those_of_all_that_was_added() -> None:
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    norm = RunningNorm(3)
    for part in values.split(17):
        norm.update(part)
    torch.testing.assert_close(norm.running_mean, values.mean(0))
    torch.testing.assert_close(norm.running_var, values.var(0, unbiased=False))


@pytest.mark.parametrize(("name", "kind"), [("sac", "bc"), ("td3", "state"), ("ppo", "bc"), ("sac", "cnn")])
def test_an_actor_begins_as_the_cloned_policy(world: World, tiny: Backbone, name: str, kind: str) -> None:
    backbone = tiny if kind == "bc" else None
    cloned = _policy(kind, backbone, PolicySettings(layers=[16, 16], squash=name != "ppo", activation="relu"))
    norm = cloned.head.layers[0]
    with torch.no_grad():  # as training leaves it
        for tensor, low, high in (
            (norm.running_mean, -1, 1),
            (norm.running_var, 1, 2),
            (norm.weight, 1, 2),
            (norm.bias, 0, 1),
        ):
            tensor.uniform_(low, high)
        cloned.head.layers[-2 if name != "ppo" else -1].weight.mul_(100)
    normalise = kind != "cnn"
    model = world.learner(
        name, _policy(kind, backbone, head_settings(_settings(name), normalise)), backbone, normalise, begun=True
    )
    begin_from(model, cloned, "bc.safetensors")
    observation = model.env.reset()
    tokens = torch.from_numpy(observation[TOKENS]) if TOKENS in observation else None
    with torch.no_grad():
        expected = cloned(tokens, torch.from_numpy(observation[FELT])).clamp(-1, 1).numpy()
    found = model.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(np.clip(found, -1, 1), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.01
    other = _policy(kind, backbone, PolicySettings(layers=[8], squash=name != "ppo"))
    with pytest.raises(CheckpointError, match=r"clone with policy.layers=\[16,16\]"):
        begin_from(model, other, "bc.safetensors")


def test_a_batch_has_its_share_of_demonstrations(
    world: World, toy_demos: DemoSet, toy_cache: TokenCache, tiny: Backbone
) -> None:
    policy = _policy("bc", tiny)
    transitions = demo_transitions(toy_demos, toy_cache, policy)
    marked = replace(transitions, rewards=np.full_like(transitions.rewards, 99.0))
    model = world.learner("sac", policy, tiny, demos=marked, demo_ratio=0.25)
    model.learn(40, log_interval=None)
    batch = model.replay_buffer.sample(64)
    assert len(batch.rewards) == 64 and int((batch.rewards == 99).sum()) == 16
    assert batch.observations[TOKENS].shape[0] == 64


def test_only_replayed_pictures_are_moved(world: World, tiny: Backbone) -> None:
    model = world.learner("sac", _policy("cnn"), normalise=False, shift=True)
    model.learn(20, log_interval=None)
    buffer = model.replay_buffer
    np.random.seed(0)
    moved = buffer.sample(32).observations[TOKENS]
    buffer.shift = False
    np.random.seed(0)
    still = buffer.sample(32).observations[TOKENS]
    assert moved.shape == still.shape and moved.dtype == still.dtype == torch.uint8 and not torch.equal(moved, still)
    inner = moved[:, :, 3:-3, 3:-3]
    found = [
        any(
            torch.equal(inner[row], still[row, :, 3 + y : 61 + y, 3 + x : 61 + x])
            for y in range(-3, 4)
            for x in range(-3, 4)
        )
        for row in range(32)
    ]
    assert all(found)


# the command


def _command(out: Path, name: str = "sac", **changes: Any) -> TrainRL:
    command = TrainRL(
        task="toy/reach",
        algorithm=_settings(name),
        obs="state",
        steps=240,
        envs=2,
        horizon=10,
        eval_every=120,
        eval_episodes=2,
        episodes=2,
        log_every=48,
        save_every=96,
        image_size=32,
        processes=False,
        out=str(out),
    )
    return replace(command, **changes)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path, "policy").tensors


def _rows(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.mark.parametrize(
    ("name", "obs"),
    [("sac", "tokens"), ("td3", "state"), ("ppo", "state"), pytest.param("ppo", "tokens", marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    name: str, obs: str, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of episodes, with full and half full buffers: the same weights, metrics and episodes."""
    from pixio_robot.policies.rl import train
    from pixio_robot.stopping import Stopping

    if obs == "tokens":
        monkeypatch.setattr("pixio_robot.policies.rl.run.evaluate_policy", _no_evaluation)
    changes = dict(obs=obs, encoder=str(tiny_file), algorithm=_settings(name, buffer=100, warmup=40, noise=0.1))
    run_train_rl(_command(tmp_path / "whole", name, **changes), Progress.silent())
    asked = iter([False] * 4 + [True] * 10)
    monkeypatch.setattr(Stopping, "asked", property(lambda self: next(asked)))
    with pytest.raises(Stopped, match="the same command goes on"):
        run_train_rl(_command(tmp_path / "cut", name, **changes), Progress.silent())
    monkeypatch.setattr(Stopping, "asked", property(lambda self: False))
    state = train.latest_state(tmp_path / "cut/checkpoints" / name)
    assert state is not None and 96 < int(state.name[6:]) < 240
    run_train_rl(_command(tmp_path / "cut", name, **changes), Progress.silent())
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "cut")
    for which in ("last", "best"):
        paths = [tmp_path / run / "checkpoints" / name / f"{which}.safetensors" for run in ("whole", "cut")]
        one, other = map(_weights, paths)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_its_checkpoint_is_one_for_evaluate_and_for_experts(tmp_path: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    out, last, evaluation = run_train_rl(_command(tmp_path / "rl"), Progress.silent())
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[arg-type]
    again = run_evaluate(
        Evaluate(checkpoint=str(last), episodes=2, envs=1, out=str(tmp_path / "eval")), Progress.silent()
    )[1]
    kept = [{**asdict(row), "wall_s": 0} for row in evaluation.rows]
    assert kept == [{**asdict(row), "wall_s": 0} for row in again.rows] and kept[0]["policy"] == "sac"
    with pytest.raises(DataError, match="start where training episodes start"):
        run_evaluate(Evaluate(checkpoint=str(last), episodes=2, first_seed=10_000_001), Progress.silent())
    assert (out / "report.html").is_file() and (out / "tensorboard/sac").is_dir()
    loaded = load_policy(last)
    states = _actions(0, (20, 6))
    with torch.no_grad():
        expected = loaded.policy(None, torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(StateActor(last).act(states), expected, atol=1e-6)
    request = EnvRequest("toy/reach", ("proprio", "state"), horizon=10)
    with pytest.raises(DataError, match="is an expert of toy/reach; the task is dmc/"):
        collect(replace(request, task="dmc/reacher_easy"), 1, 0, 0, tmp_path / "other.hdf5", 1, expert=str(last))
    env = request.make()
    state = env.reset(seed=5)[0]["state"]
    action = StateActor(last).act(state)
    with torch.no_grad():
        np.testing.assert_allclose(action, loaded.policy(None, torch.from_numpy(state)[None])[0].numpy(), atol=1e-6)


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    run_train_rl(_command(tmp_path / "whole", steps=240, eval_every=480), Progress.silent())
    for steps in (144, 240):
        run_train_rl(_command(tmp_path / "parts", steps=steps, eval_every=480), Progress.silent())
    one, other = (_weights(tmp_path / run / "checkpoints/sac/last.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_learned_encoder_is_named_by_its_policy(tmp_path: Path, tiny_file: Path) -> None:
    command = _command(tmp_path / "rl", obs="tokens", encoder=str(tiny_file), finetune=True, steps=48, episodes=1)
    command = replace(command, algorithm=_settings("sac", batch=4), eval_every=1000, eval_episodes=1)
    _, last, evaluation = run_train_rl(command, Progress.silent())
    loaded = load_policy(last)
    assert loaded.encoder is not None and loaded.encoder.fingerprint != load_encoder(str(tiny_file)).fingerprint()
    again = run_evaluate(Evaluate(checkpoint=str(last), episodes=1, envs=1, videos=False, out="e"), Progress.silent())[
        1
    ]
    assert again.rows[0].episode_return == pytest.approx(evaluation.rows[0].episode_return, abs=1e-6)


def test_demonstrations_and_a_clone_are_taken(tmp_path: Path, toy_file: Path, tiny_file: Path) -> None:
    demos = ["demos=" + str(toy_file), "encoder=" + str(tiny_file), "embedding.history=2"]
    clone = [*demos, "policy.layers=[16,16]", "policy.squash=true", "policy.epochs=1", "out=bc"]
    assert cli.run(["train_bc", *clone]) == 0
    small = ["algorithm.layers=[16,16]", "algorithm.batch=16", "algorithm.buffer=500", "algorithm.warmup=20"]
    small += ["steps=60", "eval_episodes=1", "episodes=1", "horizon=10", "videos=false", "processes=false"]
    last = "init=bc/checkpoints/bc/last.safetensors"
    assert cli.run(["train_rl", "task=toy/reach", *demos, *small, last, "out=rl"]) == 0
    assert load_policy("rl/checkpoints/sac/last.safetensors").training["starts"] == DemoSet(toy_file).starts


# bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"obs": "pixels"}, UnknownName, "tokens, state, rgb"),
        ({"algorithm": _settings("sacc")}, UnknownName, "did you mean 'sac'"),
        ({"algorithm": _settings("sac", activation="silu")}, UnknownName, "relu, gelu, tanh"),
        ({"algorithm": _settings("sac", layers=[])}, BadInput, "at least one layer"),
        ({"algorithm": _settings("sac", gamma=1.5)}, BadInput, "must lie from 0 to 1"),
        ({"algorithm": _settings("sac", entropy="-1")}, BadInput, "auto_<first value>"),
        ({"algorithm": _settings("ppo", rollout=50)}, BadInput, "must be a multiple of envs=2"),
        ({"algorithm": _settings("sac", buffer=10)}, BadInput, "must hold at least"),
        ({"algorithm": _settings("sac", buffer=10**12)}, BadInput, r"needs [\d.]+ GB, [\d.]+ GB are free"),
        ({"obs": "tokens", "encoder": "cnn"}, BadInput, "use obs=rgb"),
        ({"finetune": True}, BadInput, "needs obs=tokens"),
        ({"algorithm": _settings("ppo"), "demos": "d.hdf5"}, BadInput, "cannot be replayed"),
        ({"demos": "d.hdf5", "demo_ratio": 1.0}, BadInput, "below 1"),
        ({"task": "toy/reahc"}, UnknownName, "did you mean 'toy/reach'"),
        ({"init": "nowhere.safetensors"}, CheckpointError, "no file"),
    ],
)
def test_impossible_settings_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run_train_rl(_command(tmp_path / "rl", **changes), Progress.silent())
    assert not list((tmp_path / "rl").rglob("*.safetensors"))


def test_a_buffer_s_size_is_said() -> None:
    space = spaces.Dict(
        {"tokens": spaces.Box(-1, 1, (3, 1, 192), np.float16), "felt": spaces.Box(-1, 1, (4,), np.float32)}
    )
    assert require_memory(space, actions=3, capacity=1000, copies=2) == 1000 * (2 * (2 * 576 + 16) + 4 * 3 + 12)


def test_another_encoder_is_refused_with_both_hashes(tmp_path: Path, tiny_file: Path) -> None:
    command = _command(tmp_path / "rl", obs="tokens", encoder=str(tiny_file), steps=96, episodes=1)
    run_train_rl(command, Progress.silent())
    mine = load_encoder(str(tiny_file)).fingerprint()
    other = tmp_path / "other.safetensors"
    from pixio_robot.backbones import save_encoder
    from pixio_robot.encoder import PixioEncoder

    encoder = PixioEncoder(dim=32, depth=2, heads=2)
    encoder.initialise(torch.Generator().manual_seed(1))
    save_encoder(encoder, other)
    theirs = load_encoder(str(other)).fingerprint()
    last = str(tmp_path / "rl/checkpoints/sac/last.safetensors")
    for changed in (replace(command, encoder=str(other)), replace(command, encoder=str(other), init=last, out="x")):
        with pytest.raises(CheckpointError) as caught:
            run_train_rl(changed, Progress.silent())
        assert mine in str(caught.value) and theirs in str(caught.value)


@pytest.mark.parametrize("what", ["reward", "action"])
def test_numbers_that_are_not_finite_stop_the_run_with_the_step(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixio_robot.envs import toy
    from pixio_robot.envs.task import StepResult

    count = iter(range(10_000))
    original = toy.Reach.step

    def broken(self: toy.Reach, action: np.ndarray) -> StepResult:
        result = original(self, action)
        return result._replace(reward=float("nan")) if next(count) == 150 else result

    if what == "reward":
        monkeypatch.setattr(toy.Reach, "step", broken)
    else:
        step_async = TaskVecEnv.step_async
        monkeypatch.setattr(
            TaskVecEnv, "step_async", lambda self, a: step_async(self, a if self.steps < 110 else a * np.nan)
        )
    command = _command(tmp_path / "rl", eval_every=10_000)
    monkeypatch.setattr("pixio_robot.policies.rl.run.evaluate_policy", _no_evaluation)
    with pytest.raises(DataError, match=rf"{what} is not finite in environment .* after \d+ environment steps"):
        run_train_rl(command, Progress.silent())
    failure = json.loads((tmp_path / "rl/failure.json").read_text())
    assert 96 < failure["step"] < 240 and "not finite" in failure["error"]
    assert (tmp_path / "rl/checkpoints/sac/state-000000096").is_dir()


def _no_evaluation(*_: Any) -> Any:
    from pixio_robot.metrics import EpisodeRecord
    from pixio_robot.policies.evaluate import Evaluation

    row = EpisodeRecord("t", "sac", "none", "none", "none", "none", 0, 0, "s", 0.0, False, False, 0, 0.0, 1, 0.0)
    return Evaluation([row], 0)


def test_environments_are_stable_baselines_own_kind(world: World) -> None:
    venv = world.embedded(_policy("state"), None)
    assert isinstance(venv, VecEnv) and venv.get_attr("name") == ["toy/reach"] * 2
    assert venv.env_method("render") == [None, None] and not any(venv.env_is_wrapped(object))  # type: ignore[arg-type]


# learning curves


def _run_folder(folder: Path, seed: int, obs: str, scores: dict[int, float]) -> str:
    from pixio_robot.run_folder import open_run

    open_run(folder, TrainRL(task="toy/reach", obs=obs, seed=seed, out=str(folder)))
    rows = [
        {
            "policy": "sac",
            "epoch": 0,
            "step": step,
            "eval/score": score,
            "eval/success": score / 100,
            "eval/return": -score,
        }
        for step, score in scores.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_learning_curves_join_what_differs_in_its_seed_alone(tmp_path: Path) -> None:
    runs = [
        _run_folder(
            tmp_path / f"{obs}{seed}", seed, obs, {0: 0.0, 100: 10.0 * seed + bonus, **({200: 1.0} if seed else {})}
        )
        for obs, bonus in (("tokens", 0), ("state", 50))
        for seed in range(4)
    ]
    assert cli.run(["learning_curves", f"runs=[{','.join(runs)}]", f"out={tmp_path / 'curves'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "curves/metrics.jsonl").read_text().splitlines()]
    assert [(row["policy"], row["step"], row["eval/score"]) for row in rows] == [
        ("obs=tokens", 0, 0.0),
        ("obs=tokens", 100, 15.0),
        ("obs=state", 0, 0.0),
        ("obs=state", 100, 65.0),
    ]
    assert rows[1]["eval/score_low"] < 15 < rows[1]["eval/score_high"] and rows[0]["eval/score_low"] == 0
    page = (tmp_path / "curves/report.html").read_text()
    assert "obs=tokens" in page and "fill-opacity" in page
    assert cli.run(["learning_curves", f"runs=[{runs[0]},{runs[0]}]"]) == 1
    assert cli.run(["learning_curves", f"runs=[{tmp_path}]"]) == 1

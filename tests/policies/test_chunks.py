"""Action chunks: targets lie where they should, padding teaches nothing, and chunks are executed in step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pixio_robot.policies.bc import new_policy
from pixio_robot.policies.bc_data import Batches, bc_data
from pixio_robot.policies.chunks import ChunkQueue, chunk_indices
from pixio_robot.policies.runs import run_evaluate, run_train_bc
from pixio_robot.policies.visuomotor import load_policy
from torch.nn import functional as F

from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.datasets.token_cache import TokenCache
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.state_actor import StateActor
from pixio_robot.errors import BadInput, CheckpointError
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.commands import Evaluate, TrainBC
from pixio_robot.policies.settings import EmbeddingSettings, PolicySettings
from pixio_robot.run_folder import described, settings_digest

CPU = torch.device("cpu")
SMALL = PolicySettings(layers=[32], batch=32, epochs=2, chunk=4)


def _train(demos: Path, encoder: str, out: str, settings: PolicySettings = SMALL, frames: str = "flare") -> Path:
    command = TrainBC(demos=str(demos), encoder=encoder, cache="cache", out=out, policy=settings)
    command.embedding = EmbeddingSettings(frames=frames)
    return run_train_bc(command)[1].last


@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_targets_are_the_actions_that_follow_within_the_episode(chunk: int) -> None:
    lengths = [5, 1, 7]
    episode = np.repeat(np.arange(3), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    starts = np.arange(13) - step
    rows, within = chunk_indices(starts, chunk)
    assert (episode[rows] == episode[:, None]).all()
    assert np.array_equal(within, step[:, None] + np.arange(chunk) < np.array(lengths)[episode][:, None])
    assert (step[rows] == np.minimum(step[:, None] + np.arange(chunk), np.array(lengths)[episode][:, None] - 1)).all()
    assert within[:, 0].all()


def _batches(demos: DemoSet, chunk: int) -> tuple[Batches, torch.nn.Module]:
    policy = new_policy(None, EmbeddingSettings(), demos.widths, replace(SMALL, chunk=chunk), 0, "state")
    data = bc_data(demos, None, policy.eval())
    return Batches(data, policy, CPU, None, "fp32"), policy


def test_the_loss_is_the_mean_over_actions_that_there_are(toy_demos: DemoSet) -> None:
    batches, policy = _batches(toy_demos, 4)
    rows = torch.arange(60)
    loss, count = batches.loss(policy, rows, F.mse_loss)
    predicted = batches.predict(policy, rows).detach().numpy().reshape(60, 4, 3)
    actions, starts = toy_demos.read("actions"), toy_demos.frame_starts
    errors = [
        (predicted[row, ahead] - actions[row + ahead]) ** 2
        for row in range(60)
        for ahead in range(4)
        if row + ahead < len(starts) and starts[row + ahead] == starts[row]
    ]
    assert count == len(errors) < 240
    assert float(loss.detach()) == pytest.approx(float(np.mean(errors)), rel=1e-5)


def test_a_chunk_of_one_is_what_it_always_was(toy_demos: DemoSet) -> None:
    """Same loss and gradient as plain regression, and as the rule for chunks; same identity of runs and files."""
    batches, policy = _batches(toy_demos, 1)
    rows = torch.arange(40)
    loss, count = batches.loss(policy, rows, F.mse_loss)
    assert count == 40 and torch.equal(loss, F.mse_loss(batches.predict(policy, rows), batches.actions[rows]))
    assert batches.data.within.all() and np.array_equal(batches.data.chunks[:, 0], np.arange(len(batches.actions)))
    plain = TrainBC(demos="demos.hdf5")
    assert "chunk" not in described(plain)["policy"] and "n_action_steps" not in described(Evaluate(checkpoint="x"))
    other = replace(plain, policy=PolicySettings(chunk=2))
    assert described(other)["policy"]["chunk"] == 2 and settings_digest(other) != settings_digest(plain)


def test_it_learns_several_steps_ahead(toy_file: Path) -> None:
    settings = PolicySettings(layers=[256, 256], batch=32, epochs=40, chunk=4)
    loaded = load_policy(_train(toy_file, "state", "a", settings))
    assert loaded.policy.settings.chunk == 4 and loaded.policy(None, torch.zeros(2, 6)).shape == (2, 12)
    batches, _ = _batches(DemoSet(toy_file), 4)
    rows = batches.data.train[batches.data.within[batches.data.train].all(1)]
    errors = batches.predict(loaded.policy, rows).view(-1, 4, 3) - batches.actions[batches.data.chunks[rows.numpy()]]
    spread = float(batches.actions[batches.data.train].var(0).mean())
    assert (errors.square().mean((0, 2)) < 0.5 * spread).all()


def _world(steps: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {"rgb": random.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8), "proprio": random.normal(size=(2, 3))}
        for _ in range(steps)
    ]


@pytest.mark.parametrize(("frames", "n_action_steps"), [("single", None), ("flare", None), ("flare", 2), ("flare", 1)])
def test_chunks_are_executed_in_step_and_frames_between_are_not_forgotten(
    toy_file: Path, tiny: Backbone, tiny_file: Path, frames: str, n_action_steps: int | None
) -> None:
    """Two episodes, the second starting anew out of step, act as predictions of an agent that encodes every frame."""
    checkpoint = _train(toy_file, str(tiny_file), "a", frames=frames)
    acting = Agent(load_policy(checkpoint), tiny, CPU, n_action_steps)
    watching = Agent(load_policy(checkpoint), tiny, CPU)
    every, since = n_action_steps or 4, np.zeros(2, int)
    chunks = np.zeros((2, 4, 3), np.float32)
    encoded = 0
    original = acting._perception.newest

    def counting(observations: dict[str, np.ndarray], depth: torch.Tensor | None) -> torch.Tensor:
        nonlocal encoded
        encoded += len(observations["rgb"])
        return original(observations, depth)

    acting._perception.newest = counting  # type: ignore[method-assign]
    for step, seen in enumerate(_world(15)):
        seen["proprio"] = seen["proprio"].astype(np.float32)
        starting = np.array([step == 0, step in (0, 6)])
        since[starting] = 0
        fresh = watching.predict(seen, starting, np.ones(2, bool))
        due = since % every == 0
        chunks[due] = fresh[due]
        actions = acting.act(seen, starting, np.ones(2, bool))
        np.testing.assert_allclose(actions, chunks[np.arange(2), since % every], atol=1e-5)
        since += 1
    expected = {("single", None): 4 + 2 + 3, ("flare", 1): 30, ("flare", 2): 30}
    if (frames, n_action_steps) in expected:
        assert encoded == expected[frames, n_action_steps]
    else:  # of four frames, the three that the next prediction looks at
        assert 20 <= encoded < 30


def test_chunks_of_a_queue_are_taken_by_those_that_are_due() -> None:
    queue = ChunkQueue(3)
    none = np.zeros(2, bool)
    assert queue.waits(~none).tolist() == [0, 0]
    queue.refill(np.arange(6, dtype=np.float32).reshape(2, 3, 1))
    assert queue.pop().ravel().tolist() == [0, 3]
    assert queue.waits(np.array([False, True])).tolist() == [2, 0]
    queue.refill(np.full((2, 3, 1), 9, np.float32))
    assert queue.pop().ravel().tolist() == [1, 9]
    for wrong in (0, 4, -1):
        with pytest.raises(BadInput, match="chunks have 3 actions"):
            ChunkQueue(3, wrong)


def test_evaluation_executes_as_many_as_asked(toy_file: Path) -> None:
    checkpoint = _train(toy_file, "state", "a")
    returns = {}
    for n_action_steps in (None, 4, 1):
        command = Evaluate(checkpoint=str(checkpoint), episodes=2, envs=1, videos=False, n_action_steps=n_action_steps)
        _, evaluation = run_evaluate(command)
        returns[n_action_steps] = [row.episode_return for row in evaluation.rows]
    assert returns[None] == returns[4] != returns[1]
    with pytest.raises(BadInput, match="give 1 to 4"):
        run_evaluate(replace(command, n_action_steps=5))


def test_an_expert_acts_with_the_first_of_its_chunk(toy_file: Path) -> None:
    checkpoint = _train(toy_file, "state", "a")
    state = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    first = load_policy(checkpoint).policy(None, torch.from_numpy(state))[:, :3].clamp(-1, 1)
    np.testing.assert_allclose(StateActor(checkpoint).act(state), first.detach().numpy(), atol=1e-6)


def test_reinforcement_does_not_begin_from_chunks(toy_file: Path) -> None:
    pytest.importorskip("stable_baselines3")
    from pixio_robot.policies.rl.commands import TrainRL
    from pixio_robot.policies.rl.run import run_train_rl
    from pixio_robot.policies.rl.settings import AlgorithmSettings

    settings = replace(SMALL, layers=[16], squash=True)
    checkpoint = _train(toy_file, "state", "a", settings)
    command = TrainRL(task="toy/reach", obs="state", init=str(checkpoint), steps=100, horizon=10, out="rl")
    command.algorithm = AlgorithmSettings(layers=[16], warmup=10)
    with pytest.raises(CheckpointError, match=r"chunks of 4 actions.*policy\.chunk=1"):
        run_train_rl(command)


def test_token_use_reads_the_first_action(toy_demos: DemoSet, toy_cache: TokenCache, tiny_file: Path) -> None:
    from pixio_robot.cortexbench.token_use import token_use

    checkpoint = _train(toy_demos.path, str(tiny_file), "a")
    used = token_use(load_policy(checkpoint).policy, toy_demos, toy_cache)
    assert used is not None and len(used) == 8 and np.isfinite(used).all()

"""What every training loop shares: schedules, optimisers, skipped steps, micro-batches, metric rows."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pixio_robot.errors import BadInput, DataError, UnknownName
from pixio_robot.training.distributed import World, micro_batches
from pixio_robot.training.guard import Guard
from pixio_robot.training.metric_log import MetricLogger, ThroughputMeter
from pixio_robot.training.optim import Schedule, clip_gradients, lr_at, new_optimizer, peak_lr, set_lr

CPU = torch.device("cpu")


def test_cosine_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [lr_at(step, 100, 10, 2.0) for step in range(100)]
    assert rates[0] == 0 and rates[10] == max(rates) == 2.0 and rates[55] == pytest.approx(1.0) and rates[99] < 0.001
    assert lr_at(0, 10, 0, 2.0) == 2.0


def test_constant_learning_rate_rises_and_stays() -> None:
    schedule = Schedule(peak=2.0, steps=100, warmup_steps=4, name="constant")
    assert [schedule.at(step) for step in (0, 2, 4, 50, 99)] == [0.0, 1.0, 2.0, 2.0, 2.0]
    with pytest.raises(UnknownName, match=r"no schedule 'cosin'.*did you mean 'cosine'"):
        Schedule(peak=1.0, steps=1, name="cosin")


def test_learning_rate_is_absolute_or_scaled_never_both() -> None:
    assert peak_lr(8e-4, None, batch=256) == 8e-4
    assert peak_lr(None, 2.5e-5, batch=8192) == pytest.approx(8e-4)
    for lr, base_lr in ((1e-3, 1e-4), (None, None)):
        with pytest.raises(BadInput, match="set exactly one"):
            peak_lr(lr, base_lr, batch=8)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizer_equals_pytorchs_with_the_same_settings(name: str) -> None:
    def train(ours: bool) -> Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        if ours:
            optimizer = new_optimizer(layer.parameters(), name, CPU, lr=0.1, weight_decay=0.01)
        else:
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
            optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.01, fused=True)
        for _ in range(5):
            layer(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return layer.weight.detach()

    assert torch.equal(train(ours=True), train(ours=False))


def test_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UnknownName, match="no optimizer 'adamv'; there are: adam, adamw, sgd"):
        new_optimizer(torch.nn.Linear(1, 1).parameters(), "adamv", CPU)


def test_groups_may_scale_the_learning_rate() -> None:
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    groups = [{"params": list(first.parameters()), "lr_scale": 0.1}, {"params": list(second.parameters())}]
    optimizer = new_optimizer(groups, "adamw", CPU)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_clipping_returns_the_norm_before_and_bounds_the_norm_after() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    for max_norm, after in ((None, 5.0), (10.0, 5.0), (1.0, 1.0)):
        weight.grad = torch.tensor([3.0, 4.0])
        assert clip_gradients([weight], max_norm).item() == pytest.approx(5.0)
        assert weight.grad.norm().item() == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_skipped_step_changes_neither_weights_nor_moments(fused: bool) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    guard = Guard(optimizer, CPU, skipped=0)

    def step(scale: float, number: int) -> None:
        (layer(torch.ones(1, 3)).sum() * scale).backward()
        guard.step(torch.nn.utils.clip_grad_norm_(layer.parameters(), float("inf")), number)

    step(1.0, 0)
    before = [each.detach().clone() for each in layer.parameters()]
    averages = [state["exp_avg"].clone() for state in optimizer.state.values()]
    step(float("nan"), 1)
    step(float("inf"), 2)
    assert (guard.skipped, guard.longest, guard.first_bad) == (2, 2, 1)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), before, strict=True))
    assert all(torch.equal(state["exp_avg"], b) for state, b in zip(optimizer.state.values(), averages, strict=True))
    step(1.0, 3)
    assert guard.longest == 2 and not torch.equal(next(layer.parameters()), before[0])


def test_abort_saves_the_samples_and_their_names() -> None:
    layer = torch.nn.Linear(1, 1)
    guard = Guard(new_optimizer(layer.parameters(), "adamw", CPU), CPU)
    for number in (3, 4):
        guard.step(torch.tensor(float("nan")), number)
    with pytest.raises(DataError, match=r"2 steps in a row were not finite, from step 3; .* clip=1\.0"):
        guard.abort({"pixels": torch.ones(2, 3)}, ["a", "b"], Path(), World(CPU))
    assert torch.equal(load_file("nonfinite-step-00000003-rank-0.safetensors")["pixels"], torch.ones(2, 3))


def test_a_batch_must_split_evenly() -> None:
    assert micro_batches(32, 4, processes=4) == 2
    assert micro_batches(32, 256, processes=4) == 1  # a recipe for one device runs on four
    for batch, micro_batch in ((30, None), (32, 3)):
        with pytest.raises(BadInput, match="does not split"):
            micro_batches(batch, micro_batch, processes=4)


def test_rows_of_later_steps_are_dropped_and_other_learners_kept() -> None:
    for name, steps in (("bc", (1, 2, 3)), ("other", (5,))):
        with MetricLogger(Path(), name, 0) as logger:
            for step in steps:
                logger.write(step, step, {"train/loss": float(step)})
    with Path("metrics.jsonl").open("a") as file:
        file.write('{"policy": "bc", "st')  # a crash
    with MetricLogger(Path(), "bc", 2) as logger:
        assert logger.last == {"train/loss": 2.0} and [row["step"] for row in logger.rows()] == [1, 2]
        logger.write(3, 3, {"valid/loss": 9.0})
        assert logger.last == {"train/loss": 2.0, "valid/loss": 9.0}
    rows = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]
    assert [(row["policy"], row["step"]) for row in rows] == [("bc", 1), ("bc", 2), ("other", 5), ("bc", 3)]


def test_disabled_logger_writes_nothing() -> None:
    with MetricLogger(Path("run"), "bc", 0, enabled=False) as logger:
        logger.write(1, 1, {"train/loss": 1.0})
        assert logger.last == {"train/loss": 1.0} and logger.rows() == []
    assert not Path("run").exists()


def test_meter_gives_means_of_finite_steps() -> None:
    meter = ThroughputMeter(4, World(CPU), unit="samples")
    for loss, finite in ((1.0, True), (float("nan"), False), (3.0, True)):
        meter.add({"a": torch.tensor(loss)}, torch.tensor(loss), torch.tensor(finite))
    numbers = meter.close()
    assert numbers["train/loss"] == 2.0 and numbers["train/gradient_norm"] == 2.0
    assert numbers["time/samples_per_s"] > 0 and "time/tflops_per_device" not in numbers

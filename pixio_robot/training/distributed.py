"""One process or many: PyTorch's DDP, FSDP and HSDP under plain ``torchrun``.

Without torchrun there is one process and no process group.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ..errors import BadInput
from ..hardware import choose_device

PARALLEL = ("auto", "ddp", "fsdp", "hsdp")
_joinings = count()  # times this process has joined the others; a sweep does so for each job
SHARD_ABOVE = 1e9  # parameters; weights, gradients and Adam's moments take 16 bytes each


@dataclass(frozen=True)
class World:
    """The processes of a run, and the rank of this one."""

    device: torch.device
    rank: int = 0
    size: int = 1
    per_node: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def total(self, count: int) -> int:
        """Return the sum over all processes."""
        return round(float(self.mean(torch.tensor(float(count), device=self.device))) * self.size)

    def gathered(self, values: Tensor) -> Tensor:
        """Return the rows of all processes, in order of rank; every process has the same number of rows."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Return whether any process has set the flag; runs on the CPU, so it does not wait for the device."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes)

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that ``torchrun`` started; without torchrun there is this one only.

    Args:
        device: as for `choose_device`.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(choose_device(device))
        return
    chosen = choose_device(device)
    if chosen.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        chosen = torch.device("cuda", local % torch.cuda.device_count())  # a process may see only its own device
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        store, size = _store_of_this_start(), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=size)
    else:
        dist.init_process_group(backend)
    try:
        yield World(
            chosen,
            dist.get_rank(),
            dist.get_world_size(),
            int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())),
        )
    finally:
        dist.destroy_process_group()


def _store_of_this_start() -> dist.Store:
    """Return torchrun's store, with a prefix for each restart on one machine and each time a process joins.

    Without the prefix, processes restarted by ``--max-restarts`` read the addresses of the dead ones, and about every
    second restart hung (torch 2.13, gloo). Each machine counts its own restarts, so this is for one machine only.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=not hosted and os.environ["RANK"] == "0",
    )
    return dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{next(_joinings)}", store)


def is_first_process() -> bool:
    """Return whether this process has rank 0; works before the processes have joined."""
    return os.environ.get("RANK", "0") == "0"


def micro_batches(batch: int, micro_batch: int | None, processes: int) -> int:
    """Return the number of forward passes that a process makes for one optimiser step.

    Args:
        batch: samples of a step, over all processes.
        micro_batch: samples of a forward pass and process; None is all of them at once.
        processes: number of them.

    Raises:
        BadInput: if the batch does not split evenly over processes and micro-batches.
    """
    share, rest = divmod(batch, processes)
    micro = min(micro_batch or share, share)
    if rest or not micro or share % micro:
        raise BadInput(
            f"batch={batch} does not split into {processes} process(es) times micro_batch="
            f"{micro_batch or 'all'}; make it a multiple of {processes * (micro or 1)}"
        )
    return share // micro


def choose_parallel(name: str, model: nn.Module, processes: int, per_node: int) -> str:
    """Return "ddp", "fsdp" or "hsdp".

    Args:
        name: one of PARALLEL. "auto" is ddp up to `SHARD_ABOVE` parameters, above it fsdp on one node and hsdp on
            several.
    """
    if name != "auto":
        return name
    if sum(each.numel() for each in model.parameters()) <= SHARD_ABOVE:
        return "ddp"
    return "hsdp" if processes > per_node else "fsdp"


def distribute(
    model: nn.Module,
    wrapped_modules: Sequence[Any],
    world: World,
    *,
    parallel: str = "auto",
    compile: bool = False,
    precision: str = "fp32",
    passes: int = 1,
) -> nn.Module:
    """Compile and then shard or replicate a model; return the module to call.

    Parameter names in checkpoints stay those of `model`.

    Args:
        model: on its device.
        wrapped_modules: parts of it with ``blocks``, which are compiled and sharded block by block.
        parallel: one of PARALLEL.
        compile: whether to compile the blocks.
        precision: "bf16" gathers the blocks' weights in bf16 and sums gradients in fp32 when sharding.
        passes: forward passes of an optimiser step.

    Raises:
        BadInput: for hsdp with a number of processes that does not fill whole nodes.
    """
    if compile:
        for wrapped in wrapped_modules:
            for block in wrapped.blocks:
                block.compile(dynamic=False)
    if world.size == 1:
        return model
    chosen = choose_parallel(parallel, model, world.size, world.per_node)
    if chosen == "ddp":
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=passes == 1,
        )
    return _shard(model, wrapped_modules, chosen == "hsdp", world, precision)


def _shard(model: nn.Module, wrapped_modules: Sequence[Any], hybrid: bool, world: World, precision: str) -> nn.Module:
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # we never write into its return value
    kind = world.device.type
    if hybrid:
        if world.size % world.per_node:
            raise BadInput(f"hsdp shards inside nodes: {world.size} processes do not fill nodes of {world.per_node}")
        shape = (world.size // world.per_node, world.per_node)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    # outside the blocks everything stays in fp32, as under autocast; inside, unlike with DDP, norms are bf16 too
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" and kind == "cuda" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for wrapped in wrapped_modules:
        for block in wrapped.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(wrapped, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def unwrapped(model: nn.Module) -> Any:
    """Return the model itself, given the module that `distribute` returned."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def accumulating(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Return the context of one micro-batch; only the `last` one of a step sums gradients over processes."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return nullcontext()

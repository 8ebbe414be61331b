"""Whole pre-training steps: ours against transformers' ViTMAEForPreTraining.

Worker processes import this file again: nothing heavy above the functions.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import vitmae
from timing import COLUMNS, Section, cells, compare, markdown, per_second

if TYPE_CHECKING:
    import torch

    from pixio_robot.pretrain.mae import MaskedAutoencoder

NEEDS = {"transformers": "hf"}  # package: extra of pixio-robot
TOLERANCE = 1e-5  # largest difference of a predicted pixel, which is about 1 in size


class Case(NamedTuple):
    """What is trained on what, the same on both sides."""

    size: int  # side of an image [px]
    patch: int  # [px]
    batch: int
    encoder: tuple[int, int, int]  # width, depth, heads
    decoder: tuple[int, int, int]
    block: int  # side of Pixio's mask blocks [patches]
    what: str


class Side(NamedTuple):
    """Who trains how."""

    ours: bool = True
    pixio: bool = False  # 8 class tokens and mask blocks, else 1 and single patches as in ViTMAE
    kept: bool = False  # the C library keeps freed memory
    passes: int = 1  # micro-batches a step
    compile: str | None = None  # mode of torch.compile, block by block


TI = ((192, 12, 3), (192, 8, 6))
REFERENCE = (512, 32, 16)
CPU_CASES = (Case(64, 8, 64, *TI, 2, "64 px, patch 8"), Case(256, 16, 16, *TI, 4, "256 px, patch 16"))
CUDA_CASES = (
    Case(256, 16, 128, (768, 12, 12), REFERENCE, 4, "b, reference decoder"),
    Case(256, 16, 32, (1280, 32, 16), REFERENCE, 4, "h, reference decoder"),
)
THEIRS, IDENTICAL, PIXIO = Side(ours=False), Side(), Side(pixio=True)
PLAIN = {"identical network": (IDENTICAL, THEIRS), "Pixio": (PIXIO, THEIRS)}
CPU_ROWS = PLAIN | {
    "identical, memory kept": (IDENTICAL._replace(kept=True), THEIRS),
    "identical, memory kept on both sides": (IDENTICAL._replace(kept=True), THEIRS._replace(kept=True)),
    "Pixio, 2 micro-batches": (PIXIO._replace(passes=2), THEIRS),
    "Pixio, memory kept": (PIXIO._replace(kept=True), THEIRS),
}
CUDA_ROWS = PLAIN | {
    f"{what}, {how}": (side._replace(compile=mode), THEIRS)
    for what, (side, _) in PLAIN.items()
    for how, mode in (("compiled blocks", "default"), ("CUDA graphs", "reduce-overhead"))
}
KINDS = {  # parts of the profiler's names of CPU operators and CUDA kernels; the first kind that fits
    "optimiser": ("adam", "optimizer", "linalg_vector_norm", "aten::mul_", "multi_tensor", "lpnorm"),
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn", "gemm", "nvjet", "cutlass", "xmma", "splitk"),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm", "layernorm", "gammabeta"),
    "fused by the compiler": ("triton",),
    "copies": ("copy", "aten::cat", "catarray", "fill", "index", "gather", "scatter", "memcpy", "memset"),
    "sums": ("aten::add", "aten::sum", "elementwise", "reduce_kernel"),
    "other": ("",),
}


def measure() -> Section:
    """Compare sizes and precisions; refuse if the identical networks do not compute the same."""
    import torch

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    difference = _difference()
    if not difference < TOLERANCE:
        raise SystemExit(f"the two networks differ by {difference:.1e}: nothing to compare")
    rows, notes = [], []
    for case in CUDA_CASES if cuda else CPU_CASES:
        few = case if cuda else case._replace(batch=case.batch // 4)  # CPUs without bf16 units take long
        plans = ((case, CUDA_ROWS, 7, "bf16"), (few, PLAIN, 5, "fp32"))
        for plan in plans if cuda else ((case, CPU_ROWS, 3, "fp32"), (few, PLAIN, 2, "bf16")):
            found = _race(device, *plan)
            rows += found[0]
            notes += found[1]
    how = (
        "Images a second of a whole training step: masks, forward, backward, clipping of the gradient's norm, AdamW, "
        "gradients dropped. `MaskedAutoencoder` with the optimiser, clipping and guard of `pretrain` against "
        "`ViTMAEForPreTraining` with sdpa attention, `norm_pix_loss` and `torch.optim.AdamW` with its defaults; no "
        "image is read. The identical network has one class token and hides single patches; given the same weights and "
        f"masks, predictions differ by at most {difference:.0g}. Our position tables are trained, theirs are fixed, "
        "which costs us. Pixio has 8 class tokens and block masks. Every side is a separate process; all take "
        f"turns on {device}. 'Of peak' is our share of the fastest square matrix product. "
    )
    how += (
        "A turn is 3 warm-up steps and 10 measured ones. Compiled blocks are `compile=true`, CUDA graphs that with "
        "`mode='reduce-overhead'`."
        if cuda
        else "A turn is one warm-up step and one measured step, on one thread, in CPU time with the kernel's share. "
        "'Memory kept' is what `pretrain` does on a CPU: it sets two thresholds of glibc's malloc (1 GiB for mmap, no "
        "trimming); by default malloc returns large arrays to the kernel and requests their pages again in each "
        "step, at a cost that varies from run to run. Below the table: shares of our time; the last column is the "
        "row's ratio if everything except matrix products took no time."
    )
    return Section("Pre-training", how, (*COLUMNS, "of peak"), rows, notes)


def _race(
    device: str, case: Case, plan: dict[str, tuple[Side, Side]], rounds: int, precision: str
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Let all sides of a case take turns; return rows and notes."""
    name = f"{case.what}, {precision}, batch {case.batch}"
    with ExitStack() as stack:
        workers = {
            side: stack.enter_context(closing(Worker(device, case, side, precision)))
            for side in dict.fromkeys(side for pair in plan.values() for side in pair)
        }
        peak = workers[THEIRS].ask("peak")
        turns = [{side: worker.ask("turn") for side, worker in workers.items()} for _ in range(rounds)]
        looked_at = {ours: what for what, (ours, _) in plan.items() if (ours.pixio if device == "cuda" else ours.kept)}
        profiles = {what: workers[ours].ask("profile") for ours, what in looked_at.items()}
        peak = max(peak, workers[THEIRS].ask("peak"))
    times = {side: [turn[side] / case.batch for turn in turns] for side in workers}  # of an image
    flops = {pixio: _training_flops(case, pixio) for pixio in (False, True)}
    found = {what: compare(f"{name}: {what}", times[ours], times[theirs]) for what, (ours, theirs) in plan.items()}
    shares = [f"{flops[plan[what][0].pixio] / each.ours / peak:.0%}" for what, each in found.items()]
    rows = [(*row, share) for row, share in zip(cells(list(found.values()), per_second), shares, strict=True)]
    theirs = found["identical network"].theirs
    notes = [
        f"{name}: {flops[False] / 1e9:.3g} GFLOP an image, {flops[True] / 1e9:.3g} with Pixio's class tokens "
        f"({flops[True] / flops[False] - 1:.0%} more). Peak {peak / 1e9:.0f} GFLOP/s, of which transformers reaches "
        f"{flops[False] / theirs / peak:.0%}."
    ]
    if profiles:
        lines = [
            f"| {name}: our time | {' | '.join(KINDS)} | ratio if products were all |",
            "|---" * (len(KINDS) + 2) + "|",
        ]
        for what, parts in profiles.items():
            bound = found[what].ratio / parts["matrix products"]
            lines.append(f"| {what} | {' | '.join(f'{parts[kind]:.0%}' for kind in KINDS)} | {bound:.2f} |")
        notes.append("\n".join(lines))
    return rows, notes


class Worker:
    """One side in a separate process, so that neither's memory is the other's."""

    def __init__(self, device: str, case: Case, side: Side, precision: str) -> None:
        context = get_context("spawn")
        self._pipe, inner = context.Pipe()
        self._process = context.Process(target=_serve, args=(inner, device, case, side, precision), daemon=True)
        self._process.start()
        inner.close()

    def ask(self, what: str) -> Any:
        """Return the answer to "turn" [s a step], "profile" (shares by kind) or "peak" [FLOP/s]."""
        self._pipe.send(what)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe: Connection, device: str, case: Case, side: Side, precision: str) -> None:
    import torch

    from pixio_robot.hardware import keep_memory
    from pixio_robot.pretrain.cost import matmul_peak

    torch.set_num_threads(1)
    if side.kept:
        keep_memory()
    where = torch.device(device)
    step = (_our_step if side.ours else _their_step)(where, case, side, precision)
    answers: dict[str, Callable[[], object]] = {
        "turn": partial(_turn, step, device),
        "profile": partial(_profile, step, device),
        "peak": lambda: max(matmul_peak(where, precision) for _ in range(3)),
    }
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        pipe.send(answers[question]())


def _turn(step: Callable[[], None], device: str) -> float:
    import torch

    if device == "cpu":
        step()  # the machine has taken back memory that lay idle during the others' turns
        began = process_time()
        step()
        return process_time() - began
    for _ in range(3):  # memory was handed back, so that the sides fit side by side; graphs are recorded
        step()
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    seconds = (perf_counter() - began) / 10
    torch.cuda.empty_cache()
    return seconds


def _profile(step: Callable[[], None], device: str) -> dict[str, float]:
    """Return the share of each kind of work."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    step()
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        for _ in range(2):
            step()
        if cuda:
            torch.cuda.synchronize()
    total = dict.fromkeys(KINDS, 0.0)
    for event in seen.key_averages():
        kind = next(kind for kind, parts in KINDS.items() if any(part in event.key.lower() for part in parts))
        if not cuda:
            total[kind] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA:  # kernels; operators would count them twice
            total[kind] += event.self_device_time_total
    return {kind: time / sum(total.values()) for kind, time in total.items()}


def _our_step(device: "torch.device", case: Case, side: Side, precision: str) -> Callable[[], None]:
    """Return one step as `pretrain` makes it, on pixels that stay."""
    import torch

    from pixio_robot.hardware import autocast
    from pixio_robot.pretrain.masking import PatchMask, mask_shape
    from pixio_robot.training.guard import Guard
    from pixio_robot.training.optim import clip_gradients, new_optimizer, weight_decay_groups

    model = _ours(case, side.pixio).to(device).train()
    if side.compile is not None:
        for part in (model.encoder, model.decoder):
            for block in part.blocks:
                block.compile(dynamic=False, mode=side.compile)
    shape = mask_shape((case.size // case.patch,) * 2, 0.75, case.block if side.pixio else 1)
    optimizer = new_optimizer(weight_decay_groups(model, 0.05), "adamw", device, lr=1e-4, betas=(0.9, 0.95))
    guard = Guard(optimizer, device, 0)
    pixels = torch.randn(case.batch, 3, case.size, case.size, device=device)

    def step() -> None:
        if side.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        for part in pixels.chunk(side.passes):
            with autocast(device, precision):
                mask = PatchMask.from_noise(torch.rand(len(part), shape.blocks, device=device), shape)
                loss = model(part, mask).loss / side.passes
            loss.backward()
        guard.step(clip_gradients(model.parameters(), 1.0), 0)

    return step


def _their_step(device: "torch.device", case: Case, side: Side, precision: str) -> Callable[[], None]:
    """Return one step as a user of transformers writes it."""
    import torch

    from pixio_robot.hardware import autocast

    model = vitmae.build(case).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = torch.randn(case.batch, 3, case.size, case.size, device=device)

    def step() -> None:
        with autocast(device, precision):
            loss = model(pixels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _ours(case: Case, pixio: bool) -> "MaskedAutoencoder":
    from pixio_robot.encoders.pixio import PixioEncoder
    from pixio_robot.pretrain.decoder import PixelDecoder
    from pixio_robot.pretrain.mae import MaskedAutoencoder

    how = dict(patch=case.patch, image_size=case.size, cls_tokens=8 if pixio else 1)
    decoder = PixelDecoder(case.encoder[0], *case.decoder, **how)
    model = MaskedAutoencoder(PixioEncoder(*case.encoder, **how), decoder)
    model.initialise("sincos")
    return model


def _training_flops(case: Case, pixio: bool) -> float:
    import torch

    from pixio_robot.pretrain.cost import training_flops
    from pixio_robot.pretrain.masking import mask_shape

    with torch.device("meta"):
        model = _ours(case, pixio)
    return training_flops(model, mask_shape((case.size // case.patch,) * 2, 0.75, case.block if pixio else 1))


def _difference() -> float:
    """Return the largest difference of a predicted pixel, given the same weights, pixels and masks."""
    import torch

    from pixio_robot.pretrain.masking import PatchMask, mask_shape

    case = CPU_CASES[0]._replace(batch=2)
    ours, theirs = _ours(case, pixio=False).eval(), vitmae.build(case).eval()
    pixels, noise = torch.randn(2, 3, case.size, case.size), torch.rand(2, (case.size // case.patch) ** 2)
    theirs.load_state_dict(vitmae.translated(ours.state_dict()))
    mask = PatchMask.from_noise(noise, mask_shape((case.size // case.patch,) * 2, 0.75, 1))
    with torch.no_grad():
        our, their = ours(pixels, mask), theirs(pixels, noise=noise)
    loss = abs(float(our.loss - their.loss))
    return max(loss, float((our.prediction - their.logits).abs().max()))


if __name__ == "__main__":
    print(markdown(measure()))

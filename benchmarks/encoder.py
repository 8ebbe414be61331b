"""Our encoder against transformers' PixioModel: the same weights, the same pixels, one forward."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import Comparison, Section, cells, compare, in_turns, markdown, milliseconds, seconds

NEEDS = {"transformers": "hf"}  # package: extra of pixio-robot
SIZE = "b"
CASES = [("fp32", 1, 9), ("fp32", 16, 3), ("bf16", 1, 9), ("bf16", 16, 2)]  # precision, batch, pairs
TOLERANCE = 1e-3  # largest difference of a normed token, which is about 1 in size


def measure() -> Section:
    """Compare at every precision and batch; refuse if the two networks do not compute the same."""
    import torch

    from pixio_robot.encoders.load import export_transformers, load_encoder
    from pixio_robot.encoders.torchvision_guard import declare_missing_operators
    from pixio_robot.hardware import autocast, choose_device, threads

    declare_missing_operators()
    from transformers import PixioModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("pixio_robot").setLevel(logging.ERROR)  # random weights are what we want here
    device = choose_device("auto")
    backbone = load_encoder(f"random:{SIZE}:0")
    with tempfile.TemporaryDirectory() as folder:
        export_transformers(backbone, Path(folder) / "pixio")
        theirs = PixioModel.from_pretrained(Path(folder) / "pixio", attn_implementation="sdpa")
    theirs = theirs.requires_grad_(False).eval().to(device)
    ours = backbone.network.to(device)

    def timed(network: Callable[[torch.Tensor], object], pixels: torch.Tensor, precision: str) -> Callable[[], float]:
        def forward() -> None:
            with torch.inference_mode(), autocast(device, precision):
                network(pixels)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return lambda: seconds(forward)

    comparisons: list[Comparison] = []
    with threads(1):
        for precision, batch, pairs in CASES:
            pixels = torch.randn(batch, 3, 256, 256, generator=torch.Generator().manual_seed(0)).to(device)
            times = in_turns(timed(ours, pixels, precision), timed(theirs, pixels, precision), pairs)
            comparisons.append(compare(f"{precision}, batch {batch}", *times))
    with torch.inference_mode():
        tokens = torch.cat(ours(pixels[:2]), dim=1)
        difference = float((tokens - theirs(pixels[:2]).last_hidden_state).abs().max())
    if difference > TOLERANCE:
        raise SystemExit(f"the two encoders differ by {difference:.1e}: nothing to compare")
    how = (
        f"`PixioEncoder` of size {SIZE} against `PixioModel` of transformers with `attn_implementation='sdpa'`, both "
        f"with the same frozen weights (largest difference of a token in fp32: {difference:.0g}), in evaluation and "
        f"inference mode, on the same 256x256 pixels, on {device.type}; bf16 is autocast. One thread, because threads "
        "that wait for each other are slowed down by other load. A turn is one forward pass."
    )
    return Section("Encoder forward", how, rows=cells(comparisons, milliseconds))


if __name__ == "__main__":
    print(markdown(measure()))

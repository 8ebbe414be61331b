"""Published results on CortexBench, and what a reader must know before comparing them with ours."""

from typing import NamedTuple


class Published(NamedTuple):
    """A row as printed: suite scores, 0 to 100."""

    name: str
    backbone: str
    adroit: float
    dmc: float
    metaworld: float
    trifinger: float
    mean: float  # as printed


# Table 5 of the Pixio paper, arXiv 2512.15715
ROWS = (
    Published("VC-1", "ViT-L", 52.0, 81.3, 88.3, 67.5, 72.3),
    Published("R3M", "ResNet-50", 74.7, 72.4, 94.1, 67.4, 77.2),
    Published("Theia", "ViT-B", 60.0, 79.9, 87.7, 65.8, 73.4),
    Published("DINOv2", "ViT-L", 64.0, 70.4, 90.9, 66.9, 73.1),
    Published("DINOv3", "ViT-H+", 63.3, 78.5, 89.3, 70.0, 75.3),
    Published("Pixio", "ViT-H", 70.7, 77.5, 92.8, 72.8, 78.4),
)
CAVEATS = (
    "Published rows are from table 5 of the Pixio paper (arXiv 2512.15715), which gives no deviations, no scores by "
    "task and no seeds. For each model it takes the better of a global and a spatial embedding, for Pixio the mean of "
    "its class tokens.",
    "They were obtained with the released demonstrations in older simulators (MuJoCo 2.0, MetaWorld v2, a fork of "
    "TriFinger), and most likely count the best of about 20 evaluations on the test episodes. Compare our rows with "
    "each other; differences of several points from published rows mean nothing.",
)

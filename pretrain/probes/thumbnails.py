"""Raw pixels as features: the baseline of every encoder.

Shapes: F images.
"""

from torch import Tensor
from torch.nn import functional as F


def thumbnails(images: Tensor) -> Tensor:
    """Return images (F, H, W, 3) as 16x16 pixels minus their mean, (F, 768)."""
    small = F.interpolate(images.permute(0, 3, 1, 2).float(), size=(16, 16), mode="area").flatten(1)
    return small - small.mean(dim=1, keepdim=True)

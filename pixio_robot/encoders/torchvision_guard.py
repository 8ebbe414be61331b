"""A way around torchvision wheels that do not fit the installed torch.

Beside a CPU torch, `import torchvision` fails ("operator torchvision::nms does not exist"), and with it every package
that imports torchvision if it is there: transformers, timm, robomimic. Declaring the two operators is enough for them.
"""

import contextlib
import importlib
import importlib.util

import torch

_declared: list[torch.library.Library] = []  # an operator lives as long as its library object


def declare_missing_operators() -> None:
    """Make `import torchvision` work; call it before importing transformers, timm or robomimic.

    Does nothing where torchvision is absent or imports well. Box operators stay unusable: nothing here needs them.
    """
    if _declared or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, ImportError):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):  # one of the two is there already
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)

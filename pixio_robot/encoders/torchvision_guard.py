"""A workaround for torchvision wheels that do not match the installed torch.

With a CPU build of torch, `import torchvision` fails ("operator torchvision::nms does not exist"), and so does every
package that imports torchvision if it is installed: transformers, timm, robomimic. Declaring two operators is enough.
"""

import contextlib
import importlib
import importlib.util

import torch

_declared: list[torch.library.Library] = []  # an operator lives as long as its library object


def declare_missing_operators() -> None:
    """Make `import torchvision` work; call it before importing transformers, timm or robomimic.

    Does nothing if torchvision is absent or imports without error. Box operators stay unusable; they are not needed.
    """
    if _declared or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, ImportError):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):  # one of them exists
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)

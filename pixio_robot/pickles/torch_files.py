"""Arrays out of files that ``torch.save`` wrote; no code of the file is run."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

from ..errors import DataError, UnsafePickle
from .values import ALLOWED, OddArguments, resolve


def read_torch_file(source: Path | bytes, where: str) -> Any:
    """Return the data in a file by ``torch.save``: containers, numbers, arrays; tensors become arrays.

    torch's own reader for weights does it; numpy arrays in the file are made by our checked stand-ins.

    Args:
        source: the file, or its bytes.
        where: its name in messages.

    Raises:
        UnsafePickle: naming what the file wanted that is no data.
        DataError: if it is no such file, or damaged.
    """
    import torch

    ours: list[Any] = [(function, name) for name, function in ALLOWED.items() if name.startswith("numpy.")]
    try:
        with torch.serialization.safe_globals(ours):
            file = source if isinstance(source, Path) else io.BytesIO(source)
            return resolve(torch.load(file, map_location="cpu", weights_only=True))
    except OddArguments as error:
        raise UnsafePickle(f"{where} was not read: it makes an array with odd arguments ({error})") from error
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UnsafePickle(
                f"{where} was not read: it asks for {match[1]}, which is no data; nothing was run"
            ) from None
        raise DataError(f"{where} is no file by torch.save, or is damaged") from error
    except DataError as error:
        raise DataError(f"{where} was not read: {error}") from error
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, EOFError, AttributeError, MemoryError) as error:
        raise DataError(
            f"{where} is no file by torch.save, or is damaged ({str(error).partition(chr(10))[0]})"
        ) from error

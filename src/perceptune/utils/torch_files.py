"""Reading files of `torch.save` without running code from them."""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from perceptune.errors import UserError, nearest


def require_file(file: Path, what: str) -> None:
    """Raise `UserError` with the nearest name if there is no such file."""
    if not file.is_file():
        siblings = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"no {what} `{file}`{nearest(file.name, siblings)}")


def read_torch_file(file: Path, allowed: Sequence[Any] = ()) -> Any:
    """Read tensors, plain values and the `allowed` types from a file. Raises `UserError` for anything else."""
    try:
        with torch.serialization.safe_globals([*allowed]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it holds `{what[1]}`" if what else "it is no file of torch.save"
        raise UserError(
            f"{file}: refused, {found}; only tensors and plain values are read, for a checkpoint can run code"
        ) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{file}: damaged, or no file of torch.save: {str(error).splitlines()[0]}") from error

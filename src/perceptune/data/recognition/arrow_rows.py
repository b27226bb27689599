"""The first rows of parquet and Arrow files."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from perceptune.data.tasks.base import parquet_rows, reading
from perceptune.errors import UserError

_FEW = 20  # rows; each may hold a whole medium


def arrow_rows(path: Path) -> list[dict[str, Any]]:
    """Return the first rows of a file, or of the first such file below a folder. Raises `UserError` without any."""
    files = (
        [path] if path.is_file() else sorted(file for kind in ("parquet", "arrow") for file in path.rglob(f"*.{kind}"))
    )
    if not files:
        raise UserError(f"{path} holds no parquet and no Arrow file")
    if files[0].suffix == ".parquet":
        return [record.values for record in islice(parquet_rows(files[0]), _FEW)]
    return [*islice(_of_arrow(files[0]), _FEW)]


def _of_arrow(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file in Arrow's stream format, as `datasets` writes it, or in its file format."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{file}: Arrow files need more packages: run `pip install 'perceptune[data]'`") from error
    with reading(file, pyarrow.ArrowException), pyarrow.memory_map(str(file)) as source:
        try:
            batches = iter(pyarrow.ipc.open_stream(source))
        except pyarrow.ArrowInvalid:
            opened = pyarrow.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        for batch in batches:
            yield from batch.slice(0, _FEW).to_pylist()

"""Where a run's Q-Former looks with and without instructions in front of the prompt (PETAL's slides, Figure 4).

    python studies/attention.py RUN FILE --out FOLDER [--photos N]

Writes a panel for each of the first photos of FILE (JSON lines) into FOLDER, and `table.json`: how much of the
attention an instruction moves (half of the summed differences of two maps), and how even a map is (its entropy over
that of an even one).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from command import end_with, figure, read_rows, write_table
from perceptune.data.media.source import open_image
from perceptune.errors import UserError
from perceptune.methods.qformer.base import ENHANCED
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.run_folder import load
from perceptune.tools.attention_maps import look
from perceptune.tools.plots.heatmap import PanelRow, save_panel

QUESTION = "What is this?"  # in place of a prompt, for templates that ask for one
Map = NDArray[np.floating]


def moved(a: Map, b: Map) -> float:
    """Between 0 and 1: the part of one map's attention that lies elsewhere in the other."""
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


def evenness(one: Map) -> float:
    """1 for a map that is the same everywhere, 0 for a single place."""
    share = (one / one.sum()).ravel()
    return float(-(share * np.log(np.maximum(share, 1e-12))).sum() / np.log(share.size))


def figures(values: Sequence[tuple[float, float, float]]) -> list[dict[str, Any]]:
    """Rows of a table, from each photo's values."""
    labels = [("moved", "attention that the instructions move"), ("even-plain", "evenness with the prompt alone"),
              ("even-enhanced", "evenness with the instructions")]  # fmt: skip
    columns = zip(*values, strict=True)
    return [figure(label, what, column) for (label, what), column in zip(labels, columns, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=8)
    options = parser.parse_args(arguments)
    model = load(options.run)
    if not isinstance(model, InstructBlipModel):
        raise UserError(f"{options.run} has no Q-Former to look with")
    options.out.mkdir(parents=True, exist_ok=True)
    values = []
    for number, row in enumerate(read_rows(options.file)[: options.photos]):
        image = options.file.parent / row["image"]
        found = look(model, image, row.get("prompt", QUESTION), [" ".join(ENHANCED)])
        plain, enhanced = found.rows[0].maps[-1], found.rows[-1].maps[-1]
        values.append((moved(plain, enhanced), evenness(plain), evenness(enhanced)))
        panel = [PanelRow(one.label, one.maps) for one in found.rows]
        save_panel(open_image(image), found.box, found.columns, panel, options.out / f"{number}.png")
    write_table(options.out, "attention", figures(values))


if __name__ == "__main__":
    end_with(main)

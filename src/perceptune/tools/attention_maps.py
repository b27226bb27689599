"""Cross-attention maps of a Q-Former over the image, for a bare prompt and for enhanced instructions."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from perceptune.data.media.source import open_image
from perceptune.data.storage import local_path
from perceptune.encoders.base import BlipVision
from perceptune.errors import UserError
from perceptune.lm.frozen_blip import FrozenBlip
from perceptune.methods.qformer.base import ENHANCED
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.instructblip.text_format import BlipText
from perceptune.models.run_folder import load
from perceptune.tools.plots.figures import require_matplotlib
from perceptune.tools.plots.heatmap import Map, PanelRow, on_image, save_panel, seen_part
from perceptune.tools.plots.layout import Box
from perceptune.types import Medium, Sample

MEAN = "mean"


class Look(NamedTuple):
    """Maps (gh, gw) of one instruction: by cross-attending layer, then their mean. A map and the weight of the
    encoder's special token sum to 1."""

    label: str
    texts: tuple[str, ...]  # the Q-Former's text inputs
    maps: tuple[Map, ...]


class Looks(NamedTuple):
    """Attention maps of an image."""

    box: Box  # the part of it that the encoder receives, in its pixels
    layers: tuple[int, ...]
    rows: tuple[Look, ...]

    @property
    def columns(self) -> list[str]:
        """Names of a row's maps."""
        return [*(f"layer {layer}" for layer in self.layers), MEAN]


def show_attention(
    run: str | Path, image: str | Path, prompt: str, out: str | Path, *, enhanced: Sequence[str] = (),
    trust: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a panel of maps (PNG) and return the position of each one's maximum, in the image's pixels.

    Raises `UserError` for a run without a Q-Former, and for one that does not use it.
    """
    require_matplotlib()
    medium = local_path(str(image), "--image")
    model = load(run, trust=trust)
    if not model.has_qformer:
        raise UserError(f"`{run}` has `backbone: {model.recipe.backbone}`, which has no Q-Former to look with")
    found, opened = look(cast(InstructBlipModel, model), medium, prompt, enhanced), open_image(medium)
    save_panel(opened, found.box, found.columns, [PanelRow(row.label, row.maps) for row in found.rows], out)
    rows = [
        {"label": row.label, "instructions": list(row.texts),
         "peaks": {name: peak(one, found.box, *opened.size)
                   for name, one in zip(found.columns, row.maps, strict=True)}}
        for row in found.rows
    ]  # fmt: skip
    return {"image": str(out), "size": list(opened.size), "seen": list(found.box), "rows": rows}


def peak(grid: Map, box: Box, width: int, height: int) -> list[int]:
    """Return x and y, in an image's pixels, of the maximum on the image of a map over `box`."""
    values, _ = on_image(grid, box, width, height)
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return [int(x), int(y)]


@torch.no_grad()
def look(model: InstructBlipModel, medium: Medium, prompt: str, enhanced: Sequence[str] = ()) -> Looks:
    """Return maps for the bare prompt, for the method's instructions if they differ, and with each of `enhanced` in
    front (default for a method that reads the prompt alone: the paper's three, and all of them together).

    A map is the mean over heads, query tokens and passes. Raises `UserError` for a method that leaves the Q-Former out.
    """
    encoder = cast(BlipVision, model.encoders["image"])
    image = open_image(medium)
    special, patch = encoder.n_special, encoder.patch(encoder.tower.config)
    grid = (encoder.transform.size[0] // patch, encoder.transform.size[1] // patch)
    layers = tuple(i for i, layer in enumerate(model.blip.layers) if hasattr(layer, "crossattention"))
    rows = []
    for label, texts in _readings(model, prompt, enhanced):
        seen = _attended(model, Sample("image", {"image": medium}, prompt), texts, layers)
        maps = [one[special:].reshape(grid).numpy() for one in seen]
        rows.append(Look(label, tuple(texts), (*maps, np.mean(maps, axis=0))))
    return Looks(seen_part(encoder.transform, *image.size), layers, tuple(rows))


def _readings(model: InstructBlipModel, prompt: str, enhanced: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return label and instructions of each row."""
    text = cast(BlipText, model.text)
    if text.qformer_tokenizer is None:
        if enhanced:
            raise UserError("--enhanced: a BLIP-2 has a Q-Former that reads no instruction")
        return [("its Q-Former reads no instruction", [])]
    plain = text.as_text(prompt)
    own = list(text.instructions(plain))  # as many as the method requires, whatever their text
    rows = [(f"plain: {plain}", [plain] * len(own))]
    if own != [plain]:
        rows.append((f"as `{model.recipe.method.name}` reads it: {' / '.join(own)}", own))
    elif not enhanced:
        enhanced = [*ENHANCED, " ".join(ENHANCED)]
    return rows + [(f"enhanced: {one} {plain}", [f"{one} {plain}"] * len(own)) for one in enhanced]


def _attended(model: InstructBlipModel, sample: Sample, texts: Sequence[str], layers: Sequence[int]) -> list[Tensor]:
    """Return the attention (T,) of each layer."""
    text = cast(BlipText, model.text)
    before = text.instructions
    text.instructions = lambda _: texts
    try:
        with _recorded(model.blip, layers) as found:
            model.query([sample])
    finally:
        text.instructions = before
    if not all(found.values()):
        raise UserError(f"method `{model.recipe.method.name}` does not look with the Q-Former")
    # The method's own queries come after the published ones, whose outputs the LM receives.
    n = model.blip.n_queries
    return [torch.stack([one[0, :, :n].float().mean((0, 1)) for one in found[layer]]).mean(0).cpu() for layer in layers]


@contextlib.contextmanager
def _recorded(blip: FrozenBlip, layers: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """Record cross-attention (B, heads, queries, T) of every pass by layer, computed by eager attention."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    config = blip.qformer.config
    fast, handles = config._attn_implementation, []
    try:
        config._attn_implementation = "eager"  # the other implementations do not return the weights
        for layer in layers:

            def record(_: nn.Module, __: Any, output: tuple[Tensor, Tensor], layer: int = layer) -> None:
                found[layer].append(output[1])

            attention = cast(Any, blip.layers[layer]).crossattention.attention
            handles.append(attention.register_forward_hook(record))
        yield found
    finally:
        config._attn_implementation = fast
        for handle in handles:
            handle.remove()

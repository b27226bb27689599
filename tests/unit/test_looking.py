"""Maps of where a Q-Former looks: the right patch, in the picture's own pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import blips
import perceptune
from perceptune.cli.main import run as cli
from perceptune.data.media.source import ImageTransform
from perceptune.errors import UserError
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.run_folder import save_run
from perceptune.tools import attention_maps
from perceptune.tools.plots import heatmap

STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WIDTH, HEIGHT = 90, 60
PROMPT = "what color is this picture?"
SQUASHED = ImageTransform((16, 16), None, 3, 1 / 255, *STD)
CROPPED = ImageTransform(16, (16, 16), 3, 1 / 255, *STD)
PADDED = ImageTransform((16, 16), (32, 32), 3, 1 / 255, *STD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("looking")
    for kind in ("t5", "blip2-opt"):
        blips.save_blip(root / kind, kind)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return root


def model_of(folder: Path, kind: str = "t5", method: Any = "head", **encoder: Any) -> InstructBlipModel:
    given = blips.recipe(folder / kind, method=method, cache={"features": "off"}, encoders={"image": encoder},
                         text={"template": "{prompt}"})  # fmt: skip
    return cast(InstructBlipModel, perceptune.build(given).eval())


def force(model: InstructBlipModel, patch: int) -> None:
    """Every query of every layer looks at one patch alone: the ViT says in one feature which it is."""
    with torch.no_grad():
        for layer in model.blip.layers:
            if hasattr(layer, "crossattention"):
                attention = cast(Any, layer.crossattention).attention
                for part, bias in ((attention.query, 1.0), (attention.key, 0.0)):
                    part.weight.zero_()
                    part.bias.fill_(bias)
                attention.key.weight[:, 0] = 50.0

    def marked(_: Any, __: Any, states: torch.Tensor) -> torch.Tensor:
        states = torch.zeros_like(states)
        states[:, :, 1 + patch, 0] = 1.0
        return states

    model.encoders["image"].register_forward_hook(marked)


# Of a picture 90 x 60, the 2 x 2 patches' centres: all of it, the square in its middle, a square with black around it.
CENTRES = {
    "squash": {0: (22, 15), 1: (67, 15), 2: (22, 45), 3: (67, 45)},
    "crop": {0: (30, 15), 1: (60, 15), 2: (30, 45), 3: (60, 45)},
}


@pytest.mark.parametrize("patch", range(4))
@pytest.mark.parametrize("resize", list(CENTRES))
def test_the_greatest_value_lies_on_the_patch_that_is_looked_at(folder: Path, resize: str, patch: int) -> None:
    model = model_of(folder, resize=resize)
    force(model, patch)
    found = attention_maps.look(model, folder / "picture.png", PROMPT, ["is this?"])
    assert found.layers == (0, 2)
    assert found.columns == ["layer 0", "layer 2", "mean"]
    x, y = CENTRES[resize][patch]
    for row in found.rows:
        for one in row.maps:
            assert int(one.argmax()) == patch
            assert float(one.max()) == pytest.approx(1)
            values, seen = heatmap.on_image(one, found.box, WIDTH, HEIGHT)
            assert values[y, x] > 0.9
            assert all(values[b, a] < 0.1 for other, (a, b) in CENTRES[resize].items() if other != patch)
            assert not values[~seen].any()
            at = attention_maps.peak(one, found.box, WIDTH, HEIGHT)
            assert abs(at[0] - x) <= WIDTH / 4
            assert abs(at[1] - y) <= HEIGHT / 4


def test_rows_are_what_was_asked_for(folder: Path) -> None:
    plain = attention_maps.look(model_of(folder), folder / "picture.png", "color?", ["what is this?"])
    assert [row.texts for row in plain.rows] == [("color?",), ("what is this? color?",)]
    assert np.abs(plain.rows[0].maps[-1] - plain.rows[1].maps[-1]).max() > 1e-4
    with pytest.raises(UserError, match="positions"):  # the paper's own are too long for a dwarf
        attention_maps.look(model_of(folder), folder / "picture.png", "color?")
    method = {"name": "petal", "instructions": ["what color?", "is this?"], "mode": "multi_pass", "sib": None,
              "dma": {"r": 4}}  # fmt: skip
    several = attention_maps.look(
        model_of(folder, method=method), folder / "picture.png", "color?", ["is this a picture?"]
    )
    assert [row.texts for row in several.rows] == [
        ("color?", "color?"), ("what color? color?", "is this? color?"), ("is this a picture? color?",) * 2
    ]  # fmt: skip
    one = attention_maps.look(model_of(folder, "blip2-opt"), folder / "picture.png", "color?")
    assert [row.texts for row in one.rows] == [()]
    with pytest.raises(UserError, match="--enhanced"):
        attention_maps.look(model_of(folder, "blip2-opt"), folder / "picture.png", "color?", ["is"])


def test_queries_of_the_method_s_own_are_left_out_and_looking_changes_nothing(folder: Path) -> None:
    model = model_of(folder, method="maple")
    sample = perceptune.Sample("", {"image": folder / "picture.png"}, PROMPT)
    with torch.no_grad():
        before = model.query([sample]).queries
        shapes = []
        with attention_maps._recorded(model.blip, [0, 2]) as found:
            during = model.query([sample]).queries
            shapes = [tuple(one.shape) for layer in found.values() for one in layer]
        attention_maps.look(model, folder / "picture.png", PROMPT, ["is"])
        after = model.query([sample]).queries
    assert shapes == [(1, 2, blips.N_QUERIES + 2, 5)] * 2
    assert torch.equal(before, after)
    assert torch.allclose(before, during, atol=1e-5)
    with pytest.raises(UserError, match="does not look with the Q-Former"):
        attention_maps.look(model_of(folder, method="llava"), folder / "picture.png", PROMPT, ["is"])


def test_maps_lie_on_what_the_encoder_sees() -> None:
    assert heatmap.seen_part(SQUASHED, 90, 60) == (0, 0, 90, 60)
    assert heatmap.seen_part(CROPPED, 90, 60) == (15, 0, 75, 60)
    assert heatmap.seen_part(PADDED, 90, 60) == (-45, -30, 135, 90)
    grid = np.arange(16, dtype=np.float32).reshape(4, 4)
    values, seen = heatmap.on_image(grid, (-45, -30, 135, 90), 90, 60)
    assert seen.all()
    assert (values.min(), values.max()) == (0, 1), "from least to greatest of what is on the picture, not on the black"
    middle = heatmap.on_image(grid[1:3, 1:3], (0, 0, 90, 60), 90, 60)[0]
    assert np.corrcoef(values.ravel(), middle.ravel())[0, 1] > 0.95
    values, seen = heatmap.on_image(grid, (15, 0, 75, 60), 90, 60)
    assert seen[:, 15:75].all()
    assert not seen[:, :15].any()
    assert not seen[:, 75:].any()
    assert not heatmap.on_image(np.ones((2, 2), np.float32), (0, 0, 9, 6), 9, 6)[0].any(), "nothing stands out"


def test_colours_follow_the_map(tmp_path: Path) -> None:
    grid = np.array([[1.0, 0.0]] * 2, np.float32)
    row = heatmap.PanelRow("", [grid])
    heatmap.save_panel(Image.new("RGB", (80, 40), (100, 100, 120)), (0, 0, 60, 40), ["map"], [row], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as panel:
        pixels = np.asarray(panel.convert("RGB")).astype(int)
    left, y = 24 + 168 + 12, 24 + 20 + 20 + 6 + 84  # of the second picture, 168 wide, 84 high; its middle
    bare, red, blue, outside = (pixels[y, x] for x in (24 + 84, left + 10, left + 110, left + 150))
    assert bare.tolist() == [100, 100, 120]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0]
    assert len(set(outside.tolist())) == 1


def test_the_command_writes_a_panel(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "panel.png"
    save_run(run, model_of(folder))
    given = ["show-attention", str(run), PROMPT, "--image", str(folder / "picture.png"), "--out", str(out)]
    assert cli([*given, "--enhanced", "is this?", "--json"]) == 0
    assert '"mean"' in capsys.readouterr().out
    with Image.open(out) as panel:
        assert panel.width > 4 * 168
        assert panel.height > 2 * 168
    assert cli([*given, "--enhanced", "is this?"]) == 0
    assert "looks most at" in capsys.readouterr().out


def test_a_run_without_a_q_former_is_refused(dwarfs: Path, tmp_path: Path) -> None:
    import support

    model = perceptune.build(support.recipe(dwarfs / "lm", dwarfs / "encoder") | {"method": "limber"})
    save_run(tmp_path, model)
    with pytest.raises(UserError, match="no Q-Former"):
        attention_maps.show_attention(tmp_path, "x.png", "", tmp_path / "out.png")

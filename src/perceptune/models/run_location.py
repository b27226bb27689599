"""Locations of a run: a folder, a zip file, or `hf://USER/NAME` on a Hugging Face hub."""

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

from perceptune.errors import NotWritableError, UserError
from perceptune.utils.atomic_io import whole_folder
from perceptune.utils.downloads import cache_dir, clear_os_errors, scratch_dir
from perceptune.utils.paths import given_path

METHOD, META, RECIPE = "method.safetensors", "meta.json", "run.yaml"
PROOF, CARD = "proof.json", "README.md"
FREQUENCIES = "document_frequencies.json"  # for consensus decoding; not in every run
NEIGHBOURS = "neighbours.safetensors"  # for consensus decoding with neighbours; never shared
# The files of a shared run; any others are neither uploaded nor downloaded.
SHARED = (CARD, FREQUENCIES, META, METHOD, PROOF, RECIPE)
# `Path` reduces two slashes to one.
_ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MAX_TEXT = 64 * 2**20  # bytes of a text file in a zip file
_MAX_RATIO = 50  # trained weights hardly compress: a file with a higher ratio is a zip bomb


def is_address(run: str | Path) -> bool:
    """Return whether a run is given by its address on a hub."""
    return str(run).startswith("hf:/")


def local_run(run: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a run; one in a zip file or on a hub is first unpacked or downloaded into the cache.

    A folder is returned as it is, run or not. USER/NAME is on a hub unless there is a folder USER here; `revision` is a
    branch, tag or commit of it. Raises `UserError` for an invalid address, a hub or a name that does not respond, and a
    zip file that is damaged or holds no run.
    """
    at = "" if revision is None else f"@{revision}"
    if is_address(run):
        return _fetched(f"{run}{at}")
    path = given_path(str(run))
    if not path.exists() and _NAME.fullmatch(str(run)) and not path.parent.is_dir():
        return _fetched(f"hf://{run}{at}")
    if revision is not None:
        raise UserError(f"revision `{revision}`: `{run}` is no run on a hub, of which there are several")
    return _unpacked(path) if path.is_file() and path.suffix == ".zip" else path


def _fetched(address: str) -> Path:
    from huggingface_hub import snapshot_download

    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"`{address}` is no address of a run: write hf://USER/NAME or hf://USER/NAME@REVISION")
    try:
        folder = snapshot_download(match["name"], revision=match["revision"], allow_patterns=[*SHARED])
    except hub_errors() as error:
        raise UserError(f"cannot fetch {address}: {brief(error)}") from error
    if not (Path(folder) / META).is_file():
        raise UserError(f"{address} holds no run: there is no {META}")
    return Path(folder)


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors of `huggingface_hub` for hubs that do not respond or deny access, and for invalid names."""
    from huggingface_hub.errors import HfHubHTTPError

    # A lost connection raises an error of its HTTP library, which varies: the base classes cover all of them.
    return (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError)


def brief(error: Exception) -> str:
    """Return another library's error message on one line: for a hub's error the status, then the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _unpacked(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()[:24]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return _unpacked_into(cache_dir() / "runs" / name, path)
    except NotWritableError:  # temporary, for this command alone
        return _unpacked_into(scratch_dir() / "runs" / name, path)


def _unpacked_into(folder: Path, path: Path) -> Path:
    with clear_os_errors():
        if (folder / META).is_file():
            return folder
        try:
            with whole_folder(folder) as new:
                _unpack(path, new)
        except OSError:  # another process may have written the same bytes first
            if not folder.is_dir():
                raise
    return folder


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename in SHARED]
            for info in members:
                most = _MAX_RATIO * info.compress_size if info.filename == METHOD else _MAX_TEXT
                if info.file_size > most:
                    raise UserError(f"{path}: `{info.filename}` would unpack to {info.file_size:,} bytes")
                with archive.open(info) as packed, (folder / info.filename).open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: damaged: {brief(error)}") from error
    for name in (META, METHOD, RECIPE):
        if not (folder / name).is_file():
            raise UserError(f"{path} holds no run: there is no {name}")

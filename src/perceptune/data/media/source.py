"""Reading of media from disk or memory. Files are untrusted: reject early, name the file, never guess."""

import hashlib
import math
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from perceptune.data import storage
from perceptune.data.media.bit_depth import looks_empty, redecoded
from perceptune.data.media.file_types import HEAD, is_heic, refusal
from perceptune.data.media.png_chunks import SIGNATURE, without_long_texts
from perceptune.data.media.remote_media import failure
from perceptune.data.media.rgb import is_deep, to_rgb, turn_of, upright_rgb
from perceptune.data.media.shrinking import MAX_DECODED_BYTES, count_shrunk, decoded_bytes, divisor_of, shrunk
from perceptune.data.media.suffixes import MAX_PIXELS as MAX_PIXELS
from perceptune.errors import UserError
from perceptune.types import Medium, Member
from perceptune.utils.paths import hint

MAX_HEADER_PIXELS = 1_000_000_000  # of an image that is scaled down while it is decoded
Resize = Literal["squash", "crop", "published"]
Size = tuple[int, int]  # (height, width)
Extent = int | Size  # the shortest edge, or (height, width)

# Pillow supports some fifty formats; its security advisories mostly concern the rare ones.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_READ = (*FORMATS, "HEIC")
# Augmented views: ranges of the area's fraction and of the change in aspect ratio.
VIEW = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3)}
# Errors that damaged files raised, those that Pillow expects of its plugins, and warnings, in case the caller has
# turned them into errors.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, RuntimeError, ZeroDivisionError),
    *(struct.error, zlib.error, UserWarning),
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class MediaError(UserError):
    """An unusable medium. The message names it."""


def label(medium: Medium, kind: str = "image") -> str:
    """Return the name of a medium for messages: its location, or `kind` for bytes."""
    return kind if isinstance(medium, bytes) else str(medium)


def identity(medium: Medium) -> str:
    """Return a string that changes with the medium, as far as is known without reading it; never raises."""
    if isinstance(medium, bytes):
        return hashlib.sha256(medium).hexdigest()
    if isinstance(medium, Member):
        return f"{medium.shard}|{medium.version}|{medium.offset}|{medium.size}"
    path = str(medium.absolute())
    try:
        stat = medium.stat()
    except OSError:
        return path  # reading it raises the error
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"


def content(medium: Medium, name: str | None = None) -> bytes:
    """Read the encoded bytes of a medium, which `name` identifies in messages. Raises `MediaError`."""
    name = name or label(medium)
    if isinstance(medium, Path):
        with _opened(medium, name) as file:
            try:
                return file.read()
            except OSError as error:
                raise MediaError(f"{name}: cannot be read ({error.strerror})") from error
    data = storage.read(medium) if isinstance(medium, Member) else medium
    if not data:
        raise MediaError(f"{name}: no bytes at all")
    return data


def open_image(medium: Medium, name: str | None = None, *, max_pixels: int = MAX_HEADER_PIXELS) -> Image.Image:
    """Read an image as it should be displayed: RGB, upright, transparency on white, first frame or page of several.

    One of more than `MAX_PIXELS` is scaled down while it is decoded; `print_shrunk` prints their number. `name`
    identifies the medium in messages (default: its location, or `image` for bytes). Raises `MediaError`.
    """
    image, divisor = _decoded(medium, name, max_pixels, MAX_PIXELS)
    if divisor > 1:
        count_shrunk(medium)
    return image


def open_within(medium: Medium, name: str | None = None, *, max_pixels: int, within: int) -> Image.Image:
    """Return an image as `open_image` does, one of more than `within` pixels divided by a whole number."""
    return _decoded(medium, name, max_pixels, within)[0]


def _decoded(medium: Medium, name: str | None, max_pixels: int, within: int) -> tuple[Image.Image, int]:
    """Return an image, and the number by which its sides were divided."""
    with opened_image(medium, name, max_pixels=max_pixels) as image:
        divisor = _divisor(image, within, name or label(medium))
        if divisor == 1:
            return _whole(image, medium), 1
        return shrunk(image, within) or _whole(image, medium).reduce(divisor), divisor


def _divisor(image: Image.Image, within: int, shown: str) -> int:
    """Return the divisor of a large image's sides. Raises `MediaError` for one that needs too much memory."""
    width, height = image.size
    divisor = divisor_of(image.size, within)
    if divisor > 1 and (needed := decoded_bytes(image, within)) > MAX_DECODED_BYTES:
        told = f"{width} x {height} pixels take {needed / 2**30:.1f} GiB when decoded"
        raise MediaError(f"{shown}: {told}; allowed are {MAX_DECODED_BYTES / 2**30:.0f} GiB")
    return divisor


def image_size(medium: Medium, name: str | None = None, *, max_pixels: int = MAX_HEADER_PIXELS) -> Size:
    """Read (height, width) from the header without decoding. Raises `MediaError` if it is not an image."""
    with opened_image(medium, name, max_pixels=max_pixels) as image:
        size = image.height, image.width
        _divisor(image, MAX_PIXELS, name or label(medium))
        return size


@contextmanager
def opened_image(
    medium: Medium, name: str | None = None, *, max_pixels: int = MAX_HEADER_PIXELS
) -> Iterator[Image.Image]:
    """Open an image and check its header; errors of damaged files inside the block become `MediaError`."""
    shown, head = name or label(medium), b""
    try:
        with _opened(medium, shown) as file:
            head = file.read(HEAD)
            formats = _formats(head, shown)
            file.seek(0)
            image = _opener(without_long_texts(file) if head.startswith(SIGNATURE) else file, formats)
            width, height = image.size  # from the header: nothing is decoded yet
            if not 0 < width * height <= max_pixels:
                raise MediaError(f"{shown}: {width} x {height} pixels; allowed are 1 to {max_pixels:,}")
            with image:
                yield image
    except _BOMB as error:
        raise MediaError(f"{shown}: more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise MediaError(f"{shown}: {refusal(head, 'image', 'image', ', '.join(_READ))}") from error
    except _DAMAGE as error:
        raise MediaError(f"{shown}: damaged image ({error})") from error


def _formats(head: bytes, shown: str) -> tuple[str, ...]:
    """Return the formats to try. Raises `MediaError` for a format whose package is not installed."""
    if head[4:8] != b"ftyp" or not is_heic(head):
        return FORMATS
    try:
        import pillow_heif
    except ImportError as error:
        advice = "run `pip install 'perceptune[heif]'`, or convert it to JPEG"
        raise MediaError(f"{shown}: a HEIC photo, which needs pillow-heif; {advice}") from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _opener(file: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """Open an image as `Image.open` does, without its limit on pixels, which the caller checks."""
    Image.preinit()
    if not {*formats} <= Image.OPEN.keys():
        Image.init()
    prefix = file.read(16)
    for kind in formats:
        factory, accept = Image.OPEN[kind]
        accepted = accept is None or accept(prefix)
        if not accepted or isinstance(accepted, str):  # a string says why the format is not supported here
            continue
        file.seek(0)
        with suppress(SyntaxError, IndexError, TypeError, struct.error):
            return factory(file, "")
    raise UnidentifiedImageError


@dataclass(frozen=True)
class View:
    """An augmented view of an image: a random crop, perhaps mirrored, the same for the same `seed`."""

    seed: bytes
    flip: bool

    def __call__(self, image: Image.Image) -> Image.Image:
        """Crop at least half of the area, change the aspect ratio by at most a third, and mirror every other view."""
        chance = random.Random(self.seed)
        area, ratio = chance.uniform(*VIEW["scale"]), math.exp(chance.uniform(*map(math.log, VIEW["ratio"])))
        width = min(image.width, max(1, round(math.sqrt(image.width * image.height * area * ratio))))
        height = min(image.height, max(1, round(math.sqrt(image.width * image.height * area / ratio))))
        left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip and chance.random() < 0.5 else image


@dataclass(frozen=True)
class ImageTransform:
    """Preprocessing of an RGB image to (3, H, W) float32 as in transformers: resize, crop, rescale, normalise."""

    resize: Extent
    crop: Size | None
    resample: int  # one of PIL.Image.Resampling
    scale: float  # pixel values 0..255 are multiplied by this
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> Size:
        """Output (height, width); a shortest edge always comes with a crop."""
        return self.crop or _pair(self.resize)

    def __call__(
        self, image: Image.Image, name: str = "image", change: Callable[[Image.Image], Image.Image] | None = None
    ) -> NDArray[np.float32]:
        """Convert an RGB image to (3, H, W) float32; `change` applies after resizing, `name` is for messages."""
        height, width = image.height, image.width
        if isinstance(self.resize, int):
            # The longer edge is rounded down, as in transformers.
            height, width = (self.resize * side // min(height, width) for side in (height, width))
        else:
            height, width = self.resize
        if height * width > MAX_PIXELS:
            # An image one pixel high passes every limit before, but its enlargement would take gigabytes.
            raise MediaError(f"{name}: {image.width} x {image.height} is too narrow to enlarge to {self.resize}")
        image = image.resize((width, height), resample=Image.Resampling(self.resample))
        if self.crop is not None:  # padded with black if the image is too small
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        if change is not None:
            image = change(image)
        # Via float64, as in transformers: the same rounding gives the same features.
        pixels = (np.asarray(image).astype(np.float64) * self.scale).astype(np.float32)
        pixels -= np.asarray(self.mean, np.float32)
        pixels /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def as_dict(self) -> dict[str, Any]:
        """Return the settings with the output `size`, JSON-serialisable."""
        settings = {"size": self.size, **asdict(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def image_transform(
    settings: Mapping[str, Any], size: int | None, resize: Resize, mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ImageTransform:  # fmt: skip
    """Return the transform of a complete `preprocessor_config.json`, overridden by the other arguments."""
    edge, crop = _geometry(settings, size, resize)
    scale = float(settings["rescale_factor"]) if settings["do_rescale"] else 1.0
    if not settings["do_normalize"]:
        mean, std = mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0)
    mean, std = mean or settings["image_mean"], std or settings["image_std"]
    return ImageTransform(edge, crop, int(settings["resample"]), scale, tuple(mean), tuple(std))


def _geometry(settings: Mapping[str, Any], size: int | None, resize: Resize) -> tuple[Extent, Size | None]:
    edge = _extent(settings["size"], settings["default_to_square"]) if settings["do_resize"] else None
    crop = _pair(_extent(settings["crop_size"], True)) if settings["do_center_crop"] else None
    published = crop or edge  # with only a shortest edge, the other one is undetermined
    if resize != "published" and (target := size or published) is not None:
        square = _pair(target)
        return (square, None) if resize == "squash" else (max(square), square)
    if resize != "published" or edge is None or isinstance(published, int):
        raise UserError("its preprocessing leaves the size open; set `size` and `resize: squash` or `crop`")
    if size is None or crop is None:
        return (edge if size is None else _pair(size)), crop
    # The fraction of the image that the crop removes stays as published.
    scaled = tuple(round(side * size / crop[0]) for side in _pair(edge))
    return (scaled[0] if isinstance(edge, int) else (scaled[0], scaled[1])), _pair(size)


def _pair(size: Extent) -> Size:
    return (size, size) if isinstance(size, int) else size


def _extent(size: int | Mapping[str, int], square: bool) -> Extent:
    """Return a published size as a shortest edge or (height, width); `square` decides for a single number."""
    if isinstance(size, int):
        return (size, size) if square else size
    if size.keys() == {"height", "width"}:
        return (size["height"], size["width"])
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"]
    raise UserError(f"its preprocessing gives an image size in an unknown way: {dict(size)}")


def _opened(medium: Medium, label: str) -> BinaryIO:
    if not isinstance(medium, Path):
        return BytesIO(content(medium, label))
    try:
        if medium.is_dir():
            raise MediaError(f"{label}: is a folder, not a file")
        if medium.stat().st_size == 0:
            raise MediaError(f"{label}: the file is empty")
        return medium.open("rb")
    except FileNotFoundError as error:
        raise MediaError(failure(medium) or f"{label}: no such file{hint(medium)}") from error
    except OSError as error:
        about = hint(medium) if medium.is_symlink() else ""  # such as a link to itself
        raise MediaError(f"{label}: cannot be read ({error.strerror}){about}") from error


def _whole(image: Image.Image, medium: Medium) -> Image.Image:
    deep, turn = is_deep(image), turn_of(image)
    image.load()
    if not deep or not looks_empty(image):
        return upright_rgb(image)
    again = redecoded(image, content(medium))
    return to_rgb(again if turn is None else again.transpose(turn))

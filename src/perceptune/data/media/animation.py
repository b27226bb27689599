"""Animated images, read by Pillow: WebP, APNG and AVIF."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from perceptune.data.media.rgb import upright_rgb
from perceptune.data.media.source import MediaError, opened_image

_FORMATS = ("WEBP", "PNG", "AVIF")  # in other formats, several images in a file are pages or sizes of one image
_UNSAID = 100  # milliseconds of a frame without a duration, as in browsers


def moves(file: Path) -> bool:
    """Return whether an image has several frames; False for an unreadable one, which raises when it is used."""
    try:
        with opened_image(file) as image:
            return getattr(image, "n_frames", 1) > 1
    except MediaError:
        return False


def frames_of(image: Image.Image) -> range:
    """Return the numbers of the frames of an opened image: one unless it is animated."""
    count = getattr(image, "n_frames", 1) if image.format in _FORMATS else 1
    # A default image before the animation is for viewers that do not support animations.
    return range(1 if image.info.get("default_image") and count > 1 else 0, count)


def durations(image: Image.Image) -> Iterator[int]:
    """Yield the duration of each frame in milliseconds; all frames are decoded, since most formats require that."""
    for number in frames_of(image):
        image.seek(number)
        image.load()
        yield round(image.info.get("duration") or _UNSAID)


def chosen(image: Image.Image, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """Yield frames by ascending indices into `frames_of`: RGB, upright, transparency on white."""
    first, last = frames_of(image).start, None
    for number in numbers:
        if number != last:
            image.seek(first + number)
            shown, last = upright_rgb(image), number
        yield shown

"""Images that move, as Pillow reads them: WebP, APNG and AVIF."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from perceptune.data.media.source import MediaError, opened_image, upright_rgb

_FORMATS = ("WEBP", "PNG", "AVIF")  # of others, several images in a file are pages or sizes of one image
_UNSAID = 100  # milliseconds of a frame that does not say how long it is shown, as in browsers


def moves(file: Path) -> bool:
    """Whether an image has several frames; False for one that cannot be read, which is found out where it is used."""
    try:
        with opened_image(file) as image:
            return getattr(image, "n_frames", 1) > 1
    except MediaError:
        return False


def frames_of(image: Image.Image) -> range:
    """Numbers of the frames of an opened image: one, unless it moves."""
    count = getattr(image, "n_frames", 1) if image.format in _FORMATS else 1
    # An image in front of the animation is for viewers that cannot show it.
    return range(1 if image.info.get("default_image") and count > 1 else 0, count)


def durations(image: Image.Image) -> Iterator[int]:
    """How long each frame is shown, in milliseconds. Every frame is decoded: most formats tell it only then."""
    for number in frames_of(image):
        image.seek(number)
        image.load()
        yield round(image.info.get("duration") or _UNSAID)


def chosen(image: Image.Image, numbers: Sequence[int]) -> Iterator[Image.Image]:
    """Some frames by their place among `frames_of`, in rising order: RGB, upright, transparency on white."""
    first, last = frames_of(image).start, None
    for number in numbers:
        if number != last:
            image.seek(first + number)
            shown, last = upright_rgb(image), number
        yield shown

"""RandAugment (Cubuk et al., 2020): a few random operations on an image, all of the same magnitude.

Two lists of operations: ALBEF's ten, also used by eP-ALM and LAVIS, each applied with probability 1/2, and
torchvision's fourteen. A fraction of 1 is the maximum magnitude of a list.
"""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Form = Literal["albef", "torchvision"]
Operation = Callable[[Image.Image, float], Image.Image]  # image, signed fraction of the maximum


class Operations(NamedTuple):
    """A list of operations and the parameters of sampling."""

    named: Mapping[str, Operation]
    top: int  # maximum magnitude
    chance: float  # probability of applying a sampled operation


def augmented(image: Image.Image, seed: bytes, num_ops: int, magnitude: int, form: Form) -> Image.Image:
    """Apply `num_ops` operations to an RGB image, the same ones for the same `seed`."""
    listed, chance = OPERATIONS[form], random.Random(seed)
    for _ in range(num_ops):
        operation = listed.named[chance.choice(list(listed.named))]
        acts, sign = chance.random() < listed.chance, chance.choice((-1, 1))
        if acts:
            image = operation(image, sign * magnitude / listed.top)
    return image


def _moves(
    resample: Image.Resampling, fill: tuple[int, int, int], shift: Callable[[int, float], float]
) -> dict[str, Operation]:
    """Return shears, translations by a `shift` of the image's side, and rotations; `fill` is the colour outside."""

    def moved(image: Image.Image, x: tuple[float, float, float], y: tuple[float, float, float]) -> Image.Image:
        """Sample pixel (column, row) at (x . (column, row, 1), y . (column, row, 1)), relative to pixel centres."""
        data = [(a, b, c + 0.5 - (a + b) / 2) for a, b, c in (x, y)]
        matrix = (*data[0], *data[1])
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

    def rotated(image: Image.Image, share: float) -> Image.Image:
        """Rotate anticlockwise around the centre."""
        angle, x, y = math.radians(30 * share), image.width / 2, image.height / 2
        cos, sin = math.cos(angle), math.sin(angle)
        return moved(image, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))

    return {
        "shear_x": lambda image, share: moved(image, (1, -0.3 * share, 0), (0, 1, 0)),
        "shear_y": lambda image, share: moved(image, (1, 0, 0), (-0.3 * share, 1, 0)),
        "translate_x": lambda image, share: moved(image, (1, 0, -shift(image.width, share)), (0, 1, 0)),
        "translate_y": lambda image, share: moved(image, (1, 0, 0), (0, 1, -shift(image.height, share))),
        "rotate": rotated,
    }


def _enhanced(factor: Callable[[float], float], *kinds: type[ImageEnhance._Enhance]) -> dict[str, Operation]:
    def operation(kind: Any) -> Operation:
        return lambda image, share: kind(image).enhance(factor(share))

    return {kind.__name__.lower(): operation(kind) for kind in kinds}


def _posterized(image: Image.Image, share: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(share)))


def _solarized(image: Image.Image, share: float) -> Image.Image:
    pixels, threshold = np.asarray(image), 255 * (1 - abs(share))
    return Image.fromarray(np.where(pixels >= threshold, 255 - pixels, pixels))


_SPAN = 150 / 331  # torchvision's maximum translation as a fraction of the side: 150 pixels of the paper's 331
_PLAIN: dict[str, Operation] = {
    "identity": lambda image, share: image,
    "auto_contrast": lambda image, share: ImageOps.autocontrast(image),
    "equalize": lambda image, share: ImageOps.equalize(image),
}
_ALBEF = (
    _PLAIN
    | _enhanced(lambda share: 1.8 * abs(share) + 0.1, ImageEnhance.Brightness, ImageEnhance.Sharpness)
    | _moves(Image.Resampling.BILINEAR, (128, 128, 128), lambda side, share: 10 * share)
)
_KINDS = (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Sharpness)
_TORCHVISION = (
    _PLAIN
    | _enhanced(lambda share: 1 + 0.9 * share, *_KINDS)
    | {"posterize": _posterized, "solarize": _solarized}
    | _moves(Image.Resampling.NEAREST, (0, 0, 0), lambda side, share: int(_SPAN * side * share))
)
OPERATIONS: dict[Form, Operations] = {
    "albef": Operations(_ALBEF, top=10, chance=0.5),
    "torchvision": Operations(_TORCHVISION, top=30, chance=1.0),
}

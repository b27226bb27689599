"""RandAugment (Cubuk et al., 2020): a few operations drawn for an image, all of one magnitude.

Two lists of operations: ALBEF's ten, which eP-ALM and LAVIS have taken over, each carried out every other time, and
torchvision's fourteen. A share of 1 is the strongest magnitude of a list.
"""

import math
import random
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Form = Literal["albef", "torchvision"]
Operation = Callable[[Image.Image, float], Image.Image]  # the image, and a share with its sign


class Operations(NamedTuple):
    """One list, and how it is drawn from."""

    named: Mapping[str, Operation]
    top: int  # the strongest magnitude
    chance: float  # that an operation which was drawn is carried out


def augmented(image: Image.Image, seed: bytes, num_ops: int, magnitude: int, form: Form) -> Image.Image:
    """`num_ops` operations on an RGB image, always the same ones for the same `seed`."""
    listed, chance = OPERATIONS[form], random.Random(seed)
    for _ in range(num_ops):
        operation = listed.named[chance.choice(list(listed.named))]
        acts, sign = chance.random() < listed.chance, chance.choice((-1, 1))
        if acts:
            image = operation(image, sign * magnitude / listed.top)
    return image


class _Moved(NamedTuple):
    """Images drawn elsewhere: how they are resampled, and the colour of what was not there."""

    resample: Image.Resampling
    fill: tuple[int, int, int]

    def __call__(self, image: Image.Image, x: tuple[float, float, float], y: tuple[float, float, float]) -> Image.Image:
        """The pixel at (column, row) comes from (x . (column, row, 1), y . (column, row, 1)), by pixels' centres."""
        data = [(a, b, c + 0.5 - (a + b) / 2) for a, b, c in (x, y)]
        matrix = (*data[0], *data[1])
        return image.transform(image.size, Image.Transform.AFFINE, matrix, self.resample, fillcolor=self.fill)

    def shear_x(self, image: Image.Image, factor: float) -> Image.Image:
        return self(image, (1, -factor, 0), (0, 1, 0))

    def shear_y(self, image: Image.Image, factor: float) -> Image.Image:
        return self(image, (1, 0, 0), (-factor, 1, 0))

    def translate(self, image: Image.Image, right: float, down: float) -> Image.Image:
        return self(image, (1, 0, -right), (0, 1, -down))

    def rotate(self, image: Image.Image, degrees: float) -> Image.Image:
        """Anticlockwise around the middle."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        x, y = image.width / 2, image.height / 2
        return self(image, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance], factor: Callable[[float], float]) -> Operation:
    return lambda image, share: kind(image).enhance(factor(share))


def _posterized(image: Image.Image, share: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(share)))


def _solarized(image: Image.Image, share: float) -> Image.Image:
    pixels, threshold = np.asarray(image), 255 * (1 - abs(share))
    return Image.fromarray(np.where(pixels >= threshold, 255 - pixels, pixels))


_GREY = _Moved(Image.Resampling.BILINEAR, (128, 128, 128))
_BLACK = _Moved(Image.Resampling.NEAREST, (0, 0, 0))
_SPAN = 150 / 331  # torchvision's largest translation as a share of the side: 150 pixels of the paper's 331
_PLAIN: dict[str, Operation] = {
    "identity": lambda image, share: image,
    "auto_contrast": lambda image, share: ImageOps.autocontrast(image),
    "equalize": lambda image, share: ImageOps.equalize(image),
}


def _albef_factor(share: float) -> float:
    return 1.8 * abs(share) + 0.1


def _torchvision_factor(share: float) -> float:
    return 1 + 0.9 * share


OPERATIONS: dict[Form, Operations] = {
    "albef": Operations(
        {
            **_PLAIN,
            "brightness": _enhanced(ImageEnhance.Brightness, _albef_factor),
            "sharpness": _enhanced(ImageEnhance.Sharpness, _albef_factor),
            "shear_x": lambda image, share: _GREY.shear_x(image, 0.3 * share),
            "shear_y": lambda image, share: _GREY.shear_y(image, 0.3 * share),
            "translate_x": lambda image, share: _GREY.translate(image, 10 * share, 0),
            "translate_y": lambda image, share: _GREY.translate(image, 0, 10 * share),
            "rotate": lambda image, share: _GREY.rotate(image, 30 * share),
        },
        top=10,
        chance=0.5,
    ),
    "torchvision": Operations(
        {
            **_PLAIN,
            "brightness": _enhanced(ImageEnhance.Brightness, _torchvision_factor),
            "color": _enhanced(ImageEnhance.Color, _torchvision_factor),
            "contrast": _enhanced(ImageEnhance.Contrast, _torchvision_factor),
            "sharpness": _enhanced(ImageEnhance.Sharpness, _torchvision_factor),
            "posterize": _posterized,
            "solarize": _solarized,
            "shear_x": lambda image, share: _BLACK.shear_x(image, 0.3 * share),
            "shear_y": lambda image, share: _BLACK.shear_y(image, 0.3 * share),
            "translate_x": lambda image, share: _BLACK.translate(image, int(_SPAN * image.width * share), 0),
            "translate_y": lambda image, share: _BLACK.translate(image, 0, int(_SPAN * image.height * share)),
            "rotate": lambda image, share: _BLACK.rotate(image, 30 * share),
        },
        top=30,
        chance=1.0,
    ),
}

"""RandAugment: the same for the same seed, and each operation what its name says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from perceptune.config.recipe import load_recipe
from perceptune.config.schema import EncoderConfig
from perceptune.data.media.rand_augment import OPERATIONS, augmented
from perceptune.data.media.source import ImageTransform
from perceptune.encoders._images import ImageEncoder
from perceptune.errors import UserError


def noise(size: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(40, 200, (size, size, 3), dtype=np.uint8))


def operated(form: str, name: str, image: Image.Image, share: float) -> NDArray[Any]:
    return np.asarray(OPERATIONS[form].named[name](image, share)).astype(int)  # type: ignore[index]


def test_a_seed_always_gives_the_same_and_seeds_differ() -> None:
    image = noise()
    for form in OPERATIONS:
        drawn = [augmented(image, bytes([i]), 2, 7, form).tobytes() for i in range(40)]
        assert drawn == [augmented(image, bytes([i]), 2, 7, form).tobytes() for i in range(40)]
        assert len(set(drawn)) > 10
    assert augmented(image, b"", 1, 7, "albef").size == image.size


def test_albef_s_operations_are_carried_out_every_other_time() -> None:
    image, kept = noise(), 0
    for i in range(300):
        kept += augmented(image, i.to_bytes(2, "big"), 1, 7, "albef").tobytes() == image.tobytes()
    assert 130 < kept < 200  # half of them, and a tenth of the others is `identity`


def test_the_lists_are_the_released_ones() -> None:
    moves = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
    plain = {"identity", "auto_contrast", "equalize", "brightness", "sharpness"}
    assert OPERATIONS["albef"].named.keys() == moves | plain
    assert OPERATIONS["torchvision"].named.keys() == moves | plain | {"color", "contrast", "posterize", "solarize"}


@pytest.mark.parametrize("form", ["albef", "torchvision"])
def test_nothing_is_moved_by_a_share_of_nothing(form: str) -> None:
    image = noise()
    names = [name for name in OPERATIONS[form].named if name.split("_")[0] in ("shear", "translate", "rotate")]  # type: ignore[index]
    names += (
        ["identity"] if form == "albef" else ["identity", "brightness", "color", "contrast", "sharpness", "posterize"]
    )
    for name in names:
        assert np.array_equal(operated(form, name, image, 0.0), np.asarray(image)), name


def test_exact_values() -> None:
    image = noise(20)
    pixels = np.asarray(image).astype(int)
    moved = operated("albef", "translate_x", image, 0.7)  # 7 pixels to the right
    assert np.array_equal(moved[:, 7:], pixels[:, :-7])
    assert (moved[:, :6] == 128).all()
    up = operated("torchvision", "translate_y", image, -0.3)  # int(150 / 331 * 20 * 0.3) = 2 pixels upwards
    assert np.array_equal(up[:-2], pixels[2:])
    assert (up[-1] == 0).all()
    brighter = operated("albef", "brightness", image, -0.7)  # 1.8 * 0.7 + 0.1
    assert np.array_equal(brighter, np.minimum(255, np.floor(pixels * np.float32(1.36))).astype(int))
    darker = operated("torchvision", "brightness", image, -0.3)  # 1 - 0.9 * 0.3
    assert np.array_equal(darker, np.floor(pixels * np.float32(0.73)).astype(int))
    assert np.array_equal(operated("torchvision", "posterize", image, 0.3), pixels & 0b11111110)
    assert np.array_equal(
        operated("torchvision", "solarize", image, 0.3), np.where(pixels >= 178.5, 255 - pixels, pixels)
    )
    low, high = pixels.min((0, 1)), pixels.max((0, 1))
    stretched = (pixels - low) * 255 / (high - low)
    assert np.abs(operated("albef", "auto_contrast", image, 0.7) - stretched).max() <= 1


def test_a_shear_moves_each_row_by_its_number() -> None:
    image = Image.new("RGB", (21, 11))
    image.putdata([(10 * x, 0, 0) for _ in range(11) for x in range(21)])
    sheared = operated("albef", "shear_x", image, 1.0)[..., 0]  # row y by 0.3 y pixels to the right
    for y in (0, 5, 10):
        assert np.abs(sheared[y, 8:18] - (10 * np.arange(8, 18) - 3 * y)).max() <= 1
    turned = operated("torchvision", "rotate", image, -1.0)  # 30 degrees: the middle stays
    assert abs(turned[5, 10, 0] - 100) <= 10


def test_an_encoder_augments_its_views_alone_once_they_have_their_size() -> None:
    class Pictures(ImageEncoder):
        n_layers = dim = n_tokens = 1

        def forward(self, x, levels, tokens="cls"):  # type: ignore[no-untyped-def]
            return x

        def settings(self):  # type: ignore[no-untyped-def]
            return {}

    def made(**keys: object) -> Pictures:
        encoder = Pictures().augmenting(EncoderConfig.model_validate(keys))
        encoder.transform = ImageTransform((16, 16), None, 3, 1.0, (0.0,) * 3, (1.0,) * 3)
        return encoder

    plain, augmenting = made(), made(rand_augment={"num_ops": 3, "magnitude": 10})
    image, seeds = noise(64), [bytes([i]) for i in range(20)]
    assert plain.pixels(image, "x").equal(augmenting.pixels(image, "x"))
    before = [plain.pixels(image, "x", seed) for seed in seeds]
    after = [augmenting.pixels(image, "x", seed) for seed in seeds]
    assert all(one.equal(augmenting.pixels(image, "x", seed)) for one, seed in zip(after, seeds, strict=True))
    assert sum(not one.equal(other) for one, other in zip(before, after, strict=True)) > 10
    assert "rand_augment" not in plain.augmentation(), "features that are kept keep their keys"
    assert augmenting.augmentation() != made(rand_augment={"num_ops": 3, "magnitude": 9}).augmentation()


def test_a_magnitude_off_the_scale_is_refused() -> None:
    given = {"encoders": {"image": {"rand_augment": {"magnitude": 12}}}}
    with pytest.raises(UserError, match=r"rand_augment.*`magnitude` is 12, and with `form: albef` at most 10"):
        load_recipe(given)
    load_recipe({"encoders": {"image": {"rand_augment": {"magnitude": 12, "form": "torchvision"}}}})

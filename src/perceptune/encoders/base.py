"""Frozen encoders: what each offers, one implementation for the Vision Transformers, and the loader."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from perceptune.encoders._parts import BlockParts as BlockParts  # leaves import it from here
from perceptune.errors import UserError
from perceptune.media import ImageTransform, Resize, View, image_transform, label, open_image
from perceptune.plugins import leaves
from perceptune.types import Medium

Tokens = Literal["cls", "all"]
Self = TypeVar("Self", bound="Encoder")

# Entries of a config that do not change what the encoder computes.
VOLATILE = {
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels", "out_features",
    "out_indices", "problem_type", "stage_names", "torch_dtype", "transformers_version",
}  # fmt: skip
# What a preprocessor config leaves unsaid; the family's own defaults come on top of it.
PREPROCESSOR_DEFAULTS: dict[str, Any] = {
    "default_to_square": True, "do_resize": True, "do_center_crop": False, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
}  # fmt: skip
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
INCEPTION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
BILINEAR, BICUBIC = 2, 3


class Encoder(nn.Module, ABC):
    """A frozen encoder that gives the tokens of chosen transformer blocks."""

    modality: ClassVar[str] = "image"
    n_layers: int  # transformer blocks
    dim: int  # hidden size
    n_tokens: int  # T of `tokens="all"`, special tokens included

    @abstractmethod
    def load(self, medium: Medium, name: str | None = None, view: View | None = None) -> Tensor:
        """One medium, as `forward` takes it but for the batch axis: float32 on the CPU. Thread-safe.

        `name` stands for it in messages; `view` is what to see of it instead of the whole. Raises `MediaError`.
        """

    @abstractmethod
    def forward(self, x: Tensor, levels: Sequence[int], tokens: Tokens = "cls") -> Tensor:
        """(B, n_levels, T, dim) float32: the tokens that leave block `level` (0-based), after the final norm.

        T = 1 for `cls`, `n_tokens` for `all`. Raises `UserError` for a level outside the encoder.
        """

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What `load` does, as JSON-able settings."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The part of the config that, with the weights, fixes what is computed."""

    @cached_property
    def _fingerprint(self) -> str:
        description = {"config": self.settings(), "preprocessing": self.preprocessing()}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        # Without the weights' names, which transformers changes now and then: a run must outlive that.
        weights = (
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in self.state_dict().values()
        )
        for one in sorted(hashlib.sha256(weight.numpy()).digest() for weight in weights):
            digest.update(one)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 (hex) of config, weights in the dtype they are held in, and preprocessing. Computed once."""
        return self._fingerprint

    def train(self: Self, mode: bool = True) -> Self:
        """Stays in evaluation mode: its features are cached, and dropout would only add noise to them."""
        return super().train(False)

    def check_levels(self, levels: Sequence[int]) -> None:
        """Raises `UserError` for a block the encoder does not have."""
        for level in levels:
            if not 0 <= level < self.n_layers:
                raise UserError(f"the encoder has no level {level}: its blocks are 0 to {self.n_layers - 1}")
        if not levels:
            raise UserError("no encoder level was chosen")


class ViTEncoder(Encoder):
    """A Vision Transformer of transformers. A leaf says where its parts lie."""

    MODELS: ClassVar[Mapping[str, str]]  # model type -> class of transformers that holds the image tower
    BUILD: ClassVar[Mapping[str, Any]] = {}  # arguments of that class beside its config
    BLOCKS: ClassVar[str]  # dotted path of the list of blocks
    NORM: ClassVar[str]  # dotted path of the final norm
    UNUSED: ClassVar[tuple[str, ...]]  # how the names of weights begin that a checkpoint may hold and nobody needs
    POOL: ClassVar[Literal["first", "mean"]] = "first"  # what `cls` means
    PARTS: ClassVar[BlockParts | None] = None  # None: the highest block is run for every token, wanted or not

    def __init__(self, tower: nn.Module, transform: ImageTransform) -> None:
        super().__init__()
        self.tower: Any = tower
        self.transform = transform
        config: Any = tower.config
        self.n_layers, self.dim = len(self.blocks), int(config.hidden_size)
        self.n_special = self.special_tokens(config)  # in front of the patches, [CLS] first
        height, width = (side // config.patch_size for side in transform.size)
        self.n_tokens = self.n_special + height * width
        self.requires_grad_(False).eval()

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks. A property, or their weights would appear twice in the state dict."""
        return self.tower.get_submodule(self.BLOCKS)

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """The tower's config, with parts switched off that are never used."""
        return config

    @classmethod
    def special_tokens(cls, config: Any) -> int:
        """How many tokens stand in front of the patches."""
        return 1

    @classmethod
    @abstractmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """The family's `preprocessor_config.json`, for a checkpoint that comes without one."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, dim) as it enters block 0; position embeddings follow the size of `x`."""

    def load(self, medium: Medium, name: str | None = None, view: View | None = None) -> Tensor:
        """(3, H, W) float32."""
        name = name or label(medium)
        image = open_image(medium, name)
        return torch.from_numpy(self.transform(image if view is None else view(image), name))

    def forward(self, x: Tensor, levels: Sequence[int], tokens: Tokens = "cls") -> Tensor:
        """(B, n_levels, T, dim) float32; blocks above the highest level are not run."""
        self.check_levels(levels)
        hidden = self.embed(x.to(self.tower.dtype))  # (B, T, dim)
        kept: dict[int, Tensor] = {}
        for level, block in enumerate(islice(self.blocks, max(levels) + 1)):
            if level == max(levels) and tokens == "cls" and self.POOL == "first" and self.PARTS is not None:
                hidden = self.PARTS.first_token(block, hidden)
            else:
                hidden = block(hidden, None)
            if level in levels:
                kept[level] = self._pick(hidden, tokens)
        return torch.stack([kept[level] for level in levels], dim=1).float()

    def preprocessing(self) -> dict[str, Any]:
        """Size, crop, resampling, scale, mean and standard deviation."""
        return self.transform.as_dict()

    def settings(self) -> dict[str, Any]:
        """What differs from the class's defaults: an entry added by a later release changes nothing."""
        config = self.tower.config
        defaults = type(config)().to_dict()
        settings = {k: v for k, v in config.to_dict().items() if k not in VOLATILE and v != defaults.get(k)}
        return settings | {"model_type": config.model_type}

    def _pick(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        norm = self.tower.get_submodule(self.NORM)
        if tokens == "cls" and self.POOL == "mean":
            return norm(hidden).mean(dim=1, keepdim=True)
        return norm(hidden[:, :1] if tokens == "cls" else hidden)


def load_encoder(
    id_or_path: str | Path,
    *,
    size: int | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    meta: bool = False,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    resize: Resize = "published",
) -> Encoder:
    """The frozen encoder in a Hugging Face folder or repository.

    `size`, `resize`, `image_mean`, `image_std` replace what the checkpoint publishes. With `meta` nothing but
    the config is read (from a folder or a JSON file), and the parameters lie on the meta device.
    Raises `UserError` for an unsupported model type, or weights that do not fit exactly.
    """
    source = str(id_or_path)
    family, config = _read_config(source, revision)
    settings = PREPROCESSOR_DEFAULTS | family.published(config) | _read_preprocessor(source, revision)
    try:
        transform = image_transform(settings, size, resize, image_mean, image_std)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if size is not None and size % config.patch_size:
        low = max(1, size // config.patch_size) * config.patch_size
        raise UserError(
            f"{source}: `size` {size} is no multiple of its patches' {config.patch_size} pixels; "
            f"use {low} or {low + config.patch_size}"
        )
    if not meta:
        return family(_read_tower(family, source, config, revision, dtype), transform)
    with torch.device("meta"):
        tower = getattr(transformers, family.MODELS[config.model_type])(config, **family.BUILD)
    return family(tower.to(dtype), transform)


def _read_config(source: str, revision: str | None) -> tuple[type[ViTEncoder], Any]:
    """The leaf class for a checkpoint, and the config of its image tower."""
    try:
        entries, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        kind = str(entries.get("model_type"))
        known = {kind: leaf.module for leaf in leaves("encoders").values() for kind in leaf.module.MODEL_TYPES}
        if kind not in known:
            # Nobody typed this name, so there is no nearest one to guess.
            raise UserError(f"{source}: no encoder for model type `{kind}`; known are {', '.join(sorted(known))}")
        config = CONFIG_MAPPING[kind].from_dict(entries)
    except (OSError, StrictDataclassError) as error:
        raise UserError(f"{source}: no usable config ({error})") from error
    family: type[ViTEncoder] = known[kind].ENCODER
    return family, family.prepare(getattr(config, "vision_config", config))


def _read_preprocessor(source: str, revision: str | None) -> dict[str, Any]:
    """What the checkpoint says about its preprocessing; nothing where it says nothing."""
    if Path(source).is_file():
        return {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            file = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            entries = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{source}: `{name}` cannot be read ({error})") from error
        entries = entries.get("image_processor", entries)
        if "size" in entries:
            # A size without a word on cropping is what comes out: the family's crop belongs to its own size.
            return {"do_center_crop": "crop_size" in entries} | entries
    return {}


def _read_tower(
    family: type[ViTEncoder], source: str, config: Any, revision: str | None, dtype: torch.dtype
) -> nn.Module:
    model = getattr(transformers, family.MODELS[config.model_type])
    try:
        with _quiet():
            tower, report = model.from_pretrained(
                source,
                config=config,
                revision=revision or "main",
                dtype=dtype,
                use_safetensors=True,  # never a pickle
                ignore_mismatched_sizes=True,  # they are reported, and refused below
                output_loading_info=True,
                **family.BUILD,
            )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source}: the weights cannot be read ({error})") from error
    unexpected = {key.removeprefix(f"{model.base_model_prefix}.") for key in report["unexpected_keys"]}
    unexpected = {key for key in unexpected if not key.removeprefix("vision_model.").startswith(family.UNUSED)}
    wrong_shape = {key for key, *_ in report["mismatched_keys"]}
    problems = {
        "lacks": report["missing_keys"],
        "has unknown": unexpected,
        "has other shapes of": wrong_shape,
    }
    for problem, keys in problems.items():
        if keys:
            raise UserError(f"{source}: the checkpoint {problem} {len(keys)} weights, first `{min(keys)}`")
    return tower


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of unused weights: what matters in it is an error here."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)

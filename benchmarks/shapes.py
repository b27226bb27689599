"""What is measured: models of published shapes with random weights, built in memory, and their inputs."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, ViTConfig, ViTModel

from perceptune.config.recipe import Recipe, validate
from perceptune.config.registry import leaf
from perceptune.config.training import TrainConfig
from perceptune.data.media.source import image_transform
from perceptune.encoders.base import PREPROCESSOR_DEFAULTS, Encoder
from perceptune.errors import UserError, nearest
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.kernels.optimize import optimize_frozen
from perceptune.lm.probe import probe
from perceptune.methods.slots.base import Method
from perceptune.models.pretrained import CONFIGS
from perceptune.models.slots.build import build_method
from perceptune.models.slots.model import SlotModel
from perceptune.models.text_format import Tokens
from perceptune.types import Features
from perceptune.utils.tensors import last_columns

PUBLISHED = {
    "opt-125m": "facebook--opt-125m",
    "opt-350m": "facebook--opt-350m",
    "opt-1.3b": "facebook--opt-1.3b",
    "vit-b16": "google--vit-base-patch16-224",
    "vit-l16": "google--vit-large-patch16-224",
}
SHAPES = ("opt-125m+vit-b16", "opt-350m+vit-b16", "opt-1.3b+vit-l16", "tiny")
TINY_LM = {
    "model_type": "opt", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4,
    "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
    "init_std": 0.2,  # large, so that in a test everything matters
}  # fmt: skip
TINY_VIT = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
SPREAD = 0.02  # std of random weights, as OPT and ViT are initialised


@dataclass(frozen=True)
class Setting:
    """The workload of every row."""

    batch: int = 16
    text: int = 16  # tokens of question and answer
    supervised: int = 3  # of them, at the right end
    new_tokens: int = 20
    levels: int = 6


def published(shapes: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config entries of LM and encoder. Raises `UserError` naming the nearest valid name."""
    if shapes == "tiny":
        return dict(TINY_LM), dict(TINY_VIT)
    if shapes not in SHAPES:
        raise UserError(f"no shapes `{shapes}`{nearest(shapes, SHAPES)}")
    lm, encoder = (json.loads((CONFIGS / f"{PUBLISHED[name]}.json").read_text()) for name in shapes.split("+"))
    return lm, encoder


def random_lm(entries: dict[str, Any], *, depth: int | None = None, seed: int = 0) -> Any:
    """A causal LM of transformers with random weights, float32, in evaluation mode."""
    entries = dict(entries)
    config = AutoConfig.for_model(entries.pop("model_type"), **entries)
    if depth is not None:
        config.num_hidden_layers = depth
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        _shake(model)
    model.generation_config = GenerationConfig()
    return model


def random_tower(entries: dict[str, Any], *, seed: int = 1) -> Any:
    """A Vision Transformer of transformers with random weights, float32, in evaluation mode."""
    config = _vit(entries)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = ViTModel._from_config(config, add_pooling_layer=False, attn_implementation="sdpa").eval()
        _shake(tower)
    return tower


def random_encoder(entries: dict[str, Any], *, seed: int = 1) -> Encoder:
    """Our encoder around a Vision Transformer of transformers with random weights."""
    config = _vit(entries)
    family = leaf("encoders", "vit").module.ENCODER
    transform = image_transform(PREPROCESSOR_DEFAULTS | family.published(config), None, "published", None, None)
    return family(random_tower(entries, seed=seed), transform)


def _vit(entries: dict[str, Any]) -> ViTConfig:
    return ViTConfig(**{key: value for key, value in entries.items() if key != "model_type"})


def _shake(model: torch.nn.Module) -> None:
    """Norms and biases as trained models have them: neither all one nor all zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * SPREAD)


def _method(recipe: Recipe, lm: FrozenLM, encoders: dict[str, Encoder]) -> Method:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return build_method(recipe, lm, encoders)


class Models:
    """The models of one shape and their inputs; each is built when it is first asked for."""

    def __init__(self, shapes: str, setting: Setting, *, depth: int | None = None) -> None:
        self.name, self.depth = shapes, depth
        self.lm_entries, self.encoder_entries = published(shapes)
        levels = min(setting.levels, self.encoder_entries["num_hidden_layers"])
        injected = levels if depth is None else max(1, min(12, depth // 2))  # no more levels than LM layers take one
        self.setting = replace(setting, levels=min(levels, injected))
        self.vocabulary = int(self.lm_entries["vocab_size"])
        self._lms: dict[torch.dtype, FrozenLM] = {}
        self._encoders: dict[torch.dtype, Encoder] = {}
        self._ours: dict[tuple[str, torch.dtype], SlotModel] = {}

    @cached_property
    def raw_lm(self) -> Any:
        """The LM as transformers has it, without our hooks, float32."""
        return random_lm(self.lm_entries, depth=self.depth).requires_grad_(False)

    @cached_property
    def raw_tower(self) -> Any:
        """The image tower as transformers has it, float32."""
        return random_tower(self.encoder_entries).requires_grad_(False)

    def encoder(self, dtype: torch.dtype) -> Encoder:
        """Ours."""
        if dtype not in self._encoders:
            self._encoders[dtype] = random_encoder(self.encoder_entries).to(dtype)
        return self._encoders[dtype]

    def ours(self, method: str, dtype: torch.dtype) -> SlotModel:
        """Frozen LM in `dtype` (one for all methods), encoder in float32, a fresh method."""
        if (method, dtype) not in self._ours:
            if dtype not in self._lms:
                self._lms[dtype] = FrozenLM(random_lm(self.lm_entries, depth=self.depth).to(dtype))
                self._lms[dtype].capabilities = probe(self._lms[dtype])  # as a training does, both
                optimize_frozen(self._lms[dtype], self._lms[dtype].n_layers // 2, TrainConfig().packed_memory_mb)
            encoders = {"image": self.encoder(torch.float32)}
            recipe = self._recipe(method)
            made = _method(recipe, self._lms[dtype], encoders)
            self._ours[method, dtype] = SlotModel(recipe, self._lms[dtype], encoders, made, None)
        return self._ours[method, dtype]

    def method(self, name: str) -> Method:
        """A fresh method with the same first weights, without the frozen parts in memory."""
        with torch.device("meta"):
            lm = FrozenLM(random_lm(self.lm_entries, depth=self.depth))
            encoders = {"image": random_encoder(self.encoder_entries)}
        return _method(self._recipe(name), lm, encoders)

    def _recipe(self, method: str) -> Recipe:
        options = {"name": method, "n_levels": self.setting.levels}
        return validate(Recipe, {"name": "bench", "method": options}, "bench")

    @cached_property
    def tokens(self) -> Tokens:
        """The texts of every row, without padding."""
        return random_texts(self.setting, self.vocabulary, seed=3)

    @cached_property
    def images(self) -> Tensor:
        """(B, 3, H, W)."""
        side = self.encoder_entries["image_size"]
        return torch.randn(self.setting.batch, 3, side, side, generator=torch.Generator().manual_seed(4))

    @property
    def levels(self) -> list[int]:
        """Encoder blocks in use: the last ones."""
        last = int(self.encoder_entries["num_hidden_layers"])
        return list(range(last - self.setting.levels, last))

    @cached_property
    def features(self) -> Features:
        """What our encoder gives for `images`, in memory."""
        return self.encode(torch.float32)

    @torch.no_grad()
    def encode(self, dtype: torch.dtype) -> Features:
        """`images` through our encoder in `dtype`."""
        values = self.encoder(dtype)(self.images, self.levels)
        return Features(values, torch.ones(len(values), dtype=torch.bool))


def random_texts(setting: Setting, vocabulary: int, *, seed: int, ragged: bool = False) -> Tokens:
    """Texts whose last `supervised` tokens are to be predicted; ragged ones are padded to between half and full."""
    generator = torch.Generator().manual_seed(seed)
    shape = (setting.batch, setting.text)
    ids = torch.randint(4, vocabulary, shape, generator=generator)
    supervised = torch.zeros(shape, dtype=torch.bool)
    supervised[:, -setting.supervised :] = True
    mask = torch.ones(shape, dtype=torch.long)
    if ragged:
        lengths = torch.randint(setting.text // 2, setting.text + 1, shape[:1], generator=generator)
        lengths[0] = setting.text
        mask = last_columns(setting.text, lengths.tolist()).long()
    return Tokens(ids, mask, supervised)

"""The Q-Former backbone: an InstructBLIP or BLIP-2, frozen except for the method's parts in its Q-Former."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from perceptune.config.recipe import Recipe
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError
from perceptune.lm.frozen_blip import FrozenBlip
from perceptune.lm.kernels.optimize import optimize_modules
from perceptune.methods.qformer.base import QFormerMethod, QFormerOutput
from perceptune.models.base import AdaptedModel
from perceptune.models.instructblip.text_format import BlipText, BlipTokens
from perceptune.models.sampling_seeds import seeds_of
from perceptune.models.text_format import Batch, FrozenPart, first_target
from perceptune.models.text_rows import Tokens
from perceptune.types import Decoding, Features, GenerationRequest, Prompt, Sample, StreamCallback
from perceptune.utils.tensors import move


class InstructBlipModel(AdaptedModel):
    """A ViT whose features are cached, a Q-Former and an LM, and a method that trains inside the Q-Former."""

    method: QFormerMethod
    required_modalities = frozenset({"image"})
    has_qformer = True

    def __init__(
        self, recipe: Recipe, blip: FrozenBlip, vision: Encoder, method: QFormerMethod, text: BlipText | None
    ) -> None:
        super().__init__(recipe, {"image": vision}, {"image": self.store_of(recipe, vision)}, text)
        self.blip = blip
        self.method = method
        method.attach(blip)
        blip.eval()  # includes modules that PEFT has added

    @staticmethod
    def store_of(recipe: Recipe, vision: Encoder) -> FeatureStore:
        """Return the store of all tokens of the ViT's last layer, after its final norm."""
        return FeatureStore(
            vision, [vision.n_layers - 1], "all", recipe.cache, megabytes=recipe.train.feature_memory_mb,
            views=recipe.encoders["image"].views,
        )  # fmt: skip

    @property
    def max_positions(self) -> int | None:
        room = getattr(self.blip.language_model.config, "max_position_embeddings", None)
        return None if room is None or self.blip.encoder_decoder else room - self.blip.n_queries

    @property
    def dtype(self) -> torch.dtype:
        return self.blip.dtype

    @property
    def fingerprint(self) -> str:
        return self.blip.fingerprint

    def frozen_parts(self) -> dict[str, FrozenPart]:
        name, model = self.recipe.lm.id, self.blip.model
        connector = torch.nn.ModuleDict({"qformer": model.qformer, "projection": model.language_projection})
        connector.register_parameter("query_tokens", model.query_tokens)
        return {
            "lm": FrozenPart(f"{name} ({type(model.language_model).__name__})", model.language_model),
            "qformer": FrozenPart(f"{type(model.qformer).__name__}, query tokens, language projection", connector),
            "encoders.image": FrozenPart(type(self.encoders["image"].tower).__name__, self.encoders["image"]),
        }

    def setup(self, *, training: bool = False, sharded: bool = False) -> None:
        config = self.recipe.train
        if training:
            for key in ("gradient_checkpointing", "compile"):
                if getattr(config, key):
                    raise UserError(f"train.{key}: not for `backbone: {self.recipe.backbone}`")
        optimize_modules(self.blip.language_model.modules(), config.packed_memory_mb)

    def set_dropout(self, *, on: bool) -> None:
        self.method.set_dropout(self.blip, on=on)
        self.blip.language_model.train(on and self.recipe.train.frozen_dropout == "official")

    def layer_info(self) -> dict[str, int]:
        return {"first_layer": 0, "lm_layers": int(self.blip.language_model.config.num_hidden_layers)}

    def tokens(self, samples: Sequence[Sample], targets: Sequence[str] | None = None) -> Tokens:
        self._require_images(samples)
        if targets is None:
            targets = [first_target(sample) for sample in samples]
        return cast(BlipText, self.text).encode_training(samples, targets)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the loss summed over the supervised tokens, and their number; includes the method's own loss."""
        tokens, image = cast(BlipTokens, batch.tokens), self._image(batch.features["image"])
        instructions = [one.to(self.device) for one in tokens.instructions]
        return self.method.loss(self.blip, image, instructions, tokens.for_lm(self.device), pad=self.text.pad)

    def query(self, samples: Sequence[Sample]) -> QFormerOutput:
        """Return the Q-Former's output for samples, by the recipe's template: for inspection."""
        return self._query(samples)[0]

    def generate(
        self, samples: Sequence[Sample], decoding: Decoding, *, seeds: Sequence[int] | None = None,
        callback: StreamCallback | None = None, num_return_sequences: int = 1,
        features: Mapping[str, Features] | None = None,
    ) -> list[list[int]]:  # fmt: skip
        output, tokens = self._query(samples, features)
        given = tokens.for_lm(self.device)
        request = GenerationRequest(
            Prompt(given.ids, given.mask), decoding, self.text.eos, self.text.pad,
            seeds_of(self.text, samples, decoding, seeds, num_return_sequences), callback, num_return_sequences,
        )  # fmt: skip
        return self.blip.generate(output.queries, given, request)

    def _query(
        self, samples: Sequence[Sample], features: Mapping[str, Features] | None = None
    ) -> tuple[QFormerOutput, BlipTokens]:
        """Return the Q-Former's output for samples, and the tokens that it and the LM read."""
        self._require_images(samples)
        tokens = cast(BlipText, self.text).encode_prompts(samples)
        instructions = [one.to(self.device) for one in tokens.instructions]
        image = self._image((self.encode(samples) if features is None else features)["image"])
        return self.method.queries(self.blip, image, instructions), tokens

    def _image(self, features: Features) -> Tensor:
        """Return the single cached level (B, T, d_image)."""
        return move(features.values[:, 0], self.device)

    def _require_images(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if "image" not in sample.media:
                raise UserError(
                    f"sample `{sample.id}` has no image: `backbone: {self.recipe.backbone}` speaks about images only"
                )

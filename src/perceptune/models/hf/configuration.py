"""The configuration that transformers reads: a run's recipe, its frozen base models, and that of its LM."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

INPUTS = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features"}
TRAINED = "model.method."  # with this the names of trained tensors begin


class PerceptuneConfig(PreTrainedConfig):
    """Hold everything but the trained weights.

    `recipe` is the run's resolved recipe without its owner's folders, `bases` maps each frozen part (`lm`,
    `encoders.MODALITY`) to its id, revision and fingerprint, `cleaning` says how answers are taken from generated
    text, `text_config` is the LM's configuration. `placeholders` maps modalities whose slots stand in the text to the
    token id of a slot.
    """

    model_type = "perceptune"
    sub_configs: ClassVar[Any] = {"text_config": AutoConfig}

    def __init__(
        self, recipe: dict[str, Any] | None = None, bases: Mapping[str, Mapping[str, Any]] | None = None,
        cleaning: dict[str, Any] | None = None, text_config: dict[str, Any] | PreTrainedConfig | None = None,
        placeholders: dict[str, int] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.recipe, self.bases, self.cleaning = recipe, bases, cleaning
        self.text_config, self.placeholders = text_config, dict(placeholders or {})
        super().__init__(**kwargs)


AutoConfig.register(PerceptuneConfig.model_type, PerceptuneConfig, exist_ok=True)

"""A Perceptune model as transformers' own class: its `generate` loop, its `Trainer`, its pipelines.

`input_ids` hold no slots, and logits have their length; where slots stand in the text they hold placeholders, as
LLaVA's do. Imports of this package stand in functions, because this module is imported while transformers' auto
classes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from perceptune.models.hf.configuration import TRAINED, PerceptuneConfig
from perceptune.models.hf.slot_cache import SlotCache
from perceptune.types import Slots

if TYPE_CHECKING:
    from perceptune.models.slots.model import SlotModel


class _Headless(nn.Module):
    """A model's states before its vocabulary head, for losses that compute the logits of the predicted tokens only."""

    def __init__(self, model: PerceptuneForConditionalGeneration) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)  # not a part of this module: it would be one of itself

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None, **media: Any
    ) -> BaseModelOutput:
        """Return the states; arguments as in `PerceptuneForConditionalGeneration.forward`."""
        model = cast(PerceptuneForConditionalGeneration, self._model)
        mask = _whole_mask(input_ids) if attention_mask is None else attention_mask
        slots = model.build_slots(input_ids, mask, **media)
        states = model.model.lm.final_hidden_states(
            model.mark_slots(input_ids), mask, slots, use_reference_path=model.model.use_reference_path
        )
        return BaseModelOutput(last_hidden_state=states)


class PerceptuneForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A run's frozen LM and encoders, `model`, of which `model.method` is trained and saved.

    `PerceptuneForConditionalGeneration(config)` loads the frozen parts and initialises the method afresh.
    """

    config_class = PerceptuneConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "video", "audio", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: PerceptuneConfig, model: SlotModel | None = None) -> None:
        super().__init__(config)
        from perceptune.models.hf.conversion import build_model, generation_config_of

        self.model = build_model(config) if model is None else model
        self.generation_config = generation_config_of(self.model)
        self.all_tied_weights_keys: dict[str, str] = {}
        self._keys_to_ignore_on_save = {name for name in self.state_dict() if not name.startswith(TRAINED)}

    @classmethod
    def from_run(cls, run: str | Path, **options: Any) -> Self:
        """Return the model of a run folder; `options` as in `perceptune.load`.

        Raises `UserError` for a run of another backbone than `splice`.
        """
        from perceptune.models.hf.conversion import config_of
        from perceptune.models.run_folder import load

        model = load(run, **options)
        return cls(config_of(model), cast(Any, model))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Return the model of a folder or repository that `save_pretrained` wrote; its frozen parts are found by name.

        `dtype` is that of the LM (default: the run's `eval.dtype`), `device_map` one device; `overrides` are those of
        `perceptune.load`, such as `["lm.id=/models/opt"]`. Raises `UserError` for other base models than the run's.
        """
        from perceptune.models.hf.conversion import read_pretrained

        config, model, wants_info = read_pretrained(pretrained_model_name_or_path, options)
        made = cls(config, model)
        made.name_or_path = str(pretrained_model_name_or_path)
        info: dict[str, list[Any]] = {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [],
            "error_msgs": [],
        }
        return (made, info) if wants_info else made

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True, push_to_hub: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        """Write the trained tensors and the names of the frozen parts: `AutoModelForImageTextToText` loads the folder.

        With `trust_remote_code=True` it does so without an `import perceptune` before.
        """
        from perceptune.models.hf.conversion import write_pretrained

        if not is_main_process:
            return
        given = self.state_dict() if state_dict is None else state_dict
        tensors = {name: tensor for name, tensor in given.items() if name.startswith(TRAINED)}
        write_pretrained(Path(save_directory), cast(PerceptuneConfig, self.config), self.generation_config, tensors)
        if push_to_hub:
            self.push_to_hub(options.pop("repo_id", Path(save_directory).name), **options)

    @property
    def device(self) -> torch.device:
        """Device of the LM and the method."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of media inputs, which is that of the encoders; the LM's states may have another."""
        return next((one.dtype for one in self.model.encoders.parameters()), torch.float32)

    def get_input_embeddings(self) -> nn.Module:
        """Return the LM's token embeddings."""
        return cast(nn.Module, self.model.lm.model.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """Return the LM's vocabulary head."""
        return cast(nn.Module, self.model.lm.model.get_output_embeddings())

    def train(self, mode: bool = True) -> Self:
        """Switch the method's own dropout, and that of frozen parts only if the recipe says so."""
        self.training = mode
        self.model.set_dropout(on=mode)
        return self

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Run the LM's layers again in the backward pass instead of keeping what they computed."""
        self.model.lm.gradient_checkpointing = True

    def activation_checkpointing_disable(self) -> None:
        """Keep what the LM's layers computed for the backward pass."""
        self.model.lm.gradient_checkpointing = False

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the LM's layers are run again in the backward pass."""
        return self.model.lm.gradient_checkpointing

    # The names before transformers 5.2x.
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable
    is_gradient_checkpointing = is_activation_checkpointing

    def enable_input_require_grads(self) -> None:
        """Do nothing: gradients reach the method through the slots, not through the embeddings."""

    def forward(
        self,
        input_ids: Tensor,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, T), or as long as the text so far
        pixel_values: Tensor | None = None,  # (N, 3, H, W), the images of all rows one after another
        pixel_values_videos: Tensor | None = None,  # (N, frames, 3, H, W)
        input_features: Tensor | None = None,  # (N, mels, frames)
        labels: Tensor | None = None,  # (B, T), -100 = not predicted
        *,
        image_counts: Tensor | None = None,  # (B,) images of each row; None = one each
        video_counts: Tensor | None = None,
        audio_counts: Tensor | None = None,
        image_starts: Tensor | None = None,  # (N,) first token of each image's turn; None = the first turn's
        video_starts: Tensor | None = None,
        audio_starts: Tensor | None = None,
        slots: Sequence[Slots] | None = None,  # of `build_slots`, in place of the media
        slot_rows: Tensor | None = None,  # (B,) the row of `slots` for each row of `input_ids`; None = the same
        past_key_values: SlotCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,  # last columns; 0 = all
        return_dict: bool | None = None,
        **loss_options: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Return `loss` if there are `labels`, and `logits` (B, T or `logits_to_keep`, vocabulary).

        The loss is the mean over the predicted tokens, or their sum divided by `num_items_in_batch`.
        """
        for name in ("output_attentions", "output_hidden_states"):
            if loss_options.pop(name, False):
                raise ValueError(
                    f"{name}: not given by a Perceptune model; `perceptune show-attention` draws attention"
                )
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        # `generate` leaves out a mask without padding.
        mask = _whole_mask(input_ids, past) if attention_mask is None else attention_mask
        if slots is None:
            slots = self.build_slots(
                input_ids, mask, pixel_values=pixel_values, pixel_values_videos=pixel_values_videos,
                input_features=input_features, image_counts=image_counts, video_counts=video_counts,
                audio_counts=audio_counts, image_starts=image_starts, video_starts=video_starts,
                audio_starts=audio_starts, is_first=not past,
            )  # fmt: skip
        elif slot_rows is not None:
            slots = [slot.of_rows(slot_rows) for slot in slots]
        from perceptune.models.hf.running import run_cached, run_whole

        keeps_cache = past_key_values is not None or bool(use_cache)
        if keeps_cache and any(slot.sees_text for slot in slots):
            raise ValueError("use_cache: slots that see the text (method.slot_mask: official) change with every token")
        ids = self.mark_slots(input_ids)
        if keeps_cache:
            past_key_values = SlotCache() if past_key_values is None else past_key_values
            logits = run_cached(self.model.lm, ids, mask, slots, past_key_values, logits_to_keep)
        else:
            logits = run_whole(self.model, ids, mask, slots, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **loss_options)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output

    @property
    def base_model(self) -> nn.Module:
        """The model without its vocabulary head: a module that returns `last_hidden_state` (B, T, hidden size)."""
        return _Headless(self)

    def build_slots(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, is_first: bool = True, **media: Tensor | None
    ) -> list[Slots]:
        """Return the slots that `forward` makes of a batch's media; none for texts that continue a cache."""
        from perceptune.models.hf.running import build_slots

        mask = _whole_mask(input_ids) if attention_mask is None else attention_mask
        return build_slots(self.model, input_ids, mask, media, self.config.placeholders) if is_first else []

    def mark_slots(self, ids: Tensor) -> Tensor:
        """Return ids in which placeholders are marked as slots for the LM."""
        from perceptune.types import IN_TEXT

        for placeholder in self.config.placeholders.values():
            ids = ids.masked_fill(ids == placeholder, IN_TEXT)
        return ids

    def generate(  # type: ignore[override]
        self, inputs: Tensor | None = None, generation_config: Any = None, **options: Any
    ) -> Any:
        """Run transformers' own loop, `GenerationMixin.generate`, which has the same arguments; encode media once.

        Raises `ValueError` for assisted generation, input embeddings, and caches of a fixed size or with a window.
        """
        from perceptune.models.hf.generation import prepare

        options = prepare(self, inputs, generation_config or self.generation_config, options)
        return super().generate(inputs, generation_config, **options)  # type: ignore[misc]


def _whole_mask(ids: Tensor, past: int = 0) -> Tensor:
    """Return the mask of texts without padding that follow `past` columns in a cache."""
    return ids.new_ones(len(ids), past + ids.shape[1])


AutoModelForImageTextToText.register(PerceptuneConfig, PerceptuneForConditionalGeneration, exist_ok=True)

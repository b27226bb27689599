"""The processor that transformers uses: texts and media to the tensors of `forward`, by the run's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from perceptune.models.hf.configuration import INPUTS, PerceptuneConfig

if TYPE_CHECKING:
    from perceptune.encoders.base import Encoder
    from perceptune.models.text_format import TextFormat


class PerceptuneProcessor(ProcessorMixin):
    """Prepare texts by the run's template and media by its encoders' preprocessing.

    A chat (`apply_chat_template`) is put into the run's template; a text (`processor(text=...)`) is taken as it is,
    as of the processors of transformers, with the special tokens that are written in it.
    """

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None, **parts: Any) -> None:
        """Prepare for a run's `text` (template) and `encoders`, which `from_pretrained` takes from its recipe."""
        self.text: TextFormat = parts["text"]
        self.encoders: Mapping[str, Encoder] = parts["encoders"]
        super().__init__(tokenizer, chat_template=chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts that transformers knows."""
        return ["tokenizer"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Self:  # type: ignore[override]
        """Return the processor of a folder or repository that `save_pretrained` of a model wrote."""
        from perceptune.models.hf.preparing import parts_of, read_config

        return cls(**parts_of(*read_config(pretrained_model_name_or_path, options)))

    @classmethod
    def from_model(cls, model: Any) -> Self:
        """Return the processor of a `PerceptuneForConditionalGeneration`."""
        from perceptune.models.hf.placeholders import with_placeholders

        own = model.model
        return cls(with_placeholders(own.text), text=own.text, encoders=dict(own.encoders.items()))

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that `forward` takes."""
        return ["input_ids", "attention_mask", *(INPUTS[modality] for modality in self.encoders)]

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> list[str]:
        """Write the tokenizer; the template and the preprocessing are in the model's configuration."""
        if push_to_hub:
            raise ValueError("push_to_hub: push the model, whose configuration holds the processor")
        return list(self.tokenizer.save_pretrained(save_directory))

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, videos: Any = None, audio: Any = None,
        *, return_tensors: str | None = None, padding_side: str = "left", sampling_rate: int | None = None,
        add_special_tokens: bool = True, max_length: int | None = None, truncation: bool = False,
        pad_to_multiple_of: int | None = None, **options: Any,
    ) -> BatchFeature:  # fmt: skip
        """Return ids, mask and media of texts that are prompts already; media stand in the order of the rows.

        Media are one, one for each text, or a list for each text. `sampling_rate` in Hz is that of audio arrays.
        Raises `UserError` for media that cannot be read, and `ValueError` for media and texts that do not match.
        """
        from perceptune.models.hf.preparing import Asked, collate, rows_of_media

        if text is None:
            raise ValueError("text: is missing; an image alone asks nothing")
        texts = [text] if isinstance(text, str) else list(text)
        given = {"image": images, "video": videos, "audio": audio}
        media = {name: rows_of_media(name, one, texts, sampling_rate) for name, one in given.items() if one is not None}
        asked = [
            Asked.of_text(self, one, {name: rows[row] for name, rows in media.items()}, special=add_special_tokens)
            for row, one in enumerate(texts)
        ]
        if truncation and max_length is not None:
            asked = [one.truncated(max_length) for one in asked]
        return collate(self, asked, return_tensors, side=padding_side, multiple=pad_to_multiple_of)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, *, add_generation_prompt: bool = False,
        continue_final_message: bool = False, tokenize: bool = False, return_dict: bool = False,
        return_tensors: str | None = None, return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Put one conversation or several into the run's template; with `tokenize` also load their media.

        A final message of the assistant is the answer, ended unless `continue_final_message`. Media are parts with
        `image`, `video` or `audio`, or with `url`, `path` or `base64`. Raises `UserError` for what the run's template
        cannot express, such as earlier turns of a run without a chat template.
        """
        from perceptune.models.hf.messages import read_chat
        from perceptune.models.hf.preparing import Asked, collate, render

        if chat_template is not None:
            raise ValueError("chat_template: a run answers in the template that it was trained with")
        given = {**options, **(processor_kwargs or {})}
        is_single = isinstance(conversation[0], Mapping)
        chats = [conversation] if is_single else conversation
        read = [read_chat(messages, given.get("sampling_rate")) for messages in chats]
        if not tokenize:
            texts = [render(self.text, chat, ended=not continue_final_message) for chat in read]
            return texts[0] if is_single else texts
        asked = [Asked.of_chat(self, chat, ended=not continue_final_message) for chat in read]
        batch = collate(
            self, asked, return_tensors, side=given.get("padding_side", "left"),
            multiple=given.get("pad_to_multiple_of"), with_answers=return_assistant_tokens_mask,
        )  # fmt: skip
        return batch if return_dict else batch["input_ids"]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **_: Any
    ) -> list[str]:
        """Return generated ids as texts, spaces as they were generated."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **_: Any) -> list[str]:
        """Return rows of ids as texts."""
        rows = sequences.tolist() if isinstance(sequences, Tensor) else sequences
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        """Return ids as a text."""
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
        return str(
            self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        )


AutoProcessor.register(PerceptuneConfig, PerceptuneProcessor, exist_ok=True)

"""`LlavaProcessor` of a run: the tokenizer with `<image>`, the chat template, and the encoder's preprocessing."""

from typing import Any

from transformers import CLIPImageProcessorPil, LlavaProcessor

from perceptune.data.media.source import ImageTransform
from perceptune.encoders.base import ViTEncoder
from perceptune.models.hf.placeholders import placeholder, with_placeholders
from perceptune.models.slots.model import SlotModel
from perceptune.tools.export.llava.chat_template import chat_template_of


def processor_of(model: SlotModel) -> LlavaProcessor:
    """Return the processor of a run's model, which gives prompts and pixels as the run does."""
    encoder: Any = model.encoders["image"]
    assert isinstance(encoder, ViTEncoder)
    template = chat_template_of(model.text)
    tokenizer = with_placeholders(model.text)
    # Both are written to the same file.
    tokenizer.chat_template = template
    # Batches of questions of different lengths are generated from on the right.
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.text.pad)
    return LlavaProcessor(
        _image_processor(encoder.transform), tokenizer, patch_size=encoder.patch(encoder.tower.config),
        vision_feature_select_strategy="full", chat_template=template, image_token=placeholder("image"),
        num_additional_image_tokens=encoder.n_special,
    )  # fmt: skip


def _image_processor(transform: ImageTransform) -> CLIPImageProcessorPil:
    """Return CLIP's image processor with the settings of `transform`; it has an implementation without torchvision."""
    resize, crop = transform.resize, transform.crop
    size = {"shortest_edge": resize} if isinstance(resize, int) else {"height": resize[0], "width": resize[1]}
    height, width = transform.size
    return CLIPImageProcessorPil(
        do_resize=True, size=size, resample=transform.resample, do_center_crop=crop is not None,
        crop_size={"height": height, "width": width}, do_rescale=True, rescale_factor=transform.scale,
        do_normalize=True, image_mean=list(transform.mean), image_std=list(transform.std), do_convert_rgb=True,
    )  # fmt: skip

"""What kind of model a config of transformers describes, for messages about one that cannot be used."""

import re
from collections.abc import Mapping
from typing import Any

_SCORING = re.compile(r"For(Sequence|Token)Classification|ForQuestionAnswering|ForMultipleChoice|Reward|Classifier")


def describe_vlm(config: Mapping[str, Any]) -> str | None:
    """Return what a vision-language model is and has inside; None for a config of another kind."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    kind, classes = str(config.get("model_type")), config.get("architectures") or ()
    generates = any("ForConditionalGeneration" in one or "ForCausalLM" in one for one in classes)
    if kind not in KNOWN and not ("vision_config" in config and generates):
        return None
    return f"a vision-language model (`{kind}`)"


def part_of(config: Mapping[str, Any], part: str) -> str:
    """Return the name and type of a part of a composite model, as far as its config says."""
    section = config.get(part)
    section = section if isinstance(section, Mapping) else {}
    name, kind = section.get("_name_or_path"), section.get("model_type")
    return " ".join([*([f"`{name}`"] if name else []), *([f"(a `{kind}`)"] if kind else [])])


def why_not_causal(config: Mapping[str, Any]) -> str | None:
    """Return what a config describes, and what to name instead, if it is not a decoder-only LM; None if it is one."""
    from transformers.models.auto import modeling_auto as known

    kind, classes = str(config.get("model_type")), [str(one) for one in config.get("architectures") or ()]
    if scoring := next((one for one in classes if _SCORING.search(one)), None):
        return f"a classifier or reward model ({scoring}), trained to score texts: name the LM that it was made from"
    if config.get("is_encoder_decoder"):
        return f"an encoder-decoder (`{kind}`): name a decoder-only LM"
    if kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return f"a masked LM or text encoder (`{kind}`), which does not generate: name a decoder-only LM"
    if kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    if vlm := describe_vlm(config):
        also = ", or set `backbone: instructblip`" if kind in ("instructblip", "blip-2") else ""
        text = f"name its text model {part_of(config, 'text_config')}".rstrip()
        return f"{vlm}, which has an encoder of its own: {text}{also}"
    return f"of model type `{kind}`, for which transformers has no causal LM: name a decoder-only LM"

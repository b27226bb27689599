"""The `config` of an official eP-ALM checkpoint: each key is applied, has no meaning here, or is rejected.

Keys missing in the file default to the value that all released configs share. Facts are from the release's configs,
and from its models and scripts that read them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from perceptune.config.recipe import read_yaml, validate
from perceptune.encoders.base import OPENAI
from perceptune.errors import UserError, nearest

WITHOUT_EFFECT = frozenset(read_yaml(Path(__file__).with_suffix(".yaml"))["without_effect"])  # on answers
LEVELS = 6  # encoder levels behind a shared connector, if the config does not give their number
CLIP = {key.removeprefix("image_"): values for key, values in OPENAI.items()}  # whichever encoder is used
SIGNS_OF_CAPTIONS = ("train_split", "val_split", "test_split")
# Part of an encoder builder's name -> its modality, and the model type of transformers.
RELEASED_ENCODERS = {"timesformer": ("video", "timesformer"), "ast": ("audio", "audio-spectrogram-transformer")}


def _only(allowed: Sequence[Any], why: str) -> AfterValidator:
    """Return a validator for a key of these values: `why` describes what anything else would require."""

    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(why)
        return value

    return AfterValidator(check)


def _off(why: str) -> AfterValidator:
    return _only((None, False, 0, ""), why)


class AdapterPlace(BaseModel):
    """Adapters at one kind of module."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    adapter_type: Annotated[str, _only(["normal"], "the release's code runs no type but `normal`")]
    downsample_factor: int = Field(4, ge=1)
    add_layernorm: Annotated[Any, _off("adapters with a layer norm are not imported")] = None


class AdapterPlaces(BaseModel):
    """`adapter_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mlp: AdapterPlace | None = None
    attention: AdapterPlace | None = None


_NOT_SAVED = _off("the release does not save the base models' weights that were trained with it")


class OfficialConfig(BaseModel):
    """Keys that affect answers. None: not given in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    # what enters the LM where
    start_layer_idx: int | None = Field(None, ge=0)
    end_layer_idx: int | None = Field(None, ge=0)
    injected_hidden_states: int | None = Field(None, ge=1)
    text_step: int = Field(1, ge=1)
    select_higher_step: bool = False
    shared_connector: bool | None = None
    connector_type: Annotated[str, _only(["linear"], "the release has no other than `linear`")] = "linear"
    # what is trained beside the connections
    prompt_tuning: bool | None = None
    prompt_len: int | None = Field(None, ge=1)
    mlp: bool | None = None
    deep: Annotated[Any, _off("deep prompts do not run in the release's code")] = None
    use_adapters: bool | None = None
    adapter_config: AdapterPlaces | None = None
    unfreeze_text_layer_norm: Annotated[Any, _NOT_SAVED] = None
    unfreeze_vision_layer_norm: Annotated[Any, _NOT_SAVED] = None
    unfreeze_text_model: Annotated[Any, _NOT_SAVED] = None
    unfreeze_vision_model: Annotated[Any, _NOT_SAVED] = None
    # the encoder's input
    vision_model_name: str | None = None
    modality: Literal["image", "audio", "video"] | None = None
    image_res: int = Field(224, ge=8)
    num_frames: int | None = Field(None, ge=1)
    sample_type: Literal["rand", "middle"] | None = None
    as_images: Annotated[Any, _off("frames as images of their own do not run in the release's video encoder")] = None
    space_only_for_images: bool | None = None
    black_image: Annotated[Any, _off("the model was shown black images")] = None
    melbins: int = 128
    target_length: int = 1024
    skip_norm: bool = False
    norm_mean: float = -4.2677393
    norm_std: float = 4.5689974
    freqm_p: int | None = Field(None, ge=0)
    timem_p: int | None = Field(None, ge=0)
    # text input and decoding
    tokenizer_name: str | None = None
    special_answer_token: str | None = None
    special_eo_answer_token: Annotated[Any, _off("answers with another end token are not imported")] = None
    task_prompt: Annotated[Any, _off("a text before the captions is not imported")] = None
    num_beams: int = Field(3, ge=1)
    do_sample: bool = False
    max_length: int = Field(30, ge=2)


def read_config(file: Path, config: Mapping[str, Any]) -> OfficialConfig:
    """Validate the config. Raises `UserError` naming the file and the key."""
    known = {*OfficialConfig.model_fields, *WITHOUT_EFFECT}
    for key in config:
        if key not in known:
            raise UserError(f"{file}: config: unknown key `{key}`{nearest(str(key), known)}")
    with_effect = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    read: OfficialConfig = validate(OfficialConfig, with_effect, f"{file}: config")
    if read.tokenizer_name is not None and "opt" not in read.tokenizer_name:
        raise UserError(f"{file}: config: `tokenizer_name`: the release has no other than OPT's")
    return read


def encoder_kind(config: OfficialConfig) -> tuple[str, str]:
    """Return the modality of the file's encoder, and its model type in transformers."""
    name = config.vision_model_name or "vit"
    return next((kind for part, kind in RELEASED_ENCODERS.items() if part in name), ("image", "vit"))


def encoder_section(config: OfficialConfig, encoder: str) -> tuple[str, dict[str, Any]]:
    """Return the modality, and the recipe's section of its encoder."""
    reads, _ = encoder_kind(config)
    still = reads == "video" and (
        config.modality == "image" or (config.modality is None and config.space_only_for_images)
    )
    modality = "image" if still else reads
    if config.modality not in (None, modality):
        raise UserError(
            f"config: `modality` is {config.modality}, but `vision_model_name` "
            f"{config.vision_model_name or 'vit'} reads {reads}s"
        )
    if still and not config.space_only_for_images:
        raise UserError("config: `space_only_for_images` is off: an image as a video of equal frames is not imported")
    if modality == "audio":
        masks = {"time_mask": config.timem_p, "frequency_mask": config.freqm_p}
        return modality, {"id": encoder, **{key: value for key, value in masks.items() if value is not None}}
    section = {"id": encoder, "size": config.image_res, "resize": "squash", "resample": "bicubic", **CLIP}
    if still:
        section["temporal"] = "t1"
    elif modality == "video" and config.num_frames is not None:
        section["frames"] = config.num_frames
    return modality, section


def text_section(config: OfficialConfig, raw: Mapping[str, Any], captions: bool) -> dict[str, Any]:
    """Return the recipe's text section: no prompt for a caption; a question keeps its own `?`, so two are usual."""
    token = config.special_answer_token
    if captions and token is not None:
        raise UserError(f"config: `special_answer_token` is `{token}`: it was trained on questions, not captions")
    if captions or (token is None and _speaks_of_captions(raw)):
        read: dict[str, Any] = {"template": "", "separator": None}
    elif token is None and "special_answer_token" in config.model_fields_set:
        raise UserError("config: `special_answer_token` is off: questions without it are not imported")
    else:
        read = {"template": "{prompt}?", "separator": token or "</a>"}
    return {**read, "target": "{target}", "supervise": "answer" if raw.get("loss_only_on_answers") else "all"}


def _speaks_of_captions(raw: Mapping[str, Any]) -> bool:
    """Return whether only the release's captioning scripts read a config like this."""
    return "append_eos_token" in raw or any("caption" in str(raw.get(key, "")) for key in SIGNS_OF_CAPTIONS)


def decode_section(config: OfficialConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the decoding section. Raises `UserError` for sampling that `decode` cannot express, unless overridden."""
    if config.do_sample and not any(override.startswith("decode.sample=") for override in overrides):
        raise UserError(
            "config: `do_sample`: it draws from the 50 likeliest tokens, which `decode` cannot express; add "
            "decode.sample=false, or decode.sample=true to draw from all"
        )
    return {"beams": config.num_beams, "max_length": config.max_length, "length_normalization": "total"}


def injected(config: OfficialConfig, levels: int, layers: range) -> dict[int, int]:
    """Return LM layer -> the level, earliest first, that enters it, counted as in the release's decoder."""
    step = len(layers) // levels if 1 < levels < len(layers) else 1
    every = max(step, config.text_step) if config.select_higher_step else config.text_step
    return {i: min((i - layers.start) // step, levels - 1) for i in layers if i % every == 0}

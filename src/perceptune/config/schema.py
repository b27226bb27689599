"""The sections of a recipe with every default. The options of a method or task belong to its leaf file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perceptune.config.consensus import ConsensusConfig
from perceptune.config.section import ConfigSection, DType, Off
from perceptune.errors import UserError

DEFAULT_METHOD = "epalm"


def named(key: str) -> BeforeValidator:
    """Return a validator that reads `lm: facebook/opt-2.7b` as `lm: {id: facebook/opt-2.7b}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class LMConfig(ConfigSection):
    """The frozen language model."""

    id: str = Field("default", description="`default`, a Hugging Face id, or a local folder, GGUF file or adapter")
    base: str | None = Field(None, description="base of the adapter `id`; None = the one it names")
    revision: str | None = Field(None, description="revision on the hub")
    layers: str | None = Field(None, description="dotted path of the decoder blocks, if they are not found")
    pad_token: str | None = Field(None, description="padding token, for a tokenizer without pad and end token")
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="`eager` is used if the LM has no `sdpa`")
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="bitsandbytes quantization of the weights")


class RandAugmentConfig(ConfigSection):
    """Random operations for each augmented view of an image, applied after resizing."""

    num_ops: int = Field(2, ge=1, description="number of operations per view")
    magnitude: int = Field(7, ge=0, description="strength; at most 10 (`albef`) or 30 (`torchvision`)")
    form: Literal["albef", "torchvision"] = Field(
        "albef", description="list of operations: ALBEF's ten, each applied with probability 1/2, or torchvision's"
    )

    @model_validator(mode="after")
    def _is_on_the_scale(self) -> RandAugmentConfig:
        top = 10 if self.form == "albef" else 30
        if self.magnitude > top:
            raise ValueError(f"`magnitude` is {self.magnitude}, and with `form: {self.form}` at most {top}")
        return self


class EncoderConfig(ConfigSection):
    """A frozen encoder of one modality."""

    id: str = Field("default", description="`default`, a Hugging Face id or a local folder")
    revision: str | None = Field(None, description="revision on the hub")
    size: int | None = Field(None, ge=8, description="input resolution in pixels; None = as published")
    resize: Literal["squash", "crop", "published"] = Field("published", description="how images are brought to `size`")
    resample: Literal["bilinear", "bicubic"] | None = Field(None, description="None = as published")
    mean: tuple[float, float, float] | None = Field(None, description="per channel; None = as published")
    std: tuple[float, float, float] | None = Field(None, description="per channel; None = as published")
    dtype: DType = Field("float32", description="`auto` as in `train.precision`")
    norm: Literal["auto", "none"] = Field(
        "auto", description="auto = every level after the encoder's final norm; none = as the blocks give it"
    )
    max_media: int = Field(1, ge=1, description="maximum number of media of this modality in a sample")
    views: int = Field(0, ge=0, description="number of augmented views of each training medium; 0 = no augmentation")
    flip: bool = Field(True, description="mirror half of the augmented views")
    rand_augment: RandAugmentConfig | None = Field(None, description="RandAugment for augmented views; None = off")
    seconds: float | None = Field(None, gt=0, description="seconds of audio used, from the start; None = as published")
    time_mask: int = Field(96, ge=0, description="augmented views of audio: longest time mask, in frames")
    frequency_mask: int = Field(24, ge=0, description="augmented views of audio: widest frequency mask, in mel bands")
    frames: int | None = Field(
        None,
        ge=1,
        le=256,
        description="frames per video; None = as published for a video encoder, 8 for an image encoder",
    )
    temporal: Literal["skip", "t1"] | None = Field(
        None,
        description="a video encoder on images: `skip` its attention over time, or run it on one step (`t1`, None)",
    )


class CacheConfig(ConfigSection):
    """Where encoder features, and text states that do not fit into memory, are kept."""

    features: Annotated[Literal["disk", "memory", "off"], Off] = Field(
        "disk", description="where features are kept; off = computed at every use"
    )
    dir: Path | None = Field(None, description="None = `features` in perceptune's cache folder")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype of the cached features")
    levels: int | None = Field(
        None, ge=1, description="number of last levels to cache, for methods that use others; None = the method's"
    )
    text_disk_mb: int = Field(4096, ge=0, description="disk space for text states, in MB, if features are on disk")


class TextConfig(ConfigSection):
    """The text format of samples, the same in training, evaluation, answering and serving."""

    template: str = Field(
        "Question: {prompt} Answer:",
        description="text before the answer; `chat` = the tokenizer's own chat template, which takes conversations",
    )
    system: str | None = Field(None, description="system message of `template: chat`; None = as the template has it")
    target: str = Field(" {target}", description="the answer, in training; `chat` leaves out blanks at its start")
    separator: str | None = Field(None, description="a token added after the prompt (the paper's `</a>`)")
    supervise: Literal["answer", "all"] = Field("answer", description="tokens with a loss")
    max_tokens: int = Field(512, ge=8, description="maximum tokens of a text; a longer sample is an error")

    @model_validator(mode="after")
    def _has_target(self) -> TextConfig:
        if "{target}" not in self.target:
            raise ValueError("`target` must contain {target}")
        if self.is_chat and self.separator is not None:
            raise ValueError("`separator` does not go with `template: chat`, which ends the prompt itself")
        if self.system is not None and not self.is_chat:
            raise ValueError("`system` is for `template: chat`; put the text into `template` instead")
        return self

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's chat template is used."""
        return self.template == "chat"


class NamedPart(BaseModel):
    """A leaf chosen by `name`, with that leaf's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    def options(self) -> dict[str, Any]:
        """Return all keys except `name`."""
        return dict(self.model_extra or {})


class DecodeConfig(ConfigSection):
    """Options of generation."""

    max_new_tokens: int = Field(20, ge=1, description="maximum tokens of an answer")
    max_length: int | None = Field(
        None,
        ge=2,
        description="maximum tokens of prompt and answer, instead of `max_new_tokens`; at least one is generated",
    )
    beams: int = Field(1, ge=1, le=32, description="beam width; 1 = greedy")
    sample: bool = Field(False, description="sample each token; needs one beam")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: probability mass to sample from")
    length_penalty: float = Field(1.0, description="beams are ranked by score / length ** length_penalty")
    length_normalization: Literal["answer", "total"] = Field(
        "answer",
        description="length in that formula: the answer's, or prompt and answer's as in transformers 4.20 to 4.24",
    )
    min_new_tokens: int = Field(0, ge=0, description="minimum number of new tokens")
    repetition_penalty: float = Field(1.0, gt=0, description="as in transformers: > 1 discourages repeated tokens")
    seed: int = Field(
        0, ge=0, description="sampling seed; each answer depends only on the seed, the question and the media"
    )
    consensus: ConsensusConfig | None = Field(
        None, description="answer with the candidate most like the others; {} = with the defaults, None = off"
    )

    @model_validator(mode="after")
    def _draws_or_searches(self) -> DecodeConfig:
        if self.sample and self.beams > 1:
            raise ValueError("`sample` draws with one beam: set `beams` to 1, or `sample` to false")
        if self.sample and self.consensus is not None:
            raise ValueError("`consensus` draws candidates of its own: set `sample` to false, or `consensus` to null")
        restrained = self.min_new_tokens > 0 or self.repetition_penalty != 1
        if self.beams > 1 and self.length_normalization == "total" and restrained:
            raise ValueError("`length_normalization: total` excludes `min_new_tokens` and `repetition_penalty`")
        return self

    @model_validator(mode="after")
    def _may_end(self) -> DecodeConfig:
        if self.max_length is None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"`min_new_tokens` is {self.min_new_tokens}, `max_new_tokens` {self.max_new_tokens}")
        return self

    def most_new(self, room: int) -> int:
        """Return how many of an LM's `room` positions must stay free for the answer to the longest prompt."""
        if self.max_length is None:
            return self.max_new_tokens
        if self.max_length > room:
            raise UserError(f"decode.max_length is {self.max_length}, but the LM has {room} positions")
        return 1


class OtherSet(ConfigSection):
    """Another data set on which a run is evaluated, in addition to its own."""

    task: Annotated[NamedPart, named("name")]
    split: str | None = Field(None, description="split to evaluate; None = the task's last one")
    samples: int | None = Field(None, ge=1, description="size of a fixed random subset; None = all samples")
    text: TextConfig | None = Field(None, description="text section for this data set; None = the recipe's")
    decode: DecodeConfig | None = Field(None, description="decode section for this data set; None = the recipe's")


class EvalConfig(ConfigSection):
    """Evaluation with real generation."""

    split: str | None = Field(None, description="split to evaluate; None = the task's last one")
    samples: int | None = Field(None, ge=1, description="size of a fixed random subset; None = all samples")
    batch_size: int = Field(64, ge=1, description="samples per batch")
    dtype: DType = Field(
        "float32",
        description="dtype of `eval`, `answer` and `serve`, stored in the run; `auto` as in `train.precision`",
    )
    shuffled_control: bool = Field(False, description="evaluate with media shuffled among the samples, too")
    no_media_control: bool = Field(False, description="evaluate without any media, too")
    at_end: bool = Field(False, description="evaluate after training with the controls, and print a report")
    rank: Literal["choices"] | None = Field(
        None, description="answer with the most likely of each sample's `choices`; None = generate the answer"
    )
    rank_normalize: bool = Field(False, description="rank by log-probability per token instead of the sum")
    every: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = Field(
        None, description="steps between evaluations during training, or `epoch`; None = never"
    )
    during_split: str | None = Field(
        None, description="split for evaluation during training; None = `validation` or `held-out`"
    )
    during_samples: int | None = Field(200, ge=1, description="samples per evaluation during training; None = all")
    others: dict[str, OtherSet] = Field(default_factory=dict, description="other data sets by name, for the gap table")
    patience: int | None = Field(None, ge=1, description="evaluations without a better metric before training stops")

    @model_validator(mode="after")
    def _names_are_file_names(self) -> EvalConfig:
        for name in self.others:
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(
                    f"`others.{name}`: a name has letters, digits, `_` and `-` only: it becomes part of a file's"
                )
        return self


class InitConfig(ConfigSection):
    """Another run whose trained method this one starts from."""

    run: str = Field(description="folder of the run to start from")
    rename: dict[str, str] = Field(
        default_factory=dict, description="modality of that run → modality of this recipe, such as {image: video}"
    )
    may_differ: tuple[Literal["lm", "encoders", "method"], ...] = Field(
        (), description="what may be different in that run; tensors must still fit"
    )

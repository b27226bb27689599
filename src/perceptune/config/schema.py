"""The sections of a recipe: every default is here. The options of a method or task belong to its leaf file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from perceptune.errors import UserError

# `auto` = bfloat16 where the LM's products are faster in it than in float32, by measurement; see `precision.py`.
DType = Literal["auto", "float32", "bfloat16"]
# YAML reads a bare `off` as false.
_Off = BeforeValidator(lambda value: "off" if value is False else value)


def _tracker_names(value: Any) -> Any:
    """`none`, one name, or several."""
    names = [value] if isinstance(value, str) else value
    return () if names is None or (isinstance(names, list) and names == ["none"]) else names


def named(key: str) -> BeforeValidator:
    """Lets `lm: facebook/opt-2.7b` stand for `lm: {id: facebook/opt-2.7b}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def require_amount(value: int | float | None) -> int | float | None:
    """So many samples, or this share of them. Raises `ValueError` for what is neither."""
    if value is not None and (value <= 0 or (isinstance(value, float) and value >= 1)):
        raise ValueError("must be a whole number of at least 1, or a share between 0 and 1")
    return value


class Part(BaseModel):
    """A node of the tree: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True)


class LMConfig(Part):
    """The frozen language model."""

    id: str = Field("default", description="`default`, a Hugging Face id or a local folder")
    revision: str | None = None
    layers: str | None = Field(None, description="dotted path of the decoder blocks, if they are not found")
    pad_token: str | None = Field(None, description="only for a tokenizer without pad and end token")
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="`eager` anyway where the LM knows no `sdpa`")
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="of its frozen weights, by bitsandbytes")


class RandAugmentConfig(Part):
    """Operations drawn for each augmented view of an image, after it has been resized."""

    num_ops: int = Field(2, ge=1, description="operations of a view")
    magnitude: int = Field(7, ge=0, description="strength of them, 10 (`albef`) or 30 (`torchvision`) at most")
    form: Literal["albef", "torchvision"] = Field(
        "albef", description="whose operations: ALBEF's ten, each carried out every other time, or torchvision's"
    )

    @model_validator(mode="after")
    def _is_on_the_scale(self) -> RandAugmentConfig:
        top = 10 if self.form == "albef" else 30
        if self.magnitude > top:
            raise ValueError(f"`magnitude` is {self.magnitude}, and with `form: {self.form}` at most {top}")
        return self


class EncoderConfig(Part):
    """A frozen encoder of one modality."""

    id: str = Field("default", description="`default`, a Hugging Face id or a local folder")
    revision: str | None = None
    size: int | None = Field(None, ge=8, description="input resolution in pixels; None = as published")
    resize: Literal["squash", "crop", "published"] = "published"
    resample: Literal["bilinear", "bicubic"] | None = Field(None, description="None = as published")
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    dtype: DType = Field("float32", description="`auto` as in `train.precision`")
    views: int = Field(0, ge=0, description="augmented views of each training medium; 0 = the plain medium only")
    flip: bool = Field(True, description="half of the augmented views are mirrored")
    rand_augment: RandAugmentConfig | None = Field(None, description="RandAugment of augmented views; None = none")
    seconds: float | None = Field(None, gt=0, description="seconds of audio used, from the start; None = as published")
    time_mask: int = Field(96, ge=0, description="augmented views of audio: longest time hidden, in frames")
    frequency_mask: int = Field(24, ge=0, description="augmented views of audio: most mel bands hidden")
    frames: int | None = Field(
        None, ge=1, le=256, description="frames of a video; None = as a video encoder publishes, 8 for an image encoder"
    )
    temporal: Literal["skip", "t1"] | None = Field(
        None, description="a video encoder for images: without its attention over time, or with one step of it (None)"
    )


class CacheConfig(Part):
    """Where encoder features, and states of texts that do not fit into memory, are kept."""

    features: Annotated[Literal["disk", "memory", "off"], _Off] = Field(
        "disk", description="off = computed at every use"
    )
    dir: Path | None = Field(None, description="None = `features` in perceptune's cache folder")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype in which they are kept")
    levels: int | None = Field(
        None,
        ge=1,
        description="keep [CLS] of so many last levels, shared by methods that read others; None = the method's",
    )
    text_disk_mb: int = Field(4096, ge=0, description="states of distinct texts kept on disk, if features are")


class TextConfig(Part):
    """How a sample becomes text; the same in training, evaluation, answering and serving."""

    template: str = "Question: {prompt} Answer:"
    target: str = " {target}"
    separator: str | None = Field(None, description="added after the prompt as a token of its own (the paper's `</a>`)")
    supervise: Literal["answer", "all"] = "answer"
    max_tokens: int = Field(512, ge=8, description="longest text; a longer sample is an error, never cut")

    @model_validator(mode="after")
    def _has_target(self) -> TextConfig:
        if "{target}" not in self.target:
            raise ValueError("`target` must contain {target}")
        return self


class NamedPart(BaseModel):
    """A leaf chosen by `name`, with that leaf's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    def options(self) -> dict[str, Any]:
        """The keys beside `name`."""
        return dict(self.model_extra or {})


class TrainConfig(Part):
    """The optimisation. Defaults are the paper's values where it gives one (`docs/papers.md`)."""

    steps: int | None = Field(None, ge=0, description="optimizer steps; None = `epochs`")
    epochs: float = Field(8, gt=0)
    batch_size: int = Field(64, ge=1, description="samples of a forward pass, over all processes")
    batch_tokens: int | None = Field(
        None, ge=1, description="text tokens of a forward pass, padding included, instead of `batch_size`"
    )
    accumulate: int = Field(1, ge=1, description="forward passes of an optimizer step")
    lr: float = Field(2e-5, gt=0)
    warmup_lr: float | None = Field(None, ge=0, description="rate of the first step; None = lr / 2")
    min_lr: float = Field(1e-6, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(400, ge=0)
    prompt_lr: float = Field(1e-5, gt=0, description="soft prompt and adapters: a group of their own")
    prompt_schedule: Literal["cosine", "linear", "constant"] = "constant"
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip: float | None = Field(None, gt=0, description="largest gradient norm; None = no clipping")
    precision: DType = Field(
        "auto",
        description="dtype of the frozen LM while training; `auto` = bfloat16 where it is measured to be at least 5 % "
        "faster, float32 elsewhere and for an LM that is trained; the run stores what it was",
    )
    frozen_dropout: Annotated[Literal["off", "official"], _Off] = "off"
    gradient_checkpointing: bool = False
    samples: int | float | None = Field(
        None, description="train on so many, or on this share; smaller choices lie in larger"
    )
    samples_seed: int | None = Field(None, description="chooses them; None = `seed`")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced = all answers to the same prompt are drawn equally often, so that a prompt's "
        "wording does not tell its answer",
    )  # fmt: skip
    hold_out: int | float | None = Field(
        None, description="keep so many, or this share, of the training samples as split `held-out`, whole media each"
    )
    freeze: tuple[str, ...] = Field(
        (), description="parts of the method that stay as they are, by the start of their tensors' names"
    )
    standardize_samples: int = Field(1024, ge=2, description="media from which feature statistics are taken")
    feature_memory_mb: int = Field(2048, ge=0, description="features kept by `cache.features: memory`")
    text_memory_mb: int = Field(64, ge=0, description="states of distinct texts kept in memory; more of them on disk")
    prefetch: bool | None = Field(None, description="prepare the next batch in a thread; None = unless on a CPU")
    packed_memory_mb: int = Field(1024, ge=0, description="frozen weights laid out for the CPU, beside the originals")
    compile: bool = Field(False, description="the LM's feed-forward parts through `torch.compile`")
    max_bad_media: int = Field(0, ge=0, description="broken or missing media tolerated, listed in the run folder")
    log_every: int = Field(1, ge=1)
    save_every: int = Field(500, ge=1)
    report_to: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], BeforeValidator(_tracker_names)] = (
        Field((), description="`none`, or trackers that are told of the training, too: one name or a list")
    )

    _amounts = field_validator("samples", "hold_out")(require_amount)


class DecodeConfig(Part):
    """How answers are generated."""

    max_new_tokens: int = Field(20, ge=1)
    max_length: int | None = Field(
        None, ge=2, description="tokens of prompt and answer together, instead of `max_new_tokens`; at least one is new"
    )
    beams: int = Field(1, ge=1, le=32)
    sample: bool = Field(False, description="draw each token; with one beam")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    length_penalty: float = Field(1.0, description="beams are compared by score / length ** this")
    length_normalization: Literal["answer", "total"] = Field(
        "answer", description="that length: the answer's, or prompt and answer's as in transformers 4.20 to 4.24"
    )
    min_new_tokens: int = Field(0, ge=0, description="so many tokens come before the end may")
    repetition_penalty: float = Field(
        1.0, gt=0, description="scores of tokens the answer has already are divided by it, negative ones multiplied"
    )
    seed: int = Field(
        0, ge=0, description="of what is drawn; an answer depends on it, the question and the media alone"
    )

    @model_validator(mode="after")
    def _draws_or_searches(self) -> DecodeConfig:
        if self.sample and self.beams > 1:
            raise ValueError("`sample` draws with one beam: set `beams` to 1, or `sample` to false")
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
        """Of an LM's `room` positions those to be left for the answer of the longest prompt."""
        if self.max_length is None:
            return self.max_new_tokens
        if self.max_length > room:
            raise UserError(f"decode.max_length is {self.max_length}, but the LM has {room} positions")
        return 1


class OtherSet(Part):
    """Another data set on which a run is evaluated, beside its own."""

    task: Annotated[NamedPart, named("name")]
    split: str | None = Field(None, description="None = the task's last split")
    samples: int | None = Field(None, ge=1, description="a fixed random subset; None = all")
    text: TextConfig | None = Field(None, description="template and so on; None = the recipe's")
    decode: DecodeConfig | None = Field(None, description="None = the recipe's")


class EvalConfig(Part):
    """Evaluation with real generation."""

    split: str | None = Field(None, description="None = the task's last split")
    samples: int | None = Field(None, ge=1, description="a fixed random subset; None = all")
    batch_size: int = Field(64, ge=1)
    dtype: DType = Field(
        "float32",
        description="dtype of eval, answer and serve, stored in the run; `auto` as in `train.precision`",
    )
    shuffled_control: bool = Field(False, description="also with the media shuffled among the samples")
    no_media_control: bool = Field(False, description="also without any medium")
    rank: Literal["choices"] | None = Field(
        None, description="the likeliest of each sample's `choices` is its answer; None = answers are generated"
    )
    rank_normalize: bool = Field(False, description="by log-probability per token, not in sum")
    every: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = Field(
        None, description="steps between evaluations during training, or `epoch`: after each; None = never"
    )
    during_split: str | None = Field(
        None, description="split for evaluation during training; None = `validation` or `held-out`"
    )
    during_samples: int | None = Field(200, ge=1, description="samples of such an evaluation; None = all")
    others: dict[str, OtherSet] = Field(default_factory=dict, description="other data sets by name, for the gap table")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without a better metric")

    @model_validator(mode="after")
    def _names_are_file_names(self) -> EvalConfig:
        for name in self.others:
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(
                    f"`others.{name}`: a name has letters, digits, `_` and `-` only: it becomes part of a file's"
                )
        return self


class InitConfig(Part):
    """Another run whose trained method this one starts from."""

    run: str = Field(description="its folder")
    rename: dict[str, str] = Field(
        default_factory=dict, description="modality of that run -> modality of this recipe, such as {image: video}"
    )
    may_differ: tuple[Literal["lm", "encoders", "method"], ...] = Field(
        (), description="what need not be the same there; tensors must fit all the same"
    )

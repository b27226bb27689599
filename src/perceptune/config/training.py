"""The section `train` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from perceptune.config.hold_out import HoldOut
from perceptune.config.objective import RewardConfig
from perceptune.config.section import ConfigSection, DType, Off, require_amount
from perceptune.config.word_pretraining import WordPretrainingConfig


def _tracker_names(value: Any) -> Any:
    """Convert `none`, one name or a list of names to a sequence of names."""
    names = [value] if isinstance(value, str) else value
    return () if names is None or (isinstance(names, list) and names == ["none"]) else names


class TrainConfig(ConfigSection):
    """Training options. Defaults are the paper's values where it states one (`docs/papers.md`)."""

    steps: int | None = Field(None, ge=0, description="optimizer steps; None = `epochs`")
    epochs: float = Field(8, gt=0, description="passes over the training samples")
    batch_size: int = Field(64, ge=1, description="samples per forward pass, over all processes")
    batch_tokens: int | None = Field(
        None, ge=1, description="text tokens per forward pass, padding included, instead of `batch_size`"
    )
    accumulate: int = Field(1, ge=1, description="forward passes per optimizer step (gradient accumulation)")
    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    warmup_lr: float | None = Field(None, ge=0, description="learning rate of the first step; None = lr / 2")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the schedule")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="schedule of `lr`")
    warmup_steps: int = Field(400, ge=0, description="steps of linear warm-up")
    prompt_lr: float = Field(1e-5, gt=0, description="learning rate of soft prompt and adapters")
    prompt_schedule: Literal["cosine", "linear", "constant"] = Field("constant", description="schedule of `prompt_lr`")
    weight_decay: float = Field(0.02, ge=0, description="of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW")
    eps: float = Field(1e-8, gt=0, description="of AdamW")
    clip: float | None = Field(None, gt=0, description="maximum gradient norm; None = no clipping")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay per step, such as 0.99, of an exponential moving average of the trained "
        "weights, with which the run is evaluated and saved; None = the weights of the step itself",
    )  # fmt: skip
    pretrain_words: WordPretrainingConfig | None = Field(
        None, description="before the first step, train the mappers alone towards the LM's states of the words in the "
        "answers; {} = with the defaults, None = off",
    )  # fmt: skip
    precision: DType = Field(
        "auto",
        description="dtype of the frozen LM in training; `auto` = bfloat16 if measured at least 5 % faster, "
        "else float32; always float32 for an LM that is trained; the run stores the choice",
    )
    frozen_dropout: Annotated[Literal["off", "official"], Off] = Field("off", description="dropout of frozen parts")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    samples: int | float | None = Field(
        None, description="number or fraction of training samples; smaller subsets are contained in larger ones"
    )
    samples_seed: int | None = Field(None, description="seed of that subset; None = `seed`")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced = draw all answers to the same prompt equally often, so that the answer "
        "cannot be guessed from the prompt",
    )  # fmt: skip
    hold_out: HoldOut | None = Field(
        None, description="number or fraction of training samples kept as split `held-out`, whole media at a time; or "
        "a mapping with the following keys, which makes splits `validation` and `test`",
    )  # fmt: skip
    objective: RewardConfig | None = Field(
        None, description="what is minimised: None = cross-entropy; {kind: reward} = a reward stage, which continues "
        "the run named by `init_from`",
    )  # fmt: skip
    freeze: tuple[str, ...] = Field(
        (), description="parts of the method that are not trained, by prefix of their tensors' names"
    )
    standardize_samples: int = Field(1024, ge=2, description="number of media used for feature statistics")
    feature_memory_mb: int = Field(2048, ge=0, description="memory for features with `cache.features: memory`, in MB")
    text_memory_mb: int = Field(64, ge=0, description="memory for text states, in MB; the rest goes to disk")
    prefetch: bool | None = Field(None, description="prepare the next batch in a thread; None = on a GPU only")
    packed_memory_mb: int = Field(1024, ge=0, description="memory for packed copies of frozen weights, in MB")
    compile: bool = Field(False, description="run the LM's feed-forward parts through `torch.compile`")
    max_bad_media: int = Field(0, ge=0, description="broken or missing media to tolerate; listed in the run folder")
    log_every: int = Field(1, ge=1, description="steps between log lines")
    save_every: int = Field(500, ge=1, description="steps between checkpoints")
    report_to: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], BeforeValidator(_tracker_names)] = (
        Field((), description="experiment trackers that also get the log: `none`, one name or a list")
    )

    _amounts = field_validator("samples", "hold_out")(require_amount)

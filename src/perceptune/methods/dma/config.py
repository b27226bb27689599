"""Configuration of a DMA adapter."""

# ruff: noqa: RUF009 (`_setting` gives a field)

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft import PeftConfig

from perceptune.errors import nearest
from perceptune.methods.dma._errors import DMAError
from perceptune.methods.dma._types import peft_type

Core = Literal["tucker", "cp"]
Gamma = Literal["scalar", "diagonal"]
ALL_LINEAR = "all-linear"  # PEFT's keyword

# Queries, keys and values of a Q-Former, on its own or inside InstructBLIP and BLIP-2: PETAL's targets.
QFORMER_ATTENTION = r"(.*\.)?encoder\.layer\.\d+\.(attention|crossattention)\.attention\.(query|key|value)"


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass
class DMAConfig(PeftConfig):
    """Dynamic mode approximation (PETAL, arXiv 2312.12458): W0 x + dW x with dW = V M^T U.

    U (r, in) and V (out, r) are shared by all targeted matrices of one shape, as is the core: the paper's lambda of a
    modality. Each matrix has its own mode vector p (r,). V starts at zero, so nothing changes at the start.

    `core="tucker"`, as in the released code: C (r, r, r), M = sum_k C[:, :, k] p[k].
    `core="cp"`, as in the paper's formula: lambda (r,), M = diag(lambda p), a weighted sum of r rank-one terms.

    Raises `DMAError`, a `ValueError`, for invalid settings.
    """

    r: int = _setting(64, "rank")
    target_modules: list[str] | set[str] | str | None = _setting(
        None, "linear maps by regular expression (of the whole name) or by list (ends of names); 'all-linear'; None: "
        "those of the Q-Former in InstructBLIP, else PEFT's choice by the model's type",
    )  # fmt: skip
    exclude_modules: list[str] | set[str] | str | None = _setting(
        None, "of these, the ones to leave out, in the same two ways"
    )
    core: Core = _setting("tucker", "tucker or cp")
    dropout: float = _setting(0.1, "between U and M, while training")
    gamma: Gamma | None = _setting(
        None, "the paper's Gamma: a trained factor on W0 x, 1 at the start; one or one an output"
    )
    gated: bool = _setting(False, "lambda depends on the input by 2 sigmoid(G U x), 1 at the start; cannot be merged")
    init_weights: bool = _setting(True, "V starts at zero; False: at random, so that it acts at once, for tests")
    groups: dict[str, str] | None = _setting(
        None, "name: regular expression. Matrices of one shape are shared only within a name, for a lambda per "
        "modality where the modalities are equally wide",
    )  # fmt: skip
    rank_pattern: dict[str, int] | None = _setting(
        None, "regular expression of a name's end: rank, in place of `r`. One rank for all matrices that share factors"
    )
    modules_to_save: list[str] | None = _setting(None, "further modules that are trained whole and saved")
    layers_to_transform: list[int] | int | None = _setting(
        None, "only these layers of what a list of `target_modules` names"
    )
    layers_pattern: list[str] | str | None = _setting(
        None, "name of the model's list of layers, for `layers_to_transform`"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("DMA")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        _require_rank("r", self.r)
        for pattern, rank in (self.rank_pattern or {}).items():
            _require_pattern("rank_pattern", pattern)
            _require_rank(f"rank_pattern.{pattern}", rank)
        if not 0 <= self.dropout < 1:
            raise DMAError(f"DMAConfig: `dropout` is a probability below 1, not {self.dropout!r}")
        _require_choice("core", self.core, get_args(Core))
        if self.gamma is not None:
            _require_choice("gamma", self.gamma, get_args(Gamma))
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise DMAError(
                "DMAConfig: `layers_to_transform` goes with a list; a regular expression names layers itself"
            )
        for key in ("target_modules", "exclude_modules"):
            _require_pattern(key, getattr(self, key))
        for name, pattern in (self.groups or {}).items():
            if not re.fullmatch(r"\w+", name):
                raise DMAError(f"DMAConfig: the group `{name}` becomes part of a name: letters, digits and _ only")
            _require_pattern(f"groups.{name}", pattern)


def _require_rank(key: str, value: Any) -> None:
    if not (isinstance(value, int) and value > 0):
        raise DMAError(f"DMAConfig: `{key}` is a rank, a whole number greater than 0, not {value!r}")


def _require_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DMAError(f"DMAConfig: `{key}` cannot be `{value}`{nearest(str(value), choices)}")


def _require_pattern(key: str, value: Any) -> None:
    if isinstance(value, str) and value != ALL_LINEAR:
        try:
            re.compile(value)
        except re.error as error:
            raise DMAError(f"DMAConfig: `{key}` is no regular expression: `{value}`: {error}") from error

"""PETAL (arXiv 2312.12458): mode approximation, several instructions through a mixture of experts, a bottleneck.

Dynamic mode approximation (DMA) on the Q-Former's attention; adaptive instruction mixture of experts (AIM) on the
Q-Former's input; score-based information bottleneck (SIB) as a further loss. Each is a key and can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perceptune.config.section import ConfigSection
from perceptune.errors import UserError
from perceptune.methods.qformer import base
from perceptune.methods.qformer.base import FrozenBlip, Instruction, QFormerMethod, QFormerOptions, QFormerOutput, Site

# Ablations of the paper's Table 4: V1 is `petal-sib`, V2 `petal-aim`, V3 `petal-dma`, V4 `petal` with `dma: null`.
_NO_AIM: dict[str, Any] = {"experts": None, "instructions": ()}
VARIANTS: dict[str, dict[str, Any]] = {
    "petal": {},
    "petal-dma": {**_NO_AIM, "sib": None},
    "petal-aim": {"sib": None},
    "petal-sib": _NO_AIM,
    "petal-released": {
        "experts": {"n": 6, "form": "released"}, "instructions": (), "sib": None, "query_transform": True
    },
}  # fmt: skip


class DMASection(ConfigSection):
    """Options of DMA on queries, keys and values of the Q-Former; see `perceptune.methods.dma.DMAConfig`."""

    r: int = Field(64, ge=1, description="rank")
    core: Literal["tucker", "cp"] = Field("tucker", description="tucker = as released, cp = as in the paper's formula")
    dropout: float = Field(0.1, ge=0, lt=1)
    gamma: Literal["scalar", "diagonal"] | None = Field(None, description="a trained factor on the frozen linear map")
    gated: bool = Field(False, description="lambda depends on the input; such a model cannot be merged")


class PetalOptions(QFormerOptions):
    """Options of the three parts, and how instructions are read."""

    dma: DMASection | None = Field(DMASection(), description="None = no mode approximation")
    experts: base.ExpertsOptions | None = Field(base.ExpertsOptions(), description="None = no experts")
    sib: base.BottleneckOptions | None = Field(base.BottleneckOptions(), description="None = cross-entropy alone")
    instructions: tuple[str, ...] = Field(base.ENHANCED, description="the Q-Former's text before the prompt")
    mode: Literal["paragraph", "multi_pass"] = Field(
        "paragraph", description="all instructions in one text, or one Q-Former pass per instruction, averaged"
    )
    random_instructions: tuple[int, ...] | None = Field(
        None, description="control: number of random tokens that replace each instruction; unreleased: [16, 24, 32]"
    )
    query_transform: bool = Field(False, description="the released code's gated query transformation")


class Petal(QFormerMethod):
    """DMA, AIM and SIB on a Q-Former, each if the options include it."""

    Options = PetalOptions
    options: PetalOptions

    def __init__(self, options: PetalOptions, blip: FrozenBlip) -> None:
        super().__init__(options, blip)
        _require_readable(options, blip)
        self._n_layers = len(blip.layers)
        if options.dma is not None:
            config = base.config_of({"peft_type": "DMA", **options.dma.model_dump()}, "method.dma", blip)
            self.dma, self.__dict__["peft_model"] = base.wrapped(blip, config)
        if options.experts is not None:
            kind = base.GatedExperts if options.experts.form == "gated" else base.ReleasedExperts
            self.experts: base.GatedExperts | base.ReleasedExperts = kind(blip.hidden_size, options.experts)
        if options.query_transform:
            self.query_transform = base.QueryTransform(self._n_layers, blip.hidden_size)
        if options.random_instructions is not None:
            words = int(blip.model.config.qformer_config.vocab_size)
            self.register_buffer("random_ids", _random_ids(options.random_instructions, words))
        if not list(self.parameters()):
            raise UserError("method: without `dma`, `experts` and `query_transform` there is nothing to train")
        # Not a submodule: used only while training, so neither saved with the method nor counted.
        self.__dict__["sib"] = None if options.sib is None else base.Bottleneck(options.sib, blip)
        self._mask: Tensor | None = None  # of the current instruction
        self._gates: list[Tensor] = []  # of each pass of the batch

    def attach(self, blip: FrozenBlip) -> None:
        if self.options.experts is not None:
            blip.qformer.embeddings.register_forward_hook(self._through_experts)
        if self.options.query_transform:
            self.query_transform.attach(blip)

    def auxiliary_group(self) -> tuple[nn.Module, float] | None:
        return None if self.options.sib is None else (self.__dict__["sib"], self.options.sib.lr)

    def instructions(self, text: str) -> Sequence[str]:
        if self.options.random_instructions is not None or not self.options.instructions:
            return (text,)
        if self.options.mode == "multi_pass":
            return [_joined(one, text) for one in self.options.instructions]
        return (_joined(*self.options.instructions, text),)

    def queries(self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction]) -> QFormerOutput:
        self._gates = []
        passes = [self._pass(blip, image, [one] if one else []) for one in self._read(blip, instructions)]
        if len(passes) == 1:
            return passes[0]
        return QFormerOutput(torch.stack([one.queries for one in passes]).mean(0))

    def aux_loss(self, blip: FrozenBlip, seen: base.TrainingPass) -> Tensor | None:
        terms = []
        if self.options.sib is not None:
            terms.append(self.__dict__["sib"](blip, seen))
        if self.options.experts is not None and self.options.experts.balance:
            assert isinstance(self.experts, base.GatedExperts)
            terms.append(self.options.experts.balance * self.experts.balance(torch.cat(self._gates)))
        return sum(terms) if terms else None

    def sites(self) -> list[Site]:
        sites, layers = [], range(self._n_layers)
        if (experts := self.options.experts) is not None:
            what = f"{experts.n} experts"
            sites.append(Site(0, "qformer.embeddings", what if experts.form == "gated" else f"mean of {what}"))
        if self.options.dma is not None:
            sites += self.sites_at(layers, "DMA on queries, keys and values")
        if self.options.query_transform:
            sites += self.sites_at(layers, "gated query transformation")
        return sites

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Petal:
        """Apply to the estimators, too, so that they move with the method."""
        super()._apply(fn, recurse)
        if self.__dict__["sib"] is not None:
            self.__dict__["sib"]._apply(fn, recurse)
        return self

    def _pass(self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction]) -> QFormerOutput:
        self._mask = instructions[0].mask if instructions else None
        return super().queries(blip, image, instructions)

    def _through_experts(self, _: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        if isinstance(self.experts, base.ReleasedExperts):
            return self.experts(embedded)
        assert self._mask is not None
        n = embedded.shape[1] - self._mask.shape[1]
        text, gates = self.experts(embedded[:, n:], self._mask)
        self._gates.append(gates)
        return torch.cat([embedded[:, :n], text], dim=1)

    def _read(self, blip: FrozenBlip, instructions: Sequence[Instruction]) -> Sequence[Instruction | None]:
        """Return the instruction of each pass; a single None for a Q-Former without text input."""
        lengths = self.options.random_instructions
        if lengths is None or not instructions:
            return instructions or (None,)
        ids: Tensor = self.get_buffer("random_ids")
        blocks = list(ids.split(list(lengths))) if self.options.mode == "multi_pass" else [ids]
        room = int(blip.model.config.qformer_config.max_position_embeddings)
        if (longest := max(map(len, blocks)) + instructions[0].ids.shape[1]) > room:
            raise UserError(
                f"method.random_instructions: {longest} tokens with the prompt, more than the Q-Former has positions "
                f"for ({room})"
            )
        return [_with(block, instructions[0]) for block in blocks]


def _require_readable(options: PetalOptions, blip: FrozenBlip) -> None:
    """Raise `UserError` if an option needs a Q-Former with text input and this one has none."""
    if blip.reads_instructions:
        return
    for key, asked in (
        ("experts", options.experts is not None),
        ("random_instructions", options.random_instructions is not None),
        ("sib.y", options.sib is not None and options.sib.y == "instruction"),
    ):
        if asked:
            raise UserError(f"method.{key}: a BLIP-2 has a Q-Former that reads no instruction: name an InstructBLIP")


def _joined(*texts: str) -> str:
    return " ".join(text for text in texts if text)


def _random_ids(lengths: Sequence[int], words: int) -> Tensor:
    """Return random ids of each length, those of the i-th from the i-th part of the vocabulary."""
    edges = [i * words // len(lengths) for i in range(len(lengths) + 1)]
    parts = [torch.randint(edges[i], edges[i + 1], (length,)) for i, length in enumerate(lengths)]
    return torch.cat(parts)


def _with(block: Tensor, prompt: Instruction) -> Instruction:
    """Return the prompt with a block of ids behind its first token, which marks its start."""
    rows = len(prompt.ids)
    ids = torch.cat([prompt.ids[:, :1], block.expand(rows, -1), prompt.ids[:, 1:]], dim=1)
    mask = torch.cat([prompt.mask[:, :1], prompt.mask.new_ones(rows, len(block)), prompt.mask[:, 1:]], dim=1)
    return Instruction(ids, mask)


METHOD = Petal

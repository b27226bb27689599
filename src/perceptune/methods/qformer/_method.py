"""A method on a Q-Former owns every trainable tensor and may stand in wherever the image becomes query outputs.

How a forward pass goes, and where a method comes in:

    question ── instructions() ──► Q-Former's tokenizer ─► Instruction (B, L), one for each text it gives
    image ── frozen ViT, cached ──► (B, T, d_image) ──┐
                                                      ▼
                            queries(blip, image, instructions) ─► QFormerOutput (B, n, d)   gradient flows back to here
                                                      ▼
                       language projection, LM, answer ─► cross-entropy
                                                      ▼
                            aux_loss(blip, TrainingPass(...)) ─► added to it

(a) Weights of the Q-Former itself: `unfreeze` registers the same Parameter objects (`UnfrozenParameters`), so that
    they are trained, saved and restored; everything else stays frozen. PEFT: `wrapped(blip, config)` in `__init__`
    wraps linear maps of the Q-Former and gives back the tensors it added. The tree has other names then, its weights
    do not move.
(b) Modules of the method's own: hook them onto `blip.qformer.embeddings` (its output (B, n + L, d): queries, then
    text) or `blip.layers[i]`; or override `queries`, call `blip.run_qformer` as often as there are instructions, and
    mix what comes out. A hook that needs the instruction's mask takes it from what `queries` was given: override
    `queries`, note it, call the inherited one.
(c) Prompts and further queries: `run_qformer` takes any queries (1 or B, n, d). Give it more of them and keep the first
    `blip.n_queries` outputs, or lengthen the instruction and overwrite its states in a pre-hook of `blip.layers[i]`.
(d) Losses beside the LM's: `aux_loss` sees what the pass has made.

Tensors are created in `__init__`, after the weights have been loaded: float32, on whatever device is current (`meta`
when a recipe is only counted). Nothing may be read from the batch but its own rows: a row must come out the same alone
and in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from perceptune.lm.frozen_blip import FrozenBlip, Instruction, LMTokens
from perceptune.methods.base import TrainableMethod

# What PETAL asks in front of the prompt.
ENHANCED = (
    "What objects are in the picture?",
    "What are the characteristics of the objects in the picture?",
    "What is the relationship between the objects in the picture?",
)


@dataclass(frozen=True)
class QFormerOutput:
    """What the Q-Former says about a batch."""

    queries: Tensor  # (B, n_queries, d), as the language projection takes them
    text: Tensor | None = None  # (B, L, d) states of the instruction's tokens behind the last layer, if there is one


@dataclass(frozen=True)
class TrainingPass:
    """One training pass, for `aux_loss`."""

    image: Tensor  # (B, T, d_image) the ViT's states, special token first; no gradient
    instructions: Sequence[Instruction]
    output: QFormerOutput  # with gradient
    target_ids: Tensor  # (B, S) the tokens to be said
    target_mask: Tensor  # (B, S) 1 = token


class QFormerOptions(BaseModel):
    """Recipe keys under `method` that all methods on a Q-Former have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dropout: bool = Field(True, description="use the Q-Former's published dropout in training")


class QFormerMethod(TrainableMethod):
    """Base of the methods on a Q-Former. A leaf file holds one subclass and the `VARIANTS` its names stand for.

    Built by `METHOD(options, blip)`; then `unfreeze`, then `attach`, each once. `blip` is never a submodule of it.
    """

    Options: ClassVar[type[BaseModel]] = QFormerOptions
    uses_lm_loss = True  # False: `aux_loss` is the whole loss, and training does without the LM

    def __init__(self, options: QFormerOptions, blip: FrozenBlip) -> None:
        super().__init__()
        self.options = options

    def unfreeze(self, blip: FrozenBlip) -> None:
        """Makes weights of the Q-Former, as far as they are to be trained, the method's own."""

    def attach(self, blip: FrozenBlip) -> None:
        """Puts what the method adds into its place."""

    def instructions(self, text: str) -> Sequence[str]:
        """What the Q-Former reads where the LM reads `text`: as many texts for every sample. Unused with BLIP-2."""
        return (text,)

    def queries(self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction]) -> QFormerOutput:
        """Query outputs for the ViT's states (B, T, d_image) and the texts of `instructions`, tokenised.

        Here: one pass with the first of them. `instructions` is empty for a Q-Former that reads none.
        """
        states = blip.run_qformer(blip.query_tokens, instructions[0] if instructions else None, image)
        return QFormerOutput(states[:, : blip.n_queries], states[:, blip.n_queries :] if instructions else None)

    def loss(
        self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction], tokens: LMTokens, *, pad: int
    ) -> tuple[Tensor, int]:  # fmt: skip
        """Cross-entropy summed over the tokens to be said, and their number; while training with `aux_loss`.

        That one is multiplied by the number, so that the step's mean is mean cross-entropy + `aux_loss`.
        """
        queried = self.queries(blip, image, instructions)
        if not self.training:
            return blip.loss(queried.queries, tokens)
        ids, mask = tokens.target_tokens(pad)
        if self.uses_lm_loss:
            loss, n = blip.loss(queried.queries, tokens)
        else:
            loss, n = queried.queries.new_zeros(()), int(mask.sum())
        aux = self.aux_loss(blip, TrainingPass(image, instructions, queried, ids, mask))
        return loss if aux is None else loss + n * aux, n

    def aux_loss(self, blip: FrozenBlip, seen: TrainingPass) -> Tensor | None:
        """A scalar (mean over the rows) that is added to the mean cross-entropy; None for methods without one.

        Called while training only, once a forward pass. With several passes a step, or several processes, the mean is
        taken over all of them, each weighted by its supervised tokens.
        """
        return None

    def set_dropout(self, blip: FrozenBlip, *, on: bool) -> None:
        """Switches dropout of what is trained, that of PEFT's layers inside the Q-Former included."""
        self.train(on)
        blip.qformer.train(on and self.options.dropout)
        for part in blip.qformer.modules():
            if hasattr(part, "base_layer"):
                part.train(on)

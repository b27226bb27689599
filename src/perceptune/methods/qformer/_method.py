"""Base of the methods on a Q-Former: a method owns every trainable tensor and can change the query outputs.

The forward pass and the places where a method takes part:

    question ── instructions() ──► Q-Former's tokenizer ─► Instruction (B, L), one for each text returned
    image ── frozen ViT, cached ──► (B, T, d_image) ──┐
                                                      ▼
                            queries(blip, image, instructions) ─► QFormerOutput (B, n, d)   gradients reach this point
                                                      ▼
                       language projection, LM, answer ─► cross-entropy
                                                      ▼
                            aux_loss(blip, TrainingPass(...)) ─► added to it

(a) Weights of the Q-Former itself: `unfreeze` registers the same Parameter objects (`UnfrozenParameters`), so that
    they are trained, saved and restored; everything else stays frozen. PEFT: `wrapped(blip, config)` in `__init__`
    wraps linear maps of the Q-Former and returns the tensors it added. The module tree has other names then; its
    weights are not moved.
(b) Modules of the method's own: hook them onto `blip.qformer.embeddings` (its output (B, n + L, d): queries, then
    text) or `blip.layers[i]`; or override `queries`, call `blip.run_qformer` once per instruction, and mix the
    outputs. A hook that needs the instruction's mask takes it from the arguments of `queries`: override `queries`,
    store it, call the inherited one.
(c) Prompts and further queries: `run_qformer` accepts any queries (1 or B, n, d). Pass more of them and keep the first
    `blip.n_queries` outputs, or lengthen the instruction and overwrite its states in a pre-hook of `blip.layers[i]`.
(d) Losses beside the LM's: `aux_loss` receives the tensors of the pass.

Tensors are created in `__init__`, after the weights have been loaded: float32, on the current device (`meta` when a
recipe's parameters are only counted). A row must depend on no other row of the batch: its output must be the same
alone and in any batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from perceptune.lm.frozen_blip import FrozenBlip, Instruction, LMTokens
from perceptune.methods.base import Site, TrainableMethod

# PETAL's instructions in front of the prompt.
ENHANCED = (
    "What objects are in the picture?",
    "What are the characteristics of the objects in the picture?",
    "What is the relationship between the objects in the picture?",
)


@dataclass(frozen=True)
class QFormerOutput:
    """Output of the Q-Former for a batch."""

    queries: Tensor  # (B, n_queries, d), the input of the language projection
    text: Tensor | None = None  # (B, L, d) the last layer's states of the instruction's tokens, if there is one


@dataclass(frozen=True)
class TrainingPass:
    """Tensors of one training pass, for `aux_loss`."""

    image: Tensor  # (B, T, d_image) the ViT's states, special token first; no gradient
    instructions: Sequence[Instruction]
    output: QFormerOutput  # with gradient
    target_ids: Tensor  # (B, S) the tokens to be generated
    target_mask: Tensor  # (B, S) 1 = token


class QFormerOptions(BaseModel):
    """Recipe keys under `method` that all methods on a Q-Former share."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dropout: bool = Field(True, description="use the Q-Former's published dropout in training")


class QFormerMethod(TrainableMethod):
    """Base of the methods on a Q-Former. A leaf file holds one subclass and its named `VARIANTS`.

    Built by `METHOD(options, blip)`; then `unfreeze`, then `attach`, each once. `blip` is never a submodule of it.
    """

    Options: ClassVar[type[BaseModel]] = QFormerOptions
    uses_lm_loss = True  # False: `aux_loss` is the whole loss, and training does not run the LM

    def __init__(self, options: QFormerOptions, blip: FrozenBlip) -> None:
        super().__init__()
        self.options = options

    def unfreeze(self, blip: FrozenBlip) -> None:
        """Register the weights of the Q-Former that are to be trained as the method's own."""

    def attach(self, blip: FrozenBlip) -> None:
        """Attach the modules that the method adds."""

    def instructions(self, text: str) -> Sequence[str]:
        """Return the Q-Former's inputs for the LM's `text`, equally many for every sample. Unused with BLIP-2."""
        return (text,)

    def queries(self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction]) -> QFormerOutput:
        """Return query outputs for the ViT's states (B, T, d_image) and the tokenised texts of `instructions`.

        By default one pass with the first text. `instructions` is empty for a Q-Former without text input.
        """
        states = blip.run_qformer(blip.query_tokens, instructions[0] if instructions else None, image)
        return QFormerOutput(states[:, : blip.n_queries], states[:, blip.n_queries :] if instructions else None)

    def loss(
        self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction], tokens: LMTokens, *, pad: int
    ) -> tuple[Tensor, int]:  # fmt: skip
        """Return the cross-entropy summed over the target tokens, and their number; in training with `aux_loss`.

        `aux_loss` is multiplied by the number, so that the step's mean is mean cross-entropy + `aux_loss`.
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
        """Return a scalar (mean over the rows) that is added to the mean cross-entropy; None for methods without one.

        Called only while training, once per forward pass. With several passes per step, or several processes, the
        mean is taken over all of them, each weighted by its supervised tokens.
        """
        return None

    @staticmethod
    def sites_at(layers: Iterable[int], what: str) -> list[Site]:
        """Return one place in each of several layers of the Q-Former."""
        return [Site(layer, f"qformer.encoder.layer.{layer}", what) for layer in layers]

    def set_dropout(self, blip: FrozenBlip, *, on: bool) -> None:
        """Switch the dropout of the trained parts, including that of PEFT layers inside the Q-Former."""
        self.train(on)
        blip.qformer.train(on and self.options.dropout)
        for part in blip.qformer.modules():
            if hasattr(part, "base_layer"):
                part.train(on)

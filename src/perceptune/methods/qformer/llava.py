"""A LLaVA-style baseline: the LM itself is trained on the frozen ViT's patches through a projector; no Q-Former.

As in LLaVA (arXiv 2304.08485, 2310.03744) every patch token becomes one image token of the LM, and projector and
whole LM are trained. The projector is an MLP whose second map is initialised with the published language projection.
PETAL's table lists the 7-billion LLaVA itself; this is its recipe on the same frozen ViT and LM as the other rows.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.methods.qformer import base
from perceptune.methods.qformer.base import FrozenBlip, Instruction, QFormerMethod, QFormerOptions, QFormerOutput, Site


class LLaVAOptions(QFormerOptions):
    """Options that LLaVA's recipe leaves open."""

    lm_lr: float = Field(2e-5, gt=0, description="constant learning rate of the LM; `train.lr` is the projector's")


class LLaVA(QFormerMethod):
    """ViT's width -> Q-Former's width, GELU, language projection, LM: all but the ViT is trained."""

    Options = LLaVAOptions

    def __init__(self, options: LLaVAOptions, blip: FrozenBlip) -> None:
        super().__init__(options, blip)
        self._rate = options.lm_lr
        self.projector = nn.Linear(blip.image_size, blip.hidden_size)
        self.projection, self.lm = nn.ModuleDict(), nn.ModuleDict()
        self._n_layers = int(blip.language_model.config.num_hidden_layers)

    def unfreeze(self, blip: FrozenBlip) -> None:
        self.projection["taken"] = base.UnfrozenParameters(
            "the projection", blip.language_projection.named_parameters()
        )
        self.lm["taken"] = base.UnfrozenParameters("the LM", blip.language_model.named_parameters())
        blip.n_queries = blip.n_patches  # image tokens that the LM receives

    @property
    def trains_lm(self) -> bool:
        return True

    def unfrozen_group(self) -> Mapping[str, tuple[nn.Module, float]]:
        return {"lm": (self.lm, self._rate)}

    def queries(self, blip: FrozenBlip, image: Tensor, instructions: Sequence[Instruction]) -> QFormerOutput:
        """Return one query output per patch; only the LM reads the question."""
        patches = image[:, -blip.n_patches :]
        if patches.shape[1] != blip.n_patches:
            raise UserError(f"{image.shape[1]} tokens of the ViT are fewer than its {blip.n_patches} patches")
        return QFormerOutput(nn.functional.gelu(self.projector(patches)))

    def sites(self) -> list[Site]:
        return [
            Site(0, "behind the ViT", "projector's first map"),
            Site(0, "language_projection", "projector's second map, trained itself"),
            Site(0, "language_model", "trained itself"),
        ]


METHOD = LLaVA

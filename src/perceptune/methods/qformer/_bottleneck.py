"""PETAL's score-based information bottleneck: the tensors of a training pass that each estimator receives."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from perceptune.config.section import ConfigSection
from perceptune.lm.frozen_blip import FrozenBlip
from perceptune.methods.parts.mutual_information import Club, InfoNCE, LeaveOneOut
from perceptune.methods.qformer._method import TrainingPass
from perceptune.methods.qformer._pooling import mean_of


class BottleneckOptions(ConfigSection):
    """loss = cross-entropy - alpha (I(Z;Y) - eta I(Z;X)), z being the mean query output and x the mean ViT state."""

    y: Literal["target", "instruction"] = Field(
        "target", description="Y in I(Z;Y): the LM's embeddings of the answer, or the Q-Former's embeddings of its text"
    )
    alpha: float = Field(0.1, ge=0, description="weight of the bottleneck loss")
    eta: float = Field(0.1, ge=0, description="weight of I(Z;X) in the bottleneck loss")
    temperature: float = Field(0.07, gt=0, description="temperature of the cosines between z and y")
    upper: Literal["club", "leave_one_out"] = Field(
        "club", description="bound of I(Z;X); leave_one_out is close to the true value, club (PETAL's) is not"
    )
    hidden: int = Field(256, ge=1, description="hidden width of the estimators")
    size: int = Field(128, ge=1, description="dimension in which z and y are compared")
    lr: float = Field(1e-3, gt=0, description="constant learning rate of the estimators")


class Bottleneck(nn.Module):
    """Estimators and their loss. They are trained together with the method without being part of it."""

    def __init__(self, options: BottleneckOptions, blip: FrozenBlip) -> None:
        super().__init__()
        self.options = options
        x, z = blip.image_size, blip.hidden_size
        words = blip.language_model.get_input_embeddings().weight
        y = words.shape[1] if options.y == "target" else z
        self.about_y = InfoNCE(z, y, hidden=options.hidden, size=options.size, temperature=options.temperature)
        self.about_x = (Club if options.upper == "club" else LeaveOneOut)(x, z, hidden=options.hidden)

    def forward(self, blip: FrozenBlip, seen: TrainingPass) -> Tensor:
        """Return the loss, a scalar; 0 for a batch of one row, apart from the estimators' own gradients.

        Fitting q(z|x) adds a gradient and no value: the reported loss is the formula's.
        """
        z, x = seen.output.queries.mean(1), seen.image.mean(1)
        x = functional.layer_norm(x, x.shape[-1:])
        i_zy = self.about_y(z, self._y(blip, seen))
        i_zx = self.about_x(z, x)
        fitting: Tensor = self.about_x.fit(z, x)
        return self.options.eta * self.options.alpha * i_zx - self.options.alpha * i_zy + (fitting - fitting.detach())

    def _y(self, blip: FrozenBlip, seen: TrainingPass) -> Tensor:
        """Return the rows' mean frozen embeddings (B, size) of the text z is to predict, scaled alike for all LMs."""
        if self.options.y == "target":
            pooled = mean_of(blip.word_embeddings(seen.target_ids).float(), seen.target_mask)
        else:
            embed = blip.qformer.embeddings.word_embeddings
            pooled = torch.stack([mean_of(embed(one.ids), one.mask) for one in seen.instructions]).mean(0)
        return functional.layer_norm(pooled, pooled.shape[-1:]).detach()

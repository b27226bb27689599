"""Perceptune models as classes of transformers: `from_pretrained`, `pipeline`, `generate`, `Trainer`."""

from perceptune.models.hf.configuration import PerceptuneConfig
from perceptune.models.hf.modeling import PerceptuneForConditionalGeneration
from perceptune.models.hf.processing import PerceptuneProcessor

__all__ = ["PerceptuneConfig", "PerceptuneForConditionalGeneration", "PerceptuneProcessor"]

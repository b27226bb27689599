"""PETAL's dynamic mode approximation for PEFT, under the name it is documented by: see `perceptune.methods.dma`."""

from perceptune.methods.dma import QFORMER_ATTENTION, DMAConfig, DMALinear, DMAModel

__all__ = ["QFORMER_ATTENTION", "DMAConfig", "DMALinear", "DMAModel"]

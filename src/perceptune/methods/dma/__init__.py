"""Dynamic mode approximation (DMA) for PEFT: `get_peft_model(model, DMAConfig(...))` on any transformers model.

Importing this module registers the method with PEFT, so that `PeftModel.from_pretrained` loads saved adapters. No
other part of perceptune is imported.
"""

from perceptune.methods.dma._types import peft_type, require_tested_peft

require_tested_peft()  # before any import from PEFT that another version may lack

from peft.utils import register_peft_method  # noqa: E402

from perceptune.methods.dma.config import QFORMER_ATTENTION, DMAConfig  # noqa: E402
from perceptune.methods.dma.layer import DMALinear  # noqa: E402
from perceptune.methods.dma.model import DMAModel  # noqa: E402

__all__ = ["QFORMER_ATTENTION", "DMAConfig", "DMALinear", "DMAModel"]

peft_type("DMA")
register_peft_method(name="dma", config_cls=DMAConfig, model_cls=DMAModel, prefix=DMAModel.prefix)

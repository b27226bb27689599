"""Dynamic mode approximation (DMA) for PEFT: `get_peft_model(model, DMAConfig(...))` on any transformers model.

Importing this module makes PEFT know the method, so that `PeftModel.from_pretrained` loads what was saved. Nothing else
of perceptune is loaded.
"""

from perceptune.methods.dma._types import peft_type, require_tested_peft

require_tested_peft()  # before anything of PEFT's that another version may not have

from peft.utils import register_peft_method  # noqa: E402

from perceptune.methods.dma.config import QFORMER_ATTENTION, DMAConfig  # noqa: E402
from perceptune.methods.dma.layer import DMALinear  # noqa: E402
from perceptune.methods.dma.model import DMAModel  # noqa: E402

__all__ = ["QFORMER_ATTENTION", "DMAConfig", "DMALinear", "DMAModel"]

peft_type("DMA")
register_peft_method(name="dma", config_cls=DMAConfig, model_cls=DMAModel, prefix=DMAModel.prefix)

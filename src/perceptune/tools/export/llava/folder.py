"""Writing a run as a folder of transformers' LLaVA."""

from pathlib import Path
from typing import cast

from perceptune.errors import UserError
from perceptune.models.hf.conversion import generation_config_of
from perceptune.models.pretrained import appearing_folder, require_new_folder
from perceptune.models.run_folder import load, read_recipe
from perceptune.models.slots.model import SlotModel
from perceptune.tools.export.llava.agreement import require_agreement
from perceptune.tools.export.llava.processor import processor_of
from perceptune.tools.export.llava.requirements import require_model, require_recipe
from perceptune.tools.export.llava.weights import llava_of


def export_llava(run: Path, folder: Path, *, trust: bool = False) -> int:
    """Write a run as a folder of `LlavaForConditionalGeneration` and `LlavaProcessor`; return its size in bytes.

    Raises `UserError` for an existing folder, and for a run that LLaVA's layout has no place for, with the reasons.
    """
    if trust:
        raise UserError("--trust: nothing of this package is needed to load the folder, so no code can come with it")
    require_new_folder(folder)
    require_recipe(read_recipe(run))
    # In float32, which the trained tensors have, on the CPU, and without packed copies of weights.
    model = load(run, dtype="float32", device="cpu", overrides=["cache.features=off"], ready=False)
    return write_llava(cast(SlotModel, model), folder)


def write_llava(model: SlotModel, folder: Path) -> int:
    """Write a run's model as such a folder, once its logits are found to be equal; return its size in bytes."""
    require_recipe(model.recipe)
    require_model(model)
    for encoder in model.encoders.values():
        encoder.float()  # LLaVA has one dtype for all parts
    processor = processor_of(model)
    made = llava_of(model, processor.image_token_id)
    require_agreement(model, made, processor)
    made.generation_config = generation_config_of(model)
    with appearing_folder(folder) as place:
        made.save_pretrained(place)
        processor.save_pretrained(place)
        return sum(file.stat().st_size for file in place.iterdir())

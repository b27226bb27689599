"""Writing a run as a folder that transformers loads."""

from pathlib import Path

from perceptune.errors import UserError
from perceptune.models.pretrained import require_new_folder


def export_transformers(run: Path, folder: Path, *, trust: bool = False) -> int:
    """Write a run as a folder of transformers; return its size in bytes.

    Raises `UserError` for an existing folder, and for a run that transformers has a class of its own for.
    """
    from perceptune.models.hf.modeling import PerceptuneForConditionalGeneration
    from perceptune.models.hf.processing import PerceptuneProcessor

    if trust:
        raise UserError("--trust: transformers would have to trust it too; export a run without third-party code")
    require_new_folder(folder)
    model = PerceptuneForConditionalGeneration.from_run(run, overrides=["cache.features=off"])
    model.save_pretrained(folder)
    PerceptuneProcessor.from_model(model).save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.iterdir())

"""Made `tests/golden/run_v1` once, with the first release. Kept as a record: a stored format is never written anew.

python tests/golden/make_run_v1.py FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import perceptune
import support


def main(run: Path) -> None:
    """Trains a dwarf for a few steps and notes what it answers."""
    torch.set_num_threads(1)
    lm, encoder = support.save_lm(run / "lm"), support.save_encoder(run / "encoder")
    data = support.save_data(run / "data")
    work = run / "work"
    given = support.recipe(lm, encoder, data)
    given["train"] |= {"steps": 500, "batch_size": 12, "save_every": 500, "lr": 3e-2, "prompt_lr": 3e-2}
    given["method"] |= {"prompt": "plain", "connector_std": 0.3}
    perceptune.train(given, work)
    prompt = "what color is this picture?"
    shutil.copy(run / "data/train0.png", run / "picture.png")
    answer = perceptune.load(work).answer([perceptune.Sample("x", {"image": run / "picture.png"}, prompt)])[0]
    (run / "expected.json").write_text(json.dumps({"prompt": prompt, "answer": answer}))
    text = (work / "run.yaml").read_text().replace(str(lm), "LM_FOLDER").replace(str(encoder), "ENCODER_FOLDER")
    (run / "run.yaml").write_text(text.replace(str(data), "data/train.jsonl"))
    for name in ("meta.json", "method.safetensors"):
        shutil.copy(work / name, run / name)
    meta = (run / "meta.json").read_text().replace(str(lm), "LM_FOLDER").replace(str(encoder), "ENCODER_FOLDER")
    (run / "meta.json").write_text(meta)
    shutil.rmtree(work)
    shutil.rmtree(run / "data")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

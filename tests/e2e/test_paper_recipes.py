"""Every recipe of the papers, through the command line: two steps and an evaluation.

The models are tiny, but as deep as those that the recipe names, so that no key of a recipe's method has to change; the
data are made-up files of the recipe's set, in the folders that it names.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

import blips
import clips
import copies
import encoder_cases
import facts
import published_media  # noqa: F401 - adds its sets
import sounds
import support
from perceptune.cli.main import run as cli
from published import READERS

# Folder -> the sets in it, and where their media lie.
SETS = {
    "vqa": (["vqa-v2", "vqa-v2 vl-t5"], "COCO/images"), "GQA": (["gqa vl-t5"], "GQA"),
    "COCO": (["coco-captions"], "COCO/images"), "NoCaps": (["nocaps"], "NoCaps"), "MSVD-QA": (["msvd-qa"], "MSVD-QA"),
    "MSRVTT-QA": (["msrvtt-qa"], "MSRVTT-QA"), "MSR-VTT": (["msrvtt-captions"], "MSR-VTT"),
    "AudioCaps": (["audiocaps"], "AudioCaps"), "flickr30k": (["flickr30k"], "flickr30k"),
    "textcaps": (["textcaps"], "textcaps"), "aokvqa": (["a-okvqa"], "aokvqa"), "okvqa": (["ok-vqa"], "okvqa"),
    "textvqa": (["textvqa"], "textvqa"),
}  # fmt: skip
LAYERS = {"125m": 12, "350m": 24, "1.3b": 24, "2.7b": 32, "6.7b": 32}
PICTURES = "zero-shot-video/images"
FEW = ["train.batch_size=2", "train.accumulate=1", "eval.during_samples=1", "eval.samples=1"]
FEW += ["train.packed_memory_mb=0"]  # laying out weights for the CPU costs more than it gives in two steps


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the data of all sets; it is the current one, and models are read once while it is."""
    root = tmp_path_factory.mktemp("papers")
    for folder, (labels, media) in SETS.items():
        for label in labels:
            READERS[label].write(root / folder)
            for name in READERS[label].media:
                _fill(root / media / name)
                if folder == "GQA":  # images of training and validation lie elsewhere
                    _fill(root / "VG/VG_100K" / Path(name).name)
    for name in ("vqa_train", "vqa_val"):
        support.save_data(root, 4, name)
    _fill(root / "CC3M/00000/000000000.jpg")
    _fill(root / "CC3M/00000/000000001.jpg")
    (root / "CC3M/Train_GCC-training.tsv").write_text("a cup\thttp://a.org/1.jpg\na cat\thttp://a.org/2.jpg\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        copies.share_loaded(patch)
        # Looking through all that was imported as often as usual is a tenth of the cost.
        before = gc.get_threshold()
        gc.set_threshold(*before[:2], 50)
        gc.freeze()
        yield root
        gc.unfreeze()
        gc.set_threshold(*before)


def _fill(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {".wav": lambda: sounds.encoded(sounds.noise()), ".mp4": _clip, ".avi": _clip}
    path.write_bytes(made.get(path.suffix, lambda: encoder_cases.photo(24, 20))())


def _clip() -> bytes:
    return clips.clip(range(6))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `lm_of` and `encoder_of` keep what they have made."""
    return tmp_path_factory.mktemp("models")


def lm_of(models: Path, name: str) -> Path:
    """An OPT as deep as the one of this name, or an InstructBLIP with the same kind of LM."""
    folder = models / name.rpartition("/")[2]
    if folder.exists():
        return folder
    torch.manual_seed(0)
    if "instructblip" in name:
        kind = "llama" if "vicuna" in name else "t5"
        blips.save_blip(folder, kind)
        model = blips.random_blip(kind, positions=160)
        model.save_pretrained(folder)
        return folder
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": LAYERS[name.rpartition("-")[2]]}
    config = transformers.OPTConfig(
        vocab_size=support.SIZE,
        **shape,
        ffn_dim=16,
        max_position_embeddings=128,
        word_embed_proj_dim=16,
        **support.SPECIAL,
    )
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    support.tokenizer(bos=True).save_pretrained(folder)
    return folder


def encoder_of(models: Path, name: str) -> Path:
    """An encoder of the same family and depth."""
    folder = models / name.rpartition("/")[2]
    if folder.exists():
        return folder
    torch.manual_seed(0)
    depth = {"num_hidden_layers": 24 if "large" in name else 12}
    shape = {**encoder_cases.SIZE, **depth, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    hears = encoder_cases.SQUASHED
    if "timesformer" in name:
        model = transformers.TimesformerModel(transformers.TimesformerConfig(**shape, num_frames=8))
    elif "ast-" in name:
        given = {"max_length": 64, "num_mel_bins": 32, "patch_size": 16}
        model = transformers.ASTModel(transformers.ASTConfig(**{**shape, **given}))
        hears = sounds.CASES["ast"][2]
    elif "clip" in name:
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape))
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**shape), add_pooling_layer=False)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(hears))
    return folder


def words(name: str, models: Path) -> list[str]:
    """What is typed behind a recipe to make its models and its training tiny."""
    recipe = facts.loaded(name)
    given = [f"lm.id={lm_of(models, recipe.lm.id)}", *FEW]
    if recipe.backbone == "splice":
        given += [f"encoders.{key}.id={encoder_of(models, one.id)}" for key, one in recipe.encoders.items()]
        given += ["decode.max_length=2"]  # one token behind every prompt
    else:
        given += ["decode.max_new_tokens=2", "decode.min_new_tokens=0"]
    given += [] if recipe.train.steps == 0 else ["train.steps=2"]
    given += ["train.hold_out=1"] if recipe.train.hold_out else []
    return given


pytestmark = pytest.mark.filterwarnings("ignore:DMA's group")  # a rank that is large for maps as tiny as these


LMS = ["opt-2.7b", "opt-6.7b", "opt-350m", "opt-1.3b", "opt-125m", "t5", "vicuna"]


def test_every_recipe_is_of_one_of_the_lms() -> None:
    """Or the next test would leave it out."""
    names = {name: facts.loaded(name).lm.id for name in facts.files()}
    assert [name for name, lm in names.items() if sum(one in lm for one in LMS) != 1] == []
    assert names.keys() == facts.table()["recipes"].keys()


@pytest.mark.parametrize("lm", LMS)
def test_recipes_train_and_are_evaluated(lm: str, place: Path, models: Path, tmp_path: Path) -> None:
    """All recipes of an LM: each runs through the commands, but a model's files are read once."""
    names = facts.table()["recipes"]
    for name in sorted(names, key=lambda name: name != PICTURES):  # what others start from comes first
        if lm not in facts.loaded(name).lm.id:
            continue
        run = place / "runs/images" if name == PICTURES else tmp_path / name
        assert cli(["train", f"paper/{name}", "--run", str(run), *words(name, models)]) == 0, name
        assert cli(["eval", str(run)]) == 0, name
        assert json.loads((run / "results.json").read_text())["evaluated_samples"] == 1, name


def test_the_deck_s_rows_are_one_comparison(place: Path, models: Path, tmp_path: Path) -> None:
    """All rows of Table 1 on one LM, and the columns that it prints."""
    rows = ["petal", "full", "head", "maple", "llama-adapter", "lora", "llava"]
    given = [word for word in words("petal/flickr30k-vicuna", models) if not word.startswith("eval.samples")]
    command = ["compare", "paper/petal/flickr30k-vicuna", "--methods", ",".join(rows), "--out", str(tmp_path / "table")]
    assert cli([*command, *given]) == 0
    head, *table = (tmp_path / "table/compare.md").read_text().splitlines()
    columns = ["CIDEr", *(f"rouge{n}_{of}_mean" for n in "1L" for of in ("f1", "recall"))]
    assert [column for column in head.strip("| ").split(" | ") if column in columns] == columns
    assert [line.split(" | ")[0].strip("| ") for line in table[1 : 1 + len(rows)]] == rows

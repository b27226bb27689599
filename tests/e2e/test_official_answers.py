"""An imported file answers as a literal reading of the official generation does, and obeys its config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import perceptune
import sounds
import support
from clips import clip
from perceptune.errors import UserError
from perceptune.models.import_epalm import import_official
from perceptune.types import Decoding, Sample
from released import CONFIG, Reference, Released, levels_of, save

QA = {"special_answer_token": "</a>"}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EOS = 2


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lm`, an OPT that often ends its answers early, `vit`, `ast`, `timesformer`, and media."""
    folder = tmp_path_factory.mktemp("parts")
    lm = support.random_lm("opt")
    with torch.no_grad():
        rows = lm.get_input_embeddings().weight
        often = support.tokenizer().convert_tokens_to_ids(["Y", "x"])
        rows[EOS] = rows[often].mean(0) * 1.25
    lm.save_pretrained(folder / "lm")
    support.tokenizer(bos=True).save_pretrained(folder / "lm")
    support.save_encoder(folder / "vit", "vit")
    sounds.save_sound_encoder(folder / "ast", "ast")
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    tower = transformers.TimesformerModel(
        transformers.TimesformerConfig(**shape, image_size=16, patch_size=8, num_frames=4)
    )
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tower.save_pretrained(folder / "timesformer")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 18), Image.Resampling.NEAREST).save(folder / f"{i}.png")
        (folder / f"{i}.wav").write_bytes(sounds.encoded(sounds.tone(300 * (i + 1), 0.5)))
        (folder / f"{i}.mp4").write_bytes(clip(range(4 + i)))
    return folder


def imported(
    parts: Path, folder: Path, released: Released, config: dict[str, Any], *overrides: str, **given: Any
) -> Any:
    """The run as `perceptune.load` gives it."""
    file = save(folder / "checkpoint.pth", released, config={**CONFIG, **config})
    kind = config.get("vision_model_name", "vit").split("_")[0]
    return perceptune.load(
        import_official(
            file, folder / "run", lm=str(parts / "lm"), encoder=str(parts / kind), overrides=overrides, **given
        )
    )


def pixels(picture: Image.Image) -> torch.Tensor:
    """(3, 16, 16) as the release's transform gives it."""
    squashed = picture.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(squashed)).permute(2, 0, 1) / 255
    return (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def of_picture(parts: Path, number: int, levels: int) -> torch.Tensor:
    tower = transformers.ViTModel.from_pretrained(parts / "vit", add_pooling_layer=False)
    return levels_of(tower, "layers", pixels(Image.open(parts / f"{number}.png"))[None], levels)


def of_clip(model: Any, parts: Path, number: int) -> torch.Tensor:
    """Which frames are read is the library's own choice; the release draws them."""
    frames = model.encoders["video"].load(parts / f"{number}.mp4")
    tower = transformers.TimesformerModel.from_pretrained(parts / "timesformer")
    tower.config.num_frames = len(frames)  # its blocks read it there; time embeddings become the nearest
    return levels_of(tower, "encoder.layer", frames[None])


def of_still(parts: Path, number: int) -> torch.Tensor:
    """A picture as the shortest clip: attention over one step of time, and no time embedding."""
    tower = transformers.TimesformerModel.from_pretrained(parts / "timesformer")
    tower.config.num_frames = 1
    tower.embeddings.time_embeddings.data.zero_()
    return levels_of(tower, "encoder.layer", pixels(Image.open(parts / f"{number}.png"))[None, None])


def of_sound(model: Any, parts: Path, number: int) -> torch.Tensor:
    tower = transformers.ASTModel.from_pretrained(parts / "ast")
    heard = model.encoders["audio"].load(parts / f"{number}.wav")
    return levels_of(tower, "layers", heard.T[None])


KINDS: dict[str, tuple[str, str, Callable[..., torch.Tensor]]] = {
    "image": ("png", "vit_base_patch16_224", lambda _, parts, number, levels=2: of_picture(parts, number, levels)),
    "still": ("png", "timesformer", lambda _, parts, number: of_still(parts, number)),
    "video": ("mp4", "timesformer", of_clip),
    "audio": ("wav", "ast", of_sound),
}


def answered(model: Any, parts: Path, kind: str, reference: Reference, beams: int, max_length: int = 30) -> int:
    """Compares the answers to questions about each medium, in a batch; how many are not empty."""
    suffix, _, features = KINDS[kind]
    questions = ["color?", "what color is this picture?"]
    [modality] = model.encoders
    samples = [Sample(f"{n} {q}", {modality: parts / f"{n}.{suffix}"}, q) for n in range(3) for q in questions]
    found = model.answer(samples)
    expected = []
    for number in range(3):
        levels = {"levels": reference.released.levels} if kind == "image" else {}
        seen = features(model, parts, number, **levels)
        for question in questions:
            text = model.recipe.text
            prompt = model.text.tokenizer(
                text.template.replace("{prompt}", question) + (text.separator or "")
            ).input_ids
            said = reference.answer(prompt, seen, beams=beams, max_length=max_length, eos=EOS)
            expected.append(model.text.decode(said))
    assert [one.strip() for one in found] == [one.strip() for one in expected]
    return len(set(filter(None, expected)))


def released(**shape: Any) -> Released:
    """Far from any neutral start, so that every part acts."""
    torch.manual_seed(5)
    made = Released(**shape)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    ("kind", "shape", "captions"),
    [
        ("image", {}, False),
        ("image", {"shared": True, "prompt": "none"}, True),
        ("image", {"prompt": "none", "adapters": True}, False),
        ("still", {"prompt": "none"}, False),
        ("video", {"shared": True, "prompt": "plain"}, False),
        ("video", {"adapters": True}, True),
        ("audio", {}, True),
    ],
)
def test_answers_are_those_of_the_official_generation(
    kind: str, shape: dict[str, Any], captions: bool, beams: int, parts: Path, tmp_path: Path
) -> None:
    made = released(**shape)
    config = {"num_beams": beams, "vision_model_name": KINDS[kind][1]}
    config |= {"append_eos_token": True} if captions else QA
    config |= {"video": {"num_frames": 3}, "still": {"space_only_for_images": True}}.get(kind, {})
    model = imported(parts, tmp_path, made, config)
    assert list(model.encoders) == [kind.replace("still", "image")]
    assert answered(model, parts, kind, Reference(parts / "lm", made, CONFIG), beams) > 0


@pytest.mark.parametrize(
    ("config", "levels", "plan"),
    [
        ({"end_layer_idx": 4, "start_layer_idx": 0, "select_higher_step": True}, 2, {0: -2, 2: -1}),
        ({"end_layer_idx": 4, "text_step": 2}, 2, {2: -1}),
        ({"end_layer_idx": 4, "start_layer_idx": 0, "text_step": 3}, 3, {0: -3, 3: -1}),
        ({"end_layer_idx": 3, "start_layer_idx": 1}, 3, {1: -3, 2: -2}),
        ({"max_length": 40, "num_beams": 2}, 2, None),
    ],
)
def test_keys_of_the_config_are_obeyed(
    config: dict[str, Any], levels: int, plan: dict[int, int] | None, parts: Path, tmp_path: Path
) -> None:
    made = released(levels=levels)
    config = {"num_beams": 1, **config, **QA, "injected_hidden_states": levels}
    model = imported(parts, tmp_path, made, config)
    assert model.method.options.inject == plan
    reference = Reference(parts / "lm", made, {**CONFIG, **config})
    answered(model, parts, "image", reference, config["num_beams"], config.get("max_length", 30))


def test_the_old_rule_for_beams_is_kept(parts: Path, tmp_path: Path) -> None:
    """It matters where the end is likely."""
    model = imported(parts, tmp_path, released(), QA)
    assert (model.recipe.decode.beams, model.recipe.decode.length_normalization) == (3, "total")
    samples = [
        Sample(f"{n}{q}", {"image": parts / f"{n}.png"}, q) for n in range(3) for q in ("a", "b", "c?", "color?")
    ]
    old, new = (
        model.answer(samples, decoding=Decoding(beams=3, max_length=30, length_normalization=rule))
        for rule in ("total", "answer")
    )
    assert old == model.answer(samples) != new


def test_the_file_says_what_it_was_trained_on(parts: Path, tmp_path: Path) -> None:
    """Pictures, clips or sounds; questions or captions; the masks of its training."""
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "image", "{prompt}?"),
        ({"append_eos_token": True}, "image", ""),
        ({"train_split": "msrvtt_caption_train", "vision_model_name": "timesformer"}, "video", ""),
        ({"vision_model_name": "timesformer", "space_only_for_images": True}, "image", "{prompt}?"),
        (
            {"vision_model_name": "timesformer", "space_only_for_images": True, "modality": "video"},
            "video",
            "{prompt}?",
        ),
        (
            {"vision_model_name": "ast", "freqm_p": 12, "timem_p": 48, "melbins": 32, "target_length": 64},
            "audio",
            "{prompt}?",
        ),
    ]
    for number, (config, modality, template) in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        recipe = imported(parts, tmp_path / str(number), released(), config).recipe
        assert (list(recipe.encoders), recipe.text.template) == ([modality], template)
        if modality == "audio":
            assert (recipe.encoders["audio"].frequency_mask, recipe.encoders["audio"].time_mask) == (12, 48)
        if "space_only_for_images" in config:
            assert recipe.encoders[modality].temporal == ("t1" if modality == "image" else None)


ADAPTERS: dict[str, Any] = {"mlp": {"adapter_type": "normal", "downsample_factor": 8}}
BOTH = {**ADAPTERS, "attention": ADAPTERS["mlp"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_beam": 3}, r"unknown key `num_beam`; did you mean `num_beams`"),
        ({"num_beams": "three"}, "`num_beams`"),
        ({"do_sample": True}, r"`do_sample`.*decode.sample=false"),
        ({"special_answer_token": None}, "`special_answer_token` is off"),
        ({"special_eo_answer_token": "</e>"}, "`special_eo_answer_token`"),
        ({"task_prompt": "a photo of"}, "`task_prompt`"),
        ({"tokenizer_name": "gpt2"}, "`tokenizer_name`"),
        ({"connector_type": "mlp"}, "`connector_type`"),
        ({"injected_hidden_states": 6}, "`injected_hidden_states` is 6, but there are 2"),
        ({"shared_connector": True}, "`shared_connector` is on"),
        ({"mlp": False}, "`mlp` is False"),
        ({"prompt_len": 20}, "`prompt_len` is 20"),
        ({"prompt_tuning": False}, "`prompt_tuning` is False"),
        ({"deep": True}, "`deep`"),
        ({"use_adapters": True}, "`use_adapters` is True"),
        ({"unfreeze_text_layer_norm": True}, "`unfreeze_text_layer_norm`"),
        ({"unfreeze_vision_model": True}, "`unfreeze_vision_model`"),
        ({"vision_model_name": "ast"}, "`vision_model_name` is ast"),
        ({"vision_model_name": "timesformer", "modality": "image"}, "`space_only_for_images` is off"),
        ({"modality": "video"}, "`modality` is video"),
        ({"text_step": 5}, "leave no layer"),
        ({"text_step": 0}, "`text_step`"),
        ({"start_layer_idx": 2, "end_layer_idx": 2}, "leave no layer"),
        ({"black_image": True}, "`black_image`"),
        ({"as_images": True}, "`as_images`"),
        ({"sample_type": "fps1"}, "`sample_type`"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_key(
    config: dict[str, Any], message: str, parts: Path, tmp_path: Path
) -> None:
    file = save(tmp_path / "checkpoint.pth", Released(), config={**CONFIG, **config})
    with pytest.raises(UserError, match=rf"checkpoint.pth: config: .*{message}"):
        import_official(file, tmp_path / "run", lm=str(parts / "lm"), encoder=str(parts / "vit"))
    assert not (tmp_path / "run").exists()


def test_captions_are_refused_of_a_file_with_questions(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`special_answer_token`.*not captions"):
        imported(parts, tmp_path, Released(), QA, captions=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"adapter_config": {**BOTH, "mlp": {"adapter_type": "parallel"}}}, "adapter_config.mlp.adapter_type"),
        ({"adapter_config": {**BOTH, "mlp": {**ADAPTERS["mlp"], "add_layernorm": True}}}, "add_layernorm"),
        ({"adapter_config": ADAPTERS}, "`adapter_config` names other places"),
        ({"adapter_config": {**BOTH, "mlp": {"adapter_type": "normal"}}}, "downsample_factor"),
        ({"use_adapters": False}, "`use_adapters` is False"),
    ],
)
def test_adapters_are_those_of_the_config(config: dict[str, Any], message: str, parts: Path, tmp_path: Path) -> None:
    given = {"use_adapters": True, "adapter_config": BOTH}
    with pytest.raises(UserError, match=message):
        imported(parts, tmp_path, Released(prompt="none", adapters=True), {**given, **config})
    recipe = imported(parts, tmp_path, Released(prompt="none", adapters=True), given).recipe
    assert (recipe.method.name, recipe.method.options()["adapter_factor"]) == ("epalm-ada", 8)


def test_adapters_are_there_whole_and_alike_under_both_names(parts: Path, tmp_path: Path) -> None:
    whole = Released(adapters=True).saved()
    one = "transformer.2.fc2.1.adapter.0.weight"
    twin = one.replace("transformer", "model_text.model.decoder.layers")
    for model, message in (
        ({**whole, one: whole[one] + 1}, "the same adapter, but differ"),
        ({name: tensor for name, tensor in whole.items() if name not in (one, twin)}, "adapters.2_mlp.down.weight"),
    ):
        file = save(tmp_path / "checkpoint.pth", Released(), model=model)
        with pytest.raises(UserError, match=message):
            import_official(file, tmp_path / "run", lm=str(parts / "lm"), encoder=str(parts / "vit"))

"""What LLaVA's layout holds: projectors, prompts, towers and preprocessing; and what it refuses, with the reasons."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers.activations import ACT2FN

import encoder_cases
import perceptune
import support
from llavas import LINEAR, LORA, SHAPE, built, recipe, save_parts
from perceptune.config.recipe import load_recipe
from perceptune.config.registry import leaves
from perceptune.errors import UserError
from perceptune.models.backbone import method_options
from perceptune.tools.export.llava.agreement import require_agreement
from perceptune.tools.export.llava.folder import write_llava
from perceptune.tools.export.llava.processor import processor_of
from perceptune.tools.export.llava.projector import projector_of
from perceptune.tools.export.llava.requirements import require_recipe
from perceptune.tools.export.llava.weights import llava_of

WIDTH = 12  # of the features
# What each method lacks, by words of the reason; those that are left fit with the options of `SHAPE`.
LACKS = {
    "promptfuse": "soft prompt", "magma": "adapters", "magma-all": "adapters", "frozenbilm": "adapters",
    "audio-adapter": "adapters", "depalm": "`method.mapper` is qp", "mapl": "`method.mapper` is qp",
    "depalm-avgpool": "`method.mapper` is group-mean", "depalm-linear": "`method.mapper` is group-linear",
    "depalm-group": "`method.mapper` is group-qp", "depalm-rand": "`method.mapper` is random-tokens",
    "depalm-xattn": r"parts of its own in the LM \(`cross_", "depalm-xattn-narrow": r"parts of its own in the LM",
    "epalm-dma": r"parts of its own in the LM \(`dma", "depalm-inner": "4 encoder levels",
}  # fmt: skip
FITTING = ("limber", "limber-all", "lora", "full")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parts(tmp_path_factory.mktemp("parts"))


def connector_of(mapper: nn.Module, *, standardize: bool = True) -> Any:
    torch.manual_seed(5)
    mean, std = torch.randn(1, 1, WIDTH), torch.rand(1, 1, WIDTH) + 0.2
    return SimpleNamespace(maps=[mapper], standardize=standardize, mean=mean, std=std)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(
    ("mapper", "hidden", "activation"),
    [
        ("linear", 24, "gelu"),
        ("linear", 30, "gelu"),
        ("linear", 23, "linear"),
        ("linear", 8, "linear"),
        ("low-rank", 10, "gelu"),
        ("low-rank", 7, "linear"),
        ("mlp", 9, "gelu"),
        ("mlp", 6, "gelu"),
    ],
)
def test_a_projector_gives_the_outputs_of_the_connector(
    mapper: str, hidden: int, activation: str, standardize: bool
) -> None:
    kinds = {
        "linear": nn.Linear(WIDTH, hidden),
        "low-rank": nn.Sequential(nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, hidden)),
        "mlp": nn.Sequential(nn.Linear(WIDTH, 6), nn.GELU(), nn.Linear(6, hidden)),
    }
    connector = connector_of(kinds[mapper].requires_grad_(False), standardize=standardize)
    made = projector_of(connector, mapper, hidden)
    assert made.activation == activation
    weights = made.tensors()
    assert {name: tuple(own.shape) for name, own in weights.items()} == {
        "linear_1.weight": (hidden, WIDTH), "linear_1.bias": (hidden,),
        "linear_2.weight": (hidden, hidden), "linear_2.bias": (hidden,),
    }  # fmt: skip
    x = torch.randn(50, WIDTH) * 20
    inner = ACT2FN[activation](nn.functional.linear(x, weights["linear_1.weight"], weights["linear_1.bias"]))
    found = nn.functional.linear(inner, weights["linear_2.weight"], weights["linear_2.bias"])
    ours = connector.maps[0]((x - connector.mean[0]) / connector.std[0] if standardize else x)
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-4)


def test_an_mlp_wider_than_the_lm_is_refused() -> None:
    wide = nn.Sequential(nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, 8))
    with pytest.raises(UserError, match=r"`method.mapper_width` is 9, and its connector is as wide as the LM, 8"):
        projector_of(connector_of(wide), "mlp", 8)


@pytest.mark.parametrize("name", [*leaves("methods")])
def test_each_method_fits_or_is_told_what_it_lacks(name: str) -> None:
    with pytest.raises(UserError, match="LLaVA's layout has no place for this run: ") as alone:
        require_recipe(load_recipe({"method": {"name": name}}))
    assert "`encoders.image.norm` is auto" in str(alone.value)
    assert "slot_positions: sequential" in str(alone.value)
    given = {"encoders": {"image": {"id": "default", "norm": "none"}}, "method": {"name": name, "tokens": "all"}}
    if name in FITTING:
        given["method"].update(SHAPE)
        require_recipe(load_recipe(given))
        return
    with pytest.raises(UserError, match=LACKS.get(name, f"method `{name}` injects into later layers")):
        require_recipe(load_recipe(given))


@pytest.mark.parametrize("words", [[], ["method.name=limber", "method.mapper=linear"]])
def test_the_shipped_recipe_fits(words: list[str]) -> None:
    found = load_recipe("llava", words)
    require_recipe(found)
    assert method_options(found).mapper == ("linear" if words else "mlp")


def test_the_table_names_methods() -> None:
    assert {*LACKS, *FITTING} < {*leaves("methods")}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {**LINEAR, "tokens": "grid-2"}}, "`method.tokens` is grid-2, and LLaVA takes every token"),
        ({"method": {**LINEAR, "per_layer": "scale-bias"}}, "`method.per_layer` is scale-bias"),
        ({"method": {**LINEAR, "tune_norms": "all"}}, "`method.tune_norms` is all"),
        ({"method": {**LINEAR, "levels": [0, 2]}}, "2 encoder levels"),
        ({"lm": {"id": "default", "quantization": "4bit"}}, "`lm.quantization` is 4bit"),
        ({"text": {"template": "{prompt} {prompt}"}}, "more than once"),
        ({"encoders": {"audio": {"id": "default"}}}, "`encoders` are of audio"),
        ({"backbone": "instructblip", "method": {"name": "petal"}}, "`perceptune export-instructblip`"),
    ],
)
def test_what_else_is_refused_before_anything_is_loaded(changes: dict[str, Any], reason: str) -> None:
    encoders = {"image": {"id": "default", "norm": "none"}}
    with pytest.raises(UserError, match=reason):
        require_recipe(load_recipe({"encoders": encoders, "method": LINEAR, **changes}))


def save_tower(case: str, folder: Path, **preprocessing: Any) -> None:
    """A checkpoint of an encoder family, of 32 pixels."""
    _, kind, config = encoder_cases.CASES[case]
    torch.manual_seed(1)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        **{**encoder_cases.SQUASHED, "do_center_crop": False, **preprocessing}
    ).save_pretrained(folder)


CROPPED = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}


@pytest.mark.parametrize("preprocessing", [{}, CROPPED], ids=["squashed", "cropped"])
@pytest.mark.parametrize("case", ["clip", "siglip", "vit", "deit", "dinov2-swiglu", "dinov2-registers"])
def test_towers_that_llava_holds(case: str, preprocessing: dict[str, Any], parts: Path, tmp_path: Path) -> None:
    save_tower(case, tmp_path / "tower", **preprocessing)
    encoders = {"image": {"id": str(tmp_path / "tower"), "norm": "none"}}
    model = built(recipe(parts, {**LINEAR, "levels": [1]}, encoders=encoders))
    assert write_llava(model, tmp_path / "out") > 0  # compares prompt, pixels and logits before it writes
    found = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    require_agreement(model, found, transformers.AutoProcessor.from_pretrained(tmp_path / "out"))


def test_towers_that_it_does_not_hold(parts: Path, tmp_path: Path) -> None:
    save_tower("clip", tmp_path / "clip")
    encoders = {"image": {"id": str(tmp_path / "clip"), "norm": "none", "size": 16}}
    with pytest.raises(UserError, match=r"16 x 16 pixels, and LLaVA does not inter.*`encoders.image.size: 32`"):
        write_llava(built(recipe(parts, LINEAR, encoders=encoders)), tmp_path / "out")
    encoders = {"image": {"id": str(parts / "encoder"), "norm": "none", "size": 24}}
    assert write_llava(built(recipe(parts, LINEAR, encoders=encoders)), tmp_path / "other size") > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("phi", "PhiForCausalLM has a bias in its head"),
        ("opt", "embeddings of another width than its hidden size of 32"),
        ("gemma2", "caps its logits"),
        ("bloom", "its logits are .* away from those of the run, whose LM is BloomForCausalLM"),  # norms its embeddings
    ],
)
def test_lms_that_it_does_not_hold(family: str, reason: str, parts: Path, tmp_path: Path) -> None:
    support.save_lm(tmp_path / family, family)
    with pytest.raises(UserError, match=reason):
        write_llava(built({**recipe(parts, LINEAR), "lm": str(tmp_path / family)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gpt2", "gpt-neox", "gemma3", "mistral"])
def test_lms_that_it_holds(family: str, parts: Path, tmp_path: Path) -> None:
    support.save_lm(tmp_path / family, family)
    trained = {"unfreeze": ["lm", "encoder"]} if family == "qwen2" else {}
    assert write_llava(built({**recipe(parts, {**LINEAR, **trained}), "lm": str(tmp_path / family)}), tmp_path / "out")


def test_merging_leaves_the_run_as_it_is_and_what_cannot_be_merged_is_refused(parts: Path, tmp_path: Path) -> None:
    method = {"name": "lora", **SHAPE, "peft": LORA}
    model = built(recipe(parts, method))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_llava(model, tmp_path / "out")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    changed = llava_of(model, support.SIZE - 1).model.language_model.layers[0].self_attn
    own = model.lm.model.model.layers[0].self_attn
    assert not torch.equal(changed.q_proj.weight, own._modules["q_proj"].weight)
    assert torch.equal(changed.k_proj.weight, own.k_proj.weight)
    prompting = built(recipe(parts, {**method, "peft": {"peft_type": "LILY", "r": 2, "target_modules": ["q_proj"]}}))
    with pytest.raises(UserError, match="LILY cannot be merged into the LM's weights"):
        write_llava(prompting, tmp_path / "other")


def rendered(model: Any, *content: Any, role: str = "user") -> str:
    listed = [{"type": "image"} if one is Image else {"type": "text", "text": one} for one in content]
    return str(processor_of(model).apply_chat_template([{"role": role, "content": listed}], add_generation_prompt=True))


def test_the_chat_template_writes_the_prompts_of_a_plain_template(parts: Path) -> None:
    model = built(recipe(parts, LINEAR, text={"template": 'Q "\\n": {prompt}\nA:'}))
    assert rendered(model, Image, "color?") == '<image>Q "\\n": color?\nA:'
    assert rendered(model, "color?") == 'Q "\\n": color?\nA:'
    assert rendered(model, Image, Image, "one", "two") == '<image><image>Q "\\n": one\ntwo\nA:'
    assert rendered(model, "left", Image, "right") == 'Q "\\n": left\n<image>right\nA:'
    assert rendered(model, "left", Image) == 'Q "\\n": left<image>\nA:'
    with pytest.raises(Exception, match="a single question"):
        rendered(model, "color?", role="system")
    opt = built(recipe(parts, LINEAR, "opt", text={"template": "{prompt}:"}))
    assert rendered(opt, Image, "color?") == "<s><image>color?:"
    begun = built(recipe(parts, LINEAR, "opt", text={"template": "<s>{prompt}:"}))
    assert rendered(begun, "color?") == "<s>color?:"
    assert rendered(begun, Image, "color?") == "<s><image><s>color?:"


def test_the_chat_template_writes_conversations_as_the_lm_does(parts: Path) -> None:
    model = built(recipe(parts, LINEAR, "chat", text={"template": "chat", "system": "be 'kind'"}))
    start = "<s>system: be 'kind'</s>"
    assert rendered(model, Image, "color?") == f"{start}<s>user: <image>color?</s><s>assistant: "
    assert rendered(model, "left", Image, "right") == f"{start}<s>user: left\n<image>right</s><s>assistant: "
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    found = processor_of(model).apply_chat_template(chat, add_generation_prompt=True)
    assert found == "<s>system: own</s><s>user: hi</s><s>assistant: "


def test_disagreement_is_found(parts: Path) -> None:
    model = built(recipe(parts, LINEAR))
    processor = processor_of(model)
    made = llava_of(model, processor.image_token_id)
    require_agreement(model, made, processor)
    made.model.multi_modal_projector.linear_2.bias.data += 0.1
    with pytest.raises(UserError, match="its logits are"):
        require_agreement(model, made, processor)
    processor.image_processor.image_mean = [0.4] * 3
    with pytest.raises(UserError, match="pixels that are"):
        require_agreement(model, made, processor)
    processor.chat_template = "other <image>"
    with pytest.raises(UserError, match="its tokenizer gives"):
        require_agreement(model, made, processor)
    assert perceptune.load_recipe(model.recipe).encoders["image"].norm == "none"

"""Create a small InstructBLIP from existing parts: a DINOv2 encoder, a causal LM and a Q-Former, new or from a BERT.

For machines and studies for which the published models are too large or not available. The result is an ordinary
folder of transformers; its Q-Former has never seen images (train it with `method: full` on captions and questions).
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.config.command_schema import BuildConfig
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.encoders.base import load_encoder
from perceptune.errors import UserError
from perceptune.models import pretrained
from perceptune.models.instructblip.build import QFORMER_TOKENIZER
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.instructblip.qformer_start import load_start
from perceptune.models.run_folder import load

IMAGE = "<image>"  # the name in transformers' processor
_BESIDE = {  # files beside the weights; those of a published repository are found by its name
    "chat_template.jinja", "merges.txt", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
}  # fmt: skip
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_instructblip(folder: str | Path, task: NamedPart, build: BuildConfig | None = None) -> Path:
    """Write a new InstructBLIP into a folder; a new Q-Former's tokenizer is trained on the samples of `task`.

    With `build.qformer` the Q-Former starts from a BERT and has its tokenizer. Raises `UserError` for a folder that
    exists, an encoder other than DINOv2, a Q-Former other than a BERT, or an LM that cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, InstructBlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil  # needs no torchvision

    folder, build = Path(folder), build or BuildConfig()
    pretrained.require_new_folder(folder)
    start = None if build.qformer is None else load_start(build.qformer, build)
    reader = wordpiece(_texts(task), build.vocabulary) if start is None else start.tokenizer
    where = pretrained.resolve(build.encoder, pretrained.DEFAULT_ENCODERS["image"], False)
    tower, transform = _dinov2(build.encoder, where)
    vision = vision_of(tower, build.image_size)
    place = pretrained.resolve(build.lm, pretrained.DEFAULT_LM, False)
    with pretrained.loading(f"lm `{build.lm}`", build.lm):
        decoder: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    tokenizer = pretrained.load_tokenizer(build.lm, place, None)
    settings = {"image_mean": list(transform.mean), "image_std": list(transform.std), "resample": transform.resample}
    size = {"height": build.image_size, "width": build.image_size}
    # Adds the image token to the LM's tokenizer.
    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size=size, **settings), tokenizer, reader, num_query_tokens=build.queries
    )
    shape = _shape(build, len(reader)) if start is None else start.shape()
    model: Any = _joined(vision, decoder, len(tokenizer), tokenizer.convert_tokens_to_ids(IMAGE), shape, build)
    if start is not None:
        start.fill(model.qformer)
    with pretrained.appearing_folder(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
    return folder


def export_instructblip(run: str | Path, folder: str | Path, *, trust: bool = False) -> Path:
    """Write the model of a Q-Former run as an ordinary folder of transformers, trained weights included.

    Raises `UserError` if the method has added modules that transformers' classes do not have.
    """
    folder = Path(folder)
    pretrained.require_new_folder(folder)
    model = load(run, dtype="float32", device="cpu", trust=trust)
    if not model.has_qformer:
        raise UserError(f"`{run}` has `backbone: {model.recipe.backbone}`, which is no single model of transformers")
    model = cast(InstructBlipModel, model)
    inside = {id(parameter) for parameter in model.blip.parameters()}
    name = model.recipe.method.name
    if any(id(p) not in inside for p in model.method.parameters()) or any(
        hasattr(part, "base_layer") for part in model.blip.modules()
    ):
        raise UserError(f"method `{name}` adds parts of its own, for which transformers' classes have no place")
    whole: Any = model.blip.model
    whole.vision_model = model.encoders["image"].tower
    with pretrained.appearing_folder(folder) as new:
        whole.save_pretrained(new)
        _copy_beside(Path(pretrained.resolve(model.recipe.lm.id, "", False)), new)
    return folder


def _copy_beside(source: Path, folder: Path) -> None:
    """Copy tokenizers and preprocessing, if the model came from a folder."""
    for path in source.iterdir() if source.is_dir() else ():
        if path.name == QFORMER_TOKENIZER:
            shutil.copytree(path, folder / path.name)
        elif path.name in _BESIDE and not (folder / path.name).exists():
            shutil.copy(path, folder / path.name)


def vision_of(tower: nn.Module, size: int) -> nn.Module:
    """Return an `InstructBlipVisionModel` equal, up to rounding, to a `Dinov2Model` at one image size.

    Its layer scales are folded into the matrices before them; its position embeddings are those for that size.
    Raises `UserError` for a size that is not a multiple of the patch size.
    """
    from transformers import InstructBlipVisionConfig, InstructBlipVisionModel

    config: Any = tower.config
    if size % config.patch_size:
        raise UserError(f"image size {size} is not a multiple of the encoder's patches of {config.patch_size} pixels")
    if config.use_swiglu_ffn:
        raise UserError("an encoder with gated feed-forward parts (SwiGLU) has no place in an InstructBLIP's ViT")
    vision = InstructBlipVisionModel(
        InstructBlipVisionConfig(
            hidden_size=config.hidden_size, intermediate_size=int(config.hidden_size * config.mlp_ratio),
            num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
            image_size=size, patch_size=config.patch_size, hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps, initializer_range=config.initializer_range,
        )
    )  # fmt: skip
    vision.load_state_dict(_renamed(tower, size))
    return vision.requires_grad_(False).eval()


@torch.no_grad()
def _renamed(tower: Any, size: int) -> dict[str, Tensor]:
    """Return the weights of a DINOv2 under their names in an InstructBLIP's ViT."""
    embeddings, width = tower.embeddings, tower.config.hidden_size
    tokens = torch.zeros(1, (size // tower.config.patch_size) ** 2 + 1, width)
    renamed = {
        "embeddings.class_embedding": embeddings.cls_token,
        "embeddings.position_embedding": embeddings.interpolate_pos_encoding(tokens, size, size),
    }
    same = {"embeddings.patch_embedding": embeddings.patch_embeddings.projection, "post_layernorm": tower.layernorm}
    for index, layer in enumerate(tower.encoder.layer):
        place, attention = f"encoder.layers.{index}", layer.attention
        for name, module in (("layer_norm1", layer.norm1), ("layer_norm2", layer.norm2), ("mlp.fc1", layer.mlp.fc1)):
            same[f"{place}.{name}"] = module
        joined = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [torch.zeros(width) if part.bias is None else part.bias for part in joined]
        renamed[f"{place}.self_attn.qkv.weight"] = torch.cat([part.weight for part in joined])
        renamed[f"{place}.self_attn.qkv.bias"] = torch.cat(biases)
        # A factor for each output folds into the linear map before it.
        scaled = {"self_attn.projection": (attention.o_proj, layer.layer_scale1)}
        scaled["mlp.fc2"] = (layer.mlp.fc2, layer.layer_scale2)
        for name, (linear, scale) in scaled.items():
            renamed[f"{place}.{name}.weight"] = scale.lambda1[:, None] * linear.weight
            renamed[f"{place}.{name}.bias"] = scale.lambda1 * linear.bias
    for name, module in same.items():
        renamed |= module.state_dict(prefix=f"{name}.")
    return renamed


def wordpiece(texts: Iterable[str], vocabulary: int) -> Any:
    """Train a lower-casing WordPiece tokenizer whose sequences are enclosed in [CLS] and [SEP]."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=[*_SPECIAL], show_progress=False)
    )
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, _SPECIAL, strict=True)))


def _texts(part: NamedPart) -> list[str]:
    """Return prompts and targets of a task's first split."""
    task = task_of(part)
    return [text for sample in task.samples(task.splits[0]) for text in (sample.prompt, *sample.targets) if text]


def _dinov2(name: str, where: str) -> tuple[Any, Any]:
    encoder: Any = load_encoder(where)
    kind = getattr(encoder, "tower", None)
    if kind is None or kind.config.model_type != "dinov2":
        raise UserError(f"encoder `{name}`: an InstructBLIP's ViT can be made of a DINOv2 without registers only")
    return encoder.tower, encoder.transform


def _shape(build: BuildConfig, words: int) -> dict[str, Any]:
    """Return the keys of a config of transformers for the shape of a new Q-Former."""
    return {
        "vocab_size": words, "hidden_size": build.hidden, "num_hidden_layers": build.layers,
        "num_attention_heads": build.heads, "intermediate_size": 4 * build.hidden,
    }  # fmt: skip


def _joined(
    vision: Any, decoder: Any, tokens: int, image: int, shape: Mapping[str, Any], build: BuildConfig
) -> nn.Module:
    """Join the parts and a new Q-Former in one model."""
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipQFormerConfig

    table = decoder.get_input_embeddings()
    if tokens > table.weight.shape[0]:  # a row for the image token, never used and never predicted
        before = table.weight.shape[0]
        decoder.resize_token_embeddings(tokens, mean_resizing=False)
        for embedding in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
            embedding.weight.data[before:] = 0
    config = InstructBlipConfig(
        vision_config=vision.config,
        qformer_config=InstructBlipQFormerConfig(
            **shape, cross_attention_frequency=build.cross_every, encoder_hidden_size=vision.config.hidden_size,
        ),
        text_config=decoder.config, num_query_tokens=build.queries, image_token_index=image,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(build.seed)
        model = InstructBlipForConditionalGeneration(config)
        # transformers leaves them zero, and identical queries would receive identical gradients.
        nn.init.normal_(model.query_tokens, std=config.initializer_range)
    model.vision_model, model.language_model = vision, decoder
    return model.eval()

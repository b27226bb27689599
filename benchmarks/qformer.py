"""The published Q-Former's shape: what a training step of each method costs where the Q-Former is what is computed.

InstructBLIP's Q-Former (12 layers, width 768, 32 queries) with random weights looks at random features of its ViT (257
tokens of 1408, as from a cache) and speaks to a small LM, whose share of the time is stated, so that ratios of methods
are ratios of what they do in the Q-Former.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.steps import training_step
from perceptune.config.recipe import validate
from perceptune.config.registry import leaf
from perceptune.lm.frozen_blip import FrozenBlip, Instruction, LMTokens
from perceptune.methods.qformer.base import QFormerMethod
from perceptune.models.pretrained import CONFIGS, read_config
from perceptune.utils.timing import Contender, measure

PUBLISHED = "Salesforce/instructblip-vicuna-7b"
DEFAULT = ("full", "head", "maple", "llama-adapter", "lora", "petal-dma", "petal")
SMALL_LM: dict[str, Any] = {
    "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "encoder_hidden_size": 24, "vocab_size": 50, "max_position_embeddings": 64}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """The workload of every row."""

    batch: int = 4
    patches: int = 256
    instruction: int = 16  # tokens that the Q-Former reads; PETAL's further instructions come on top
    enhanced: int = 45  # those of PETAL's own instructions with the prompt
    text: int = 16  # tokens that the LM reads behind the image
    supervised: int = 3  # of them, at the right end


def qformer_rows(
    methods: Sequence[str] = (), rounds: int = 5, load: Load | None = None, *, tiny: bool = False
) -> dict[str, Any]:
    """`ratios` (`METHOD_vs_FIRST`, in seconds a step) and `rows`. Raises `UserError` for an unknown method."""
    load = load or Load()
    names = list(methods or DEFAULT)
    steps = {name: _Row(name, load, tiny=tiny) for name in names}
    contenders = [
        Contender(name, "train", row.step, warm_up=row.step, samples=load.batch) for name, row in steps.items()
    ]
    rows = measure([*contenders, steps[names[0]].lm_alone()], rounds)
    first = rows[0]["median_s"]
    for row, name in zip(rows[:-1], names, strict=True):  # the last one is the LM alone
        row |= {"trained": sum(p.numel() for p in steps[name].method.parameters())}
    ratios = {f"{row['name']}_vs_{names[0]}": row["median_s"] / first for row in rows}
    return {"ratios": ratios, "rows": rows}


class _Row:
    """A method on a model of its own, and its inputs."""

    def __init__(self, name: str, load: Load, *, tiny: bool) -> None:
        self.name, self.load = name, load
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blip = _random_blip(load, tiny=tiny)
            found = leaf("qformer_methods", name)
            options = validate(found.module.METHOD.Options, found.defaults, f"method `{name}`")
            self.method: QFormerMethod = found.module.METHOD(options, self.blip)
            self.method.unfreeze(self.blip)
            self.method.attach(self.blip)
            self._inputs()
        self.method.set_dropout(self.blip, on=True)
        beside = self.method.auxiliary_group()
        trained = [*self.method.parameters(), *(beside[0].parameters() if beside else ())]
        self.step = training_step(self._loss, trained)

    def _inputs(self) -> None:
        load, blip = self.load, self.blip
        self.image = torch.randn(load.batch, 1 + load.patches, blip.image_size)
        words = int(blip.model.config.qformer_config.vocab_size)
        texts = self.method.instructions("question")
        length = load.instruction if texts == ("question",) else load.enhanced
        shape = (load.batch, length)
        self.instructions = [Instruction(torch.randint(words, shape), torch.ones(shape).long()) for _ in texts]
        shape = (load.batch, blip.n_queries + load.text)
        ids = torch.randint(3, int(blip.language_model.config.vocab_size), shape)
        supervised = torch.zeros(shape, dtype=torch.bool)
        supervised[:, -load.supervised :] = True
        self.tokens = LMTokens(ids, torch.ones(shape).long(), supervised)

    def _loss(self) -> Tensor:
        loss, n = self.method.loss(self.blip, self.image, self.instructions, self.tokens, pad=0)
        return loss / n

    def lm_alone(self) -> Contender:
        """The small LM's share: forward, and backward to the query outputs."""
        queries = torch.randn(self.load.batch, self.blip.n_queries, self.blip.hidden_size, requires_grad=True)

        def run() -> None:
            self.blip.loss(queries, self.tokens)[0].backward()

        return Contender("LM alone", "train", run)


def _random_blip(load: Load, *, tiny: bool) -> FrozenBlip:
    """Without a ViT: its features are given."""
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, LlamaConfig

    published: Any = read_config(str(CONFIGS / f"{PUBLISHED.replace('/', '--')}.json"), None)
    qformer: Mapping[str, Any] = {**published.qformer_config.to_dict(), **(TINY if tiny else {})}
    vision = {"hidden_size": qformer["encoder_hidden_size"], "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 8, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = InstructBlipConfig(
        vision_config=vision, qformer_config=dict(qformer), text_config=LlamaConfig(**SMALL_LM),
        num_query_tokens=published.num_query_tokens, image_token_index=published.image_token_index,
    )  # fmt: skip
    model: Any = InstructBlipForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens, std=0.02)
    del model.vision_model
    blip = FrozenBlip(model, load.patches)
    blip.check()
    return blip

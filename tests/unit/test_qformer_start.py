"""A Q-Former that starts from a BERT computes on text what the BERT does; its cross-attention alone is random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

import perceptune
from perceptune.cli.main import run as cli
from perceptune.config.command_schema import BuildConfig
from perceptune.errors import UserError
from perceptune.models.instructblip.create import wordpiece
from perceptune.models.instructblip.qformer_start import QFormerStart, load_start
from perceptune.utils import downloads
from perceptune.utils.assets import ASSETS

TEXTS = ["what color is this?", "is it red or blue?"] * 3
SHAPE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = wordpiece(TEXTS, 60)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SHAPE, vocab_size=70, max_position_embeddings=40))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def qformer_of(start: QFormerStart, every: int = 2) -> Any:
    torch.manual_seed(1)
    config = InstructBlipQFormerConfig(**start.shape(), cross_attention_frequency=every, encoder_hidden_size=12)
    return InstructBlipQFormerModel(config).eval()


@torch.no_grad()
def test_it_reads_as_the_bert_does(bert: Path) -> None:
    start = load_start(str(bert), BuildConfig())
    qformer = qformer_of(start)
    assert start.fill(qformer) == 4 + 3 * 22
    ids = torch.tensor([start.tokenizer(TEXTS[0]).input_ids])
    mask = torch.ones_like(ids)
    found = qformer(ids, query_embeds=torch.zeros(1, 0, 16), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, start.bert(ids, attention_mask=mask).last_hidden_state)
    assert found.std() > 0.1


@pytest.mark.parametrize(("every", "cross"), [(1, 3), (2, 2), (3, 1)])
def test_the_rest_is_the_cross_attention_as_it_was(bert: Path, every: int, cross: int) -> None:
    start = load_start(str(bert), BuildConfig())
    qformer = qformer_of(start, every)
    before = {name: tensor.clone() for name, tensor in qformer.state_dict().items()}
    filled = start.fill(qformer)
    kept = [name for name, tensor in qformer.state_dict().items() if torch.equal(tensor, before[name])]
    assert all(".crossattention." in name for name in kept)
    assert (len(kept), filled + len(kept)) == (10 * cross, len(before))


def test_minilm_fills_136_of_166_tensors() -> None:
    with torch.device("meta"):
        shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        start = QFormerStart(BertModel(BertConfig(**shape, vocab_size=30_522), add_pooling_layer=False), None)
        config = InstructBlipQFormerConfig(**start.shape(), encoder_hidden_size=384)
        qformer = InstructBlipQFormerModel(config)
    names = dict(start._renamed())
    assert (len(names), len(qformer.state_dict())) == (136, 166)
    assert all(names[name].shape == qformer.state_dict()[name].shape for name in names)
    assert not ASSETS["minilm"].is_default


def test_the_command_builds_a_model_that_reads(bert: Path, dwarfs: Path, tmp_path: Path, capsys: Any) -> None:
    data, folder = str(dwarfs / "data/train.jsonl"), tmp_path / "new"
    given = ["build-instructblip", str(folder), "--data", data, "--lm", str(dwarfs / "lm"), "--image-size", "24"]
    given += ["--encoder", str(dwarfs / "encoder"), "--qformer", str(bert)]
    assert cli([*given, "--hidden", "32", "--heads", "2"]) == 2
    assert f"build.hidden is 32, but the Q-Former starts from `{bert}`, which has 16" in capsys.readouterr().err
    assert cli([*given, "--hidden", "16", "--queries", "3"]) == 0
    assert f"its Q-Former starts from {bert}, its cross-attention untrained" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())["qformer_config"]
    assert (config["num_attention_heads"], config["intermediate_size"], config["vocab_size"]) == (4, 24, 70)
    model = InstructBlipForConditionalGeneration.from_pretrained(folder)
    expected = BertModel.from_pretrained(bert).encoder.layer[2].output.dense.weight
    assert torch.equal(model.qformer.encoder.layer[2].output_query.dense.weight, expected)
    ours = perceptune.build({"backbone": "instructblip", "lm": str(folder), "method": "head", "task": None})
    tokens = ours.text.encode_prompts([perceptune.Sample("", {"image": dwarfs / "data/train0.png"}, "What COLOR?")])
    words = ours.text.qformer_tokenizer.convert_ids_to_tokens(tokens.instructions[0].ids[0])
    assert {"[CLS]", "what", "color", "[SEP]"} <= set(words)


def test_what_is_no_bert_is_told(dwarfs: Path) -> None:
    with pytest.raises(UserError, match=r"^build\.qformer .* is of model type `llama`: a Q-Former starts from a BERT"):
        load_start(str(dwarfs / "lm"), BuildConfig())
    with pytest.raises(UserError, match=r"no model folder or file `minilmm`; did you mean `minilm`\?"):
        load_start("minilmm", BuildConfig())


@pytest.mark.assets
@pytest.mark.skipif(downloads.present("minilm") is None, reason="minilm is not fetched")
def test_minilm_is_a_start() -> None:
    start = load_start("minilm", BuildConfig(layers=6, hidden=384, heads=12))
    assert start.tokenizer.tokenize("What color is it?") == ["what", "color", "is", "it", "?"]
    assert len(start.tokenizer) == start.shape()["vocab_size"] == 30_522

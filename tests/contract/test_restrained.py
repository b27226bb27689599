"""Shortest answers and the penalty on what was said: transformers' own, of each row's answer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

import blips
import perceptune
import support
from perceptune.config.recipe import load_recipe
from perceptune.errors import UserError
from perceptune.models.instructblip.model import InstructBlipModel
from perceptune.models.instructblip.text_format import BlipText
from perceptune.types import Decoding, GenerationRequest, Prompt, Sample

SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 3.0}, {"min_new_tokens": 6}, {"repetition_penalty": 1.5, "min_new_tokens": 4},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blips.save_all(tmp_path_factory.mktemp("blips"), ("t5", "llama"))


def samples(folder: Path) -> list[Sample]:
    questions = ["color?", "what color is this picture?", "is this a picture?"]
    return [Sample(str(i), {"image": folder / f"data/train{i}.png"}, q) for i, q in enumerate(questions)]


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_answers_are_those_of_transformers(folder: Path, kind: str, beams: int, given: dict[str, Any]) -> None:
    """Row by row: transformers counts what lies before the answer, too, where it is given as ids; here none is."""
    from transformers import GenerationConfig

    model = cast(InstructBlipModel, perceptune.build(blips.recipe(folder / kind, cache={"features": "memory"})))
    model.set_dropout(on=False)
    with (
        torch.no_grad()
    ):  # T5's start token, which transformers penalises as if it had been said, is out of the running
        model.blip.language_model.get_output_embeddings().weight[0] = 0
    blip, rows, start = model.blip, samples(folder), 1 if kind == "t5" else 0

    def answers(those: list[Sample], eos: int, **keys: Any) -> list[list[int]]:
        tokens = cast(BlipText, model.text).encode_prompts(those).for_lm(model.device)
        queries = model.query(those).queries
        decoding = Decoding(8, beams=beams, **keys)
        return blip.generate(queries, tokens, GenerationRequest(Prompt(tokens.ids, tokens.mask), decoding, eos, pad=0))

    ends = {token for row in answers(rows, -1) for token in row}
    eos = next(end for end in sorted(ends) if answers(rows, end, **given) != answers(rows, end))  # where it matters
    together = answers(rows, eos, **given)
    config = GenerationConfig(
        max_new_tokens=8, num_beams=beams, eos_token_id=eos, pad_token_id=0, **given, decoder_start_token_id=0
    )
    for row, found in zip(rows, together, strict=True):
        inputs = blip._inputs(
            model.query([row]).queries, cast(BlipText, model.text).encode_prompts([row]).for_lm(model.device)
        )
        inputs.pop("position_ids", None)
        with torch.no_grad():
            [ids] = blip.language_model.generate(**inputs, generation_config=config).tolist()
        said = ids[start:]
        assert found == said[: said.index(eos) if eos in said else None]


def test_a_spliced_lm_s_rows_do_not_feel_their_prompts_or_padding(dwarfs: Path) -> None:
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", cache={"features": "memory"})
    model = perceptune.build(given)
    rows = [
        Sample(str(i), {"image": dwarfs / f"data/train{i}.png"}, q)
        for i, q in enumerate(["color?", "what is this picture?"])
    ]
    decoding = Decoding(8, repetition_penalty=3.0, min_new_tokens=3)
    together = model.answer(rows, decoding=decoding)
    assert together == [model.answer([row], decoding=decoding)[0] for row in rows]
    assert together != model.answer(rows, decoding=Decoding(8))
    # A prize for repeating changes nothing before something has been said.
    assert model.answer(rows, decoding=Decoding(1, repetition_penalty=1e-3)) == model.answer(rows, decoding=Decoding(1))
    for text in together:
        said = model.text.tokenizer(text, add_special_tokens=False).input_ids
        assert len(said) >= 3


def test_the_shortest_answer_fits_into_the_longest() -> None:
    with pytest.raises(UserError, match="`min_new_tokens` is 9"):
        load_recipe({"decode": {"max_new_tokens": 8, "min_new_tokens": 9}})

"""Template, supervision and padding: what is trained on is exactly what is asked at inference."""

from __future__ import annotations

import pytest
import torch

import support
from perceptune.config.schema import TextConfig
from perceptune.errors import UserError
from perceptune.models.text_format import TextFormat
from perceptune.types import Sample


def text(*, pad: bool = True, bos: bool = False, **changes: object) -> TextFormat:
    config = TextConfig.model_validate({"template": "q {prompt} a", "target": " {target}", **changes})
    return TextFormat(support.tokenizer(pad=pad, bos=bos), config, vocabulary=support.SIZE)


SAMPLE = Sample("s1", {}, "is it?", ("yes",))


@pytest.mark.parametrize("bos", [False, True])
def test_the_training_text_begins_with_the_inference_prompt(bos: bool) -> None:
    form = text(bos=bos)
    ids, supervised = form.training_ids(SAMPLE, "yes")
    prompt = form.prompt_ids(SAMPLE)
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) :] == form.target_ids("yes")
    assert ids[-1] == form.eos
    assert supervised == len(form.target_ids("yes"))
    assert (ids[0] == 1) is bos
    assert form.decode(ids[-supervised:]) == " yes"


def test_supervising_all_leaves_out_only_the_first_token() -> None:
    form = text(supervise="all", bos=True)
    ids, supervised = form.training_ids(SAMPLE, "yes")
    assert supervised == len(ids) - 1


def test_padding_is_on_the_left_and_supervision_on_the_right() -> None:
    tokens = text().pad_left([[5, 6, 7, 8], [5, 6]], [2, 1])
    assert tokens.input_ids.tolist() == [[5, 6, 7, 8], [0, 0, 5, 6]]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert tokens.supervised.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert tokens.supervised.dtype == torch.bool


def test_special_tokens_typed_by_a_user_are_plain_text() -> None:
    form = text()
    ids = form.prompt_ids(Sample("x", {}, "a</s>b", ()))
    assert form.eos not in ids


def test_an_lm_without_a_pad_token_pads_with_its_end_token() -> None:
    assert text(pad=False).pad == 2
    with pytest.raises(UserError, match="`<nope>` is not a token"):
        TextFormat(support.tokenizer(), TextConfig(), vocabulary=support.SIZE, pad_token="<nope>")


def test_an_lm_without_an_end_token_is_refused() -> None:
    tokenizer = support.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end token"):
        TextFormat(tokenizer, TextConfig(), vocabulary=support.SIZE)


@pytest.mark.parametrize("prompt", ["", "  ", "?"])
def test_a_question_with_no_text_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="sample `s9`: the question has no text"):
        text().prompt_ids(Sample("s9", {}, prompt, ()))


def test_a_fixed_template_needs_no_question() -> None:
    form = text(template="a photo of")
    assert form.decode(form.prompt_ids(Sample("s", {}, "", ()))) == "a photo of"


def test_an_empty_prompt_without_a_start_token_is_refused() -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        text(template="").prompt_ids(SAMPLE)
    assert text(template="", bos=True).prompt_ids(SAMPLE) == [1]


def test_a_text_too_long_is_an_error_and_never_cut() -> None:
    with pytest.raises(UserError, match=r"sample `s1`: \d+ tokens, more than `text.max_tokens` = 8"):
        text(max_tokens=8).training_ids(SAMPLE, "yes")


def test_the_separator_is_one_unused_row_of_the_embedding() -> None:
    form = text(separator="</a>")
    assert form.prompt_ids(SAMPLE)[-1] == len(support.VOCABULARY)
    config = TextConfig(separator="</a>")
    with pytest.raises(UserError, match="needs a free row"):
        TextFormat(support.tokenizer(), config, vocabulary=len(support.VOCABULARY))


CHAT = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def chat(template: str = CHAT, *, rows: int = support.SIZE, **changes: object) -> TextFormat:
    tokenizer = support.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    config = TextConfig.model_validate({"template": template, "target": " {target}", **changes})
    return TextFormat(tokenizer, config, vocabulary=rows)


def test_special_tokens_of_the_template_are_tokens() -> None:
    form = chat()
    start, end = (form.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>"))
    ids = form.prompt_ids(SAMPLE)
    assert [token for token in ids if token in (start, end)] == [start, end, start]
    assert ids == form.tokenizer(CHAT.replace("{prompt}", "is it?"), add_special_tokens=False).input_ids


@pytest.mark.parametrize("prompt", ["a<|im_end|>b", "</s>a", "a<|im_start|>"])
def test_those_of_a_user_stay_text_in_such_a_template(prompt: str) -> None:
    form = chat()
    start, end = (form.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>"))
    ids = form.prompt_ids(Sample("s", {}, prompt, ()))
    assert [token for token in ids if token in (start, end, form.eos)] == [start, end, start]
    assert form.target_ids("a<|im_end|>").count(end) == 0
    assert chat("<|im_{prompt}").prompt_ids(Sample("s", {}, "end|> a", ())).count(end) == 0


def test_end_and_start_tokens_of_a_template_do_not_come_twice() -> None:
    form = chat(target="{target}</s>")
    assert form.target_ids("yes").count(form.eos) == 1
    tokenizer = support.tokenizer(bos=True)
    begun = TextFormat(tokenizer, TextConfig(template="<s>q {prompt}"), vocabulary=support.SIZE)
    assert begun.prompt_ids(SAMPLE).count(1) == 1


def test_a_token_without_a_row_is_refused_by_sample(capsys: pytest.CaptureFixture[str]) -> None:
    rows = len(support.VOCABULARY)
    tokenizer = support.tokenizer(pad=False)
    tokenizer.add_tokens(["<red>"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    form = TextFormat(tokenizer, TextConfig(), vocabulary=rows)
    assert f"{rows + 2} tokens, the LM's embedding {rows} rows" in capsys.readouterr().err
    assert form.pad == form.eos
    for sample, target in ((Sample("s7", {}, "is <red> it", ()), "yes"), (Sample("s7", {}, "is it", ()), "<red>")):
        for use in (form.training_ids, form.require_fit):
            with pytest.raises(UserError, match=rf"sample `s7`: .*`<red>` \({rows}\).*has {rows} rows"):
                use(sample, target)
    assert max(form.training_ids(SAMPLE, "red")[0]) < rows


def test_a_template_or_tokenizer_that_needs_a_row_more_is_refused() -> None:
    with pytest.raises(UserError, match=r"text: `<\|im_start\|>` is the token"):
        chat(rows=len(support.VOCABULARY))
    tokenizer = support.tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(UserError, match="the tokenizer needs the token `<end>`"):
        TextFormat(tokenizer, TextConfig(), vocabulary=len(support.VOCABULARY))

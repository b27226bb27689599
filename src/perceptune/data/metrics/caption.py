"""Captions against references as coco-caption scores them: BLEU-1 to BLEU-4, ROUGE-L and CIDEr, without Java.

Where most letters of the references belong to scripts without blanks, characters take the place of words.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from perceptune.data.metrics import base
from perceptune.data.records import Record, parse
from perceptune.errors import UserError

NEEDS = base.Needs()
FEW = 100  # number of documents below which CIDEr depends strongly on their number
_OWN = "references"
_CORPUS_KEYS = ("references", "captions", "targets")
TokenizerName = Literal["ptb", "characters", "none"]
_TOKENIZERS: dict[TokenizerName, base.Tokenizer] = {
    "ptb": base.ptb_tokens, "characters": base.character_tokens, "none": str.split,
}  # fmt: skip
UNOFFICIAL = "tokenizer `characters` (scripts without blanks): not comparable with values on Penn Treebank tokens"


class Options(base.MetricOptions):
    """The tokenizer, and the source of CIDEr's document frequencies."""

    tokenizer: TokenizerName | None = Field(
        None,
        description="`ptb` as coco-caption; `characters` for scripts without blanks; `none` = texts are tokens"
        " separated by spaces; None = decided by the script of the references",
    )
    df: str = Field(
        _OWN,
        description="CIDEr's document frequencies: `references` (of the scored set) or a JSONL file whose lines hold"
        " the `references` (or `captions`, `targets`) of one medium each",
    )


def score(predictions: Sequence[str], references: base.References, options: Options = Options()) -> base.Scored:
    """Compute `BLEU-1` to `BLEU-4` and `ROUGE-L` from 0 to 1, `CIDEr` (CIDEr-D) from 0 to 10.

    ROUGE-L and CIDEr are means over samples, BLEU is computed from sums over samples (`corpus`). A sample's own BLEU is
    coco-caption's: 1e-15 is added to its matches. Raises `ValueError` if there is nothing to score or a sample has no
    reference, `UserError` for errors in the file `df`.
    """
    tokenizer = options.tokenizer or tokenizer_of(references)
    further, documents = ([], None) if options.df == _OWN else _corpus(Path(options.df))
    captions = base.numbered(predictions, references, _TOKENIZERS[tokenizer], further)
    bleu, cider = base.Bleu(captions), base.Cider(captions, documents)
    for table in base.tables(captions, base.ORDERS):
        bleu.add(table)
        cider.add(table)
    corpus = bleu.values()
    columns: dict[str, base.Floats] = {key: value.value(value.statistics) for key, value in corpus.items()}
    columns |= {"ROUGE-L": base.rouge_l(captions, base.common_lengths(captions)), "CIDEr": cider.scores()}
    summary = {
        key: float(corpus[key].value(corpus[key].statistics.sum(axis=0)) if key in corpus else np.mean(column))
        for key, column in columns.items()
    }
    definition = captions.definition("BLEU-1..4, ROUGE-L, CIDEr (CIDEr-D) as in coco-caption", tokenizer)
    return base.Scored(
        summary, base.rows_of(columns), definition | _details(options, cider.n_documents, tokenizer), corpus
    )


def tokenizer_of(references: base.References) -> TokenizerName:
    """Return the tokenizer for the script of the references."""
    return "characters" if base.lacks_blanks(text for several in references for text in several) else "ptb"


def _details(options: Options, documents: int, tokenizer: TokenizerName) -> dict[str, Any]:
    definition: dict[str, Any] = {}
    definition["df"] = {"source": options.df, "documents": documents}
    definition["scale"] = {"BLEU": [0, 1], "ROUGE-L": [0, 1], "CIDEr": [0, 10]}
    if options.df != _OWN:
        definition["df"]["sha256"] = hashlib.sha256(Path(options.df).read_bytes()).hexdigest()
    cautions = [UNOFFICIAL] if tokenizer == "characters" else []
    if documents < FEW:
        cautions.append(
            f"CIDEr's document frequencies come from {documents} documents: it is not comparable with that of a larger"
            " set; give the whole set's references as `df`"
        )
    return definition | ({"caution": "; ".join(cautions)} if cautions else {})


def _corpus(path: Path) -> tuple[list[str], base.Ints]:
    """Read the captions of a file, each with the number of its line; blank lines do not count."""
    captions: list[str] = []
    sizes = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        values = parse(line, where, 'an object such as {"references": ["a dog", "a brown dog"]}', "utf-8-sig")
        if values is not None:
            found = Record(where, values, _CORPUS_KEYS).targets(_CORPUS_KEYS, str.strip, needed=True)
            captions += found
            sizes.append(len(found))
    if not sizes:
        raise UserError(f"{path} holds no references")
    return captions, np.repeat(np.arange(len(sizes)), sizes)

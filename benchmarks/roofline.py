"""(d) The least matrix products that our training step needs, and how fast this machine does them.

Counted are products only, none for what is constant or thrown away:

- text below the first injection costs nothing without a soft prompt (its states are cached per text);
- with a prompt at the input the lower layers run on the text and, once per batch, on the prompt columns;
- the last token predicts nothing and runs in no layer; the last layer's query, output and feed-forward products run on
  the predicting positions only, and so does the vocabulary head;
- an injected token needs a key and a value, nothing else: its own output is overwritten or never read;
- frozen weights have no gradient; a layer's inputs have one only where something trained lies below;
- attention counts visible pairs only.

Norms, activations, softmax, loss and optimizer are not counted. Each product is measured with torch.mm in its own shape
and dtype; attention, too small to measure alone, is priced at the fastest rate seen.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from perceptune.methods.slots.epalm import EPALM
from perceptune.models.slots.model import SlotModel
from perceptune.utils.timing import Contender

WEIGHTS = 4  # different weights that a measurement goes round, as a model's layers do
Kind = Literal["forward", "backward", "weight"]


class Product(NamedTuple):
    """A linear map K -> N of M rows: x W^T, gradient @ W, or gradient^T @ x for a weight."""

    kind: Kind
    m: int
    k: int
    n: int
    trained: bool = False  # what is trained is float32 always

    @property
    def flops(self) -> int:
        """Two per multiplication."""
        return 2 * self.m * self.k * self.n


@dataclass(frozen=True)
class Work:
    """A training step's sizes. `prompt` columns lie at the input: with any, the layers below `first` are run."""

    batch: int
    text: int
    supervised: int
    prompt: int
    layers: int
    first: int  # first injected layer; the last one is the LM's last
    hidden: int
    ffn: int
    vocabulary: int
    embedding: int  # OPT-350M's is smaller than `hidden`
    levels: int  # encoder levels in use
    features: int  # encoder dimension

    @property
    def predicting(self) -> int:
        """Positions whose logits are wanted."""
        return self.batch * self.supervised


def work_of(model: SlotModel, batch: int, text: int, supervised: int) -> Work:
    """The sizes of a model made by `shapes`: OPT, eP-ALM injected up to the last layer, prompt at the input or none."""
    method, config = model.method, model.lm.config
    assert isinstance(method, EPALM)
    prompt = 0 if method.prompt is None else method.options.prompt_tokens
    levels = len({method.level_of(layer) for layer in method.range})
    return Work(
        batch, text, supervised, prompt, model.lm.n_layers, method.range.start, model.lm.hidden_size, config.ffn_dim,
        config.vocab_size, model.lm.prompt_size, levels, method.shapes["image"].dim,
    )  # fmt: skip


def products(work: Work) -> Counter[Product]:
    """Every linear product of a training step."""
    found: Counter[Product] = Counter()
    start = 0 if work.prompt else work.first
    for layer in range(start, work.layers):
        found += _layer(work, layer)
    found += _ends(work)
    return Counter({product: times for product, times in found.items() if product.m})


def _layer(work: Work, layer: int) -> Counter[Product]:
    d, above = work.hidden, layer >= work.first
    prompt_rows = work.prompt * (work.batch if above else 1)
    rows = work.batch * (work.text - 1) + prompt_rows  # text and prompt
    slots = work.batch if above else 0
    asking = work.predicting if layer == work.layers - 1 else rows
    # Rows whose input has a gradient: none under the first trained thing, only the prompt's where it enters.
    if layer == (0 if work.prompt else work.first):
        moved = prompt_rows if layer == 0 else 0
        asking_moved = min(moved, asking)
    else:
        moved, asking_moved = rows, asking
    return Counter({Product("forward", asking, d, work.ffn): 1, Product("backward", asking, d, work.ffn): 1}) + _sum(
        (Product("forward", asking, d, d), 2),  # query and output
        (Product("backward", asking, d, d), 1),
        (Product("backward", asking_moved, d, d), 1),
        (Product("forward", rows + slots, d, d), 2),  # key and value
        (Product("backward", moved + slots, d, d), 2),
        (Product("forward", asking, work.ffn, d), 1),
        (Product("backward", asking, work.ffn, d), 1),
    )


def _ends(work: Work) -> Counter[Product]:
    """Embedding, vocabulary head, connections and the prompt's MLP."""
    e, d = work.embedding, work.hidden
    found = _sum(
        (Product("forward", work.predicting, e, work.vocabulary), 1),
        (Product("backward", work.predicting, e, work.vocabulary), 1),
        (Product("forward", work.batch, work.features, d, True), work.levels),
        (Product("weight", work.batch, work.features, d, True), work.levels),
    )
    if e != d:
        below = work.prompt + work.batch * (work.text - 1) if work.prompt else 0
        found += _sum(
            (Product("forward", work.predicting, d, e), 1), (Product("backward", work.predicting, d, e), 1),
            (Product("forward", below, e, d), 1), (Product("backward", work.prompt, e, d), 1),
        )  # fmt: skip
    kinds: tuple[Kind, ...] = ("forward", "backward", "weight")
    return found + _sum(*((Product(kind, work.prompt, e, e, True), 2) for kind in kinds))


def _sum(*counted: tuple[Product, int]) -> Counter[Product]:
    """Equal products add up."""
    found: Counter[Product] = Counter()
    for product, times in counted:
        found[product] += times
    return found


def attention_flops(work: Work) -> int:
    """Scores and weighted values, two products forward and four backward, over visible pairs."""
    pairs = 0
    for layer in range(0 if work.prompt else work.first, work.layers):
        slot = 1 if layer >= work.first else 0
        last = layer == work.layers - 1
        queries = range(work.text - work.supervised if last else 1, work.text)  # 1-based, the last token left out
        pairs += work.batch * sum(place + work.prompt + slot for place in queries)
        if not last:
            copies = work.batch if slot else 1
            pairs += copies * sum(place + slot for place in range(1, work.prompt + 1))
    return 6 * 2 * pairs * work.hidden


def flops(work: Work) -> int:
    """All of a training step."""
    return sum(product.flops * times for product, times in products(work).items()) + attention_flops(work)


def matmul(product: Product, dtype: torch.dtype, name: str) -> Contender:
    """Measures a product with torch.mm, going round `WEIGHTS` weights."""
    m, k, n = product.m, product.k, product.n
    used = torch.float32 if product.trained else dtype
    x, gradient = torch.randn(m, k).to(used), torch.randn(m, n).to(used)
    weights = [torch.randn(n, k).to(used) for _ in range(WEIGHTS if n * k < 10**7 else 1)]

    # Into one result, and once more right before the clock starts: the machine at its best, without page faults.
    result = torch.empty({"forward": (m, n), "backward": (m, k), "weight": (n, k)}[product.kind], dtype=used)

    @torch.no_grad()
    def run() -> None:
        for weight in weights:
            if product.kind == "forward":
                torch.mm(x, weight.t(), out=result)
            elif product.kind == "backward":
                torch.mm(gradient, weight, out=result)
            else:
                torch.mm(gradient.t(), x, out=result)

    return Contender(name, "matmul", run, prepare=run, times=len(weights), flops=product.flops)


def matmul_name(product: Product, dtype: torch.dtype) -> str:
    """Name of the row that measures a product."""
    used = torch.float32 if product.trained else dtype
    return f"torch.mm {str(used).removeprefix('torch.')} {product.kind} {product.m}x{product.k}x{product.n}"


def roofline_seconds(work: Work, dtype: torch.dtype, measured: Mapping[str, float]) -> float:
    """Sum of count x measured seconds; attention at the fastest rate of these products in `dtype`."""
    counted = products(work)
    seconds = {product: measured[matmul_name(product, dtype)] for product in counted}
    fastest = max(product.flops / time for product, time in seconds.items() if not product.trained)
    return sum(seconds[product] * times for product, times in counted.items()) + attention_flops(work) / fastest

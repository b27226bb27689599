"""Ours against the literal method, prompt tuning and text-only generation, on models of published shapes."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import PromptTuning, text_only
from benchmarks.literal import LiteralEPALM
from benchmarks.roofline import Product, flops, matmul, matmul_name, products, roofline_seconds, work_of
from benchmarks.shapes import Models, random_texts
from benchmarks.steps import mean_loss, training_step
from perceptune.errors import UserError, nearest
from perceptune.lm.generation.generate import generate
from perceptune.methods.slots.epalm import EPALM
from perceptune.models.text_format import Batch, Tokens
from perceptune.types import Decoding, GenerationRequest, Prompt
from perceptune.utils.timing import Contender, measure, nothing

Rows = dict[str, Callable[[str], Contender]]  # name -> what makes the contender of that name
METHODS = ("epalm-lin", "epalm")
DTYPES = {"": torch.float32, " bf16": torch.bfloat16}
PARTS = ("train", "generate", "roofline")
# ratio -> (row above the line, row below it)
RATIOS = {
    "train_lin_cached": ("train literal epalm-lin", "train ours epalm-lin cached"),
    "train_epalm_cached": ("train literal epalm", "train ours epalm cached"),
    "train_uncached": ("train literal epalm", "train ours epalm uncached"),
    "train_lin_cached_bf16": ("train literal epalm-lin", "train ours epalm-lin cached bf16"),
    "train_epalm_cached_bf16": ("train literal epalm", "train ours epalm cached bf16"),
    "train_uncached_bf16": ("train literal epalm", "train ours epalm uncached bf16"),
    "generate_greedy": ("generate literal epalm greedy", "generate ours epalm greedy"),
    "generate_beam3": ("generate literal epalm beam3", "generate ours epalm beam3"),
    "generate_vs_text_only": ("generate ours epalm greedy", "generate text-only greedy"),
}
ROOFLINES = {"roofline_fp32": torch.float32, "roofline_bf16": torch.bfloat16}
NAMES = (*RATIOS, *ROOFLINES)


class Comparison:
    """All contenders of one shape. Models are built when a contender first needs them."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.batch = models.setting.batch

    def rows(self, parts: Sequence[str], *, plain: bool = False) -> Rows:
        """How to make the contenders of the named parts, by name, in the order in which they take turns."""
        rows: Rows = {}
        if "train" in parts:
            rows |= {f"train literal {method}": partial(self._literal, method) for method in METHODS}
            rows["train peft prompt-tuning"] = self._prompt_tuning
        if "train" in parts or "roofline" in parts:
            for suffix, dtype in DTYPES.items():
                for method in METHODS:
                    rows[f"train ours {method} cached{suffix}"] = partial(self._ours, method, dtype, self._cached)
        if "train" in parts:
            for suffix, dtype in DTYPES.items():
                encoded = partial(self._encoded, dtype)
                rows[f"train ours epalm uncached{suffix}"] = partial(self._ours, "epalm", dtype, encoded)
                rows[f"train ours epalm-lin cold texts{suffix}"] = partial(self._cold, dtype)
            ragged = random_texts(self.models.setting, self.models.vocabulary, seed=5, ragged=True)
            batch = partial(self._cached, ragged)
            rows["train ours epalm cached, ragged texts"] = partial(self._ours, "epalm", torch.float32, batch)
            encoded = partial(self._encoded, torch.float32)
            for method in METHODS if plain else ():
                step = partial(self._ours, method, torch.float32, encoded, plain=True)
                rows[f"train ours {method} plain"] = step
        if "roofline" in parts:
            rows |= {name: partial(matmul, *what) for name, what in self._matmuls().items()}
        if "generate" in parts:
            rows |= self._generate_rows()
        return rows

    def _generate_rows(self) -> Rows:
        rows: Rows = {}
        for label, beams in (("greedy", 1), ("beam3", 3)):
            for key in self.generators(beams):
                rows[f"generate {key.replace('*', label)}"] = partial(self._generating, key, beams)
        return rows | {"encode literal": self._encoding}

    def contenders(self, parts: Sequence[str], *, plain: bool = False, row: str | None = None) -> list[Contender]:
        """The contenders themselves, or only the named one. Raises `UserError` for a row that there is not."""
        rows = self.rows(parts, plain=plain)
        if row is not None and row not in rows:
            raise UserError(f"no row `{row}`{nearest(row, rows)}")
        return [make(name) for name, make in rows.items() if row in (None, name)]

    def _literal(self, method: str, name: str) -> Contender:
        literal = self.literal[method]

        def loss() -> Tensor:
            total, tokens = literal.loss(self.models.tokens, literal.encode(self.models.images))
            return total / tokens

        return self._training(name, loss, literal.trained())

    def _prompt_tuning(self, name: str) -> Contender:
        tuning = self.tuning
        return self._training(name, lambda: tuning.loss(self.models.tokens), tuning.trained())

    def _ours(
        self, method: str, dtype: torch.dtype, batch: Callable[[], Batch], name: str, *, plain: bool = False,
        prepare: Callable[[], Any] = nothing,
    ) -> Contender:  # fmt: skip
        model = self.models.ours(method, dtype)
        trained = list(model.method.parameters())
        return self._training(name, lambda: mean_loss(model, batch(), plain=plain), trained, prepare)

    def _cached(self, tokens: Tokens | None = None) -> Batch:
        return Batch(tokens or self.models.tokens, {"image": self.models.features})

    def _encoded(self, dtype: torch.dtype) -> Batch:
        return Batch(self.models.tokens, {"image": self.models.encode(dtype)})

    def _cold(self, dtype: torch.dtype, name: str) -> Contender:
        """Texts never seen before: the states of the lower layers are computed within the step."""
        seeds, texts = count(1000), [self.models.tokens]

        def fresh() -> None:
            texts[0] = random_texts(self.models.setting, self.models.vocabulary, seed=next(seeds))

        return self._ours("epalm-lin", dtype, lambda: self._cached(texts[0]), name, prepare=fresh)

    def _training(
        self, name: str, loss: Callable[[], Tensor], trained: Sequence[torch.nn.Parameter],
        prepare: Callable[[], Any] = nothing,
    ) -> Contender:  # fmt: skip
        return Contender(name, "train", training_step(loss, trained), prepare, samples=self.batch)

    def _matmuls(self) -> dict[str, tuple[Product, torch.dtype]]:
        return {
            matmul_name(product, dtype): (product, dtype)
            for dtype in DTYPES.values()
            for method in METHODS
            for product in products(work_of(self.models.ours(method, dtype), *self._sizes()))
        }

    def _sizes(self) -> tuple[int, int, int]:
        setting = self.models.setting
        return setting.batch, setting.text, setting.supervised

    def _generating(self, key: str, beams: int, name: str) -> Contender:
        new, tokens = self.generators(beams)[key], self.models.setting.new_tokens
        return Contender(name, "generate", lambda: new(tokens), warm_up=lambda: new(2), samples=self.batch)

    def _encoding(self, name: str) -> Contender:
        tower, images = self.models.raw_tower, self.models.images
        return Contender(name, "generate", torch.no_grad()(lambda: tower(images)), samples=self.batch)

    def generators(self, beams: int) -> dict[str, Callable[[int], Any]]:
        """Ways to generate a number of new tokens for the batch of texts, features given."""
        ids, mask = self.models.tokens.input_ids, self.models.tokens.attention_mask
        return {
            "literal epalm *": lambda new: self.literal["epalm"].generate(
                ids, mask, self.models.features.values, new, beams
            ),
            "peft prompt-tuning *": lambda new: self.tuning.generate(ids, mask, new, beams),
            "text-only *": lambda new: text_only(self.models.raw_lm, ids, mask, new, beams),
            "ours epalm *": lambda new: self.answer(torch.float32, new, beams),
            "ours epalm * bf16": lambda new: self.answer(torch.bfloat16, new, beams),
        }

    @torch.no_grad()
    def answer(self, dtype: torch.dtype, new_tokens: int, beams: int) -> list[list[int]]:
        """Ours; the end token lies outside the vocabulary, so that every row gets all its tokens."""
        model, tokens = self.models.ours("epalm", dtype), self.models.tokens
        slots = model.method.build_slots({"image": self.models.features}, self.batch)
        decoding = Decoding(max_new_tokens=new_tokens, beams=beams)
        prompt = Prompt(tokens.input_ids, tokens.attention_mask, slots)
        rows = generate(model.lm, GenerationRequest(prompt, decoding, eos=self.models.vocabulary, pad=0))
        if any(len(row) != new_tokens for row in rows):
            raise RuntimeError(f"a row has not {new_tokens} new tokens")
        return rows

    @cached_property
    def literal(self) -> dict[str, LiteralEPALM]:
        """The literal method, its trained parts copied from a fresh method of ours."""
        made = {}
        for name in METHODS:
            method = self.models.method(name)
            assert isinstance(method, EPALM)
            made[name] = LiteralEPALM(self.models.raw_lm, self.models.raw_tower, method)
        return made

    @cached_property
    def tuning(self) -> PromptTuning:
        """PEFT on the LM that the other baselines use."""
        return PromptTuning(self.models.raw_lm)

    def rooflines(self, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
        """One row per method and dtype: necessary FLOPs, their time at the measured speed, and what ours takes."""
        rows = []
        for ratio, dtype in ROOFLINES.items():
            suffix = " bf16" if dtype == torch.bfloat16 else ""
            for method in METHODS:
                work = work_of(self.models.ours(method, dtype), *self._sizes())
                limit, taken = roofline_seconds(work, dtype, seconds), seconds[f"train ours {method} cached{suffix}"]
                needed = flops(work)
                rows.append({
                    "name": f"{ratio} {method}", "kind": "roofline", "median_s": limit, "min_s": limit,
                    "samples_per_s": self.batch / limit, "gflop": needed / 1e9, "matmul_gflops": needed / limit / 1e9,
                    "achieved_gflops": needed / taken / 1e9, "roofline_x": limit / taken,
                })  # fmt: skip
        return rows


def compare(
    models: Models, parts: Sequence[str], rounds: int, *, plain: bool = False, row: str | None = None
) -> dict[str, Any]:
    """`ratios` and `rows` of the named parts; ratios whose rows were not measured are left out."""
    comparison = Comparison(models)
    rows = measure(comparison.contenders(parts, plain=plain, row=row), rounds)
    seconds = {r["name"]: r["median_s"] for r in rows}
    ratios = {
        name: seconds[above] / seconds[below]
        for name, (above, below) in RATIOS.items()
        if above in seconds and below in seconds
    }
    if "roofline" in parts and row is None:
        limits = comparison.rooflines(seconds)
        rows += limits
        for name in ROOFLINES:  # the worse one of the two methods
            ratios[name] = min(limit["roofline_x"] for limit in limits if limit["name"].startswith(name))
    return {"ratios": ratios, "rows": rows}

"""Ours against the literal method, prompt tuning and text-only generation, on models of published shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor

from perceptune.bench.baselines import PromptTuning, text_only
from perceptune.bench.literal import LiteralEPALM
from perceptune.bench.measure import Contender, measure, nothing, training_step
from perceptune.bench.roofline import flops, matmul, products, roofline_seconds, work_of
from perceptune.bench.shapes import Models, random_texts
from perceptune.lm import Decoding
from perceptune.methods.epalm import EPALM
from perceptune.model import AdaptedModel, Batch
from perceptune.text import Tokens
from perceptune.types import Features

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

    def contenders(self, parts: Sequence[str], *, plain: bool = False) -> list[Contender]:
        """Those of the named parts, in the order in which they take turns."""
        found: list[Contender] = []
        if "train" in parts:
            found += self._train_baselines()
        if "train" in parts or "roofline" in parts:
            found += self._train_ours(all_rows="train" in parts)
        if "train" in parts and plain:
            found += [self._plain(method) for method in METHODS]
        if "roofline" in parts:
            found += self._matmuls()
        if "generate" in parts:
            found += self._generate()
        return found

    def _train_baselines(self) -> list[Contender]:
        made = []
        for method in METHODS:
            literal = self.literal[method]

            def loss(literal: LiteralEPALM = literal) -> Tensor:
                total, tokens = literal.loss(self.models.tokens, literal.encode(self.models.images))
                return total / tokens

            made.append(self._training(f"literal {method}", loss, literal.trained()))
        tuning = self.tuning
        made.append(self._training("peft prompt-tuning", lambda: tuning.loss(self.models.tokens), tuning.trained()))
        return made

    def _train_ours(self, *, all_rows: bool) -> list[Contender]:
        made = []
        for suffix, dtype in DTYPES.items():
            for method in METHODS:
                made.append(self._ours(f"{method} cached{suffix}", method, dtype, self._cached))
            if all_rows:
                made.append(self._ours(f"epalm uncached{suffix}", "epalm", dtype, self._encoded(dtype)))
                made.append(self._cold(f"epalm-lin cold texts{suffix}", dtype))
        if all_rows:
            ragged = random_texts(self.models.setting, self.models.vocabulary, seed=5, ragged=True)
            made.append(self._ours("epalm cached, ragged texts", "epalm", torch.float32, self._cached, ragged))
        return made

    def _training(
        self, name: str, loss: Callable[[], Tensor], trained: Sequence[torch.nn.Parameter],
        prepare: Callable[[], Any] = nothing,
    ) -> Contender:  # fmt: skip
        return Contender(f"train {name}", "train", training_step(loss, trained), prepare, samples=self.batch)

    def _ours(
        self, name: str, method: str, dtype: torch.dtype, features: Callable[[], Features],
        tokens: Tokens | None = None,
    ) -> Contender:  # fmt: skip
        model = self.models.ours(method, dtype)
        texts = self.models.tokens if tokens is None else tokens

        def loss() -> Tensor:
            return _mean(model, Batch(texts, {"image": features()}))

        return self._training(f"ours {name}", loss, list(model.method.parameters()))

    def _cold(self, name: str, dtype: torch.dtype) -> Contender:
        """Texts never seen before: the states of the lower layers are computed within the step."""
        model, seeds = self.models.ours("epalm-lin", dtype), count(1000)
        texts: list[Tokens] = []

        def fresh() -> None:
            texts[:] = [random_texts(self.models.setting, self.models.vocabulary, seed=next(seeds))]

        def loss() -> Tensor:
            return _mean(model, Batch(texts[0], {"image": self.models.features}))

        return self._training(f"ours {name}", loss, list(model.method.parameters()), fresh)

    def _plain(self, method: str) -> Contender:
        """`AdaptedModel.plain`: every layer on every text, the encoder at every step."""
        model = self.models.ours(method, torch.float32)

        def loss() -> Tensor:
            model.plain = True
            try:
                return _mean(model, Batch(self.models.tokens, {"image": self.models.encode(torch.float32)}))
            finally:
                model.plain = False

        return self._training(f"ours {method} plain", loss, list(model.method.parameters()))

    def _cached(self) -> Features:
        return self.models.features

    def _encoded(self, dtype: torch.dtype) -> Callable[[], Features]:
        return lambda: self.models.encode(dtype)

    def _matmuls(self) -> list[Contender]:
        distinct = {}
        for dtype in DTYPES.values():
            for method in METHODS:
                for product in products(work_of(self.models.ours(method, dtype), *self._sizes())):
                    contender = matmul(product, dtype)
                    distinct[contender.name] = contender
        return list(distinct.values())

    def _sizes(self) -> tuple[int, int, int]:
        setting = self.models.setting
        return setting.batch, setting.text, setting.supervised

    def _generate(self) -> list[Contender]:
        made = []
        for label, beams in (("greedy", 1), ("beam3", 3)):
            for name, new in self.generators(beams).items():
                made.append(
                    Contender(
                        f"generate {name.replace('*', label)}", "generate",
                        lambda new=new: new(self.models.setting.new_tokens), warm_up=lambda new=new: new(2),
                        samples=self.batch,
                    )
                )  # fmt: skip
        encode = self.models.raw_tower
        images = self.models.images
        made.append(
            Contender("encode literal", "generate", lambda: _run(encode, images), samples=self.batch)
        )
        return made

    def generators(self, beams: int) -> dict[str, Callable[[int], Any]]:
        """Ways to generate a number of new tokens for the batch of texts, features given."""
        ids, mask = self.models.tokens.input_ids, self.models.tokens.attention_mask
        features, raw = self.models.features, self.models.raw_lm
        return {
            "literal epalm *": lambda new: self.literal["epalm"].generate(ids, mask, features.values, new, beams),
            "peft prompt-tuning *": lambda new: self.tuning.generate(ids, mask, new, beams),
            "text-only *": lambda new: text_only(raw, ids, mask, new, beams),
            "ours epalm *": lambda new: self.answer(torch.float32, new, beams),
            "ours epalm * bf16": lambda new: self.answer(torch.bfloat16, new, beams),
        }

    @torch.no_grad()
    def answer(self, dtype: torch.dtype, new_tokens: int, beams: int) -> list[list[int]]:
        """Ours; the end token lies outside the vocabulary, so that every row gets all its tokens."""
        model, tokens = self.models.ours("epalm", dtype), self.models.tokens
        slots = model.method.plan({"image": self.models.features}, self.batch)
        decoding = Decoding(max_new_tokens=new_tokens, beams=beams)
        rows = model.lm.generate(
            tokens.input_ids, tokens.attention_mask, slots, decoding, eos=self.models.vocabulary, pad=0
        )
        if any(len(row) != new_tokens for row in rows):
            raise RuntimeError(f"a row has not {new_tokens} new tokens")
        return rows

    @cached_property
    def literal(self) -> dict[str, LiteralEPALM]:
        """The literal method, its trained parts copied from a fresh method of ours."""
        made = {}
        for name in METHODS:
            method = self.models.ours(name, torch.float32).method
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


def compare(models: Models, parts: Sequence[str], rounds: int, *, plain: bool = False) -> dict[str, Any]:
    """`ratios` and `rows` of the named parts; ratios whose rows were not measured are left out."""
    comparison = Comparison(models)
    rows = measure(comparison.contenders(parts, plain=plain), rounds)
    seconds = {row["name"]: models.setting.batch / row["samples_per_s"] for row in rows if row["kind"] != "matmul"}
    for row in rows:
        if row["kind"] == "matmul":
            seconds[row["name"]] = 1 / row["samples_per_s"]
            row["matmul_gflops"] = _gflops(row["name"]) / seconds[row["name"]]
    ratios = {
        name: seconds[above] / seconds[below]
        for name, (above, below) in RATIOS.items()
        if above in seconds and below in seconds
    }
    if "roofline" in parts:
        limits = comparison.rooflines(seconds)
        rows += limits
        for name in ROOFLINES:  # the worse one of the two methods
            ratios[name] = min(row["roofline_x"] for row in limits if row["name"].startswith(name))
    return {"ratios": ratios, "rows": rows}


def _mean(model: AdaptedModel, batch: Batch) -> Tensor:
    loss, tokens = model.loss(batch)
    return loss / tokens


@torch.no_grad()
def _run(module: torch.nn.Module, inputs: Tensor) -> None:
    module(inputs)


def _gflops(name: str) -> float:
    m, k, n = (int(size) for size in name.rsplit(" ", 1)[1].split("x"))
    return 2 * m * k * n / 1e9

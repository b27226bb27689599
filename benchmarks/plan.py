"""A costed plan for a large number of images, computed from costs measured on this machine and stated assumptions."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from benchmarks.compare import Comparison
from benchmarks.shapes import Models
from perceptune.utils.timing import Contender, measure

HALF = 2  # bytes of a cached number


def _meant(meaning: str, default: float | None = None) -> Any:
    """Return a field with what it means; without a default it must be given."""
    given = {} if default is None else {"default": default}
    return field(**given, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Costs:
    """What one sample costs on this machine."""

    encode_s: float = _meant("seconds of the encoder per image (bfloat16)")
    train_s: float = _meant("seconds of training per sample, features in memory (bfloat16)")
    cache_bytes: int = _meant("bytes of cached features per image")  # chosen levels x dimension, two bytes each
    trained_bytes: int = _meant("bytes of trained parameters")  # float32, for the all-reduce


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here. Every one is printed with the plan and can be set."""

    samples: int = _meant("images, one text each", 100_000_000)
    epochs: float = _meant("epochs", 1.0)
    gpu_factor: float = _meant("speed of one GPU in multiples of this machine's (assumed, not measured)", 150.0)
    gpus: int = _meant("GPUs", 8)
    gpu_price: float = _meant("price of a GPU hour", 2.5)
    image_kb: float = _meant("kB of a JPEG", 110.0)  # 512 pixels, as shards of the web hold it
    shard_images: int = _meant("images in a shard", 10_000)
    network_mb_s: float = _meant("MB/s that one node reads from storage", 1000.0)
    batch: int = _meant("samples per GPU and step", 16)


ASSUMED, MEASURED = ({one.name: one.metadata["meaning"] for one in fields(kind)} for kind in (Assumptions, Costs))


def measured_costs(models: Models, rounds: int) -> Costs:
    """bfloat16 costs of these models on this machine."""
    training, name = Comparison(models), "train ours epalm cached bf16"
    encode = Contender("encode", "plan", lambda: models.encode(torch.bfloat16), samples=models.setting.batch)
    rows = measure([*training.contenders(["train"], row=name), encode], rounds, "plan")
    train_s, encode_s = (1 / row["samples_per_s"] for row in rows)
    trained = sum(p.numel() for p in models.ours("epalm", torch.bfloat16).method.parameters())
    width = models.setting.levels * int(models.encoder_entries["hidden_size"])
    return Costs(encode_s, train_s, width * HALF, trained * 4)


def plan_rows(costs: Costs, given: Assumptions) -> list[dict[str, Any]]:
    """Measured costs, assumptions and figures, each with its meaning."""
    parts = {"measured": (costs, MEASURED), "assumed": (given, ASSUMED)}
    return [
        {"name": name, "kind": kind, "value": value, "meaning": meanings[name]}
        for kind, (values, meanings) in parts.items()
        for name, value in vars(values).items()
    ] + [{"name": name, "kind": "plan", "value": value, "meaning": meaning}
         for name, (value, meaning) in plan(costs, given).items()]  # fmt: skip


def plan(costs: Costs, given: Assumptions) -> dict[str, tuple[float, str]]:
    """The plan's figures and their meaning; hours are those of all GPUs together at perfect scaling."""
    encode_gpu_h = given.samples * costs.encode_s / given.gpu_factor / 3600
    train_gpu_h = given.samples * given.epochs * costs.train_s / given.gpu_factor / 3600
    both_h = encode_gpu_h + train_gpu_h
    jpeg_tb = given.samples * given.image_kb * 1e3 / 1e12
    cache_tb = given.samples * costs.cache_bytes / 1e12
    steps = math.ceil(given.samples * given.epochs / (given.batch * given.gpus))
    hours_per_tb = 1e6 / given.network_mb_s / 3600
    return {
        "shards": (math.ceil(given.samples / given.shard_images), "shards of images"),
        "jpeg_tb": (jpeg_tb, "TB of JPEG, read once"),
        "jpeg_read_h": (jpeg_tb * hours_per_tb, "hours to read them at the network's rate"),
        "cache_tb": (cache_tb, "TB of cached features"),
        "cache_shard_mb": (given.shard_images * costs.cache_bytes / 1e6, "MB of cached features per shard"),
        "cache_read_h_per_epoch": (cache_tb * hours_per_tb, "hours to read the cache once at the network's rate"),
        "encode_gpu_h": (encode_gpu_h, "GPU hours of encoding, once"),
        "train_gpu_h": (train_gpu_h, "GPU hours of training, all epochs"),
        "total_gpu_h": (both_h, "GPU hours in all"),
        "total_gpu_h_without_cache": (
            given.epochs * encode_gpu_h + train_gpu_h, "GPU hours if images were encoded in each epoch"
        ),
        "wall_h": (both_h / given.gpus, "hours on all GPUs together, perfect scaling"),
        "price": (both_h * given.gpu_price, "price of the GPU hours"),
        "optimizer_steps": (steps, "optimizer steps"),
        "gradient_tb_per_gpu": (
            steps * costs.trained_bytes / 1e12, "TB of gradients each GPU hands to the all-reduce"
        ),
    }  # fmt: skip

"""A costed plan for a large number of images, computed from costs measured on this machine and stated assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.compare import Comparison
from benchmarks.shapes import Models
from perceptune.utils.timing import Contender, measure

HALF = 2  # bytes of a cached number


@dataclass(frozen=True)
class Costs:
    """What one sample costs on this machine."""

    encode_s: float  # seconds of the encoder per image
    train_s: float  # seconds of training per sample, features in memory
    cache_bytes: int  # per image: chosen levels x dimension, two bytes each
    trained_bytes: int  # parameters of the method, float32, for the all-reduce


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here. Every one is printed with the plan and can be set."""

    samples: int = 100_000_000
    epochs: float = 1.0
    gpu_factor: float = 150.0  # one GPU does the work of so many of these machines (bf16)
    gpus: int = 8
    gpu_price: float = 2.5  # money per GPU hour
    image_kb: float = 110.0  # a JPEG of 512 pixels as shards of the web hold it
    shard_images: int = 10_000
    network_mb_s: float = 1000.0  # that one node reads from storage
    batch: int = 16  # samples per GPU and step


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
    parts = (
        ("measured", vars(costs), MEASURED),
        ("assumed", vars(given), ASSUMED),
        ("plan", plan(costs, given), MEANING),
    )
    return [
        {"name": name, "kind": kind, "value": value, "meaning": meanings[name]}
        for kind, values, meanings in parts
        for name, value in values.items()
    ]


def plan(costs: Costs, given: Assumptions) -> dict[str, Any]:
    """The plan's figures; hours are wall-clock hours of all GPUs together at perfect scaling."""
    encode_gpu_h = given.samples * costs.encode_s / given.gpu_factor / 3600
    train_gpu_h = given.samples * given.epochs * costs.train_s / given.gpu_factor / 3600
    jpeg_tb = given.samples * given.image_kb * 1e3 / 1e12
    cache_tb = given.samples * costs.cache_bytes / 1e12
    steps = math.ceil(given.samples * given.epochs / (given.batch * given.gpus))
    without_cache_gpu_h = given.epochs * encode_gpu_h + train_gpu_h
    return {
        "shards": math.ceil(given.samples / given.shard_images),
        "jpeg_tb": jpeg_tb,
        "jpeg_read_h": jpeg_tb * 1e6 / given.network_mb_s / 3600,
        "cache_tb": cache_tb,
        "cache_shard_mb": given.shard_images * costs.cache_bytes / 1e6,
        "cache_read_h_per_epoch": cache_tb * 1e6 / given.network_mb_s / 3600,
        "encode_gpu_h": encode_gpu_h,
        "train_gpu_h": train_gpu_h,
        "total_gpu_h": encode_gpu_h + train_gpu_h,
        "total_gpu_h_without_cache": without_cache_gpu_h,
        "wall_h": (encode_gpu_h + train_gpu_h) / given.gpus,
        "price": (encode_gpu_h + train_gpu_h) * given.gpu_price,
        "optimizer_steps": steps,
        "gradient_tb_per_gpu": steps * costs.trained_bytes / 1e12,
    }


MEANING = {
    "shards": "shards of images",
    "jpeg_tb": "TB of JPEG, read once",
    "jpeg_read_h": "hours to read them at the network's rate",
    "cache_tb": "TB of cached features",
    "cache_shard_mb": "MB of cached features per shard",
    "cache_read_h_per_epoch": "hours to read the cache once at the network's rate",
    "encode_gpu_h": "GPU hours of encoding, once",
    "train_gpu_h": "GPU hours of training, all epochs",
    "total_gpu_h": "GPU hours in all",
    "total_gpu_h_without_cache": "GPU hours if images were encoded anew in each epoch",
    "wall_h": "hours on all GPUs together, perfect scaling",
    "price": "price of the GPU hours",
    "optimizer_steps": "optimizer steps",
    "gradient_tb_per_gpu": "TB of gradients each GPU hands to the all-reduce",
}
ASSUMED = {
    "samples": "images, one text each",
    "epochs": "epochs",
    "gpu_factor": "one GPU is so many times this machine (an assumption, not a measurement)",
    "gpus": "GPUs",
    "gpu_price": "price of a GPU hour",
    "image_kb": "kB of a JPEG",
    "shard_images": "images in a shard",
    "network_mb_s": "MB/s read from storage",
    "batch": "samples per GPU and step",
}
MEASURED = {
    "encode_s": "seconds of the encoder per image (bfloat16)",
    "train_s": "seconds of training per sample, features in memory (bfloat16)",
    "cache_bytes": "bytes of cached features per image",
    "trained_bytes": "bytes of trained parameters",
}

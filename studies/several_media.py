"""Two photos a sample, and conversations: whether a run uses all photos, their order, and earlier turns.

    python studies/several_media.py made OUT             pairs that are drawn: which is redder, what changed
    python studies/several_media.py dogs OUT DATA        pairs of Flickr8k's photos: do both show a dog
    python studies/several_media.py talks OUT DATA       conversations about Flickr8k's photos

OUT holds the data, the runs and `results.json`; DATA is the folder that contains `flickr8k`. A part takes 10 to 30
minutes on two cores; what is there already is not computed again.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import perceptune
from perceptune.data.build_task import make_task
from perceptune.data.conversations import split_answers
from perceptune.models.run_folder import cleaning_of
from perceptune.types import Sample

SEEDS = (0, 1, 2)
LATE = {"name": "epalm", "prompt": "plain", "prompt_tokens": 40, "prompt_at": "first_injected", "prompt_std": 0.02,
        "order": "prompt-slots"}  # fmt: skip
SEQUENTIAL = {
    "name": "lora", "slot_positions": "sequential", "n_levels": 1, "first": 0, "last": 0, "prompt": "none",
    "peft": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
}  # fmt: skip
LAYOUTS = {"late": LATE, "sequential": SEQUENTIAL}
RATES = {"batch_size": 16, "lr": 4e-3, "min_lr": 0, "schedule": "linear", "warmup_steps": 50, "warmup_lr": 0,
         "prompt_lr": 4e-3, "prompt_schedule": "linear", "weight_decay": 0}  # fmt: skip
SLOWER = {**RATES, "lr": 1e-3, "prompt_lr": 1e-3}


def main() -> None:
    part, out, *data = sys.argv[1:]
    found = {"made": made, "dogs": dogs, "talks": talks}[part](Path(out), *map(Path, data))
    Path(out, f"{part}.json").write_text(json.dumps(found, indent=1) + "\n")


def made(out: Path) -> dict[str, Any]:
    """Train on drawn pairs of each kind, in both layouts."""
    draw_pairs(out / "pairs")
    found = {}
    for kind in ("redder", "changed"):
        for layout, method in LAYOUTS.items():
            recipe = {
                "encoders": {"image": {"size": 112, "max_media": 2}}, "method": method,
                "task": {"name": "jsonl", **files(out / "pairs" / kind)},
                "train": {**(RATES if layout == "late" else SLOWER), "steps": 600}, "decode": {"max_new_tokens": 4},
            }  # fmt: skip
            seeds = SEEDS if layout == "late" else SEEDS[:1]
            found[f"{kind}, {layout}"] = [judge(recipe, out / f"{kind}-{layout}-{seed}", seed) for seed in seeds]
    return found


def dogs(out: Path, data: Path) -> dict[str, Any]:
    """Train on pairs of real photos, and on the first photo alone."""
    pair_dogs(out / "dogs", data / "flickr8k")
    found = {}
    for name, most in (("both photos", 2), ("the first photo", 1)):
        recipe = {
            "encoders": {"image": {"size": 224, "resize": "squash", "max_media": most}}, "method": LATE,
            "task": {"name": "jsonl", **files(out / "dogs" / ("pairs" if most == 2 else "first"))},
            "train": {**RATES, "steps": 200}, "decode": {"max_new_tokens": 4},
        }  # fmt: skip
        found[name] = [judge(recipe, out / f"dogs-{most}-{seed}", seed) for seed in SEEDS]
    return found


def judge(recipe: dict[str, Any], run: Path, seed: int) -> dict[str, Any]:
    """Return accuracy on the test split, with the photos in the other order, and with those of another sample."""
    model, samples = trained(recipe, run, seed)
    clean = cleaning_of(model)
    given = [clean(text) for text in model.answer(samples)]
    right = [answer == sample.targets[0] for answer, sample in zip(given, samples, strict=True)]
    order = [*list(range(1, len(samples))), 0]
    mixed = [replace(sample, media=samples[index].media) for sample, index in zip(samples, order, strict=True)]
    found = {"accuracy": mean(right), "right": [int(one) for one in right],
             "of another sample": accuracy(model, mixed)}  # fmt: skip
    if isinstance(samples[0].media["image"], tuple):
        turned = [replace(sample, media={"image": sample.list_media("image")[::-1]}) for sample in samples]
        found["flipped"] = mean([clean(a) != b for a, b in zip(model.answer(turned), given, strict=True)])
    print(run.name, {key: value for key, value in found.items() if key != "right"}, flush=True)
    return found


def trained(recipe: dict[str, Any], run: Path, seed: int) -> tuple[Any, Sequence[Sample]]:
    """Return the run's model, trained unless it is there, and the samples of its test split."""
    if not (run / "method.safetensors").is_file() or not (run / "done").is_file():
        perceptune.train({"name": run.name, "seed": seed, **recipe}, run, resume=(run / "meta.json").is_file())
        (run / "done").touch()
    model = perceptune.load(run)
    return model, make_task(model.recipe).samples("test")


def accuracy(model: Any, samples: Sequence[Sample]) -> float:
    clean = cleaning_of(model)
    return mean([clean(a) == clean(s.targets[0]) for a, s in zip(model.answer(samples), samples, strict=True)])


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def files(folder: Path) -> dict[str, str]:
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}


def write(folder: Path, split: str, rows: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw_pairs(out: Path) -> None:
    """Draw 1,200 pairs to learn from and 300 to be judged by, of each kind."""
    if (out / "changed" / "test.jsonl").is_file():
        return
    for kind, draw in (("redder", _redder), ("changed", _changed)):
        dice = random.Random(kind)
        for split, count in (("train", 1200), ("test", 300)):
            rows = []
            for number in range(count):
                images, prompt, answer = draw(dice)
                names = []
                for place, image in enumerate(images):
                    names.append(str((out / kind / f"{split}-{number}-{place}.png").absolute()))
                    Path(names[-1]).parent.mkdir(parents=True, exist_ok=True)
                    image.save(names[-1])
                rows.append({"image": names, "prompt": prompt, "targets": [answer]})
            write(out / kind, split, rows)


def _redder(dice: random.Random) -> tuple[list[Image.Image], str, str]:
    while True:
        colors = [tuple(dice.randrange(256) for _ in range(3)) for _ in range(2)]
        first, second = (color[0] - (color[1] + color[2]) / 2 for color in colors)
        if abs(first - second) > 60:
            break
    images = [_shape(dice.choice(("ellipse", "rectangle")), color, dice.randrange(40, 90), dice) for color in colors]
    return images, "which is redder, the first or the second?", "first" if first > second else "second"


def _changed(dice: random.Random) -> tuple[list[Image.Image], str, str]:
    """One shape, which grows or shrinks, or gets lighter or darker."""
    shape, hue = dice.choice(("ellipse", "rectangle")), [dice.random() for _ in range(3)]
    size, light = dice.randrange(45, 75), dice.uniform(0.45, 0.7)
    answer = dice.choice(("larger", "smaller", "lighter", "darker"))
    sizes, lights = [size, size], [light, light]
    if answer in ("larger", "smaller"):
        sizes = [size - 20, size + 20][:: 1 if answer == "larger" else -1]
    else:
        lights = [light - 0.25, light + 0.25][:: 1 if answer == "lighter" else -1]
    images = [
        _shape(shape, tuple(int(255 * min(1, value * share + share / 3)) for value in hue), side, dice)
        for side, share in zip(sizes, lights, strict=True)
    ]
    return images, "what happened to it from the first to the second?", answer


def _shape(shape: str, color: tuple[int, ...], side: int, dice: random.Random) -> Image.Image:
    image = Image.new("RGB", (112, 112), (230, 230, 225))
    left, top = dice.randrange(2, 110 - side), dice.randrange(2, 110 - side)
    getattr(ImageDraw.Draw(image), shape)((left, top, left + side, top + side), fill=color)
    return image


def pair_dogs(out: Path, flickr: Path) -> None:
    """Pair photos: a dog is on one if most captions name it; half of the pairs have two of them, a quarter each one."""
    rows = [json.loads(line) for line in (flickr / "metadata.jsonl").read_text().splitlines()]
    named = {
        row["file"]: sum(bool({"dog", "dogs", "puppy"} & {*c.lower().split()}) for c in row["captions"]) for row in rows
    }
    for split, count in (("train", 1200), ("test", 400)):
        dice = random.Random(split)
        own = [row["file"] for row in rows if row["split"] == split]
        with_dog, without = [name for name in own if named[name] >= 3], [name for name in own if named[name] == 0]
        pairs: list[tuple[list[str], str]] = []
        for number in range(count):
            kinds = [(with_dog, with_dog), (with_dog, with_dog), (with_dog, without), (without, with_dog)][number % 4]
            while True:
                pair = [dice.choice(kind) for kind in kinds]
                if pair[0] != pair[1]:
                    break
            pairs.append((pair, "yes" if number % 4 < 2 else "no"))
        for name, most in (("pairs", 2), ("first", 1)):
            write(out / name, split, [
                {"image": [str(flickr / file) for file in pair[:most]], "prompt": "do both show a dog?",
                 "targets": [answer]} for pair, answer in pairs
            ])  # fmt: skip


WORDS = {"a dog": ("dog", "dogs", "puppy"), "a man": ("man", "men"), "a child": ("child", "boy", "girl", "children"),
         "water": ("water", "ocean", "pool", "lake", "river", "beach"), "snow": ("snow", "snowy"),
         "a ball": ("ball", "football", "soccer")}  # fmt: skip


def talks(out: Path, data: Path) -> dict[str, Any]:
    """Train on conversations with all their turns, and on the same answers as single questions.

    The second, third and fourth questions are asked with their history, without it, and of the other run.
    """
    talk_about(out / "talks", data / "flickr8k")
    found: dict[str, Any] = {}
    given = {split: str(out / "talks" / f"{split}.jsonl") for split in ("train", "test")}
    recipe = {
        "encoders": {"image": {"size": 224, "resize": "squash", "max_media": 2}}, "method": LATE,
        "task": {"name": "messages", "turns": "all", **given},
        "text": {"template": "chat", "system": "Answer briefly."},
        "train": {**RATES, "steps": 150, "batch_size": 8, "warmup_steps": 20}, "decode": {"max_new_tokens": 20},
    }  # fmt: skip
    # As many answers a step: four in a conversation.
    alone = {
        **recipe, "task": {"name": "messages", "turns": "each", "history": False, **given},
        "train": {**recipe["train"], "batch_size": 32},  # type: ignore[dict-item]
    }  # fmt: skip
    for seed in SEEDS[:2]:
        model, samples = trained(recipe, out / f"talks-{seed}", seed)
        single, _ = trained(alone, out / f"singles-{seed}", seed)
        turns = [sample for sample in split_answers(samples) if sample.history]
        for number in (2, 3, 4):
            own = [one for one in turns if sum(turn.role == "user" for turn in one.history) == number - 1]
            bare = [_without_history(sample) for sample in own]
            line = {"with history": accuracy(model, own), "without": accuracy(model, bare),
                    "trained on single questions": accuracy(single, bare)}  # fmt: skip
            found.setdefault(f"turn {number}", []).append(line)
            print(seed, number, line, flush=True)
    return found


def _without_history(sample: Sample) -> Sample:
    """Ask the question with the photos of its own turn, or the last one before it."""
    own = sample.list_media("image")[-1:]
    return replace(sample, history=(), media={"image": own[0]}, marks=())


def talk_about(out: Path, flickr: Path) -> None:
    """Write conversations: describe the photo, what else is there, is it the same with another photo."""
    rows = [json.loads(line) for line in (flickr / "metadata.jsonl").read_text().splitlines()]
    for split, count in (("train", 1200), ("test", 300)):
        dice = random.Random(f"talks {split}")
        own = [row for row in rows if row["split"] == split]
        found = []
        while len(found) < count:
            first, second = dice.sample(own, 2)
            word = dice.choice([*WORDS])
            shown = [_shows(row, word) for row in (first, second)]
            other = dice.choice([one for one in WORDS if one != word])
            more = _shows(first, other)
            # Without a majority of captions for or against, the answer is not known; words are balanced.
            if None in (*shown, more) or (not shown[0] and dice.random() < 0.6) or (not more and dice.random() < 0.6):
                continue
            found.append({"messages": [
                {"role": "user", "content": "<image>Describe the photo."},
                {"role": "assistant", "content": dice.choice(first["captions"])},
                {"role": "user", "content": f"Is there {word}?"}, {"role": "assistant", "content": _yes(shown[0])},
                {"role": "user", "content": f"And {other}?"}, {"role": "assistant", "content": _yes(more)},
                {"role": "user", "content": f"<image>Is there {word} on this one as well?"},
                {"role": "assistant", "content": _yes(shown[1])},
            ], "images": [str(flickr / row["file"]) for row in (first, second)]})  # fmt: skip
        write(out, split, found)


def _shows(row: dict[str, Any], word: str) -> bool | None:
    count = _count(row, word)
    return True if count >= 3 else False if count == 0 else None


def _count(row: dict[str, Any], word: str) -> int:
    """Return how many captions name it."""
    return sum(bool({*WORDS[word]} & {*caption.lower().split()}) for caption in row["captions"])


def _yes(shown: bool | None) -> str:
    return "yes" if shown else "no"


if __name__ == "__main__":
    main()

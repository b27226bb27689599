"""The model card of a run, `README.md` in its folder: written at the end of training and after each evaluation.

Its content is read from the run's own files. Text that a user adds below its last line is kept.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from perceptune._version import __version__
from perceptune.config.recipe import read_yaml
from perceptune.errors import UserError
from perceptune.evaluation.confusion import confusion_tables
from perceptune.evaluation.results import RESULTS, gap_name, result_notes, shown_name
from perceptune.models.pretrained import DEFAULT_ENCODERS, DEFAULT_LM
from perceptune.models.run_folder import read_meta
from perceptune.models.run_location import CARD, PROOF, RECIPE
from perceptune.utils.assets import ASSETS, Asset
from perceptune.utils.atomic_io import write_text
from perceptune.utils.markdown import escape_markdown, format_interval, markdown_table
from perceptune.utils.run_log import read_log

OWN = "<!-- What you write below this line stays. -->"
_PIPELINES = {"image": "image-text-to-text", "video": "video-text-to-text", "audio": "audio-text-to-text"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # USER/NAME, not a path


def write_card(run: Path) -> None:
    """Write the card, replacing an earlier one. A `README.md` that is not a card is not changed."""
    path, own = run / CARD, ""
    if path.is_file():
        _, line, own = path.read_text(encoding="utf-8", errors="replace").partition(OWN)
        if not line:
            return
    write_text(path, card(run) + (own or "\n"))


def card(run: Path) -> str:
    """Return the card's text, up to the line below which users may add their own."""
    meta, recipe = read_meta(run), read_yaml(run / RECIPE)
    results = read_results(run)
    name = plain(recipe.get("name") or run.name)
    head = yaml.safe_dump(front_matter(meta, recipe, results), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {name}\n", *_method(meta, recipe), *_bases(meta), *_data(recipe, run)]
    parts += [*_results(results), *_limits(results), *_use(recipe, meta, run)]
    return "\n".join(parts) + f"\n{OWN}"


def read_results(run: Path) -> dict[str, Any] | None:
    """Read the run's `results.json`; None if it was not evaluated. Raises `UserError` for a damaged one."""
    path = run / RESULTS
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(found[key], int | float) for key in found["metrics"]):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged: not what `perceptune eval` writes") from None
    return found


def front_matter(
    meta: Mapping[str, Any], recipe: Mapping[str, Any], results: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the YAML metadata for hubs. It has no licence, which only the owner can choose."""
    modalities = [*(recipe.get("encoders") or {})]
    bases = [str(part["id"]) for part in meta.get("base", {}).values()]
    hub = [name for name in dict.fromkeys(bases) if _HUB_ID.fullmatch(name)]
    head: dict[str, Any] = {"library_name": "perceptune"}
    if modalities and modalities[0] in _PIPELINES:
        head["pipeline_tag"] = _PIPELINES[modalities[0]]
    if hub:
        head |= {"base_model": hub, "base_model_relation": "adapter"}
    if part_name(recipe.get("task")) == "hf_dataset" and _HUB_ID.fullmatch(name := str(recipe["task"].get("path"))):
        head["datasets"] = [name]
    head["tags"] = ["perceptune", "parameter-efficient", one_line(part_name(recipe.get("method"))),
                    *map(one_line, modalities)]  # fmt: skip
    if results is not None:
        named = {key: shown_name(key, results.get("definition")) for key in results["metrics"]}
        metrics = [{"type": name, "name": name, "value": round(results[key], 4)} for key, name in named.items()]
        data = results.get("data") or {}
        dataset = {"type": one_line(data.get("task") or "own"), "name": one_line(data.get("task") or "own data"),
                   "split": one_line(results.get("split"))}  # fmt: skip
        task = {"type": head.get("pipeline_tag", "text-generation")}
        head["model-index"] = [{"name": one_line(recipe.get("name")),
                                "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]  # fmt: skip
    return head


def part_name(part: Any) -> str:
    """Return the name of a recipe's method or task."""
    return str(part.get("name", "none") if isinstance(part, Mapping) else part)


def model_name(part: str, name: Any) -> str:
    """Return the name of a base model; that of the asset for `default`."""
    asset = default_asset(part, name)
    return str(name) if asset is None else f"{asset.name} (default)"


def default_asset(part: str, name: Any) -> Asset | None:
    """Return the asset that `default` stands for; None for every other name."""
    if name != "default":
        return None
    asset = DEFAULT_LM if part == "lm" else DEFAULT_ENCODERS.get(part.removeprefix("encoders."))
    return None if asset is None else ASSETS[asset]


def one_line(text: Any) -> str:
    """Return untrusted text without line breaks; a local path is reduced to its last part."""
    words = str(text)
    if words.startswith(("/", "~")) or re.match(r"[A-Za-z]:\\", words):
        words = re.split(r"[/\\]", words.rstrip("/\\"))[-1]
    return " ".join(words.split())


def plain(text: Any) -> str:
    """Return untrusted text as one line with Markdown and HTML escaped."""
    return escape_markdown(one_line(text))


def _method(meta: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    method = recipe.get("method")
    options = method if isinstance(method, Mapping) else {}
    yield (
        f"A frozen language model that was given {_listed([*(recipe.get('encoders') or {})])} with "
        f"perceptune {__version__}, method `{part_name(method)}`: "
        f"{meta['trained']:,} parameters were trained, {100 * meta['trained_share']:.3f} % of all. "
        "This folder holds these alone; the frozen models are loaded from where they were published.\n"
    )
    settings = [(key, value) for key, value in options.items() if key != "name"]
    if settings:
        yield from _table(("setting", "value"), [(f"method.{key}", value) for key, value in settings])


def _bases(meta: Mapping[str, Any]) -> Iterator[str]:
    yield "## Base models, frozen\n"
    rows = [
        (part, model_name(part, found["id"]), str(found["fingerprint"])[:16])
        for part, found in meta.get("base", {}).items()
    ]
    yield from _table(("part", "model", "fingerprint of its weights"), rows)
    for part, found in meta.get("base", {}).items():
        if asset := default_asset(part, found["id"]):
            yield f"`{asset.name}`: {plain(asset.what)}.\n"
    yield "A run is refused on base models whose weights have other fingerprints.\n"


def _data(recipe: Mapping[str, Any], run: Path) -> Iterator[str]:
    yield "## Training\n"
    task, train = recipe.get("task") or {}, recipe.get("train") or {}
    end = [row for row in read_log(run) if row.get("event") in ("step", "end")]
    rows: list[Sequence[Any]] = [("task", part_name(task))]
    if isinstance(task, Mapping):
        rows += [(f"task.{key}", value) for key, value in task.items() if key != "name" and value is not None]
    if end:
        rows += [("samples seen", f"{end[-1].get('samples', 0):,}"), ("optimizer steps", f"{end[-1].get('step', 0):,}"),
                 ("seconds", f"{end[-1].get('seconds', 0):,.0f}")]  # fmt: skip
    rows += [(f"train.{key}", train[key]) for key in ("batch_size", "lr", "schedule", "precision") if key in train]
    rows.append(("seed", recipe.get("seed", 0)))
    yield from _table(("what", "value"), rows)


def _results(results: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Results\n"
    if results is None:
        yield "Not evaluated yet: `perceptune eval` writes the results here.\n"
        return
    definition = results.get("definition")
    rows = [
        (shown_name(key, definition), f"{results[key]:.3f}", format_interval(results.get(f"{key}_interval")),
         *_control(results, key, "shuffled"),
         *_control(results, key, "no_media"))
        for key in results["metrics"]
    ]  # fmt: skip
    heading = ("metric", "value", "95 % interval", "media shuffled", "gap (95 %)", "no media", "gap (95 %)")
    yield from _table(heading, rows)
    count = results.get("evaluated_samples")
    where = f"{f'{count:,}' if isinstance(count, int) else '?'} samples of split {plain(results.get('split'))}"
    yield f"{where}; decoding and versions are in `run.yaml` and `meta.json`.\n"
    for words in result_notes(results):
        yield f"{words[0].upper()}{plain(words[1:])}.\n"
    for caption, first, confused in confusion_tables(results):
        yield f"Classes, {plain(caption)}:\n"
        yield from _table(first, confused)


def _limits(results: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Limits\n"
    yield "- It knows what the frozen models know; what they get wrong or have a bias for, it does too."
    yield "- Answers are text that sounds right. They are not checked against anything."
    if results is None:
        yield "- How good it is was not measured.\n"
        return
    metric = results["metrics"][0]
    gap = results.get(f"{gap_name(metric)}_interval")
    if gap is None:
        yield "- Whether it looks at its media at all was not measured: `perceptune eval --control` does."
    elif gap[0] <= 0:
        yield f"- That it looks at its media was not shown: the gap to shuffled media ({plain(metric)}) may be 0."
    if results.get("trained_on_this_split"):
        yield "- The numbers above are of data it was trained on: they say nothing about new data."
    yield "- On other data than the above it may be far worse.\n"


def _use(recipe: Mapping[str, Any], meta: Mapping[str, Any], run: Path) -> Iterator[str]:
    modality = next(iter(recipe.get("encoders") or {}), "image")
    question = _question(run)
    extra = "[assets]" if "default" in [part.get("id") for part in meta.get("base", {}).values()] else ""
    package = shlex.quote(f"perceptune{extra}")
    yield "## How to use it\n"
    yield f"```bash\npip install {package}   # or in a checkout: pip install {shlex.quote(f'.{extra}')}\n"
    yield f"perceptune answer RUN --{modality} FILE {shlex.quote(question)}\nperceptune verify RUN\n```\n"
    yield "```py\nimport perceptune\n\nmodel = perceptune.load(RUN)"
    yield f'[answer] = model.answer([perceptune.Sample("1", {{"{modality}": path}}, {json.dumps(question)})])\n```\n'
    yield "`RUN` is this folder, a zip file of it, or `hf://USER/NAME`.\n"


def _question(run: Path) -> str:
    """Return a question of the run's reference answers, safe inside a line of code."""
    try:
        asked = str(json.loads((run / PROOF).read_text(encoding="utf-8"))["samples"][0]["prompt"])
    except (OSError, ValueError, LookupError, TypeError):
        return "What is this?"
    return asked if re.fullmatch(r"(\w[\w ,.?'-]{0,99})?", asked) else "What is this?"


def _control(results: Mapping[str, Any], key: str, control: str) -> tuple[str, str]:
    other, name = results.get(f"{key}_{control}"), gap_name(key, control)
    if other is None:
        return "not measured", ""
    return f"{other:.3f}", f"{results[name]:+.3f} ({format_interval(results.get(f'{name}_interval'), '+')})"


def _listed(modalities: Sequence[str]) -> str:
    senses = {"image": "eyes", "video": "eyes for videos", "audio": "ears"}
    return " and ".join(senses.get(name, plain(name)) for name in modalities) or "more senses"


def _table(heading: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    first, *others = ([plain(cell) for cell in row] for row in (heading, *rows))
    yield "\n".join(markdown_table(first, others)) + "\n"

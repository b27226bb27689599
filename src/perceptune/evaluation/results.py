"""The output of an evaluation: predictions, values with intervals, and their provenance."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from perceptune._version import __version__
from perceptune.config.schema import NamedPart
from perceptune.data.bootstrap import bootstrap_corpus, bootstrap_difference, bootstrap_gap, bootstrap_interval
from perceptune.data.conversations import text_row
from perceptune.data.media.source import label
from perceptune.data.metrics.base import Corpus
from perceptune.data.tasks.base import Task
from perceptune.evaluation.clusters import cluster_of
from perceptune.evaluation.runner import EvalOutput
from perceptune.models.base import AdaptedModel
from perceptune.models.run_folder import METHOD, describe_training, fingerprints, read_meta
from perceptune.types import Sample
from perceptune.utils.atomic_io import write_json_lines
from perceptune.utils.run_log import read_log

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"


def predictions_name(name: str) -> str:
    """Return the name of the predictions file of a control or of another data set."""
    return f"predictions_{name}.jsonl"


def write_predictions(path: Path, samples: Sequence[Sample], task: Task, judged: EvalOutput) -> None:
    """Write one JSON line per sample: question, raw and cleaned answer, targets, scores."""
    lines = []
    for sample, answer, row in zip(samples, judged.answers, judged.per_sample, strict=True):
        ranked = {} if answer.logprobs is None else {"logprobs": answer.logprobs}
        lines.append(
            {"id": sample.id, "media": _media_names(sample), **text_row(sample), "answer": task.clean(answer.raw),
             "raw": answer.raw, **ranked, "targets": list(sample.targets), "scores": row, "meta": dict(sample.meta)}
        )  # fmt: skip
    write_json_lines(path, lines)


def read_stored_predictions(run: Path) -> list[dict[str, Any]]:
    """Return the rows that `write_predictions` wrote for the run's own data."""
    lines = (run / PREDICTIONS).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def metric_values(task: Task, samples: Sequence[Sample], judged: EvalOutput) -> dict[str, Any]:
    """Return every value with its interval, and the definition of the metric."""
    names = dict.fromkeys([task.metric, *judged.summary])
    return {
        "metrics": [*judged.summary],
        **judged.summary,
        "definition": judged.scored.definition,
        **{f"{name}_interval": interval(name, samples, judged) for name in names},
        **judged.scored.tables,
    }


def interval(metric: str, samples: Sequence[Sample], judged: EvalOutput) -> list[float]:
    """Return the 95 % bootstrap interval of a metric; samples that share media are resampled together."""
    if metric in judged.scored.corpus:
        return _corpus_interval(judged.scored.corpus[metric], samples)
    values, groups = _values(metric, samples, judged)
    return list(bootstrap_interval(values, groups=groups))


def gap_name(key: str, control: str = "shuffled") -> str:
    """Return the name of a gap: `accuracy_open` -> `gap_open`, `accuracy` -> `gap`; other controls are appended."""
    name = f"gap{key.removeprefix('accuracy')}" if key.startswith("accuracy") else f"gap_{key}"
    return name if control == "shuffled" else f"{name}_{control}"


def control_gap(control: str, samples: Sequence[Sample], seen: EvalOutput, blind: EvalOutput) -> dict[str, Any]:
    """Compute each summary value minus the control's, with paired intervals; media are resampled as units."""
    found: dict[str, Any] = {}
    for key in seen.summary:
        name = gap_name(key, control)
        found[name] = seen.summary[key] - blind.summary[key]
        if key in seen.scored.corpus:
            both = _difference(seen.scored.corpus[key], blind.scored.corpus[key])
            found[f"{name}_interval"] = _corpus_interval(both, samples)
        else:
            a, groups = _values(key, samples, seen)
            b, _ = _values(key, samples, blind)
            found[f"{name}_interval"] = list(bootstrap_difference(a, b, groups=groups))
    return found


def tokenizer_of(definition: Any, key: str) -> str | None:
    """Return the tokenizer of a value, as its `definition` has it; None for values without tokens."""
    if not isinstance(definition, Mapping):
        return None
    if isinstance(parts := definition.get("parts"), Mapping):  # of a mixture
        for part in sorted(parts, key=len, reverse=True):
            if key.startswith(f"{part}_"):
                return tokenizer_of(parts[part], key.removeprefix(f"{part}_"))
    if key.startswith("rouge"):  # not coco-caption's ROUGE-L
        definition = definition.get("rouge", definition)
    found = definition.get("tokenizer")
    return None if found is None else str(found)


def same_tokenizer(one: str | None, other: str | None) -> bool:
    """Return whether values of these tokenizers may be compared."""
    return one == other or None in (one, other)


def shown_name(key: str, definition: Any) -> str:
    """Return the name of a value for people: with the tokenizer, if it is not an official one."""
    return f"{key} (characters)" if tokenizer_of(definition, key) == "characters" else key


def cross_dataset_gap(
    samples: Sequence[Sample], seen: EvalOutput, other_samples: Sequence[Sample], other: EvalOutput
) -> dict[str, dict[str, Any]]:
    """Compute the difference of each value that both data sets have, unless their tokenizers differ.

    Corpus values have no interval.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in [key for key in seen.summary if key in other.summary]:
        found[key] = {"in": seen.summary[key], "out": other.summary[key],
                      "difference": seen.summary[key] - other.summary[key]}  # fmt: skip
        tokenizers = [tokenizer_of(one.scored.definition, key) for one in (seen, other)]
        if not same_tokenizer(*tokenizers):
            found[key] |= {"difference": None, "tokenizers": tokenizers}
            continue
        if key in seen.scored.corpus:
            continue
        (a, groups_a), (b, groups_b) = _values(key, samples, seen), _values(key, other_samples, other)
        if a and b:
            found[key]["interval"] = list(bootstrap_gap(a, b, groups_a=groups_a, groups_b=groups_b))
    return found


def provenance(model: AdaptedModel, run: Path) -> dict[str, Any]:
    """Return the settings and versions of an evaluation, without which its values cannot be compared."""
    config = model.recipe.eval
    ranking = {} if config.rank is None else {"rank": config.rank, "rank_normalize": config.rank_normalize}
    return {
        "seed": model.recipe.seed, **describe_training(model.recipe),
        "decoding": model.recipe.decode.model_dump(), **answering_info(model), **ranking,
        "dtype": str(model.dtype).removeprefix("torch."), "template": model.recipe.text.template,
        "text": model.recipe.text.model_dump(), "models": model_fingerprints(model, run), "versions": versions(),
    }  # fmt: skip


def answering_info(model: AdaptedModel) -> dict[str, Any]:
    """Return what answers depend on beside the run and its recipe: runs of an ensemble, references of a consensus."""
    found: dict[str, Any] = {}
    if (used := model.frequencies) is not None:
        near = model.neighbours
        found["consensus_references"] = {
            "documents": used.documents, "tokenizer": used.tokenizer, "sha256": used.digest(),
            **({} if near is None else {"neighbours": {"media": len(near.captions), "sha256": near.digest()}}),
        }  # fmt: skip
    if model.member_runs:
        found["ensemble"] = [
            {"run": run.resolve().name, "sha256": file_hash(run / METHOD)} for run in model.member_runs
        ]
    return found


def describe_decoding(results: Mapping[str, Any]) -> str | None:
    """Return consensus decoding in words, as tables of results name it; None for an evaluation without it."""
    how = (results.get("decoding") or {}).get("consensus")
    if not isinstance(how, Mapping) or results.get("rank") is not None:  # ranked choices are not generated
        return None
    counted = (results.get("consensus_references") or {}).get("documents", "?")
    near = f" and the captions of the {how['neighbours']} nearest training media" if how.get("neighbours") else ""
    if how.get("regression"):
        near += f", and to the captions that a regression on all training media expects (weight {how['regression']:g}),"
    return (
        f"consensus decoding: of {how.get('samples')} samples at temperature {how.get('temperature')} and "
        f"{how.get('beams')} beams, the answer most like the others{near} by CIDEr-D with document frequencies of "
        f"{counted} training media. This optimises CIDEr itself: compare with values of consensus decoding only"
    )


def describe_objective(results: Mapping[str, Any]) -> str | None:
    """Return a reward stage in words, as tables of results name it; None for a run trained by cross-entropy."""
    how = results.get("objective")
    if not isinstance(how, Mapping):
        return None
    return (
        f"trained by reward: {how.get('samples')} sampled answers a step, rewarded by {how.get('reward')} against the "
        f"training references, with {how.get('ce')} x cross-entropy. This optimises CIDEr itself: compare with values "
        "of runs trained by reward only"
    )


def describe_ensemble(results: Mapping[str, Any]) -> str | None:
    """Return an ensemble in words, as tables of results name it; None for a single run."""
    members = results.get("ensemble")
    if not isinstance(members, list):
        return None
    names = ", ".join(str(member.get("run")) for member in members)
    return f"ensemble of {len(members)} runs ({names}): each token by the mean of their probabilities"


def result_notes(results: Mapping[str, Any]) -> list[str]:
    """Describe what values may only be compared with their like: ensembles, and what optimises the metric itself."""
    described = (describe_ensemble(results), describe_objective(results), describe_decoding(results))
    return [words for words in described if words]


def model_fingerprints(model: AdaptedModel, run: Path) -> dict[str, dict[str, str]]:
    """Return the fingerprints of the frozen parts and the hash of the method's file."""
    return {**fingerprints(model), "method": {"id": model.recipe.method.name, "sha256": file_hash(run / METHOD)}}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that computed the values."""
    return {"perceptune": __version__, **{name: metadata.version(name) for name in ("torch", "transformers")}}


def dataset_info(part: NamedPart | None, split: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the origin of the evaluated samples, and a hash of their media names, questions and targets."""
    digest = hashlib.sha256()
    for sample in samples:
        media = dict(sorted(sample.map_media(lambda name, medium: label(medium, name).rpartition("/")[2]).items()))
        prompt, *history = text_row(sample).values()
        digest.update(json.dumps([sample.id, media, prompt, sample.targets, *history]).encode())
    options: Mapping[str, Any] = {} if part is None else {key: _plain(value) for key, value in part.options().items()}
    return {"task": None if part is None else part.name, **options, "split": split, "samples": len(samples),
            "sha256": digest.hexdigest()}  # fmt: skip


def training_info(run: Path) -> dict[str, Any]:
    """Return the training cost of the run so far."""
    steps = [row for row in read_log(run) if row["event"] in ("step", "end")]
    seconds, seen = (steps[-1]["seconds"], steps[-1]["samples"]) if steps else (0.0, 0)
    return {
        "trained_share": read_meta(run)["trained_share"], "train_seconds": seconds, "train_samples": seen,
        "samples_per_second": seen / seconds if seconds else 0.0,
    }  # fmt: skip


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _values(metric: str, samples: Sequence[Sample], judged: EvalOutput) -> tuple[list[float], list[tuple[Any, ...]]]:
    """Return the metric of each sample that has it, and the groups that are resampled together."""
    rows = [i for i, row in enumerate(judged.per_sample) if metric in row]
    return [judged.per_sample[i][metric] for i in rows], [cluster_of(samples[i]) for i in rows]


def _corpus_interval(corpus: Corpus, samples: Sequence[Sample]) -> list[float]:
    groups = [cluster_of(sample) for sample in samples]
    return list(bootstrap_corpus(corpus.statistics, corpus.value, groups=groups))


def _difference(a: Corpus, b: Corpus) -> Corpus:
    """Return the difference of two corpus values of the same samples, in a form for paired resampling."""
    width = a.statistics.shape[1]
    return Corpus(
        np.concatenate([a.statistics, b.statistics], axis=1),
        lambda sums: a.value(sums[..., :width]) - b.value(sums[..., width:]),
    )


def _media_names(sample: Sample) -> dict[str, Any]:
    """Return the locations of a sample's media, as a list if there are several of a modality; without bytes."""
    named = sample.map_media(lambda _, medium: None if isinstance(medium, bytes) else str(medium))
    return {name: given for name, given in named.items() if isinstance(given, str) or (given and None not in given)}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)

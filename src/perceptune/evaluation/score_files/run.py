"""Scoring: predictions and references are joined by id, then scored by each metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from perceptune.config.overrides import Given, typed
from perceptune.config.recipe import validate
from perceptune.config.registry import leaf
from perceptune.data.bootstrap import bootstrap_corpus, bootstrap_interval
from perceptune.data.metrics.base import Consistency, Needs, Scored, averages, with_groups
from perceptune.data.records import first_line, short
from perceptune.errors import UserError, nearest
from perceptune.evaluation.score_files.rows import PredictionRow, ReferenceRow, read_predictions, read_references

_SHOWN = 5  # maximum number of ids in a message


@dataclass(frozen=True)
class FileScores:
    """Scores of a file and notes on them."""

    result: dict[str, Any]  # flat: values, their intervals, `n`, `definition`
    keys: list[str]  # keys of `result` that are values
    rows: list[dict[str, Any]]  # one per sample: id, prediction, its values
    notes: list[str]  # caveats for readers of the values


@dataclass(frozen=True)
class _Metric:
    name: str
    module: ModuleType
    options: BaseModel

    @property
    def needs(self) -> Needs:
        return self.module.NEEDS


def score_files(
    predictions: str, references: str, metrics: Sequence[str], *, options: Sequence[str] = (), subset: bool = False,
    intervals: bool = True, first_lines: bool = False,
) -> FileScores:  # fmt: skip
    """Score a file of predictions against a file of references.

    `options` are `KEY=VALUE` for each metric that has such an option, or `METRIC.KEY=VALUE`. With `subset` references
    without a prediction are skipped, otherwise they are an error. With `first_lines` only the first line of each text
    is scored, in both files. Raises `UserError` for errors in the files.
    """
    chosen = _metrics(metrics, options)
    needs = {metric.name: metric.needs for metric in chosen}
    notes: list[str] = []
    held = read_references(references, needs, notes.append)
    given = read_predictions(predictions, [*needs.values()], notes.append)
    if first_lines:
        held = {id: reference.cut() for id, reference in held.items()}
        given = {id: replace(one, text=first_line(one.text)) for id, one in given.items()}
    ids = _joined(given, held, chosen, references, subset=subset)
    results = {metric.name: _scored(metric, ids, given, held) for metric in chosen}
    names = _distinct({name: [*scored.summary] for name, (_, scored) in results.items()})
    result: dict[str, Any] = {}
    for name, (own_ids, scored) in results.items():
        for key, value in scored.summary.items():
            result[names[name, key]] = value
            if intervals and "_question_" not in key:  # dozens of question types
                result[f"{names[name, key]}_interval"] = _interval(key, own_ids, scored, held)
    definitions = {name: scored.definition for name, (_, scored) in results.items()}
    result |= {"n": len(ids), "empty": sum(not given[id].text.strip() for id in ids)}
    result |= {"missing": _missing(given, held, chosen)} if subset else {}
    result["definition"] = definitions if len(definitions) > 1 else next(iter(definitions.values()))
    for _, scored in results.values():
        result |= scored.tables
    return FileScores(
        result, [*names.values()], _rows(ids, given, results, names), notes + _notes(result, definitions, needs)
    )


def _metrics(names: Sequence[str], options: Sequence[str]) -> list[_Metric]:
    """Return the metrics with their options. Raises `UserError` for an option that none of them has."""
    modules = {name.replace("_", "-"): leaf("metrics", name).module for name in names}
    if not modules:
        raise UserError("name at least one metric")
    given: dict[str, dict[str, Any]] = {name: {} for name in modules}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise UserError(f"option `{option}` is not of the form KEY=VALUE or METRIC.KEY=VALUE")
        owner, dot, own_key = key.rpartition(".")
        if dot and owner not in modules:
            raise UserError(f"option `{option}`: metric `{owner}` is not scored{nearest(owner, modules)}")
        having = [name for name, module in modules.items() if own_key in module.Options.model_fields]
        owners = [owner] if dot else having
        if not owners:
            known = {key for module in modules.values() for key in module.Options.model_fields}
            raise UserError(f"option `{option}`: {', '.join(modules)} has no `{key}`{nearest(key, known)}")
        for name in owners:
            field = modules[name].Options.model_fields.get(own_key)
            given[name][own_key] = value if field is None else typed(Given(value), field.annotation, own_key)
    return [
        _Metric(name, module, validate(module.Options, given[name], f"metric `{name}`"))
        for name, module in modules.items()
    ]


def _joined(
    given: Mapping[str, PredictionRow], held: Mapping[str, ReferenceRow], metrics: Sequence[_Metric],
    references: str, *, subset: bool,
) -> list[str]:  # fmt: skip
    """Return the ids to score, in the references' order. Raises `UserError` for ids that only one of the files has."""
    unknown = [id for id in given if id not in held]
    if unknown:
        more = f" (nor {len(unknown) - 1} further ids of the predictions)" if len(unknown) > 1 else ""
        raise UserError(f"{given[unknown[0]].where}: {references} has no id `{short(unknown[0])}`{more}")
    wanted = _wanted(held, metrics)
    missing = [id for id in wanted if id not in given]
    if missing and not subset:
        first = ", ".join(f"`{short(id)}`" for id in missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise UserError(
            f"{len(missing)} of the {len(wanted)} samples in {references} have no prediction: {first}; "
            "`--subset` scores only those that have one"
        )
    ids = [id for id in wanted if id in given]
    if not ids:
        raise UserError(f"no sample in {references} that counts has a prediction")
    return ids


def _wanted(held: Mapping[str, ReferenceRow], metrics: Sequence[_Metric]) -> list[str]:
    return [id for id, reference in held.items() if any(metric.name not in reference.left_out for metric in metrics)]


def _missing(given: Mapping[str, PredictionRow], held: Mapping[str, ReferenceRow], metrics: Sequence[_Metric]) -> int:
    return sum(id not in given for id in _wanted(held, metrics))


def _scored(
    metric: _Metric, ids: Sequence[str], given: Mapping[str, PredictionRow], held: Mapping[str, ReferenceRow]
) -> tuple[list[str], Scored]:
    """Return the ids that this metric counts, and their scores."""
    own = [id for id in ids if metric.name not in held[id].left_out]
    if not own:
        raise UserError(f"metric `{metric.name}`: none of the {len(ids)} samples counts for it")
    scored = _score(metric, own, given, held)
    if metric.needs.by_group:
        scored = with_groups(scored, [held[id].groups for id in own], metric.needs.by_group)
    if metric.needs.consistency and any(held[id].entailed for id in own):
        scored = _with_consistency(scored, metric, metric.needs.consistency, own, given, held)
    return own, scored


def _score(
    metric: _Metric, ids: Sequence[str], given: Mapping[str, PredictionRow], held: Mapping[str, ReferenceRow]
) -> Scored:
    needs, more = metric.needs, {}
    rows = [held[id] for id in ids]
    if needs.choices and any(row.choices for row in rows):
        if lacking := [row.where for row in rows if not row.choices]:
            raise UserError(f"{lacking[0]}: no `choices`, and other rows have them")
        more = {"choices": [row.choices for row in rows]}
    references = [row.answers if needs.references == "answers" else row.references for row in rows]
    answers_each = _require_several(rows, metric) if needs.annotators else None
    scored: Scored = metric.module.score([given[id].text for id in ids], references, metric.options, **more)
    if answers_each is None:
        return scored
    return replace(scored, definition={**scored.definition, "answers_each": answers_each})


def _require_several(rows: Sequence[ReferenceRow], metric: _Metric) -> list[int]:
    """Return the minimum and maximum number of answers. Raises `UserError` if a sample has a single answer."""
    sizes = {len(row.answers): row for row in rows}
    if 1 in sizes:
        raise UserError(
            f"{sizes[1].where}: a single answer; metric `{metric.name}` counts how many of several annotators "
            f"agree, for one right answer take metric `{metric.needs.for_one_answer}`"
        )
    return [min(sizes), max(sizes)]


def _with_consistency(
    scored: Scored, metric: _Metric, consistency: Consistency, ids: Sequence[str],
    given: Mapping[str, PredictionRow], held: Mapping[str, ReferenceRow],
) -> Scored:  # fmt: skip
    """Add a metric's consistency if every entailed question was answered, else the reason why it is missing."""
    everything = [id for id in held if id in given]
    values = _score(metric, everything, given, held).per_sample
    right = {id: row[metric.needs.by_group] for id, row in zip(everything, values, strict=True)}
    entailed = {id: held[id].entailed or () for id in ids}
    lacking = {other for id, others in entailed.items() if right[id] for other in others} - right.keys()
    if lacking:
        reason = f"not computed: {len(lacking)} questions that follow from rightly answered ones have no prediction"
        return replace(scored, definition={**scored.definition, "consistency": reason})
    found = consistency(right, entailed)
    rows = [
        row | ({"consistency": found[id]} if id in found else {})
        for id, row in zip(ids, scored.per_sample, strict=True)
    ]
    return replace(scored, summary=averages(rows), per_sample=rows)


def _distinct(keys: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], str]:
    """Map (metric, key) to a unique name: the key, prefixed with the metric if several metrics have it."""
    every = [key for several in keys.values() for key in several]
    return {
        (name, key): key if every.count(key) == 1 else f"{name}_{key}"
        for name, several in keys.items() for key in several
    }  # fmt: skip


def _interval(key: str, ids: Sequence[str], scored: Scored, held: Mapping[str, ReferenceRow]) -> list[float]:
    media = [held[id].medium for id in ids]
    if key in scored.corpus:
        corpus = scored.corpus[key]
        return list(bootstrap_corpus(corpus.statistics, corpus.value, groups=media))
    having = [index for index, row in enumerate(scored.per_sample) if key in row]
    values = [scored.per_sample[index][key] for index in having]
    return list(bootstrap_interval(values, groups=[media[index] for index in having]))


def _rows(
    ids: Sequence[str], given: Mapping[str, PredictionRow], results: Mapping[str, tuple[list[str], Scored]],
    names: Mapping[tuple[str, str], str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one row per sample, with the values of all metrics."""
    rows: dict[str, dict[str, Any]] = {id: {"id": id, "prediction": given[id].text} for id in ids}
    for name, (own, scored) in results.items():
        for id, values in zip(own, scored.per_sample, strict=True):
            rows[id] |= {names[name, key]: value for key, value in values.items()}
    return [*rows.values()]


def _notes(
    result: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]], needs: Mapping[str, Needs]
) -> list[str]:
    notes = []
    if result["empty"]:
        notes.append(f"{result['empty']} of {result['n']} predictions are empty; they are scored as empty answers")
    if result.get("missing"):
        notes.append(f"{result['missing']} samples without a prediction are left out: this is a subset")
    for name, definition in definitions.items():
        if "caution" in definition:
            notes.append(f"{name}: {definition['caution']}")
        enough = needs[name].annotators
        if definition.get("answers_each", [enough])[0] < enough:
            notes.append(f"{name}: some questions have fewer than {enough} answers: none is worth 1 there")
    return notes

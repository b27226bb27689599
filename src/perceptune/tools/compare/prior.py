"""Score from the question alone: the baseline a method must exceed to show that it uses the media."""

from collections import Counter, defaultdict
from typing import Any

from perceptune.data.build_task import make_task
from perceptune.data.lazy_rows import select
from perceptune.data.subset import subset
from perceptune.evaluation.results import interval
from perceptune.evaluation.runner import EvalOutput, select_subset
from perceptune.tools.compare.plan import Plan

MOST = 100_000  # training samples that are read: the most frequent answers are stable long before
SEED = 1234


def prior_of(plan: Plan) -> dict[str, Any] | None:
    """Return `value` and `interval` of each prompt's most frequent training answer, on the comparison's test data.

    A prompt that does not occur in training gets the most frequent answer of all; ties go to the earliest. This is the
    "per question prior" of VQA's baselines with the whole question as its type. None if samples have no prompts
    (captions), the training data no targets, or the metric no value without a model.
    """
    recipe = plan.entries[0].recipe
    task = make_task(recipe)
    rows = task.samples(task.splits[0])
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for sample in select(rows, subset(len(rows), MOST, SEED)):
        if sample.prompt and sample.targets:
            answers[sample.prompt][sample.targets[0]] += 1
            overall[sample.targets[0]] += 1
    if not answers:
        return None
    usual = {prompt: counted.most_common(1)[0][0] for prompt, counted in answers.items()}
    [(otherwise, _)] = overall.most_common(1)
    tested = select_subset(task, plan.test_on, recipe.eval.samples)
    judged = EvalOutput(task.score([usual.get(sample.prompt, otherwise) for sample in tested], tested), [])
    if plan.metric not in judged.summary:
        return None
    return {"value": judged.summary[plan.metric], "interval": interval(plan.metric, tested, judged)}

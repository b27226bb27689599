"""What the wording of questions gives away: the bar a method must pass before it can be said to look."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import fmean
from typing import Any

from perceptune.compare.plan import Plan
from perceptune.evaluation import make_task
from perceptune.judging import pick_samples
from perceptune.lazy import select
from perceptune.order import subset
from perceptune.statistics import bootstrap_interval

MOST = 100_000  # training samples that are read: a usual answer is known long before
SEED = 1234


def prior_of(plan: Plan) -> dict[str, Any] | None:
    """`value` and `interval` of each prompt's most frequent training answer, on the comparison's test data.

    A prompt that was never trained on is given the most frequent answer of all; ties go to what came first. This is
    the "per question prior" of VQA's baselines with the whole question for its type. None where samples have no
    prompts (captions), the training data no targets, or the metric no value for single samples.
    """
    recipe = plan.entries[0].recipe
    task = make_task(recipe)
    rows = task.samples(task.splits[0])
    read = select(rows, subset(len(rows), min(MOST, len(rows)), SEED))
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in read:
        if sample.prompt and sample.targets:
            answers[sample.prompt][sample.targets[0]] += 1
    if not answers:
        return None
    overall = sum(answers.values(), Counter()).most_common(1)[0][0]
    tested = pick_samples(task, plan.test_on, recipe.eval.samples)
    usual = {prompt: counted.most_common(1)[0][0] for prompt, counted in answers.items()}
    scores = task.score([usual.get(sample.prompt, overall) for sample in tested], tested).per_sample
    if not all(plan.metric in score for score in scores):
        return None
    values = [score[plan.metric] for score in scores]
    media = [str(sorted(map(str, sample.media.items()))) for sample in tested]
    return {"value": fmean(values), "interval": list(bootstrap_interval(values, groups=media))}

"""A checked data set as lines for a terminal."""

from collections.abc import Iterator
from typing import Any

from perceptune.data.conversations import tagged_history, tagged_prompt
from perceptune.data.media.source import label
from perceptune.data.records import short
from perceptune.tools.datasets.validate import Checked
from perceptune.types import Sample
from perceptune.utils.terminal import printable


def format_report(checked: Checked, samples: int) -> Iterator[str]:
    """Yield the lines, the verdict last, with `samples` sample rows of each split."""
    yield from map(printable, _lines(checked, samples))


def _lines(checked: Checked, samples: int) -> Iterator[str]:
    report = checked.report
    for split, found in report["splits"].items():
        yield from _split(split, found)
        for sample in checked.samples[split][:samples]:
            yield f"  sample {_sample(sample)}"
    for split, count in report["shared_media"].items():
        yield f"note: {count:,} media of `train` are shown by `{split}`, too"
    for kind, problem in report["problems"].items():
        yield f"{kind}: {problem['count']:,} ({problem['what']})"
        yield from (f"  {short(message, 400)}" for message in problem["first"])
        if problem["count"] > len(problem["first"]):
            yield f"  ... and {problem['count'] - len(problem['first']):,} more"
    count = sum(problem["count"] for problem in report["problems"].values())
    yield f"{count:,} mistakes" if count else "no mistakes found"


def _split(split: str, found: dict[str, Any]) -> Iterator[str]:
    form = f" ({', '.join(found['form'])})" if found["form"] else ""
    yield f"{split}: {found['rows']:,} rows{form}"
    for name, spread in found["lengths"].items():
        yield f"  {name}: {spread['least']} to {spread['greatest']}, mean {spread['mean']}, 99 % <= {spread['p99']}"
    for name, without in (("question", "rows_without_question"), ("targets", "rows_without_targets")):
        if found[without]:
            yield f"  {found[without]:,} rows without {name}"
    if several := found["targets_of_several_lines"]:
        fate = "only the first is judged (`task.first_line`)" if found["first_line"] else "all of them are kept"
        yield f"  {several:,} of {found['targets']:,} targets have several lines; {fate}"
    for modality, media in found["media"].items():
        spreads = {name: value for name, value in media.items() if isinstance(value, dict)}
        figures = [f"{name} {one['least']:,.6g} to {one['greatest']:,.6g}" for name, one in spreads.items()]
        said = ", ".join(figures) or "none could be read"
        yield f"  {modality}: {media['distinct']:,} distinct in {media['rows']:,} rows; {said}"
    answers = found["answers"]
    if answers["distinct"]:
        common = ", ".join(f"{short(one['answer'], 40)} {one['share']:.1%}" for one in answers["most_frequent"][:5])
        more = " or more" if answers["not_counted"] else ""
        yield f"  {answers['distinct']:,}{more} distinct answers; most frequent: {common}"
    if (repeated := found["repeated_rows"])["count"]:
        pairs = ", ".join(f"{later} = {earlier}" for later, earlier in repeated["first"])
        yield f"  note: {repeated['count']:,} rows say what an earlier one says: {pairs}"
    if found["copied_media"]["count"]:
        pairs = ", ".join(f"{later} = {earlier}" for later, earlier in found["copied_media"]["first"])
        yield f"  note: {found['copied_media']['count']:,} media have the bytes of another: {pairs}"


def _sample(sample: Sample) -> str:
    media = " ".join(f"{key}={label(medium, key)}" for key, medium in sample.iter_media())
    turns = "".join(f"{short(repr(turn['content']))} / " for turn in tagged_history(sample))
    targets = short(", ".join(map(repr, sample.targets)))
    return f"{short(sample.id, 40)}: {media} {turns}{short(repr(tagged_prompt(sample)))} -> {targets}"

"""What is to be learned: captions, answers to questions, or one of a few classes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

from perceptune.config.registry import leaf
from perceptune.config.schema import NamedPart
from perceptune.data.build_task import task_of
from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.recognition.columns import CLASSES, plain_name
from perceptune.data.recognition.form import Form
from perceptune.data.tasks.base import CAPTION_METRICS, CaptionSet, GivenFiles, QuestionSet
from perceptune.errors import UserError
from perceptune.types import Medium, Sample

Kind = Literal["captions", "questions", "classes"]

MOST_CLASSES = 1000
_ROWS_PER_CLASS = 3  # a column whose values repeat less often holds texts, not classes
_MOST_WORDS = 6  # of a class
_PROBED = 64  # media whose durations are measured
_CAPTION_NAMES = ("caption", "captions", "description", "descriptions", "sentence", "sentences", "comment", "raw")
_QUESTIONS = {"image": "What is in the image?", "audio": "What do you hear?", "video": "What happens in the video?"}
_TEMPLATES = {"image": "A photo of", "audio": "The sound of", "video": "A video of"}


@dataclass
class Summary:
    """Counts over the training samples of a data set, in one pass."""

    samples: int = 0
    texts: int = 0  # targets of all samples
    modalities: Counter[str] = field(default_factory=Counter)  # samples with a medium of each
    most: dict[str, int] = field(default_factory=dict)  # modality -> the most media of a sample
    media: set[int] = field(default_factory=set)  # hashes of each sample's media together
    distinct: set[int] = field(default_factory=set)  # hashes of media
    with_history: int = 0  # samples with earlier turns
    with_prompt: int = 0
    prompts: set[str] = field(default_factory=set)  # the first few different ones
    targets: Counter[str] = field(default_factory=Counter)  # those of samples with one, up to `MOST_CLASSES` + 1
    with_several: int = 0  # samples with several targets
    longest: int = 0  # words of the longest of the first targets
    probed: dict[str, dict[int, Medium]] = field(default_factory=dict)  # modality -> a fixed random few of its media
    error: UserError | None = None  # of the first invalid row

    def add(self, sample: Sample) -> None:
        """Count the next sample."""
        self.samples += 1
        self.texts += len(sample.targets)
        self.modalities.update(sample.media.keys())
        if sample.media:
            self.media.add(hash(tuple(sorted((key, str(medium)) for key, medium in sample.media.items()))))
        self.with_history += bool(sample.history)
        self.with_prompt += bool(sample.prompt)
        if len(self.prompts) < 3:
            self.prompts.add(sample.prompt)
        self.with_several += len(sample.targets) > 1
        for target in sample.targets[:1]:
            if target in self.targets or len(self.targets) <= MOST_CLASSES:
                self.targets[target] += 1
            self.longest = max(self.longest, len(target.split()))
        for modality in sample.media:
            self.most[modality] = max(self.most.get(modality, 1), len(sample.list_media(modality)))
        for modality, medium in sample.iter_media():
            self.distinct.add(hash((modality, medium)))
            kept = self.probed.setdefault(modality, {})  # those with the smallest checksums: files are often in order
            checksum = crc32(medium[:4096] if isinstance(medium, bytes) else str(medium).encode(errors="replace"))
            if len(kept) < _PROBED or checksum < max(kept):
                kept[checksum] = medium
            if len(kept) > _PROBED:
                del kept[max(kept)]

    @property
    def modality(self) -> str:
        """Return the most frequent modality."""
        return max(MODALITIES, key=lambda name: self.modalities[name])


@dataclass(frozen=True)
class Learned:
    """A data set's kind, and the recipe keys that follow from it."""

    kind: Kind
    task: dict[str, Any]  # metric, prompt, choices
    template: str | None  # `text.template`, for data without questions


def probe(form: Form, given: Mapping[str, Any], split: str) -> Summary:
    """Return counts of the samples of a form; `given` are options of its task.

    Invalid rows are passed over: they are reported when the data is used, which reads it again.
    """
    kept = {key: value for key, value in given.items() if key not in ("metric", "choices")}
    how = _unchecked(form.reader) | as_they_are(form.reader)
    part = NamedPart(name=form.reader, **{**form.options, **kept, **how})
    task = task_of(part)
    if split not in task.splits:
        split = task.splits[0]
    found = Summary()
    for _, row in task.examine(split).rows:
        if isinstance(row, Sample):
            found.add(row)
        else:
            found.error = found.error or row
    return found


def as_they_are(reader: str) -> dict[str, Any]:
    """Return options under which rows with and without questions are read as they are."""
    kind = leaf("tasks", reader).module.TASK
    wanted = {"metric": "CIDEr", "group_rows": False} if issubclass(kind, GivenFiles) else {}
    return {key: value for key, value in wanted.items() if key in kind.Options.model_fields}


def _unchecked(reader: str) -> dict[str, Any]:
    return {"check_files": False} if "check_files" in leaf("tasks", reader).module.TASK.Options.model_fields else {}


def find_kind(form: Form, found: Summary, given: Mapping[str, Any]) -> Learned:
    """Return what is to be learned from a data set; `given` are task options that the user set.

    Raises `UserError` for data without media, with questions on some rows only, and with a single class.
    """
    place = next((form.options[key] for key in ("train", "path", "dir") if key in form.options), "the data")
    if not found.samples and found.error is not None:
        raise found.error
    if not found.modalities:
        raise UserError(f"{place}: no sample has a medium")
    published = _published(form)
    if published is not None:
        return published
    if given.get("metric") in CAPTION_METRICS:
        return Learned("captions", {"metric": given["metric"]}, _TEMPLATES[found.modality])
    if 0 < found.with_prompt < found.samples and "prompt" not in given:
        raise UserError(
            f"{place}: captions and questions mixed: {found.samples - found.with_prompt:,} of {found.samples:,} rows "
            "have no question: give them one by task.prompt=TEXT, or part the rows into two files"
        )
    asked = bool(found.with_prompt)
    named = given.get("choices")
    if named is not None or _are_classes(form, found):
        if named is None and len(found.targets) < 2:
            only = next(iter(found.targets), "")
            raise UserError(
                f"{place}: one class only, `{only}`: there is nothing to tell apart; classes are folders or the values "
                "of a column (task.target_key), captions are said by task.metric=CIDEr"
            )
        classes = sorted(found.targets) if named is None else named
        prompt = {} if asked else {"prompt": _QUESTIONS[found.modality]}
        return Learned("classes", {"metric": "accuracy", **prompt, "choices": classes}, None)
    if asked:
        return Learned("questions", {"metric": "accuracy"}, None)
    return Learned("captions", {"metric": "CIDEr"}, _TEMPLATES[found.modality])


def _published(form: Form) -> Learned | None:
    kind = leaf("tasks", form.reader).module.TASK
    if issubclass(kind, CaptionSet):
        return Learned("captions", {}, _TEMPLATES[kind.modality])
    return Learned("questions", {}, None) if issubclass(kind, QuestionSet) else None


def _are_classes(form: Form, found: Summary) -> bool:
    """Return whether the targets are a closed set: folders, a column called so, or values that often repeat."""
    name = plain_name(form.answers)
    if not found.texts:
        return False
    if form.answers == "folder":
        return True
    if name in _CAPTION_NAMES or len(found.targets) > MOST_CLASSES or found.with_several:
        return False
    if (found.with_prompt and len(found.prompts) > 1) or found.with_history:
        return False  # answers to different questions
    if name in map(plain_name, CLASSES):
        return len(found.targets) < found.samples or found.samples < 20
    repeats = found.samples >= _ROWS_PER_CLASS * len(found.targets)
    return repeats and found.longest <= _MOST_WORDS

"""Forms of the splits of one data set as one form."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceptune.data.recognition.form import Form
from perceptune.errors import UserError


def joined(forms: Mapping[str, Form]) -> Form:
    """Join forms of the splits of one data set. Raises `UserError` if they have different readers."""
    form = forms["train"]
    for name, one in forms.items():
        if one.reader != form.reader:
            what = f"split `{name}` is {one.what} ({one.reader}), split `train` is {form.what} ({form.reader})"
            raise UserError(f"{what}: convert one of them by `data convert`")
    is_published = "annotations" in form.options
    options = _annotations(forms) if is_published else {name: one.options[name] for name, one in forms.items()}
    folders = {name: _media_folder(one, name) for name, one in forms.items()}
    if len({*folders.values()}) > 1 and (is_published or any("media" in one.options for one in forms.values())):
        options["media"] = folders
    return replace(form, options={**form.options, **options}, splits=tuple(forms))


def _annotations(forms: Mapping[str, Form]) -> dict[str, Any]:
    """Return the annotation files of a published set's splits, absolute ones of another folder than the first's."""
    first, found = forms["train"].options, dict[str, Any]()
    for name, one in forms.items():
        files, place = one.options["annotations"][name], Path(one.options["dir"])
        if one.options["dir"] != first["dir"]:
            files = str(place / files) if isinstance(files, str) else [str(place / file) for file in files]
        found[name] = files
    unused: dict[str, list[str]] = {name: [] for name in first["annotations"] if name not in found}
    return {"annotations": found | unused}


def _media_folder(form: Form, split: str) -> str:
    """Return the folder that names of a split's media are relative to."""
    own = form.options["dir"] if "dir" in form.options else Path(form.options[split]).parent
    return str(Path(form.options.get("media") or own).absolute())

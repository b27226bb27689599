"""What `doctor` says of Python and the packages: by the package's own metadata, not by a list of its own."""

from __future__ import annotations

from importlib import metadata

import pytest

from perceptune.tools import doctor


@pytest.mark.parametrize(
    ("required", "found", "state"),
    [
        (["torch>=2.6"], "2.13.0+cpu", "ok"),
        (["torch>=2.6"], "2.5.1", "problem"),
        (["transformers<6,>=5"], "6.0", "problem"),
        (["transformers<6,>=5"], "5.0.0rc1", "problem"),
        (["transformers<6,>=5"], "5.23.0.dev0", "ok"),
        (["peft"], "0.1", "ok"),
    ],
)
def test_versions_are_held_to_what_the_package_requires(
    required: list[str], found: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: [*required, "gguf>=0.17; extra == 'assets'"])
    monkeypatch.setattr(metadata, "version", lambda _: found)
    python, package = doctor._versions()
    assert (python["name"], python["state"]) == ("python", "ok")
    assert (package["state"], package["found"].split(" ")[0]) == (state, found)


def test_every_package_that_is_required_is_looked_at() -> None:
    names = {check["name"] for check in doctor._versions()}
    assert {"python", "torch", "transformers", "accelerate", "peft", "av"} <= names
    assert not names & {"gguf", "fastapi", "pytest"}

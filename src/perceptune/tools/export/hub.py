"""Upload of a run to a Hugging Face hub by `huggingface_hub`, which determines token, mirror and proxy."""

import re
from pathlib import Path

from perceptune.errors import UserError
from perceptune.models.run_location import brief, hub_errors
from perceptune.tools.export.bundle import bundle

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def push(
    run: Path, name: str, *, private: bool = False, message: str = "Upload run", trust: bool = False
) -> tuple[str, list[str]]:
    """Create the repository `USER/NAME` unless it exists, and upload the shared form of a run in one commit.

    Returns the commit's URL and the base models that only this machine has. Raises `UserError` for an invalid name, a
    run that cannot be loaded, and anything the hub rejects.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not _NAME.fullmatch(name):
        raise UserError(f"`{name}` is no name of a repository: write USER/NAME")
    made = bundle(run, trust=trust)
    operations = [CommitOperationAdd(path, data) for path, data in made.files.items()]
    hub = HfApi(library_name="perceptune")
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        commit = hub.create_commit(name, operations, commit_message=message)
    except hub_errors() as error:
        raise UserError(f"cannot push to `{name}`: {brief(error)}") from error
    return str(commit.commit_url), made.local

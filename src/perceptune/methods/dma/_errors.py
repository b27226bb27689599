"""Errors of DMA. PEFT's users catch `ValueError`, ours `UserError`: these are both."""

from peft import NoMatchingPeftModuleError

from perceptune.errors import UserError


class DMAError(UserError, ValueError):
    """A setting, a model or a call that DMA cannot work with."""


class NoTargetError(DMAError, NoMatchingPeftModuleError):
    """`target_modules` or `exclude_modules` that leave no module, or an entry that names none."""

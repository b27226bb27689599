"""eP-ALM (ICCV 2023, sections 3.1 to 3.3): projected [CLS] tokens injected late into a frozen LM, plus a soft prompt.

The [CLS] tokens of the last `n_levels` encoder layers are projected linearly and overwrite one slot's state at each LM
layer of a range, earliest level first. A soft prompt (eP-ALM) or adapters (eP-ALM_ada) adapt the text side.
"""

from typing import Any

from perceptune.methods.slots.base import Injection

# Appendix B names the variants, Table 15 the last two (`l19-31+Adapter`, `l19-31+DeepPT`): what each trains.
VARIANTS: dict[str, dict[str, Any]] = {
    "epalm": {},
    "epalm-pt": {"shared_connector": True},
    "epalm-lin": {"shared_connector": True, "prompt": "none"},
    "epalm-ada": {"prompt": "none", "adapters": True},
    "epalm-pt-l": {"shared_connector": True, "prompt": "plain"},
    "late-adapter": {"n_levels": 1, "prompt": "none", "adapters": True},
    "deep-prompt": {"prompt_at": "every_layer"},
}
COUNTS = {
    "epalm": "n*C + P + M", "epalm-pt": "C + P + M", "epalm-lin": "C", "epalm-ada": "n*C + A", "epalm-pt-l": "C + P",
    "late-adapter": "C + A", "deep-prompt": "n*C + 10*L*d + 2*(d*d + d)",
}  # fmt: skip


class EPALM(Injection):
    """eP-ALM's variants: late injection, repeated at every layer of the range."""


METHOD = EPALM

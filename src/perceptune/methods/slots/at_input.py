"""Baselines at the input: the last level's projected token(s) in front of the text in the LM's first layer, once.

LimBEr trains the connection alone, PromptFuse also a soft prompt, MAGMA also adapters in every layer; FrozenBiLM and
the audio baseline are MAGMA's parts on a video or audio encoder (sections 4.1 and D.3). `full` trains everything: the
upper baseline of Figure 3. None of them has a configuration in the released code.
"""

from typing import Any

from perceptune.methods.slots.base import Injection

AT_INPUT: dict[str, Any] = {"n_levels": 1, "first": 0, "last": 0, "prompt": "none"}
MAGMA: dict[str, Any] = {**AT_INPUT, "adapters": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "limber": AT_INPUT,
    "promptfuse": {**AT_INPUT, "prompt": "mlp"},
    "magma": MAGMA,
    "magma-all": {**MAGMA, "tokens": "all"},
    "frozenbilm": MAGMA,
    "audio-adapter": MAGMA,
    "full": {**AT_INPUT, "unfreeze": ["lm", "encoder"]},
}
COUNTS = dict.fromkeys(("magma", "magma-all", "frozenbilm", "audio-adapter"), "C + A") | {
    "limber": "C", "promptfuse": "C + P + M", "full": "C + LM + E",
}  # fmt: skip


class AtInput(Injection):
    """Baselines whose token is written at the input and passes through all layers with the text."""


METHOD = AtInput

"""DePALM (arXiv 2403.13499): few tokens, resampled from all patches, at the LM's input or overwritten in late layers.

The variants of the released configurations, with the baselines as they are there. Where the release differs from what
it names (means over channels in place of tokens), they do what they are called; docs/papers.md lists it.
"""

from typing import Any

from perceptune.methods.slots.base import Injection

BARE: dict[str, Any] = {"n_levels": 1, "tokens": "all", "first": 0, "last": 0, "prompt": "none"}
INPUT: dict[str, Any] = {**BARE, "prompt": "plain", "prompt_tokens": 1}
QUERIES: dict[str, Any] = {"mapper": "qp", "mapper_width": 1024}
LATE: dict[str, Any] = {"shared_connector": True, "prompt": "plain", "per_layer": "norm-scale-bias"}
VARIANTS: dict[str, dict[str, Any]] = {
    "depalm": {**INPUT, **QUERIES},
    "depalm-inner": {**LATE, **QUERIES, "n_levels": 4, "tokens": "all", "prompt_tokens": 16},
    "depalm-avgpool": {**INPUT, "mapper": "group-mean"},
    "depalm-linear": {**INPUT, "mapper": "group-linear"},
    "depalm-group": {**INPUT, "mapper": "group-qp", "mapper_width": 768, "mapper_depth": 4},
    "depalm-rand": {**INPUT, "mapper": "random-tokens"},
    "depalm-epalm": LATE,
    "mapl": {**BARE, "mapper": "qp", "mapper_width": 256, "mapper_depth": 4},
    "limber-all": BARE,
}
COUNTS = {
    "depalm": "QP + p", "depalm-inner": "QP + 16*p + 3*K*d", "depalm-avgpool": "C + d*d + 2*d + p",
    "depalm-linear": "C + 5*d*d + 3*d + p", "depalm-group": "(e + 1)*D + B*(6*D*D + 10*D) + 2*D + (D + 1)*d + p",
    "depalm-rand": "e + C + p", "depalm-epalm": "C + 10*p + 3*K*d", "mapl": "QP", "limber-all": "C",
}  # fmt: skip


class DePALM(Injection):
    """DePALM's mappers at the places of its paper."""


METHOD = DePALM

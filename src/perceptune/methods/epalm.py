"""eP-ALM (ICCV 2023, sections 3.1 to 3.3): projected [CLS] tokens injected late into a frozen LM, plus a soft prompt.

The [CLS] tokens of the last `n_levels` encoder layers are projected linearly and overwrite one slot's state at each LM
layer of a range, earliest level first. A soft prompt (eP-ALM) or adapters (eP-ALM_ada) adapt the text side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.lm import FrozenLM
from perceptune.methods.base import EncoderShape, Method, Site
from perceptune.types import Features, Slots

# Appendix A, table of variants: what each name trains.
VARIANTS: dict[str, dict[str, Any]] = {
    "epalm": {},
    "epalm-pt": {"shared_connector": True},
    "epalm-lin": {"shared_connector": True, "prompt": "none"},
    "epalm-ada": {"prompt": "none", "adapters": True},
    "epalm-pt-l": {"shared_connector": True, "prompt": "plain"},
}


class EPALMOptions(BaseModel):
    """Recipe keys under `method`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n_levels: int = Field(6, ge=1, description="last encoder layers whose [CLS] is used")
    first: int | None = Field(None, ge=0, description="first LM layer of the range; None = L - min(12, L // 2)")
    last: int | None = Field(None, ge=0, description="last LM layer of the range, included; None = the LM's last")
    shared_connector: bool = Field(False, description="one linear connection for all levels")
    connector_std: float | None = Field(0.02, gt=0, description="std of its weights; None = torch's own initialisation")
    standardize: bool = Field(True, description="features to mean 0, std 1 per level and dimension")
    prompt: Literal["none", "plain", "mlp"] = "mlp"
    prompt_tokens: int = Field(10, ge=1)
    prompt_std: float = Field(1.0, gt=0)
    prompt_at: Literal["input", "first_injected"] = "input"
    order: Literal["slots-prompt", "prompt-slots"] = Field(
        "slots-prompt",
        description="columns from left to right; behind the prompt, slots leave it the same in every row",
    )
    adapters: bool = Field(False, description="adapters after attention and feed-forward of every LM layer")
    adapter_factor: int = Field(8, ge=1, description="bottleneck = hidden size / factor")
    slot_mask: Literal["causal", "official"] = "causal"


class Connector(nn.Module):
    """One linear map per level, or one for all; (B, n_levels, 1, dim) -> list of (B, 1, hidden)."""

    mean: Tensor  # (n_levels, 1, dim)
    std: Tensor

    def __init__(self, levels: int, dim: int, hidden: int, options: EPALMOptions) -> None:
        super().__init__()
        count = 1 if options.shared_connector else levels
        self.maps = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(count))
        if options.connector_std is not None:
            for linear in self.maps:
                nn.init.normal_(linear.weight, std=options.connector_std)  # type: ignore[arg-type]
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        self.standardize = options.standardize
        if options.standardize:  # statistics of the training split: kept and saved, but not trained
            self.register_buffer("mean", torch.zeros(levels, 1, dim))
            self.register_buffer("std", torch.ones(levels, 1, dim))

    def forward(self, features: Tensor) -> list[Tensor]:
        if self.standardize:
            features = (features - self.mean) / self.std
        return [self.maps[min(j, len(self.maps) - 1)](features[:, j]) for j in range(features.shape[1])]


class SoftPrompt(nn.Module):
    """Trained vectors (n, size), through an MLP in the paper's main model (section 3.2)."""

    def __init__(self, tokens: int, size: int, *, mlp: bool, std: float) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, size))
        nn.init.normal_(self.embedding, std=std)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size)) if mlp else None

    def forward(self) -> Tensor:
        return self.embedding if self.mlp is None else self.mlp(self.embedding)


class Adapter(nn.Module):
    """MAGMA's sequential adapter as a delta: W2 relu(W1 y), to be added to the module output y (section 4.1)."""

    def __init__(self, size: int, factor: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, size // factor)
        self.up = nn.Linear(size // factor, size)
        for parameter in self.parameters():  # near identity at the start, as in MAGMA
            nn.init.trunc_normal_(parameter, std=1e-3, a=-2e-3, b=2e-3)

    def forward(self, y: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(y)))


class EPALM(Method):
    """eP-ALM's variants. `shapes` names the encoder of each modality; each owns one slot column and its connectors."""

    Options = EPALMOptions

    def __init__(self, options: EPALMOptions, lm: FrozenLM, shapes: Mapping[str, EncoderShape]) -> None:
        super().__init__()
        self.options = options
        self.range = _layer_range(options, lm.n_layers)
        self.shapes = dict(shapes)
        for modality, shape in shapes.items():
            if shape.n_layers < options.n_levels:
                raise UserError(
                    f"method.n_levels is {options.n_levels}, but the {modality} encoder has {shape.n_layers} layers"
                )
        self.connectors = nn.ModuleDict(
            {name: Connector(options.n_levels, shape.dim, lm.hidden_size, options) for name, shape in shapes.items()}
        )
        self.prompt: SoftPrompt | None = None
        if options.prompt != "none":
            size = lm.prompt_size if options.prompt_at == "input" else lm.hidden_size
            self.prompt = SoftPrompt(options.prompt_tokens, size, mlp=options.prompt == "mlp", std=options.prompt_std)
        self.adapters: nn.ModuleDict | None = None
        self._adapter_sites: list[tuple[int, str, nn.Module, str]] = []
        if options.adapters:
            self._build_adapters(lm)
        self._project_prompt = lm.project_prompt

    def _build_adapters(self, lm: FrozenLM) -> None:
        self.adapters = nn.ModuleDict()
        for layer in range(lm.n_layers):
            for kind in ("attention", "mlp"):
                name, module = lm.site(layer, kind)
                key = f"{layer}_{kind}"
                self.adapters[key] = Adapter(lm.hidden_size, self.options.adapter_factor)
                self._adapter_sites.append((layer, name, module, key))

    def attach(self, lm: FrozenLM) -> None:
        for _, _, module, key in self._adapter_sites:
            module.register_forward_hook(self._adapter_hook(key))

    def _adapter_hook(self, key: str) -> Any:
        def add(_: nn.Module, __: Any, y: Tensor) -> Tensor:
            assert self.adapters is not None
            return y + self.adapters[key](y.float()).to(y.dtype)

        return add

    @property
    def first_layer(self) -> int:
        at_input = self.prompt is not None and self.options.prompt_at == "input"
        return 0 if at_input or self.adapters is not None else self.range.start

    @property
    def standardizes(self) -> bool:
        return self.options.standardize

    def levels(self, modality: str) -> list[int]:
        n = self.shapes[modality].n_layers
        return list(range(n - self.options.n_levels, n))

    def set_statistics(self, modality: str, mean: Tensor, std: Tensor) -> None:
        connector: Any = self.connectors[modality]
        connector.mean.copy_(mean[:, None])
        connector.std.copy_(std[:, None])

    def level_of(self, layer: int) -> int:
        """Which level enters `layer`: floor steps as in the official code, the last level filling the rest."""
        step = max(len(self.range) // self.options.n_levels, 1)
        return min((layer - self.range.start) // step, self.options.n_levels - 1)

    def plan(self, features: Mapping[str, Features], batch: int) -> list[Slots]:
        slots = [self._slot(modality, given) for modality, given in features.items() if bool(given.present.any())]
        prompt = [] if self.prompt is None else [self._prompt_slots(self.prompt(), batch)]
        return prompt + slots if self.options.order == "prompt-slots" else slots + prompt

    def _slot(self, modality: str, given: Features) -> Slots:
        projected = self.connectors[modality](given.values)
        states = {layer: projected[self.level_of(layer)] for layer in self.range}
        return Slots(modality, self.range.start, states, given.present, sees_text=self.options.slot_mask == "official")

    def _prompt_slots(self, prompt: Tensor, batch: int) -> Slots:
        entry = 0
        if self.options.prompt_at == "input":
            prompt = self._project_prompt(prompt)
        else:
            entry = self.range.start
        present = torch.ones(batch, dtype=torch.bool, device=prompt.device)
        return Slots("prompt", entry, {entry: prompt[None]}, present)

    def text_side(self) -> Sequence[nn.Module | nn.Parameter]:
        return [part for part in (self.prompt, self.adapters) if part is not None]

    def sites(self) -> list[Site]:
        sites = []
        for modality in self.shapes:
            levels = self.levels(modality)
            sites += [
                Site(
                    layer,
                    f"slot `{modality}`",
                    f"[CLS] of encoder layer {levels[self.level_of(layer)]} (0-based)",
                )
                for layer in self.range
            ]
        if self.prompt is not None:
            entry = 0 if self.options.prompt_at == "input" else self.range.start
            sites.append(Site(entry, "slots `prompt`", f"{self.options.prompt_tokens} trained vectors"))
        return sites + [Site(layer, name, "adapter on its output") for layer, name, _, _ in self._adapter_sites]


METHOD = EPALM


def _layer_range(options: EPALMOptions, n_layers: int) -> range:
    """The injected layers. Default: the last min(12, L // 2), the LM's last one included."""
    last = n_layers - 1 if options.last is None else options.last
    first = n_layers - min(12, n_layers // 2) if options.first is None else options.first
    if not 0 <= first <= last < n_layers:
        raise UserError(
            f"method.first={first}, method.last={last}: not a range inside the LM's layers 0-{n_layers - 1}"
        )
    return range(first, last + 1)

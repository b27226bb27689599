"""Made-up files in the layout of the official eP-ALM release, and a literal reading of how its code answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from answers import old_beam_search

LEVELS, DIM, HIDDEN, PROMPT = 2, 24, 32, 16  # the dwarfs' encoders and OPT, whose prompt is projected as OPT-350M's is
BOTTLENECK = HIDDEN // 8
CONFIG: dict[str, Any] = {
    "start_layer_idx": 1, "end_layer_idx": 3, "injected_hidden_states": LEVELS, "image_res": 16,
}  # fmt: skip


class Released(nn.Module):
    """The trained parts, named as the release names them."""

    def __init__(self, *, levels: int = LEVELS, shared: bool = False, prompt: str = "mlp", adapters: bool = False):
        super().__init__()
        self.connector = nn.ModuleList(nn.Linear(DIM, HIDDEN) for _ in range(1 if shared else levels))
        self.levels = levels
        self.prompt_module = nn.Module()
        mlp = [nn.Linear(PROMPT, PROMPT), nn.Tanh(), nn.Linear(PROMPT, PROMPT)] if prompt == "mlp" else []
        if prompt != "none":
            self.prompt_module.prefix_embedding = nn.Sequential(nn.Embedding(10, PROMPT), *mlp)
        if adapters:
            self.transformer = nn.ModuleList(_Layer() for _ in range(4))

    def connected(self, features: Tensor) -> list[Tensor]:
        """(B, LEVELS, 1, DIM) -> what enters the LM for each level, earliest first."""
        places = range(self.levels, 0, -1)
        return [self.connector[-i if len(self.connector) > 1 else 0](features[:, -i]) for i in places]

    def saved(self) -> dict[str, Tensor]:
        """What the release's filter leaves of the state dict: adapters appear under both names of the LM's layers."""
        own = dict(self.state_dict())
        layers = {name: tensor for name, tensor in own.items() if name.startswith("transformer.")}
        return own | {
            name.replace("transformer.", "model_text.model.decoder.layers.", 1): t for name, t in layers.items()
        }


class _Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Sequential(nn.Linear(HIDDEN, BOTTLENECK), nn.ReLU(), nn.Linear(BOTTLENECK, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(x) + x


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc2 = nn.Sequential(nn.Identity(), _Adapted())
        self.self_attn = _Adapted()


def save(file: Path, released: Released, **changes: Any) -> Path:
    """The whole checkpoint, as a training saves it."""
    optimizer = torch.optim.AdamW(released.parameters())
    sum(p.sum() for p in released.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    whole = {
        "model": released.saved(), "optimizer": optimizer.state_dict(), "lr_scheduler": {"base_values": [2e-5]},
        "config": CONFIG, "epoch": 7, "best_valid": np.float64(0.5), "best_epoch": 6,
    }  # fmt: skip
    torch.save({**whole, **changes}, file)
    return file


class Reference:
    """The official forward and generation, by the letter: one question at a time, the whole text run for each token."""

    def __init__(self, lm: Path, released: Released, config: dict[str, Any]) -> None:
        self.model: Any = transformers.OPTForCausalLM.from_pretrained(lm).eval()
        self.released, self.config = released, config
        if hasattr(released, "transformer"):
            for layer, own in zip(self.model.model.decoder.layers, released.transformer, strict=True):
                layer.fc2 = nn.Sequential(layer.fc2, own.fc2[1])
                layer.self_attn.out_proj = nn.Sequential(layer.self_attn.out_proj, own.self_attn)

    @torch.no_grad()
    def logits(self, ids: list[int], features: Tensor) -> Tensor:
        """(vocab,) of the next token; `features` (LEVELS, DIM), earliest first."""
        decoder = self.model.model.decoder
        hidden = decoder.embed_tokens(torch.tensor([ids]))
        prompt = getattr(self.released.prompt_module, "prefix_embedding", None)
        if prompt is not None:
            hidden = torch.cat([prompt(torch.arange(10))[None], hidden], 1)
        if decoder.project_in is not None:
            hidden = decoder.project_in(hidden)
        hidden[:, -len(ids) :] += decoder.embed_positions.weight[2 : 2 + len(ids)]
        mask = torch.full((hidden.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
        for index, visual in self._entering(self.released.connected(features[None, :, None])):
            layer = decoder.layers[index]
            if visual is not None and mask.shape[-1] > len(ids) + (0 if prompt is None else 10):
                hidden[:, 0] = visual[:, 0]
            elif visual is not None:
                hidden = torch.cat([visual, hidden], 1)
                mask = nn.functional.pad(mask, (1, 0, 1, 0))
            hidden = layer(hidden, attention_mask=mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if decoder.final_layer_norm is not None:
            hidden = decoder.final_layer_norm(hidden)
        if decoder.project_out is not None:
            hidden = decoder.project_out(hidden)
        return self.model.lm_head(hidden)[0, -1]

    def _entering(self, visual: list[Tensor]) -> list[tuple[int, Tensor | None]]:
        """What enters each layer of the LM."""
        start, end = self.config["start_layer_idx"], self.config["end_layer_idx"]
        k, layers = len(visual), end - start
        step = layers // k if k > 1 and layers > k else 1
        every = self.config.get("text_step", 1)
        if self.config.get("select_higher_step"):
            every = max(step, every)
        return [
            (i, visual[min((i - start) // step, k - 1)] if start <= i < end and i % every == 0 else None)
            for i in range(len(self.model.model.decoder.layers))
        ]

    def answer(self, prompt: list[int], features: Tensor, *, beams: int, max_length: int, eos: int) -> list[int]:
        """New tokens without the end token."""
        limit = max(1, max_length - len(prompt))
        if beams > 1:
            return old_beam_search(prompt, lambda ids: self.logits(ids, features), beams=beams, eos=eos, limit=limit)
        said: list[int] = []
        while len(said) < limit:
            said.append(int(self.logits(prompt + said, features).argmax()))
            if said[-1] == eos:
                return said[:-1]
        return said


@torch.no_grad()
def levels_of(tower: Any, blocks: str, given: Tensor, levels: int = LEVELS) -> Tensor:
    """(levels, DIM): [CLS] of the last blocks of an encoder of transformers, each through its final norm."""
    states: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out))
        for block in tower.get_submodule(blocks)[-levels:]
    ]
    tower(given)
    for hook in hooks:
        hook.remove()
    return torch.stack([tower.layernorm(state[0, 0]) for state in states])

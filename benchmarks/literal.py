"""(a) eP-ALM by the letter, on transformers' own OPT and ViT modules: what the paper describes and its code does.

The encoder runs at every training step; the visual token is concatenated at the first injected layer and overwritten at
the later ones; soft prompt, visual token and text go through every layer that has them, for each sample anew; the
vocabulary head runs on every position; generation has no KV cache. The mask is causal, as ours is by default (the
official code's slot also sees the text, at the same cost).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.methods.slots.epalm import EPALM
from perceptune.models.text_format import Tokens


class LiteralEPALM(nn.Module):
    """One training step's forward, and generation. Trained: `trained`, copies of the parts of one of our methods.

    Statistics of feature standardisation are left out: the paper has none, and those of a fresh method are neutral.
    """

    def __init__(self, lm: Any, tower: Any, method: EPALM) -> None:
        super().__init__()
        self.lm, self.tower = lm, tower
        connector: Any = method.connectors["image"]
        self.maps = copy.deepcopy(connector.maps)
        self.prompt = copy.deepcopy(method.prompt)
        self.range, self.level_of, self.n_levels = method.range, method.level_of, method.options.n_levels

    def trained(self) -> list[nn.Parameter]:
        """Connections and soft prompt."""
        parts = [self.maps] if self.prompt is None else [self.maps, self.prompt]
        return [parameter for part in parts for parameter in part.parameters()]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n_levels, 1, dim): all blocks, all tokens, then the norm on each chosen [CLS]."""
        hidden = self.tower(images, output_hidden_states=True).hidden_states[-self.n_levels :]
        return torch.stack([self.tower.layernorm(level[:, :1]) for level in hidden], dim=1)

    def forward(self, ids: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        """Logits (B, T, vocab) of the text: the head runs on every column, prompt and visual token included."""
        hidden, n_prompt = self._embed(ids, mask)
        allowed = _causal(mask, n_prompt, hidden.dtype)
        projected = [self.maps[min(j, len(self.maps) - 1)](features[:, j]) for j in range(self.n_levels)]
        decoder, n_visual = self.lm.model.decoder, 0
        for index, layer in enumerate(decoder.layers):
            if index in self.range:
                visual = projected[self.level_of(index)]
                hidden = torch.cat([visual, hidden[:, n_visual:]], dim=1)
                if not n_visual:
                    n_visual, allowed = 1, _causal(mask, n_prompt + 1, hidden.dtype)
            hidden = layer(hidden, attention_mask=allowed)
        if decoder.final_layer_norm is not None:
            hidden = decoder.final_layer_norm(hidden)
        if decoder.project_out is not None:
            hidden = decoder.project_out(hidden)
        logits: Tensor = self.lm.lm_head(hidden)
        return logits[:, n_visual + n_prompt :]

    def loss(self, tokens: Tokens, features: Tensor) -> tuple[Tensor, int]:
        """Cross-entropy summed over the supervised tokens, and their number."""
        logits = self(tokens.input_ids, tokens.attention_mask, features)[:, :-1]
        wanted = tokens.supervised[:, 1:]
        targets = tokens.input_ids[:, 1:].masked_fill(~wanted, -100)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return loss, int(wanted.sum())

    @torch.no_grad()
    def generate(self, ids: Tensor, mask: Tensor, features: Tensor, new_tokens: int, beams: int = 1) -> Tensor:
        """(B, new_tokens) without an end token, by beam search or, with one beam, greedily: the prefix is recomputed
        for each new token."""
        batch, length = ids.shape
        ids, mask, features = (tensor.repeat_interleave(beams, 0) for tensor in (ids, mask, features))
        scores = torch.full((batch, beams), -1e9)
        scores[:, 0] = 0.0  # the beams start equal: only the first may branch
        for _ in range(new_tokens):
            logits = self(ids, mask, features)[:, -1].float()
            total = scores.flatten()[:, None] + logits.log_softmax(-1)  # (B * beams, vocab)
            vocabulary = total.shape[1]
            scores, picked = total.view(batch, -1).topk(beams, dim=1)
            rows = (picked // vocabulary + torch.arange(batch)[:, None] * beams).flatten()
            ids = torch.cat([ids[rows], (picked % vocabulary).view(-1, 1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return ids.view(batch, beams, -1)[:, 0, length:]

    def _embed(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        """States that enter layer 0 and the number of prompt columns; the prompt has no position, as in the paper."""
        decoder = self.lm.model.decoder
        hidden = decoder.embed_tokens(ids)
        n_prompt = 0
        if self.prompt is not None:
            prompt = self.prompt()
            n_prompt = len(prompt)
            hidden = torch.cat([prompt.expand(len(ids), -1, -1), hidden], dim=1)
        if decoder.project_in is not None:
            hidden = decoder.project_in(hidden)
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        positions = decoder.embed_positions(mask, position_ids=places)
        return hidden + nn.functional.pad(positions, (0, 0, n_prompt, 0)), n_prompt


def _causal(mask: Tensor, n_front: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, S, S) added to the attention scores: what is ahead and what is padding is hidden."""
    open_columns = nn.functional.pad(mask.bool(), (n_front, 0), value=True)
    length = open_columns.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & open_columns[:, None, None, :]
    visible = visible | torch.eye(length, dtype=torch.bool)  # a row that sees nothing is not a number
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)

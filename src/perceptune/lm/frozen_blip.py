"""A frozen InstructBLIP or BLIP-2 of transformers without its ViT: Q-Former, language projection and LM.

The only file that knows these classes' internals. The ViT is an encoder like any other (`encoders/_blip.py`), so its
features are computed once. The computation is transformers' except for padding: image tokens stand directly before
their text, not before its padding, so a row's positions are the same alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.lm.architectures import weights_fingerprint
from perceptune.lm.generation.hf_generate import run_hf_generate
from perceptune.lm.generation.sampling import truncate_at_eos
from perceptune.lm.kernels import short_attention
from perceptune.lm.kernels.linear_cross_entropy import frozen_head_loss
from perceptune.types import GenerationRequest, Prompt
from perceptune.utils.tensors import move

IGNORED = -100  # label of positions without a prediction


@dataclass(frozen=True)
class Instruction:
    """An instruction for each row from the Q-Former's own tokenizer, padded on the right."""

    ids: Tensor  # (B, L)
    mask: Tensor  # (B, L) 1 = token

    def to(self, device: torch.device) -> Instruction:
        return Instruction(move(self.ids, device), move(self.mask, device))


@dataclass(frozen=True)
class LMTokens:
    """Input of the LM; the first `n_queries` tokens of each row are placeholders for the image."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) 1 = token; padded on the left for a decoder-only LM, else on the right
    supervised: Tensor  # (B, T) bool: tokens that are to be predicted; none for an encoder-decoder LM
    labels: Tensor | None = None  # (B, S) targets of an encoder-decoder LM, padded with -100
    predicted: tuple[Tensor, Tensor] | None = None  # result of `find_predicted`, if known before

    def to(self, device: torch.device) -> LMTokens:
        """Move to a device; predicted positions are determined before the move, on the current one."""
        predicted = self.find_predicted()
        labels = None if self.labels is None else move(self.labels, device)
        ids, mask, supervised = (move(part, device) for part in (self.ids, self.mask, self.supervised))
        return LMTokens(ids, mask, supervised, labels, (move(predicted[0], device), move(predicted[1], device)))

    def find_predicted(self) -> tuple[Tensor, Tensor]:
        """Return the indices (N,) of the columns that predict a token, row after row, and these tokens (N,)."""
        if self.predicted is not None:
            return self.predicted
        if self.labels is None:
            keep = nn.functional.pad(self.supervised[:, 1:], (0, 1))
            targets = self.ids[:, 1:][self.supervised[:, 1:]]
        else:
            keep = self.labels != IGNORED
            targets = self.labels[keep]
        return keep.flatten().nonzero().flatten(), targets

    def target_tokens(self, pad: int) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, S) of the target tokens, wherever they are stored."""
        if self.labels is None:
            return self.ids, self.supervised.long()
        mask = self.labels != IGNORED
        return self.labels.masked_fill(~mask, pad), mask.long()


class FrozenBlip(nn.Module):
    """Wrap `InstructBlipForConditionalGeneration` or `Blip2ForConditionalGeneration`; every weight stays unchanged.

    A method may read, hook and wrap `model`; its ViT, with `n_patches` patches, has been removed.
    """

    def __init__(self, model: nn.Module, n_patches: int = 0) -> None:
        super().__init__()
        self.model = cast(Any, model.requires_grad_(False).eval())
        config = self.model.config
        self.reads_instructions = config.model_type == "instructblip"
        self.encoder_decoder = bool(self.language_model.config.is_encoder_decoder)
        whole = short_attention.PLAIN if self.encoder_decoder else short_attention.WHOLE
        for part, name in ((self.qformer, short_attention.PLAIN), (self.language_model, whole)):
            for module in part.modules():
                short_attention.replace_sdpa(getattr(module, "config", None), name)
        self.n_patches = n_patches
        self.n_queries = int(config.num_query_tokens)  # number of image tokens in the LM's input
        self.image_token = int(config.image_token_index or 0)  # its embedding is never used
        self.hidden_size = int(config.qformer_config.hidden_size)
        self.image_size = int(config.qformer_config.encoder_hidden_size)  # width of the ViT's states
        for layer in self.layers:
            for part in ("crossattention", "intermediate", "intermediate_query"):
                if hasattr(layer, part):
                    getattr(layer, part).register_forward_pre_hook(_in_one_piece, with_kwargs=True)
        self.bare_head = False  # whether logits are the head's unmodified output; set by `check`

    @property
    def qformer(self) -> Any:
        """The Q-Former: `embeddings` (InstructBLIP only) and `encoder.layer`."""
        return self.model.qformer

    @property
    def layers(self) -> nn.ModuleList:
        """The Q-Former's layers; those that attend to images have a `crossattention`."""
        return cast(nn.ModuleList, self.model.qformer.encoder.layer)

    @property
    def query_tokens(self) -> nn.Parameter:
        """Query tokens (1, n_queries, hidden_size)."""
        return cast(nn.Parameter, self.model.query_tokens)

    @property
    def language_projection(self) -> nn.Linear:
        """Linear map from the Q-Former's width to the LM's."""
        return cast(nn.Linear, self.model.language_projection)

    @property
    def language_model(self) -> Any:
        """The checkpoint's LM: T5, Llama or OPT."""
        return self.model.language_model

    @property
    def device(self) -> torch.device:
        """Device of the LM."""
        return self.language_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the LM's states; the Q-Former computes in float32."""
        return self.language_model.get_input_embeddings().weight.dtype

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of Q-Former, projection and LM at the first access; training may change them later."""
        return weights_fingerprint(self.model)

    def train(self, mode: bool = True) -> FrozenBlip:
        """Stay in evaluation mode; a method switches the dropout of its trained parts itself."""
        return super().train(False)

    def run_qformer(self, queries: Tensor, instruction: Instruction | None, image: Tensor) -> Tensor:
        """Return states (B, n + L, hidden_size) of n queries (1 or B, n, hidden_size) and of L instruction tokens.

        `image` are the ViT's states (B, T, image_size). L is 0 without an instruction.
        """
        rows, n = len(image), queries.shape[1]
        given: dict[str, Any] = {"query_embeds": queries.expand(rows, -1, -1), "encoder_hidden_states": image}
        if instruction is not None:
            seen = torch.cat([instruction.mask.new_ones(rows, n), instruction.mask], dim=1)
            given |= {"input_ids": instruction.ids, "attention_mask": seen}
        elif self.reads_instructions:
            given["input_ids"] = None
        return self.qformer(**given, return_dict=True).last_hidden_state

    def word_embeddings(self, ids: Tensor) -> Tensor:
        """Return the LM's embeddings (..., D) of tokens (...)."""
        return self.language_model.get_input_embeddings()(ids)

    def loss(self, queries: Tensor, tokens: LMTokens) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over the predicted tokens, and their number; `queries` (B, n_queries, d)."""
        given = self._inputs(queries, tokens)
        keep, targets = tokens.find_predicted()
        if tokens.labels is not None:
            given["decoder_input_ids"] = self.language_model.prepare_decoder_input_ids_from_labels(tokens.labels)
        head = self.language_model.get_output_embeddings()
        if self.bare_head and not head.weight.requires_grad:
            return frozen_head_loss(self._final_states(given, keep), head, targets), len(targets)
        return nn.functional.cross_entropy(self._logits(given, keep).float(), targets, reduction="sum"), len(targets)

    @torch.no_grad()
    def generate(self, queries: Tensor, tokens: LMTokens, request: GenerationRequest) -> list[list[int]]:
        """Return the new tokens of each row, up to and without the end token, by transformers' `generate`.

        The prompt is `tokens` and the image's `queries`; `decoding.max_length` counts its tokens without the image's.
        """
        given = self._inputs(queries, tokens)
        given.pop("position_ids", None)  # `generate` derives them from the mask
        text = Prompt(tokens.ids, tokens.mask & ~image_columns(tokens.mask, self.n_queries))
        settings: dict[str, Any] = {"width": 0}  # a decoder-only LM returns its new tokens, without its embedded prompt
        if self.encoder_decoder:  # its decoder's start token, too
            settings = {"width": 1, "decoder_start_token_id": self.language_model.config.decoder_start_token_id}
        rows = run_hf_generate(self.language_model, given, replace(request, prompt=text), **settings)
        return [truncate_at_eos(request.eos, row) for row in rows]

    @torch.no_grad()
    def check(self) -> None:
        """Determine whether the LM scales or caps its logits behind the head, which `loss` depends on."""
        head = self.language_model.get_output_embeddings()
        if type(head) is not nn.Linear:
            return
        ids = torch.zeros(1, self.n_queries + 2, dtype=torch.long, device=self.device)
        both = torch.arange(ids.shape[1] - 2, ids.shape[1], device=self.device)
        tokens = LMTokens(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))
        given = self._inputs(torch.ones(1, self.n_queries, self.hidden_size, device=self.device), tokens)
        if self.encoder_decoder:
            given["decoder_input_ids"] = ids
        bare = head(self._final_states(given, both))
        self.bare_head = torch.allclose(bare, self._logits(given, both), rtol=1e-3, atol=1e-3)

    def _inputs(self, queries: Tensor, tokens: LMTokens) -> dict[str, Any]:
        """Return the LM's inputs: embedded tokens with projected query outputs in place of the image tokens."""
        words = self.word_embeddings(tokens.ids)
        visual = self.language_projection(queries).to(words.dtype)
        places = image_columns(tokens.mask, self.n_queries)[..., None]
        number = (tokens.mask.cumsum(-1) - 1).clamp(0, self.n_queries - 1)[..., None]  # of an image token in its row
        spread = visual.gather(1, number.expand(-1, -1, visual.shape[-1]))
        given = {"inputs_embeds": torch.where(places, spread, words), "attention_mask": tokens.mask}
        if not self.encoder_decoder:
            given["position_ids"] = (tokens.mask.cumsum(-1) - 1).clamp_min(0)
        return given

    def _final_states(self, given: Mapping[str, Any], keep: Tensor) -> Tensor:
        """Return states (N, d) that enter the vocabulary head at the positions (N,); the head runs on no rows."""
        caught: list[Tensor] = []

        def catch(states: Tensor) -> Tensor:
            caught.append(states.index_select(0, keep))
            return states[:0]

        self._run(given, catch)
        return caught[0]

    def _logits(self, given: Mapping[str, Any], keep: Tensor) -> Tensor:
        """Return logits (N, vocab) at the positions (N,)."""
        return self._run(given, lambda states: states.index_select(0, keep))

    def _run(self, given: Mapping[str, Any], before_head: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the LM's logits after `before_head` has transformed its last states (B * T, d)."""
        head = self.language_model.get_output_embeddings()
        with head.register_forward_pre_hook(lambda _, args: (before_head(args[0].flatten(0, 1)), *args[1:])):
            logits: Tensor = self.language_model(**given, use_cache=False).logits
        return logits


def _in_one_piece(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make a layer's first positional argument contiguous.

    A frozen linear map of a view of it is one product per row, forward and backward: a sixth of PETAL's step.
    """
    first, *others = args or (kwargs.pop("hidden_states"),)
    return (first.contiguous(), *others), kwargs


def image_columns(mask: Tensor, n: int) -> Tensor:
    """Mark the first `n` tokens of each row, padding excluded: (B, T) bool."""
    return mask.bool() & (mask.cumsum(-1) <= n)

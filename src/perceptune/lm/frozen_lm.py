"""A frozen decoder-only LM of transformers with reserved slots: the only file that knows its decoder classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.lm import architectures, probe
from perceptune.lm.generation import generate
from perceptune.lm.kernels import short_attention
from perceptune.lm.kernels.linear_cross_entropy import frozen_head_loss
from perceptune.lm.layer_patching import (
    checkpointed,
    checkpointed_layer,
    identity,
    identity_in_tuple,
    replaced_forward,
)  # fmt: skip
from perceptune.lm.slot_attention import KVCallback, SplitForward
from perceptune.lm.slot_hooks import MASK, Splice, argument_names, prepend_slot_columns, replace_inputs
from perceptune.types import Decoding, Slots
from perceptune.utils.devices import move


class _ReachedLayerError(Exception):
    """Ends a forward pass early, once the states that enter a layer are known."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


class FrozenLM(nn.Module):
    """Wraps a causal LM: finds its blocks, opens slots in them, keeps every weight as it is.

    `layers` overrides the search for the blocks with a dotted path inside the model.
    Raises `UserError` if the LM cannot be spliced, listing what was tried.
    """

    def __init__(self, model: nn.Module, *, layers: str | None = None) -> None:
        super().__init__()
        self.model = cast(Any, model.requires_grad_(False).eval())
        self.config = self.model.config.get_text_config()
        self.layers_path = architectures.find_layers(model, layers)
        if self.config._attn_implementation != short_attention.NAME:  # that of a model which was wrapped before
            architectures.require_mask_attention(self.config)
        if self.config._attn_implementation == "sdpa":
            short_attention.register()
            self.config._attn_implementation = short_attention.NAME
        self.hidden_size = int(self.config.hidden_size)
        # OPT-350M embeds in 512 dimensions and projects to 1,024: a prompt at the input lives in the smaller space.
        self.prompt_size = int(getattr(self.config, "word_embed_proj_dim", self.hidden_size))
        self.gradient_checkpointing = False
        self.split_disabled: str | None = None  # why this LM runs the plain path only
        self.bare_head = False  # whether logits are the head's output as it is; found out by `check`
        self._before_the_head: list[Tensor] | None = None
        self._busy = False
        self._splice: Splice | None = None
        self._keep: Tensor | None = None  # (N,) places of the columns that the vocabulary head runs on
        self._stop_at: int | None = None
        self._blocks_give_tuples = False  # found out by the first forward
        self._argument_names: list[list[str]] = []  # of each block
        self._install_hooks()

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder blocks, first one first."""
        return cast(nn.ModuleList, self.model.get_submodule(self.layers_path))

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the states between layers (never read off a quantised weight)."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the LM lives."""
        return self.model.get_input_embeddings().weight.device

    def train(self, mode: bool = True) -> FrozenLM:
        """A frozen LM stays in evaluation mode: its dropout would only add noise to what cannot adapt."""
        return super().train(False)

    def project_prompt(self, prompt: Tensor) -> Tensor:
        """Prompt vectors (..., prompt_size) as they enter layer 0 (..., hidden_size)."""
        if self.prompt_size == self.hidden_size:
            return prompt
        return self.model.get_decoder().project_in(prompt.to(self.dtype))

    def site(self, layer: int, kind: str) -> tuple[str, nn.Module]:
        """Full name and module that ends attention (`attention`) or the feed-forward part (`mlp`) of a block."""
        path, module = architectures.require_site(self.layers[layer], kind, architectures.SITES, self._place_of(layer))
        return f"{self.layers_path}.{layer}.{path}", module

    def module_input(self, layer: int, kind: str) -> nn.Module:
        """The module that attention (`attention`) or the feed-forward part (`mlp`) of a block begins with."""
        return architectures.require_site(self.layers[layer], kind, architectures.ENTRANCES, self._place_of(layer))[1]

    def _place_of(self, layer: int) -> str:
        return f"`{self.layers_path}.{layer}` of {type(self.model).__name__}"

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights as they were when it was first asked for: training may change them later."""
        return architectures.weights_fingerprint(self.model)

    def forward(
        self,
        input_ids: Tensor,  # (B, T) left-padded text
        attention_mask: Tensor,  # (B, T) 1 = token
        slots: Sequence[Slots] = (),
        *,
        keep: Tensor | None = None,  # (B, T) bool, best on the CPU
        text_states: tuple[int, Tensor] | None = None,  # (layer, (B, T, d)) from `hidden_states_at`
        use_reference_path: bool = False,
    ) -> Tensor:
        """Logits (B, T, vocab) of the text, or (N, vocab) at the N positions marked in `keep`.

        With `text_states` the layers below are not run: their result is given. `plain` runs every column through every
        block, which is what split execution must equal.
        """
        if use_reference_path or self.split_disabled_reason(slots) is not None:
            return self._reference_forward(input_ids, attention_mask, slots, keep, text_states)
        return self.split(input_ids, attention_mask, slots, keep=keep, text_states=text_states)

    def loss(
        self, input_ids: Tensor, attention_mask: Tensor, slots: Sequence[Slots], *, keep: Tensor, targets: Tensor,
        text_states: tuple[int, Tensor] | None = None, use_reference_path: bool = False,
    ) -> Tensor:  # fmt: skip
        """Cross-entropy summed over the N positions marked in `keep` (B, T); `targets` (N,) in the same order."""
        given: dict[str, Any] = {"keep": keep, "text_states": text_states, "use_reference_path": use_reference_path}
        head = self.model.get_output_embeddings()
        if not self.bare_head or head.weight.requires_grad:
            logits = self(input_ids, attention_mask, slots, **given)
            return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        return frozen_head_loss(self.final_hidden_states(input_ids, attention_mask, slots, **given), head, targets)

    def final_hidden_states(self, *args: Any, **kwargs: Any) -> Tensor:
        """(N, d) at the kept positions, as the vocabulary head would take them."""
        self._before_the_head = []
        try:
            self(*args, **kwargs)
            return self._before_the_head[0]
        finally:
            self._before_the_head = None

    def split_disabled_reason(self, slots: Sequence[Slots]) -> str | None:
        """Why these slots cannot be run as keys and values; None if they can."""
        if any(slot.sees_text for slot in slots):
            return "slots that see the text (slot_mask: official) change with it"
        return self.split_disabled

    def split(
        self, input_ids: Tensor, attention_mask: Tensor, slots: Sequence[Slots], *, keep: Tensor | None = None,
        text_states: tuple[int, Tensor] | None = None, record: KVCallback | None = None, last_only: bool = False,
    ) -> Tensor:  # fmt: skip
        """`forward` by split execution. `record` is told what the text attends to in each layer.

        With `last_only` the logits (B, vocab) are those of the last position.
        """
        split = SplitForward(slots, self.n_layers, tuples=self._blocks_give_tuples)
        split.text_states, split.on_kv = text_states, record
        if last_only:
            keep = torch.zeros(attention_mask.shape, dtype=torch.bool)
            keep[:, -1] = True
        if keep is not None:
            marked = keep.any(0).nonzero().flatten().tolist() or [0]
            split.query_range = (marked[0], end := marked[-1] + 1)
            # Nothing that is kept sees what comes after it: a text's last token is predicted, it predicts nothing.
            input_ids, attention_mask, keep = input_ids[:, :end], attention_mask[:, :end], keep[:, :end]
            if text_states is not None:
                split.text_states = (text_states[0], text_states[1][:, :end])
        ids, mask, positions = prepend_slot_columns(input_ids, attention_mask, split.width)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.hooks_active(None, _places(keep, split.width, ids.device)))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                split.around = partial(checkpointed_layer, split.groups)  # type: ignore[method-assign]
            for index, layer in enumerate(self.layers):
                replace = partial(split.block, index, self._argument_names[index])
                stack.enter_context(replaced_forward([layer], replace))
            logits: Tensor = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=split.past, use_cache=True
            ).logits
        return logits if keep is not None else logits[:, split.width :]

    def _reference_forward(
        self, input_ids: Tensor, attention_mask: Tensor, slots: Sequence[Slots], keep: Tensor | None,
        text_states: tuple[int, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        splice = Splice(slots, attention_mask)
        splice.text_states = text_states
        ids, mask, positions = prepend_slot_columns(input_ids, attention_mask, splice.width)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.hooks_active(splice, _places(keep, splice.width, ids.device)))
            first = 0
            if text_states is not None:
                first = text_states[0]
                passing = identity_in_tuple if self._blocks_give_tuples else identity
                stack.enter_context(replaced_forward(self.layers[:first], lambda _: passing))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(replaced_forward(self.layers[first:], checkpointed))
            logits: Tensor = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits
        return logits if keep is not None else logits[:, splice.width :]

    @torch.no_grad()
    def hidden_states_at(
        self, layer: int, input_ids: Tensor, attention_mask: Tensor, slots: Sequence[Slots] = (), *,
        record: KVCallback | None = None,
    ) -> Tensor:  # fmt: skip
        """States (B, T, d) of the text as they enter `layer`; the layers from there on are not run.

        With `record` by split execution, without it as `forward` runs.
        """
        self._stop_at = layer
        try:
            run = self if record is None else partial(self.split, record=record)
            run(input_ids, attention_mask, slots)
        except _ReachedLayerError as reached:
            return reached.states[:, -input_ids.shape[1] :]  # the plain path's have the slots before them
        finally:
            self._stop_at = None
        raise RuntimeError(f"layer {layer} was never reached")

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,  # (B, T) left-padded
        attention_mask: Tensor,
        slots: Sequence[Slots],
        decoding: Decoding,
        *,
        eos: int,
        pad: int,
        seeds: Sequence[int] | None = None,
        watch: generate.StreamCallback | None = None,
    ) -> list[list[int]]:
        """New tokens of each row, up to and without the end token. `seeds`, one a row, default to `decoding.seed`."""
        return generate.generate(
            self, input_ids, attention_mask, slots, decoding, eos=eos, pad=pad, seeds=seeds, watch=watch
        )

    def check(self) -> None:
        """Tries the LM out (see `trial`). Raises `UserError` for one that cannot be spliced."""
        probe.check(self)

    @contextlib.contextmanager
    def hooks_active(self, splice: Splice | None, keep: Tensor | None) -> Iterator[None]:
        if self._busy:
            raise RuntimeError("a FrozenLM runs one forward at a time: its slots belong to that call")
        self._splice, self._keep, self._busy = splice, keep, True
        try:
            yield
        finally:
            self._splice, self._keep, self._busy = None, None, False

    def _install_hooks(self) -> None:
        self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        head = self.model.get_output_embeddings()
        if head is None:
            raise UserError(f"{type(self.model).__name__} cannot be spliced: it has no vocabulary head")
        head.register_forward_pre_hook(self._before_head)
        self.layers[0].register_forward_hook(self._after_first_layer)
        for index, layer in enumerate(self.layers):
            names = argument_names(layer)
            if MASK not in names:
                raise UserError(
                    f"{type(self.model).__name__} cannot be spliced: "
                    f"`{self.layers_path}.{index}` takes no attention mask"
                )
            self._argument_names.append(names)
            layer.register_forward_pre_hook(self._layer_hook(index, names.index(MASK)), with_kwargs=True)

    def _layer_hook(self, index: int, position: int) -> Callable[..., Any]:
        def before_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._stop_at == index:
                raise _ReachedLayerError(args[0] if args else kwargs["hidden_states"])
            if self._splice is None:
                return None
            return replace_inputs(self._splice, index, position, args, kwargs)

        return before_layer

    def _after_first_layer(self, _: nn.Module, __: Any, output: Any) -> None:
        self._blocks_give_tuples = isinstance(output, tuple)  # GPT-J's do, Llama's do not

    def _before_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._splice is not None:
            past = kwargs.get("past_key_values")
            self._splice.start(0 if past is None else int(past.get_seq_length()))

    def _before_head(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        """The vocabulary head runs on the kept positions only, as one 2-D product."""
        if self._keep is None:
            return None
        kept = args[0].flatten(0, 1).index_select(0, self._keep)
        if self._before_the_head is not None:  # the head runs on nothing: what would enter it is wanted
            self._before_the_head.append(kept)
            kept = kept[:0]
        return (kept, *args[1:])


def _places(keep: Tensor | None, width: int, device: torch.device) -> Tensor | None:
    """Where the columns marked in `keep` (B, T) are (N,), row after row, once `width` columns stand before the text."""
    if keep is None:
        return None
    rows, columns = keep.nonzero(as_tuple=True)
    return move(rows * (width + keep.shape[1]) + width + columns, device)

"""A frozen decoder-only LM of transformers with reserved slots: the only file that knows its decoder classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.errors import UserError
from perceptune.lm import architectures, layer_patching
from perceptune.lm.architectures import Capabilities
from perceptune.lm.kernels import short_attention
from perceptune.lm.kernels.linear_cross_entropy import frozen_head_loss
from perceptune.lm.prefix_cache import KVPair
from perceptune.lm.slot_hooks import MASK, InText, Splice, argument_names, replace_inputs, slots_in_text
from perceptune.lm.split_execution import HIDDEN, KnownSlots, SplitForward
from perceptune.types import Slots
from perceptune.utils.tensors import move, places_of_kept, prepend_slot_columns

LayerStates = tuple[int, Tensor]  # a layer, and its input states (B, T, d) of texts


class FrozenLM(nn.Module):
    """Wrap a causal LM: find its blocks, open slots in them and leave every weight unchanged.

    `layers` overrides the search for the blocks with a dotted path inside the model.
    Raises `UserError` listing what was tried if the LM cannot have slots.
    """

    def __init__(self, model: nn.Module, *, layers: str | None = None) -> None:
        super().__init__()
        self.model = cast(Any, model.requires_grad_(False).eval())
        self.config = self.model.config.get_text_config()
        self.layers_path = architectures.find_layers(model, layers)
        if self.config._attn_implementation != short_attention.NAME:  # set already if the model was wrapped before
            architectures.require_mask_attention(self.config)
        short_attention.replace_sdpa(self.config, short_attention.NAME)
        self.hidden_size = int(self.config.hidden_size)
        # OPT-350M embeds in 512 dimensions and projects to 1,024: a prompt at the input is 512 wide.
        self.prompt_size = int(getattr(self.config, "word_embed_proj_dim", self.hidden_size))
        self.gradient_checkpointing = False
        self.capabilities = Capabilities()  # until `probe` has run
        self._busy = False
        self._splice: Splice | None = None
        self._in_text: InText | None = None
        self._keep: Tensor | None = None  # (N,) indices of the columns that the vocabulary head runs on
        self._stop_at: int | None = None
        self._blocks_give_tuples = False  # determined by the first forward
        self._argument_names: list[list[str]] = []  # per block
        self._install_hooks()

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return cast(nn.ModuleList, self.model.get_submodule(self.layers_path))

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the states between layers (never that of a quantised weight)."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the LM."""
        return self.model.get_input_embeddings().weight.device

    def train(self, mode: bool = True) -> FrozenLM:
        """Stay in evaluation mode: dropout would only add noise to a frozen LM."""
        return super().train(False)

    def project_prompt(self, prompt: Tensor) -> Tensor:
        """Project prompt vectors (..., prompt_size) to the input of layer 0 (..., hidden_size)."""
        if self.prompt_size == self.hidden_size:
            return prompt
        return self.model.get_decoder().project_in(prompt.to(self.dtype))

    def site(self, layer: int, kind: str) -> tuple[str, nn.Module]:
        """Return name and module at the end of a block's attention (`attention`) or feed-forward part (`mlp`)."""
        path, module = architectures.require_site(self.layers[layer], kind, architectures.SITES, self._place_of(layer))
        return f"{self.layers_path}.{layer}.{path}", module

    def module_input(self, layer: int, kind: str) -> nn.Module:
        """Return the first module of a block's attention (`attention`) or feed-forward part (`mlp`)."""
        return architectures.require_site(self.layers[layer], kind, architectures.ENTRANCES, self._place_of(layer))[1]

    def _place_of(self, layer: int) -> str:
        return f"`{self.layers_path}.{layer}` of {type(self.model).__name__}"

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the weights at the first access; training may change them later."""
        return architectures.weights_fingerprint(self.model)

    def forward(
        self,
        input_ids: Tensor,  # (B, T) left-padded text
        attention_mask: Tensor,  # (B, T) 1 = token
        slots: Sequence[Slots] = (),
        *,
        keep: Tensor | None = None,  # (B, T) bool, preferably on the CPU
        text_states: LayerStates | None = None,  # from `hidden_states_at`
        use_reference_path: bool = False,
    ) -> Tensor:
        """Return logits (B, T, vocab) of the text, or (N, vocab) at the N positions marked in `keep`.

        With `text_states` the layers below are skipped: their result is given. `use_reference_path` runs every column
        through every block: the reference that split execution must equal.
        """
        return self._run(
            self._logits, input_ids, attention_mask, slots, keep, text_states, use_reference_path=use_reference_path
        )

    def loss(
        self, input_ids: Tensor, attention_mask: Tensor, slots: Sequence[Slots], *, keep: Tensor, targets: Tensor,
        weights: Tensor | None = None, text_states: Callable[[Tensor, Tensor], LayerStates] | None = None,
        use_reference_path: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return the cross-entropy summed over the N positions marked in `keep` (B, T); `targets` (N,) in their order.

        `weights` (N,) on the LM's device multiply the losses. Ids, mask and targets are moved there; `text_states`
        looks states up by ids and mask as they are given.
        """
        device, head = self.device, self.model.get_output_embeddings()
        states = None if text_states is None else text_states(input_ids, attention_mask)
        is_bare = self.capabilities.has_bare_head and not head.weight.requires_grad
        out = self._run(
            self._final_states if is_bare else self._logits, move(input_ids, device), move(attention_mask, device),
            slots, keep, states, use_reference_path=use_reference_path,
        )  # fmt: skip
        if is_bare:
            return frozen_head_loss(out, head, move(targets, device), weights)
        how = "sum" if weights is None else "none"
        losses = nn.functional.cross_entropy(out.float(), move(targets, device), reduction=how)
        return losses if weights is None else losses @ weights

    def final_hidden_states(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the vocabulary head's inputs (N, d) at the kept positions; arguments as in `forward`."""
        return self._run(self._final_states, *args, **kwargs)

    def why_reference_path(self, slots: Sequence[Slots]) -> str | None:
        """Return why these slots need the reference path instead of split execution; None if they do not."""
        if any(slot.sees_text for slot in slots):
            return "slots that see the text (slot_mask: official) change with it"
        return self.capabilities.split_disabled_reason

    def _run(
        self, read: Callable[..., Tensor], ids: Tensor, mask: Tensor, slots: Sequence[Slots] = (),
        keep: Tensor | None = None, text_states: LayerStates | None = None, *, use_reference_path: bool = False,
    ) -> Tensor:  # fmt: skip
        is_split = not use_reference_path and self.why_reference_path(slots) is None
        run = self._split_forward if is_split else self._reference_forward
        return run(read, ids, mask, slots, keep, text_states)

    def _final_states(self, **inputs: Any) -> Tensor:
        """Return the states that enter the vocabulary head, (N, d) at the kept columns."""
        states: Tensor = self.model.base_model(**inputs).last_hidden_state
        return states if self._keep is None else states.flatten(0, 1).index_select(0, self._keep)

    def _logits(self, **inputs: Any) -> Tensor:
        return cast(Tensor, self.model(**inputs).logits)

    def prefill(
        self, input_ids: Tensor, attention_mask: Tensor, slots: Sequence[Slots], *,
        text_states: LayerStates | None = None, known: KnownSlots | None = None,
    ) -> tuple[Tensor, list[list[KVPair]]]:  # fmt: skip
        """Return the logits (B, vocab) of the next token, and the keys and values the text attends to per layer."""
        last = torch.zeros(attention_mask.shape, dtype=torch.bool)
        last[:, -1] = True
        kv: list[list[KVPair]] = []
        out = self._split_forward(self._logits, input_ids, attention_mask, slots, last, text_states, kv, known)
        return out, kv

    def _split_forward(
        self, read: Callable[..., Tensor], ids: Tensor, mask: Tensor, slots: Sequence[Slots], keep: Tensor | None,
        text_states: LayerStates | None, kv: list[list[KVPair]] | None = None, known: KnownSlots | None = None,
    ) -> Tensor:  # fmt: skip
        split = SplitForward(slots, self.n_layers, tuples=self._blocks_give_tuples)
        split.text_states, split.kv, split.known = text_states, kv, known
        if keep is not None:
            marked = keep.any(0).nonzero().flatten().tolist() or [0]
            split.query_range = (marked[0], end := marked[-1] + 1)
            # A text's last token is predicted but predicts nothing, and the kept columns do not attend to it.
            ids, mask, keep = ids[:, :end], mask[:, :end], keep[:, :end]
            if text_states is not None:
                split.text_states = (text_states[0], text_states[1][:, :end])
        in_text = slots_in_text(ids, slots, split.width)
        ids, mask, positions = prepend_slot_columns(ids, mask, split.width)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.hooks_active(None, places_of_kept(keep, split.width, ids.device), in_text))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                split.around = partial(layer_patching.checkpointed_layer, split.groups)  # type: ignore[method-assign]
            for index, layer in enumerate(self.layers):
                replace = partial(split.block, index, self._argument_names[index])
                stack.enter_context(layer_patching.replaced_forward([layer], replace))
            out = read(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=split.past, use_cache=True
            )
        return out if keep is not None else out[:, split.width :]

    def _reference_forward(
        self, read: Callable[..., Tensor], ids: Tensor, mask: Tensor, slots: Sequence[Slots], keep: Tensor | None,
        text_states: LayerStates | None,
    ) -> Tensor:  # fmt: skip
        splice = Splice(slots, mask)
        splice.text_states = text_states
        in_text = slots_in_text(ids, slots, splice.width)
        ids, mask, positions = prepend_slot_columns(ids, mask, splice.width)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.hooks_active(splice, places_of_kept(keep, splice.width, ids.device), in_text))
            stack.enter_context(self.layers_skipped(text_states))
            first = 0 if text_states is None else text_states[0]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(layer_patching.replaced_forward(self.layers[first:], layer_patching.checkpointed))
            out = read(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return out if keep is not None else out[:, splice.width :]

    @torch.no_grad()
    def hidden_states_at(
        self, layer: int, input_ids: Tensor, attention_mask: Tensor, slots: Sequence[Slots] = (), *,
        kv: list[list[KVPair]] | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the text's states (B, T, d) at the input of `layer`; that layer and those above are not run.

        With a list `kv`, use split execution and append what the text attends to in each layer below.
        """
        given = (input_ids, attention_mask, slots)
        split = partial(self._split_forward, self._logits, *given, None, None, kv)
        run: Callable[[], Any] = split if kv is not None else partial(self, *given)
        return self.states_reached(layer, run)[:, -input_ids.shape[1] :]  # on the reference path the slots come first

    def states_reached(self, layer: int, run: Callable[[], Any]) -> Tensor:
        """Return the input of `layer` in a forward pass, which ends there."""
        self._stop_at = layer
        try:
            run()
        except layer_patching.ReachedLayerError as reached:
            return reached.states
        finally:
            self._stop_at = None
        raise RuntimeError(f"layer {layer} was never reached")

    @contextlib.contextmanager
    def layers_skipped(self, text_states: LayerStates | None) -> Iterator[None]:
        """Pass states unchanged through the layers below those given, whose results they are."""
        passing = layer_patching.identity_in_tuple if self._blocks_give_tuples else layer_patching.identity
        with layer_patching.replaced_forward(self.layers[: text_states[0]] if text_states else (), lambda _: passing):
            yield

    @contextlib.contextmanager
    def hooks_active(self, splice: Splice | None, keep: Tensor | None, in_text: InText | None = None) -> Iterator[None]:
        if self._busy:
            raise RuntimeError("a FrozenLM runs one forward at a time: its slots belong to that call")
        self._splice, self._keep, self._in_text, self._busy = splice, keep, in_text, True
        try:
            yield
        finally:
            self._splice, self._keep, self._in_text, self._busy = None, None, None, False

    def _install_hooks(self) -> None:
        self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        head = self.model.get_output_embeddings()
        if head is None:
            raise UserError(f"{type(self.model).__name__} cannot be spliced: it has no vocabulary head")
        head.register_forward_pre_hook(self._before_head)
        self.model.get_input_embeddings().register_forward_hook(self._after_embedding)
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
                raise layer_patching.ReachedLayerError(args[0] if args else kwargs["hidden_states"])
            if index == 0 and self._in_text is not None:
                hidden = self._in_text.add(args[0] if args else kwargs[HIDDEN])
                args, kwargs = ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, HIDDEN: hidden})
            if self._splice is None:
                return args, kwargs
            return replace_inputs(self._splice, index, position, args, kwargs)

        return before_layer

    def _after_embedding(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output if self._in_text is None else self._in_text.clear(output)

    def _after_first_layer(self, _: nn.Module, __: Any, output: Any) -> None:
        self._blocks_give_tuples = isinstance(output, tuple)  # GPT-J's do, Llama's do not

    def _before_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._splice is not None:
            past = kwargs.get("past_key_values")
            cached = 0 if past is None else int(past.get_seq_length())
            self._splice.start(cached)
            if self._in_text is not None and self._in_text.past != cached:
                self._in_text = None

    def _before_head(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        """Reduce the vocabulary head's input to the kept positions, as one 2-D product."""
        if self._keep is None:
            return None
        return (args[0].flatten(0, 1).index_select(0, self._keep), *args[1:])

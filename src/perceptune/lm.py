"""A frozen decoder-only LM of transformers with reserved slots: the only file that knows its decoder classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceptune.blocks import attention_kernel, checkpointed, identity, identity_in_tuple, replaced_forward
from perceptune.errors import UserError
from perceptune.splice import Splice, mask_position, replace_inputs
from perceptune.types import Slots

# Where decoder LMs of transformers keep their blocks, most common first.
LAYER_PATHS = (
    "model.layers",  # Llama, SmolLM, Qwen, Gemma, Mistral, Phi
    "model.decoder.layers",  # OPT
    "transformer.h",  # GPT-2, GPT-J
    "gpt_neox.layers",  # GPT-NeoX, Pythia
    "model.language_model.layers",  # the text part of multimodal checkpoints
)
# Inside a block: the linear map that ends attention and the one that ends the feed-forward part, before the residual.
SITES = {
    "attention": ("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj",
                  "attention.dense", "self_attention.dense"),
    "mlp": ("mlp.down_proj", "fc2", "mlp.c_proj", "mlp.fc2", "mlp.fc_out", "mlp.dense_4h_to_h"),
}  # fmt: skip


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. One beam without sampling is greedy."""

    max_new_tokens: int = 20
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    length_penalty: float = 1.0


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
        self.layers_path = _find_layers(model, layers)
        _require_mask_attention(self.config)
        self.hidden_size = int(self.config.hidden_size)
        # OPT-350M embeds in 512 dimensions and projects to 1,024: a prompt at the input lives in the smaller space.
        self.prompt_size = int(getattr(self.config, "word_embed_proj_dim", self.hidden_size))
        self.gradient_checkpointing = False
        self._splice: Splice | None = None
        self._keep: Tensor | None = None
        self._stop_at: int | None = None
        self._blocks_give_tuples = False  # found out by the first forward
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
        for path in SITES[kind]:
            with contextlib.suppress(AttributeError):
                return f"{self.layers_path}.{layer}.{path}", self.layers[layer].get_submodule(path)
        tried = ", ".join(f"`{path}`" for path in SITES[kind])
        raise UserError(
            f"no {kind} output found in `{self.layers_path}.{layer}` of {type(self.model).__name__}: tried {tried}"
        )

    def forward(
        self,
        input_ids: Tensor,  # (B, T) left-padded text
        attention_mask: Tensor,  # (B, T) 1 = token
        slots: Sequence[Slots] = (),
        *,
        keep: Tensor | None = None,  # (B, T) bool
        text_states: tuple[int, Tensor] | None = None,  # (layer, (B, T, d)) from `states_at`
    ) -> Tensor:
        """Logits (B, T, vocab) of the text, or (N, vocab) at the N positions marked in `keep`.

        With `text_states` the layers below are not run: their result is given.
        """
        splice = Splice(slots, attention_mask)
        splice.text_states = text_states
        ids, mask, positions = _with_slots(input_ids, attention_mask, splice.width)
        with contextlib.ExitStack() as stack:
            stack.enter_context(attention_kernel(self.device, self.dtype, ids.shape[1]))
            stack.enter_context(self._using(splice, _with_slots_before(keep, splice.width)))
            if text_states is not None:
                passing = identity_in_tuple if self._blocks_give_tuples else identity
                stack.enter_context(replaced_forward(self.layers[: text_states[0]], lambda _: passing))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                first = text_states[0] if text_states is not None else 0
                kernel = partial(attention_kernel, self.device, self.dtype, ids.shape[1])
                stack.enter_context(replaced_forward(self.layers[first:], partial(checkpointed, kernel)))
            logits: Tensor = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits
        return logits if keep is not None else logits[:, splice.width :]

    @torch.no_grad()
    def states_at(self, layer: int, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States (B, T, d) of bare text as they enter `layer`; the layers from there on are not run."""
        _, _, positions = _with_slots(input_ids, attention_mask, 0)
        self._stop_at = layer
        try:
            self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        except _ReachedLayerError as reached:
            return reached.states
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
    ) -> list[list[int]]:
        """New tokens of each row, up to and without the end token."""
        from transformers import DynamicCache, GenerationConfig

        beams = decoding.beams
        splice = Splice([_repeated(slot, beams) for slot in slots], attention_mask.repeat_interleave(beams, 0))
        ids, mask, _ = _with_slots(input_ids, attention_mask, splice.width)
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.sample else {}
        search = {"length_penalty": decoding.length_penalty} if beams > 1 else {}
        config = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens, num_beams=beams, do_sample=decoding.sample,
            eos_token_id=eos, pad_token_id=pad, use_cache=not splice.sees_text, **sampling, **search,
        )  # fmt: skip
        # An unwindowed cache: a sliding-window cache would drop the slots, which are exempt from the window.
        cache = {} if splice.sees_text else {"past_key_values": DynamicCache()}
        with self._using(splice, None):
            sequences = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **cache)
        return [_until(row, eos) for row in sequences[:, ids.shape[1] :].tolist()]

    @torch.no_grad()
    def check(self) -> None:
        """One forward of two tokens with a slot: an LM that cannot be spliced is found out before any work."""
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        states = torch.zeros(1, 1, self.hidden_size, device=self.device)
        slot = Slots("check", self.n_layers - 1, {self.n_layers - 1: states}, torch.ones(1, dtype=torch.bool))
        try:
            self(ids, torch.ones_like(ids), [slot])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"{type(self.model).__name__} cannot be spliced: {error}") from error

    @contextlib.contextmanager
    def _using(self, splice: Splice, keep: Tensor | None) -> Iterator[None]:
        if self._splice is not None:
            raise RuntimeError("a FrozenLM runs one forward at a time: its slots belong to that call")
        self._splice, self._keep = splice, keep
        try:
            yield
        finally:
            self._splice = self._keep = None

    def _install_hooks(self) -> None:
        self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        head = self.model.get_output_embeddings()
        if head is None:
            raise UserError(f"{type(self.model).__name__} cannot be spliced: it has no vocabulary head")
        head.register_forward_pre_hook(self._before_head)
        self.layers[0].register_forward_hook(self._after_first_layer)
        for index, layer in enumerate(self.layers):
            position = mask_position(layer)
            if position is None:
                raise UserError(
                    f"{type(self.model).__name__} cannot be spliced: "
                    f"`{self.layers_path}.{index}` takes no attention mask"
                )
            layer.register_forward_pre_hook(self._layer_hook(index, position), with_kwargs=True)

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
        return None if self._keep is None else (args[0][self._keep], *args[1:])


def _find_layers(model: nn.Module, override: str | None) -> str:
    paths = (override,) if override else LAYER_PATHS
    for path in paths:
        with contextlib.suppress(AttributeError):
            found = model.get_submodule(path)
            if isinstance(found, nn.ModuleList) and len(found) > 0:
                return path
    lists = [f"`{name}`" for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    raise UserError(
        f"no decoder layers found in {type(model).__name__}: tried {', '.join(f'`{p}`' for p in paths)}; "
        f"set `lm.layers` to one of its module lists: {', '.join(lists) or 'it has none'}"
    )


def _require_mask_attention(config: Any) -> None:
    """Slots are opened in a 4-D mask, which only sdpa and eager attention read."""
    attention = getattr(config, "_attn_implementation", "eager")
    if attention not in ("sdpa", "eager", None):
        raise UserError(f"attention `{attention}` cannot be spliced; load the LM with `sdpa` or `eager`")


def _with_slots(ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and position ids with `width` hidden columns in front; the text's positions do not move."""
    batch = ids.shape[0]
    ids = torch.cat([ids.new_zeros(batch, width), ids], dim=1)
    mask = torch.cat([mask.new_zeros(batch, width), mask], dim=1)
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return ids, mask, positions


def _with_slots_before(keep: Tensor | None, width: int) -> Tensor | None:
    return None if keep is None else torch.cat([keep.new_zeros(keep.shape[0], width), keep], dim=1)


def _repeated(slot: Slots, times: int) -> Slots:
    states = {layer: tensor.repeat_interleave(times, 0) for layer, tensor in slot.states.items()}
    return replace(slot, states=states, present=slot.present.repeat_interleave(times, 0))


def _until(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos)] if eos in tokens else tokens

"""AdamW over a method's parameters: rates by group and step, clipping, moments by name."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from perceptune.config.schema import TrainConfig
from perceptune.errors import UserError
from perceptune.methods.base import TrainableMethod
from perceptune.models.base import AdaptedModel
from perceptune.models.text_format import Batch

AUXILIARY, VALUE = "auxiliary", "value"


class MethodOptimizer:
    """The optimizer of a training of so many steps."""

    def __init__(self, method: TrainableMethod, config: TrainConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        groups = [
            {**group, "named": [(name, p) for name, p in group["named"] if p.requires_grad]}
            for group in method.param_groups()
        ]
        self.groups = [group for group in groups if group["named"]]
        self._own = [p for p in method.parameters() if p.requires_grad]
        self.auxiliary: dict[str, nn.Parameter] = {}  # of what is trained beside the method
        if (beside := method.auxiliary_group()) is not None:
            self.auxiliary = {f"{AUXILIARY}.{name}": p for name, p in beside[0].named_parameters()}
            self.groups.append({"name": AUXILIARY, "named": list(self.auxiliary.items()), "lr": beside[1]})
        self.parameters = [*self._own, *self.auxiliary.values()]
        self.adam = torch.optim.AdamW(
            [{"params": [p for _, p in group["named"]], "name": group["name"]} for group in self.groups],
            lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay,
            fused=True,
        )  # fmt: skip

    def set_lr(self, step: int) -> dict[str, float]:
        """The rate of each group at a step (from 0), set and returned."""
        rates = {
            group["name"]: group.get("lr") or learning_rate(self.config, group["name"], step, self.steps)
            for group in self.groups
        }
        for group in self.adam.param_groups:
            group["lr"] = rates[group["name"]]
        return rates

    def scale_grads(self, tokens: float) -> None:
        """Turns gradients of a sum into those of a mean."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= tokens

    def clip(self) -> Tensor | float:
        """Clips the method's gradient as the recipe says; returns its norm before, which a GPU may not know yet."""
        given = [p for p in self._own if p.grad is not None]
        limit = math.inf if self.config.clip is None else self.config.clip
        return torch.nn.utils.clip_grad_norm_(given, limit) if given else 0.0

    def step(self) -> None:
        """One step; the gradients are gone after it."""
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments by parameter name, and what is trained beside the method itself, as plain tensors."""
        tensors = {f"{VALUE}/{name}": p.detach().contiguous().cpu() for name, p in self.auxiliary.items()}
        for group in self.groups:
            for name, parameter in group["named"]:
                for key, value in self.adam.state.get(parameter, {}).items():
                    tensors[f"{key}/{name}"] = value.detach().contiguous().cpu()
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        named = {name: parameter for group in self.groups for name, parameter in group["named"]}
        for full, value in tensors.items():
            key, _, name = full.partition("/")
            if name:  # older checkpoints hold a random state, too
                parameter = named[name]
                if key == VALUE:
                    parameter.data.copy_(value)
                    continue
                # The fused optimizer wants its step counts on the parameter's device, too.
                self.adam.state[parameter][key] = value.to(parameter.device)


def add_gradients(
    model: AdaptedModel, batches: Sequence[Batch | None], dummy_batch: Batch | None = None
) -> tuple[list[Tensor], int, int]:
    """Add up gradients of the loss sum; return each batch's loss with the number of tokens and samples.

    Losses stay on their device: reading one waits for it. Where a batch is missing, `dummy_batch` is gone through
    without effect.
    """
    losses: list[Tensor] = []
    tokens, samples = 0, 0
    model.set_dropout(on=True)
    try:
        for batch in batches:
            if batch is not None:
                loss, n = model.loss(batch)
                if loss.requires_grad:  # rows without media may leave nothing to learn
                    loss.backward()
                losses.append(loss.detach())
                tokens, samples = tokens + n, samples + batch.n_samples
            elif dummy_batch is not None:
                (0 * model.loss(dummy_batch)[0]).backward()
    finally:  # the caller may catch an error and go on with the model
        model.set_dropout(on=False)
    return losses, tokens, samples


def require_finite(loss: float, norm: float, step: int, saved: Callable[[], str]) -> None:
    """Raise `UserError` before a loss or a gradient norm that is not finite can spoil the weights.

    `saved` says what a new start can begin from.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
        raise UserError(
            f"the {what} at step {step}: training stopped before the update. {saved()} "
            "Lower `train.lr`, set `train.clip: 1.0`, or use `train.precision: float32`"
        )


def learning_rate(config: TrainConfig, group: str, step: int, steps: int) -> float:
    """Rate of a parameter group at a step (from 0): warm-up, then cosine, linear or constant.

    The paper's code keeps the rate constant inside an epoch; here the cosine falls at each step.
    """
    if group == "prompt":
        peak, schedule = config.prompt_lr, config.prompt_schedule
    else:
        peak, schedule = config.lr, config.schedule
    warmup = min(config.warmup_steps, steps // 2)  # a short run must not spend itself on warming up
    if schedule != "constant" and step < warmup:
        start = peak / 2 if config.warmup_lr is None else config.warmup_lr * peak / config.lr
        return start + (peak - start) * step / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    low = min(config.min_lr, peak)
    if schedule == "cosine":
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "linear":
        return low + (peak - low) * (1 - done)
    return peak

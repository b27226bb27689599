"""AdamW over a method's parameters: learning rates by group and step, clipping, averaging, moments by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from perceptune.config.training import TrainConfig
from perceptune.errors import UserError
from perceptune.methods.base import TrainableMethod
from perceptune.models.base import AdaptedModel
from perceptune.models.text_format import Batch
from perceptune.training.averaging import WeightAverage

AUXILIARY, VALUE, AVERAGE = "auxiliary", "value", "average"


class MethodOptimizer:
    """The optimizer of a training with a fixed number of steps."""

    def __init__(self, method: TrainableMethod, config: TrainConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        groups = [
            {**group, "named": [(name, p) for name, p in group["named"] if p.requires_grad]}
            for group in method.param_groups()
        ]
        self.groups = [group for group in groups if group["named"]]
        self._own = [p for p in method.parameters() if p.requires_grad]
        own = {name: p for group in self.groups for name, p in group["named"]}
        self.average = None if config.ema is None else WeightAverage(own, config.ema)
        self.auxiliary: dict[str, nn.Parameter] = {}  # parameters trained beside the method
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
        """Set each group's learning rate for a step (from 0) and return the rates."""
        rates = {
            group["name"]: group.get("lr") or learning_rate(self.config, group["name"], step, self.steps)
            for group in self.groups
        }
        for group in self.adam.param_groups:
            group["lr"] = rates[group["name"]]
        return rates

    def scale_grads(self, tokens: float) -> None:
        """Divide gradients of a sum by the number of tokens, to those of a mean."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= tokens

    def clip(self) -> Tensor | float:
        """Apply gradient clipping as configured; return the norm before, which may still be pending on a GPU."""
        given = [p for p in self._own if p.grad is not None]
        limit = math.inf if self.config.clip is None else self.config.clip
        return torch.nn.utils.clip_grad_norm_(given, limit) if given else 0.0

    def step(self, number: int) -> None:
        """Take optimizer step `number` (from 0) and reset the gradients."""
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(number)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a block in which the parameters are those that the run answers with: averaged, if configured."""
        return nullcontext() if self.average is None else self.average.applied()

    def reset(self) -> None:
        """Forget all steps, as before the first one."""
        self.adam.state.clear()
        self.adam.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return Adam's moments and the averages by parameter name, and the auxiliary parameters, as plain tensors."""
        tensors = {f"{VALUE}/{name}": p.detach().contiguous().cpu() for name, p in self.auxiliary.items()}
        if self.average is not None:
            tensors |= {f"{AVERAGE}/{name}": value.cpu() for name, value in self.average.state_dict().items()}
        for group in self.groups:
            for name, parameter in group["named"]:
                for key, value in self.adam.state.get(parameter, {}).items():
                    tensors[f"{key}/{name}"] = value.detach().contiguous().cpu()
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        named = {name: parameter for group in self.groups for name, parameter in group["named"]}
        averages: dict[str, Tensor] = {}
        for full, value in tensors.items():
            key, _, name = full.partition("/")
            if key == AVERAGE:
                averages[name] = value
            elif name:  # older checkpoints contain a random state, too
                parameter = named[name]
                if key == VALUE:
                    parameter.data.copy_(value)
                    continue
                # The fused optimizer requires its step counts on the parameter's device, too.
                self.adam.state[parameter][key] = value.to(parameter.device)
        if self.average is not None:
            self.average.load_state_dict(averages)


def add_gradients(
    model: AdaptedModel, batches: Sequence[Batch | None], dummy_batch: Batch | None = None, *,
    scale: float = 1.0, dropout: bool = True,
) -> tuple[list[Tensor], int, int]:  # fmt: skip
    """Add up gradients of the loss sum times `scale`; return each batch's loss with the number of tokens and samples.

    Losses stay on their device: reading one synchronises. A missing batch is replaced by `dummy_batch`, which has no
    effect on the gradients.
    """
    losses: list[Tensor] = []
    tokens, samples = 0, 0
    model.set_dropout(on=dropout)
    try:
        for batch in batches:
            if batch is not None:
                loss, n = model.loss(batch)
                loss = loss if scale == 1 else scale * loss
                if loss.requires_grad:  # without media no parameter may be involved
                    loss.backward()
                losses.append(loss.detach())
                tokens, samples = tokens + n, samples + batch.n_samples
            elif dummy_batch is not None:
                (0 * model.loss(dummy_batch)[0]).backward()
    finally:  # the caller may catch an error and continue to use the model
        model.set_dropout(on=False)
    return losses, tokens, samples


def require_finite(loss: float, norm: float, step: int, saved: Callable[[], str]) -> None:
    """Raise `UserError` before a loss or a gradient norm that is not finite can corrupt the weights.

    `saved` names the state that training can be restarted from.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
        raise UserError(
            f"the {what} at step {step}: training stopped before the update. {saved()} "
            "Lower `train.lr`, set `train.clip: 1.0`, or use `train.precision: float32`"
        )


def learning_rate(config: TrainConfig, group: str, step: int, steps: int) -> float:
    """Return the learning rate of a parameter group at a step (from 0): warm-up, then cosine, linear or constant.

    The paper's code keeps the rate constant inside an epoch; here the cosine falls at each step.
    """
    if group == "prompt":
        peak, schedule = config.prompt_lr, config.prompt_schedule
    else:
        peak, schedule = config.lr, config.schedule
    warmup = min(config.warmup_steps, steps // 2)  # a short run must not consist of warm-up
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

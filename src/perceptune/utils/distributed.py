"""The processes of a training or an evaluation, as `accelerate launch` started them. Alone, one is a world of its own.

Every process holds the whole method. Errors are agreed upon: what one process cannot do, none goes on with, and the
main process alone says why.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from perceptune.errors import NonMainProcessError, UserError
from perceptune.utils.fsdp_settings import FSDPSettings, requested_sharding, require_known_version
from perceptune.utils.launch_environment import JOIN_TIMEOUT, join, read_launch

T = TypeVar("T")
# How long one process may wait for the others: longer than the main process needs to write or to score.
TIMEOUT = timedelta(minutes=30)
LOST = ("Connection closed by peer", "Connection reset", "Timed out", "Broken pipe", "timeout")


class World:
    """What one process knows of all: its `rank` among `size`, its `device`, and how they talk to one another."""

    def __init__(self, join_timeout: float | None = None) -> None:
        """Join the other processes; wait for them `join_timeout` seconds (`launch.JOIN_TIMEOUT`)."""
        launch = read_launch()
        if launch.size > 1 and not dist.is_initialized():
            self._store = join(launch, JOIN_TIMEOUT if join_timeout is None else join_timeout)
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        # Accelerate's default on its launcher's side gives weights to one process only and leaves the others empty.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        self.rank = launch.rank
        with self.same_on_all_ranks():
            require_known_version()
            try:
                accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])
            except ValueError as error:
                raise UserError(f"accelerate: {error}") from error
            _require_supported(accelerator)  # before its idea of our rank is taken over
            self.rank, self.size = accelerator.process_index, accelerator.num_processes
            self.device = torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device
            self.sharding: FSDPSettings | None = requested_sharding(accelerator)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def loading_device(self) -> torch.device:
        """Where a model is loaded before `AdaptedModel.place`: what is sharded comes from main memory."""
        return torch.device("cpu") if self.is_sharded else self.device

    @property
    def is_sharded(self) -> bool:
        """Whether the LM's weights are spread over the processes: then all must call it equally often."""
        return self.sharding is not None

    def shard(self, rows: Sequence[T]) -> list[T]:
        """This process's part: row i goes to process i modulo their number."""
        return list(rows[self.rank :: self.size])

    def gather(self, rows: Sequence[T]) -> list[T]:
        """The reverse of `shard`, for what was made of each row, in order, on every process."""
        parts = self.all_gather(list(rows))
        collected: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            collected[rank :: self.size] = part
        return collected

    def all_gather(self, value: T) -> list[T]:
        """A small value of each process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def run_on_main(self, compute: Callable[[], T]) -> T:
        """What the main process computes, or its error, on every process. No collective inside."""
        box: list[Any] = [None]
        with self.synced_errors():
            if self.is_main:
                box[0] = compute()
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextlib.contextmanager
    def synced_errors(self) -> Iterator[None]:
        """A stage that ends on every process, or with an error on every process. No collective inside."""
        error: UserError | OSError | None = None
        try:
            yield
        except (UserError, OSError) as caught:
            error = caught
        self.raise_everywhere(error)

    @contextlib.contextmanager
    def same_on_all_ranks(self) -> Iterator[None]:
        """For what fails on every process or on none: the error is said once, without asking the others."""
        try:
            yield
        except UserError as error:
            if self.is_main:
                raise
            raise NonMainProcessError(str(error)) from error

    def raise_everywhere(self, error: UserError | OSError | None) -> None:
        """Raises the first process's error on all of them."""
        if self.size == 1:
            if error is not None:
                raise error
            return
        said = [message for message in self.all_gather(None if error is None else _message(error)) if message]
        if said:
            raise (UserError if self.is_main else NonMainProcessError)(said[0]) from error

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """A process whose fellow has died says so in one line."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in LOST):
                raise
            said = "another process has ended or hangs; its own message, if it had time for one, says why"
            raise (UserError if self.is_main else NonMainProcessError)(said) from error

    def all_reduce(self, parameters: Sequence[nn.Parameter], counts: Sequence[float]) -> list[float]:
        """Sums gradients (in place) and counts over all processes, in one all-reduce.

        A parameter without gradient on any process keeps none, as it does in one process. Every process receives the
        same bits.
        """
        if self.size == 1:
            return list(counts)
        given = [float(parameter.grad is not None) for parameter in parameters]
        grads = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        flat = torch.cat([*grads, torch.tensor([*given, *counts], device=self.device)])
        dist.all_reduce(flat)
        tail: list[float] = flat[-len(given) - len(counts) :].tolist()
        start = 0
        for parameter, present in zip(parameters, tail[: len(given)], strict=True):
            end = start + parameter.numel()
            parameter.grad = flat[start:end].view_as(parameter) if present else None
            start = end
        return tail[len(given) :]

    def broadcast(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites tensors with the main process's."""
        if self.size > 1:
            for tensor in tensors.values():
                dist.broadcast(tensor, src=0)


def destroy_process_group() -> None:
    """Ends the talk with the other processes, if there is one; without it one that exits late may be torn down.

    The process should then end by `hard_exit`.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def hard_exit(code: int) -> NoReturn:
    """Exits without tearing libraries down, during which one in ten sharded processes on CPUs was aborted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _require_supported(accelerator: Any) -> None:
    """Raises `UserError` for settings of `accelerate config` that would otherwise be ignored in silence."""
    if (size := read_launch().size) not in (1, accelerator.num_processes):
        raise UserError(
            f"{size} processes were started, but Accelerate finds no device to join them on: "
            "on CPUs set ACCELERATE_USE_CPU=true before `accelerate launch`"
        )
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.")
    if not (kind in ("NO", "FSDP") or kind.startswith("MULTI_")):
        raise UserError(f"accelerate: {kind} is not supported: choose several GPUs, several CPUs or FSDP")
    state = accelerator.state
    if str(getattr(state.dynamo_plugin, "backend", "NO")).rpartition(".")[2] != "NO":
        raise UserError("accelerate: `dynamo_backend` is not supported: set it to `no`")


def _message(error: UserError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}"
    return str(error)

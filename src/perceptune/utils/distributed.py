"""The processes of a training or an evaluation, as started by `accelerate launch`; without it, a world of one process.

Every process holds the whole method. Errors are synchronised: if one process fails, all stop, and only the main process
reports the error.
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
# Timeout of a collective: longer than the main process takes to write a checkpoint or to score.
TIMEOUT = timedelta(minutes=30)
LOST = ("Connection closed by peer", "Connection reset", "Timed out", "Broken pipe", "timeout")


class World:
    """A process among all of the job: its `rank` of `size`, its `device`, and the collective operations."""

    def __init__(self, join_timeout: float | None = None) -> None:
        """Join the other processes; wait for them `join_timeout` seconds (`launch.JOIN_TIMEOUT`)."""
        launch = read_launch()
        if launch.size > 1 and not dist.is_initialized():
            self._store = join(launch, JOIN_TIMEOUT if join_timeout is None else join_timeout)
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        # By default Accelerate's launcher makes only one process load the weights and leaves the others empty.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        self.rank = launch.rank
        with self.same_on_all_ranks():
            require_known_version()
            try:
                accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])
            except ValueError as error:
                raise UserError(f"accelerate: {error}") from error
            _require_supported(accelerator)  # before its rank, which may be wrong then, replaces ours
            self.rank, self.size = accelerator.process_index, accelerator.num_processes
            self.device = torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device
            self.sharding: FSDPSettings | None = requested_sharding(accelerator)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process: the only one that writes files and prints."""
        return self.rank == 0

    @property
    def loading_device(self) -> torch.device:
        """Device on which a model is loaded before `AdaptedModel.place`: the CPU if its weights will be sharded."""
        return torch.device("cpu") if self.is_sharded else self.device

    @property
    def is_sharded(self) -> bool:
        """Whether the LM's weights are sharded over the processes; all must then call it equally often."""
        return self.sharding is not None

    def shard(self, rows: Sequence[T]) -> list[T]:
        """Return the rows of this process: row i belongs to process i modulo `size`."""
        return list(rows[self.rank :: self.size])

    def gather(self, rows: Sequence[T]) -> list[T]:
        """Undo `shard`: return the results of all rows in their order, on every process."""
        parts = self.all_gather(list(rows))
        collected: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            collected[rank :: self.size] = part
        return collected

    def all_gather(self, value: T) -> list[T]:
        """Return the value of each process, by rank; the values should be small."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def run_on_main(self, compute: Callable[[], T]) -> T:
        """Return the main process's result on every process, or raise its error there. No collective inside."""
        box: list[Any] = [None]
        with self.synced_errors():
            if self.is_main:
                box[0] = compute()
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextlib.contextmanager
    def synced_errors(self) -> Iterator[None]:
        """Raise an error of the block on every process if one process raises it. No collective inside."""
        error: UserError | OSError | None = None
        try:
            yield
        except (UserError, OSError) as caught:
            error = caught
        self.raise_everywhere(error)

    @contextlib.contextmanager
    def same_on_all_ranks(self) -> Iterator[None]:
        """Report once an error that is raised on every process or on none, without communication."""
        try:
            yield
        except UserError as error:
            if self.is_main:
                raise
            raise NonMainProcessError(str(error)) from error

    def raise_everywhere(self, error: UserError | OSError | None) -> None:
        """Raise on all processes the error of the first process that has one."""
        if self.size == 1:
            if error is not None:
                raise error
            return
        said = [message for message in self.all_gather(None if error is None else _message(error)) if message]
        if said:
            raise (UserError if self.is_main else NonMainProcessError)(said[0]) from error

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Raise a `UserError` of one line if a collective inside fails because another process has died."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in LOST):
                raise
            said = "another process has ended or hangs; its own message, if it had time for one, says why"
            raise (UserError if self.is_main else NonMainProcessError)(said) from error

    def all_reduce(self, parameters: Sequence[nn.Parameter], counts: Sequence[float]) -> list[float]:
        """Sum gradients (in place) and counts over all processes, in one all-reduce.

        A parameter without gradient on any process keeps none, as with one process. Every process receives the same
        bits.
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
        """Overwrite tensors with those of the main process."""
        if self.size > 1:
            for tensor in tensors.values():
                dist.broadcast(tensor, src=0)


def destroy_process_group() -> None:
    """Destroy the process group, if there is one; otherwise a process that exits late may be aborted.

    The process should then exit with `hard_exit`.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def hard_exit(code: int) -> NoReturn:
    """Exit without the teardown of libraries, during which one in ten sharded processes on CPUs was aborted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _require_supported(accelerator: Any) -> None:
    """Raise `UserError` for settings of `accelerate config` that would otherwise be ignored silently."""
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

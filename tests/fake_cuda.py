"""A pretend GPU: tensors that say they are on "cuda:0", hold CPU tensors, and report what a real one would refuse.

Everything above the kernels runs as it would on a GPU. Found are operations on tensors of two devices, generators of
the wrong device, waits of the host for the device, attention over query rows that see nothing while gradients pass,
and operators without a CUDA kernel. Not found: what kernels compute, speed, memory, several devices.

It changes torch for good, so it lives in a process of its own (`tests/gpu/conftest.py`).
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from device_ledger import ledger

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten
# The size of the result is known only once the device has computed it.
DATA_SIZED = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.repeat_interleave.Tensor, aten.argwhere.default,
    aten.equal.default, aten._is_all_true.default, aten._is_any_true.default,
}  # fmt: skip
INDEXED = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default, aten._unsafe_index_put.default,
}  # fmt: skip
ON_HOST = {aten._local_scalar_dense.default, aten.equal.default}  # their results are Python's

_RealGenerator = torch.Generator
_real_attention = torch.nn.functional.scaled_dot_product_attention
_pinned: dict[int, torch.Tensor] = {}  # by the storage's address, kept so that no other storage gets it


class DeviceTensor(torch.Tensor):
    """On "cuda:0" for whoever asks; `inner` is where its values are."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=CUDA,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"DeviceTensor({self.inner!r})"

    def __deepcopy__(self, memo: Any) -> Any:
        with torch.no_grad():
            copy = DeviceTensor(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(copy, self.requires_grad)
        return copy.requires_grad_(self.requires_grad)

    def tolist(self) -> Any:
        ledger.wait("value read")
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        ledger.fault("numpy of a device tensor")

    def __array__(self, *_: Any, **__: Any) -> Any:
        ledger.fault("numpy of a device tensor")

    def data_ptr(self) -> int:
        return self.inner.data_ptr()


class DeviceGenerator(torch.Generator):
    """A CPU generator that says it is on the device."""

    known: ClassVar[dict[int, DeviceGenerator]] = {}  # by address, kept so that no other generator gets it

    def __new__(cls) -> DeviceGenerator:
        made = super().__new__(cls, "cpu")
        cls.known[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return CUDA


class _GeneratorType(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _RealGenerator)

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return DeviceGenerator() if _is_cuda(device) else _RealGenerator(device)


class _Generator(metaclass=_GeneratorType):
    """Stands in for `torch.Generator`."""


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator, where its tensors say they are."""
    flat, spec = tree_flatten((args, kwargs))
    on_device = [one for one in flat if isinstance(one, DeviceTensor)]
    if func in (aten._pin_memory.default, aten.is_pinned.default):
        return _pin(func, args[0])
    wanted = next((one for one in flat if isinstance(one, torch.device)), None)
    to_device = _is_cuda(wanted)
    if on_device:
        ledger.operators.add(str(func))
    if func is aten._fused_sdp_choice.default and on_device:
        return 0
    if func is aten._to_copy.default:
        return _moved(func, args[0], kwargs, wanted)
    _note_waits(func, args, kwargs, bool(on_device))
    _check_devices(func, args, flat, on_device)
    _check_generator(func, flat, bool(on_device) or to_device)
    inner = [CPU if _is_device(one) else one.inner if isinstance(one, DeviceTensor) else one for one in flat]
    args, kwargs = tree_unflatten(inner, spec)
    found = func(*args, **kwargs)
    if func in ON_HOST or not (on_device or to_device):
        return found
    return _wrapped(found, {id(one.inner): one for one in on_device})


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def _wrapped(found: Any, arguments: dict[int, DeviceTensor]) -> Any:
    """Results on the device; of operators in place, the arguments themselves."""
    if isinstance(found, torch.Tensor):
        return arguments.get(id(found)) if id(found) in arguments else DeviceTensor(found)
    if isinstance(found, tuple | list):
        parts = [_wrapped(one, arguments) for one in found]
        return type(found)(*parts) if hasattr(found, "_fields") else type(found)(parts)
    return found


def _pin(func: Any, tensor: torch.Tensor) -> Any:
    if isinstance(tensor, DeviceTensor):
        return False if func is aten.is_pinned.default else ledger.fault("a device tensor is pinned")
    if func is aten.is_pinned.default:
        return tensor.untyped_storage().data_ptr() in _pinned
    copy = tensor.clone()
    _pinned[copy.untyped_storage().data_ptr()] = copy
    return copy


def _is_pinned(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned


def _moved(func: Any, source: torch.Tensor, kwargs: dict[str, Any], wanted: torch.device | None) -> torch.Tensor:
    """A change of device or dtype. From pageable memory the host waits, whatever it asks for."""
    from_device, to_device = isinstance(source, DeviceTensor), _is_cuda(wanted)
    if from_device and wanted is not None and not to_device:
        ledger.wait("copied to the host")
    elif to_device and source.device.type == "cpu" and not (kwargs.get("non_blocking") and _is_pinned(source)):
        ledger.wait("copied from the host")
    kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    inner = source.inner if isinstance(source, DeviceTensor) else source
    changes = any(kwargs.get(name) is not None for name in ("dtype", "memory_format"))
    found = func(inner, **kwargs) if changes else inner.clone()
    return DeviceTensor(found) if to_device or (from_device and wanted is None) else found


def _note_waits(func: Any, args: Any, kwargs: dict[str, Any], on_device: bool) -> None:
    if func is aten.copy_.default:
        into, source = args[0], args[1]
        free = (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)) and _is_pinned(source)
        if isinstance(into, DeviceTensor) != isinstance(source, DeviceTensor) and not free:
            ledger.wait("copied to the host" if isinstance(source, DeviceTensor) else "copied from the host")
    elif func is aten._local_scalar_dense.default and on_device:
        ledger.wait("value read")
    elif func in DATA_SIZED and on_device:
        ledger.wait(f"size depends on data: {func.__name__}")
    elif func in INDEXED and isinstance(args[0], DeviceTensor):
        _note_indices(func, args)


def _note_indices(func: Any, args: Any) -> None:
    value = args[2] if len(args) > 2 else None
    # One number written where a mask says so needs no indices.
    filled = isinstance(value, torch.Tensor) and value.numel() == 1 and not isinstance(value, DeviceTensor)
    for index in args[1]:
        if index is None:
            continue
        if index.dtype in (torch.bool, torch.uint8):
            if not filled:
                ledger.wait("indexed by a mask")
        elif not isinstance(index, DeviceTensor) and index.dim():
            ledger.wait("indices copied from the host")


def _check_devices(func: Any, args: Any, flat: list[Any], on_device: list[DeviceTensor]) -> None:
    if func is aten.copy_.default:
        return
    plain = [one for one in flat if isinstance(one, torch.Tensor) and not isinstance(one, DeviceTensor)]
    if func in INDEXED:
        if not isinstance(args[0], DeviceTensor) and on_device:
            ledger.fault(f"{func}: a CPU tensor with indices or values of the device")
        value = args[2] if len(args) > 2 else None
        plain = [value] if isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor) else []
        on_device = [one for one in args[:1] if isinstance(one, DeviceTensor)]
    if not on_device:
        return
    for one in plain:
        if one.dim():
            ledger.fault(f"{func}: tensors on cuda:0 and {one.device} {tuple(one.shape)}")
    if plain and "_fused_adam" in str(func):
        ledger.fault(f"{func}: state of the optimizer on the CPU, which the kernel reads as the device's memory")


def _check_generator(func: Any, flat: list[Any], on_device: bool) -> None:
    for one in flat:
        if isinstance(one, _RealGenerator) and (one._cdata in DeviceGenerator.known) != on_device:
            ledger.fault(f"{func}: the generator is of the other device")


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *args: Any, **kw: Any
) -> Any:
    """The memory-efficient kernel's gradient of a row that sees nothing may not be a number."""
    passes = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    if passes and isinstance(attn_mask, DeviceTensor):
        mask = attn_mask.inner
        seen = mask if mask.dtype == torch.bool else mask > -torch.inf
        if not bool(seen.any(-1).all()):
            ledger.fault("attention with gradients over query rows that see nothing")
    return _real_attention(query, key, value, attn_mask, *args, **kw)


def install() -> None:
    """Makes torch believe in the device that `guarded.start` has loaded."""
    import peft  # noqa: F401  # looks for CUDA libraries, so before there seems to be CUDA

    import perceptune.methods.dma  # noqa: F401

    _pretend_to_have_cuda()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.Generator = _Generator
    torch.nn.functional.scaled_dot_product_attention = _attention
    _enter_thread()
    start = threading.Thread.run

    def run(self: threading.Thread) -> None:
        _enter_thread()
        start(self)

    threading.Thread.run = run  # type: ignore[method-assign]


def _enter_thread() -> None:
    """What belongs to a thread: the mode, and that `torch.tensor(..., device="cuda")` goes through it."""
    torch._C._set_only_lift_cpu_tensors(True)
    _Mode().__enter__()


def _pretend_to_have_cuda() -> None:
    answers: dict[str, Any] = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "set_device": None, "get_device_name": "pretend", "get_device_capability": (9, 0), "empty_cache": None,
        "mem_get_info": (64 << 30, 80 << 30), "is_bf16_supported": True, "manual_seed": None, "manual_seed_all": None,
        "get_rng_state_all": [], "max_memory_allocated": 0, "memory_allocated": 0, "reset_peak_memory_stats": None,
        "set_sync_debug_mode": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.synchronize = lambda *_: ledger.wait("synchronize")
    torch._C._cuda_getCurrentRawStream = lambda _: 0

"""A GPU that is not there: tensors that say they are on ``cuda:0``, hold real values on the CPU, and tell what waits.

A whole training runs on it, scripts and all. As on a GPU, mixed devices raise, and whatever makes the host wait is
noticed: values that are asked for, shapes that depend on values (boolean indices), synchronous copies from the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only
from transformers import PreTrainedModel
from waits import Waits

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
WAITING = "_local_scalar_dense nonzero nonzero_static masked_select unique_dim unique_consecutive histc bincount "
WAITING += "unique_dim_consecutive _unique _unique2 equal repeat_interleave argwhere"
"""Operators whose result, or its shape, the host has to know"""


class FakeGpuTensor(torch.Tensor):
    """Wraps a tensor of the CPU; for autograd it is on ``meta``, which needs no driver."""

    inner: torch.Tensor
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> FakeGpuTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="meta"
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with _disable_current_modes():
            return FakeGpu.current.run(func, args, dict(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        FakeGpu.current.note("tolist")
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy


class HostGenerator(torch.Generator):
    """The CPU's, whichever device is asked for."""

    def __new__(cls, device: Any = None) -> HostGenerator:
        return super().__new__(cls)


class FakeGpu(TorchDispatchMode):
    """Runs what concerns its tensors on the CPU, and lets ``on_wait`` know (what waits) of every wait."""

    current: FakeGpu

    def __init__(self, on_wait: Callable[[str], None]) -> None:
        super().__init__()
        self.note = on_wait
        FakeGpu.current = self

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.run(func, args, dict(kwargs or {}))

    def run(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        inside = {id(getattr(tensor, "inner", tensor)): tensor for tensor in tensors}
        fake = any(isinstance(tensor, FakeGpuTensor) for tensor in tensors)
        target = kwargs.get("device")
        here = fake if target is None else torch.device(target).type != "cpu"
        kwargs.pop("pin_memory", None)
        if not fake and not here:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "_fused_sdp_choice":
            return 0  # the one that is made of other operators
        self._look(name, args, kwargs, here, tensors)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(FakeGpuTensor, lambda tensor: tensor.inner, (args, kwargs))
        result = func(*args, **kwargs)
        if not here:
            return result
        if isinstance(result, torch.Tensor) and id(result) in inside:
            return inside[id(result)]  # as in-place operators do
        return tree_map_only(torch.Tensor, FakeGpuTensor, result)

    def _look(self, name: str, args: tuple, kwargs: dict, here: bool, tensors: list[torch.Tensor]) -> None:
        """Notice what waits; RuntimeError for mixed devices."""
        on_host = [tensor for tensor in tensors if not isinstance(tensor, FakeGpuTensor)]
        indices = tree_flatten(args[1])[0] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        indices = [index for index in indices if index is not None]
        if name in WAITING.split() or any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.note(name)
        if name in ("_to_copy", "copy_"):
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            if (on_host or not here) and not asynchronous:
                self.note(f"{name} {'from' if here else 'to'} the host")
        elif any(other is index for other in on_host for index in indices):
            self.note(f"{name}: indices from the host")
        elif any(other.dim() for other in on_host):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")


@contextmanager
def fake_gpu(on_wait: Callable[[str], None]) -> Iterator[ExitStack]:
    """Inside, ``cuda`` is a device like others; ``on_wait`` is called (what) for whatever would wait for it."""
    nothing = dict.fromkeys(("_lazy_init", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_rng_state"))
    nothing |= {"max_memory_allocated": 0, "get_rng_state": torch.zeros(16, dtype=torch.uint8)}
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") becomes a copy that can be seen
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with ExitStack() as patches:
            for name, value in nothing.items():
                patches.enter_context(patch.object(torch.cuda, name, lambda *args, value=value: value))
            patches.enter_context(patch.object(torch, "Generator", HostGenerator))
            patches.enter_context(torch.autograd.set_multithreading_enabled(False))
            patches.enter_context(FakeGpu(on_wait))
            yield patches
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_swap_module_params_on_conversion(False)


@contextmanager
def waits_on_a_gpu(script: Any) -> Iterator[Counter[str]]:
    """Inside, ``script.main`` finds a GPU; counts what waits for it in a step, or in the loop of an evaluation."""
    waits = Waits(script)
    make_accelerator, load = script.make_accelerator, PreTrainedModel.from_pretrained.__func__

    def on_gpu(args: Any) -> Accelerator:
        accelerator = make_accelerator(args)
        accelerator.state.device = PartialState().device = DEVICE
        return accelerator

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():  # makes its parameters on "meta" first
            return load(cls, *args, **kwargs)

    with fake_gpu(waits.note) as patches:
        patches.enter_context(patch.object(script, "make_accelerator", on_gpu))
        patches.enter_context(patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)))
        yield waits.found

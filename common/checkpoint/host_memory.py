"""Tensors copied to host memory as safetensors files lie on disk, into memory that every save uses again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch

from .manifest import Content

ALIGNMENT = 64

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

Tensors = Mapping[str, torch.Tensor]


class HostMemory:
    """One host buffer for all tensors of a save, kept from save to save: fresh memory costs a page fault per 4 KiB.

    It is page-locked where tensors come from a GPU, so that all copies run at full speed behind each other and one
    wait at the end is enough.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def copy(self, groups: Mapping[str, Tensors]) -> dict[str, Content]:
        """Copy groups of tensors; the result stands until the next call, whatever happens to the tensors.

        Args:
            groups: of tensors of any shape, on any devices; they may share memory.

        Returns:
            The content of a safetensors file per group: its header and a view of the buffer.

        Raises:
            ValueError: a tensor is of a kind that the format lacks (sparse, quantized, without data).
        """
        layouts = {name: _layout(name, tensors) for name, tensors in groups.items()}
        starts, end = {}, 0
        for name, (_, size) in layouts.items():
            starts[name] = end
            end += math.ceil(size / ALIGNMENT) * ALIGNMENT
        devices = {tensor.device for tensors in groups.values() for tensor in tensors.values() if tensor.is_cuda}
        self._reserve(end, pinned=bool(devices))
        for name, tensors in groups.items():
            self._fill(starts[name], tensors, layouts[name][0])
        for device in devices:
            torch.cuda.synchronize(device)
        return {
            name: (_header(groups[name], offsets), self._buffer[starts[name] : starts[name] + size].numpy().data)
            for name, (offsets, size) in layouts.items()
        }

    def _reserve(self, size: int, pinned: bool) -> None:
        if self._buffer.numel() < size or (pinned and not self._buffer.is_pinned()):
            self._buffer = torch.empty(0, dtype=torch.uint8)  # give the old memory back before asking for more
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)

    def _fill(self, start: int, tensors: Tensors, offsets: Mapping[str, tuple[int, int]]) -> None:
        for name, (begin, end) in offsets.items():
            if end > begin:
                source = tensors[name].detach()
                place = self._buffer[start + begin : start + end].view(source.dtype).view(source.shape)
                place.copy_(source, non_blocking=source.is_cuda)


def _layout(group: str, tensors: Tensors) -> tuple[dict[str, tuple[int, int]], int]:
    """Where each tensor begins and ends, and the length of all: without gaps, wide elements first, thus aligned."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta or name == "__metadata__":
            raise ValueError(
                f"{group}: {name} ({tensor.dtype}, {tensor.layout}, on {tensor.device}) does not fit into safetensors."
            )
    offsets, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        begin, end = end, end + tensors[name].numel() * tensors[name].itemsize
        offsets[name] = (begin, end)
    return offsets, end


def _header(tensors: Tensors, offsets: Mapping[str, tuple[int, int]]) -> bytes:
    entries = {
        name: {"dtype": DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": place}
        for name, place in offsets.items()
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

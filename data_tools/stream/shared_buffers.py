"""Transfer of values with large tensors between processes through shared memory.

A value is pickled with the bytes of its tensors out of band, all in one anonymous memory file. The socket
carries the file's descriptor only. The receiver maps the file, and the received tensors are views of the
mapping. In contrast to torch's sharing, this needs no /dev/shm (64 MB in containers) and no open descriptor
per tensor, and the sender may die after sending. Files are reused when the receiver has freed their tensors:
fresh memory from the kernel takes longer than copying a batch.
"""

import io
import json
import os
import socket
import weakref
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import write_at

MAX_MESSAGE_BYTES = 1 << 16  # on the socket; the values themselves do not pass through it
_ALIGNMENT = 64
_MAX_FILES = 4  # of a sender: two items prefetched, one in use, one on its way back
_NOT_REUSED = -1  # in place of a file's number
_PROTOCOL = 5  # the first with out-of-band buffers


@dataclass(frozen=True, kw_only=True)
class SharedBuffer:
    """A packed value: its memory file, the number of the file, and the sizes of pickle and buffers."""

    descriptor: int
    file: int
    sizes: tuple[int, ...]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Create a socket pair that keeps message boundaries and detects the end of the other process."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Sender:
    """Packs and sends values through a socket."""

    def __init__(self, end: socket.socket):
        self._socket = end
        self._descriptors: dict[int, int] = {}
        self._free: list[int] = []

    def take_back(self, files: list[int]) -> None:
        """Mark files as free that the receiver no longer needs."""
        self._free += files

    def pack(self, value: object) -> SharedBuffer:
        """Copy a value to a memory file.

        Raises:
            DataError: there is not enough memory.
        """
        body = io.BytesIO()
        buffers: list[Any] = []
        _TensorPickler(body, _PROTOCOL, True, buffers.append).dump(value)
        parts = [body.getbuffer(), *(buffer.raw() for buffer in buffers)]
        sizes = [part.nbytes for part in parts]
        file, descriptor = self._free_file()
        try:
            for offset, part in zip(_offsets(sizes), parts, strict=True):
                write_at(descriptor, offset, part)
        except OSError as error:
            raise DataError(
                f"no memory for a batch of {sum(sizes) / 1e6:.1f} MB that a loader worker read "
                f"({error.strerror}): lower data.num_workers or batch.clips_per_device, or give the job more "
                "memory"
            ) from error
        return SharedBuffer(descriptor=descriptor, file=file, sizes=tuple(sizes))

    def send(self, number: int, value: SharedBuffer) -> None:
        """Send a packed value and the number of its request."""
        message = json.dumps([number, value.file, *value.sizes]).encode()
        socket.send_fds(self._socket, [message], [value.descriptor])
        if value.file == _NOT_REUSED:
            os.close(value.descriptor)

    def _free_file(self) -> tuple[int, int]:
        if self._free:
            file = self._free.pop()
            return file, self._descriptors[file]
        descriptor = os.memfd_create("kinemae", os.MFD_CLOEXEC)
        file = len(self._descriptors)
        if file == _MAX_FILES:
            return _NOT_REUSED, descriptor
        self._descriptors[file] = descriptor
        return file, descriptor


class Receiver:
    """Receives values from a sender; it unpickles, so the sender must be a process of KineMAE.

    Attributes:
        free: numbers of the files that the sender may reuse; the caller sends and removes them.
    """

    def __init__(self, end: socket.socket):
        self.free: list[int] = []
        self._socket = end
        self._mapped: dict[int, Tensor] = {}

    def receive(self) -> tuple[int, Any]:
        """Receive the number of a request and its value.

        Raises:
            EOFError: the sender has ended, and everything it sent has been received.
        """
        message, descriptors, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, 1)
        if not message:
            raise EOFError
        number, file, *sizes = json.loads(message)
        [descriptor] = descriptors
        try:
            mapped = self._map(file, descriptor)
        finally:
            os.close(descriptor)
        # All tensors refer to this array; it is freed with the last of them.
        whole = mapped.numpy()
        if file != _NOT_REUSED:
            weakref.finalize(whole, self.free.append, file).atexit = False
        body, *buffers = (
            whole.data[offset : offset + size] for offset, size in zip(_offsets(sizes), sizes, strict=True)
        )
        return number, ForkingPickler.loads(body, buffers=buffers)

    def _map(self, file: int, descriptor: int) -> Tensor:
        size = os.fstat(descriptor).st_size
        known = self._mapped.get(file)
        if known is not None and len(known) == size:
            return known
        # Python's own mmap would keep a descriptor open while the mapping is in use.
        path = f"/proc/self/fd/{descriptor}"
        mapped = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        if file != _NOT_REUSED:
            self._mapped[file] = mapped
        return mapped


def to_bytes(value: object) -> bytes:
    """Pickle a value with its tensors in band, so that any process can unpickle it any number of times.

    torch's own reduction lets tensors be fetched only once and only while the sender runs.
    """
    body = io.BytesIO()
    _TensorPickler(body, _PROTOCOL).dump(value)
    return body.getvalue()


def from_bytes(pickled: bytes) -> Any:
    """Unpickle the result of `to_bytes`."""
    return ForkingPickler.loads(pickled)


class _TensorPickler(ForkingPickler):
    """Pickles a tensor as a numpy array of bytes, which supports out-of-band buffers."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Parameter):
            return value.__reduce_ex__(_PROTOCOL)  # made of a plain tensor
        if not isinstance(value, Tensor):
            return NotImplemented
        # In memory order, so that a permuted view is not copied and keeps its layout.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        dense = value.detach().permute(order).contiguous()
        back = [order.index(dim) for dim in range(value.dim())]
        return _tensor, (dense.view(-1).view(torch.uint8).numpy(), value.dtype, tuple(dense.shape), back)


def _tensor(array: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], back: list[int]) -> Tensor:
    return torch.from_numpy(array).view(dtype).view(shape).permute(back)


def _offsets(sizes: list[int]) -> list[int]:
    offsets = [0]
    for size in sizes[:-1]:
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return offsets

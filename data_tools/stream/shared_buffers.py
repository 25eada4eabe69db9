"""Values with large tensors, passed from one process to another through memory that both see.

A value is pickled, but the bytes of its tensors stand beside the pickle, all in one anonymous file in memory.
Only the file's descriptor goes through the socket; the receiver maps the file, and the tensors it gets are
views of the mapping. Unlike torch's own sharing this needs no /dev/shm, of which containers have 64 MB,
holds no descriptor for as long as a tensor lives, and lets the sender die as soon as it has sent. And a file
is used again when the receiver has let go of its tensors: to get fresh memory from the kernel takes longer
than to copy a batch into it.
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

MOST_BYTES = 1 << 16  # of one message on the socket; the values themselves do not pass through it
_ALIGNED = 64
_FILES = 4  # of a sender: two items read ahead, one in use, one on its way back
_ONCE = -1  # instead of a file's number: it is not used again
_PROTOCOL = 5  # the first with buffers beside the pickle


@dataclass(frozen=True, kw_only=True)
class SharedBuffer:
    """A packed value: the file that holds it, its number, and the sizes of the pickle and the buffers."""

    descriptor: int
    file: int
    sizes: tuple[int, ...]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages whole and see when the other end is gone."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Sender:
    """Packs and sends values through one end of a socket."""

    def __init__(self, end: socket.socket):
        self._socket = end
        self._descriptors: dict[int, int] = {}
        self._free: list[int] = []

    def take_back(self, files: list[int]) -> None:
        """The receiver no longer needs what these files held."""
        self._free += files

    def pack(self, value: object) -> SharedBuffer:
        """Copy a value into a file in memory.

        Raises:
            DataError: there is not enough memory.
        """
        body = io.BytesIO()
        buffers: list[Any] = []
        _TensorPickler(body, _PROTOCOL, True, buffers.append).dump(value)
        parts = [body.getbuffer(), *(buffer.raw() for buffer in buffers)]
        file = self._a_file()
        descriptor = os.memfd_create("kinemae", os.MFD_CLOEXEC) if file == _ONCE else self._descriptors[file]
        try:
            _write(descriptor, parts)
        except OSError as error:
            raise _no_memory(sum(part.nbytes for part in parts), error) from error
        return SharedBuffer(descriptor=descriptor, file=file, sizes=tuple(part.nbytes for part in parts))

    def send(self, number: int, parcel: SharedBuffer) -> None:
        """Send a packed value and the number of the task that it answers."""
        message = json.dumps([number, parcel.file, *parcel.sizes]).encode()
        socket.send_fds(self._socket, [message], [parcel.descriptor])
        if parcel.file == _ONCE:
            os.close(parcel.descriptor)

    def _a_file(self) -> int:
        if self._free:
            return self._free.pop()
        file = len(self._descriptors)
        if file == _FILES:
            return _ONCE
        self._descriptors[file] = os.memfd_create("kinemae", os.MFD_CLOEXEC)
        return file


class Receiver:
    """Receives values from one sender, in whose processes we trust: they are our own.

    Attributes:
        free: numbers of the files that the sender can use again; whoever tells it so empties the list.
    """

    def __init__(self, end: socket.socket):
        self.free: list[int] = []
        self._socket = end
        self._mapped: dict[int, Tensor] = {}

    def receive(self) -> tuple[int, Any]:
        """The number and the value of the next parcel.

        Raises:
            EOFError: the sender is gone, and everything it sent has been received.
        """
        message, descriptors, _, _ = socket.recv_fds(self._socket, MOST_BYTES, 1)
        if not message:
            raise EOFError
        number, file, *sizes = json.loads(message)
        [descriptor] = descriptors
        begins = _begins(sizes)
        try:
            mapped = self._map(file, descriptor)
        finally:
            os.close(descriptor)
        # The tensors hold on to this array; when the last of them goes, so does the array.
        whole = mapped.numpy()
        if file != _ONCE:
            weakref.finalize(whole, self.free.append, file).atexit = False
        body, *buffers = (whole.data[begin : begin + size] for begin, size in zip(begins, sizes, strict=True))
        return number, ForkingPickler.loads(body, buffers=buffers)

    def _map(self, file: int, descriptor: int) -> Tensor:
        size = os.fstat(descriptor).st_size
        known = self._mapped.get(file)
        if known is not None and len(known) == size:
            return known
        # Python's own mmap would keep a descriptor open for as long as the mapping is in use.
        path = f"/proc/self/fd/{descriptor}"
        mapped = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        if file != _ONCE:
            self._mapped[file] = mapped
        return mapped


def to_bytes(value: object) -> bytes:
    """Pickle a value with all its tensors inside, to be unpickled any number of times and by anybody.

    torch would have its tensors fetched from this process, once and only while it lives.
    """
    body = io.BytesIO()
    _TensorPickler(body, _PROTOCOL).dump(value)
    return body.getvalue()


def from_bytes(pickled: bytes) -> Any:
    """What `to_bytes` was given."""
    return ForkingPickler.loads(pickled)


class _TensorPickler(ForkingPickler):
    """Pickles a tensor as an array of bytes, which numpy lets stand beside the pickle."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Parameter):
            return value.__reduce_ex__(_PROTOCOL)  # made of a plain tensor
        if not isinstance(value, Tensor):
            return NotImplemented
        # In the order of the memory, so that a permuted view is not copied and keeps its layout.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        dense = value.detach().permute(order).contiguous()
        back = [order.index(dim) for dim in range(value.dim())]
        return _tensor, (dense.view(-1).view(torch.uint8).numpy(), value.dtype, tuple(dense.shape), back)


def _tensor(array: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], back: list[int]) -> Tensor:
    return torch.from_numpy(array).view(dtype).view(shape).permute(back)


def _begins(sizes: list[int]) -> list[int]:
    begins = [0]
    for size in sizes[:-1]:
        begins.append(begins[-1] + -(-size // _ALIGNED) * _ALIGNED)
    return begins


def _write(descriptor: int, parts: list[memoryview]) -> None:
    for begin, part in zip(_begins([part.nbytes for part in parts]), parts, strict=True):
        done = 0
        while done < part.nbytes:
            done += os.pwrite(descriptor, part[done:], begin + done)


def _no_memory(size: int, error: OSError) -> DataError:
    return DataError(
        f"no memory for a batch of {size / 1e6:.1f} MB that a loader worker read ({error.strerror}): lower "
        "data.num_workers or batch.clips_per_device, or give the job more memory"
    )

"""Tensors through shared memory are received unchanged and stay valid while referenced."""

import gc
import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from kinemae.data_tools.stream.shared_buffers import Receiver, Sender, from_bytes, socket_pair, to_bytes
from tests.seeds import examples


class Line:
    """A connected sender and receiver."""

    def __init__(self) -> None:
        near, far = socket_pair()
        self.sender, self.receiver = Sender(near), Receiver(far)

    def carry(self, value: object) -> Any:
        self.sender.take_back([self.receiver.free.pop() for _ in range(len(self.receiver.free))])
        self.sender.send(7, self.sender.pack(value))
        number, arrived = self.receiver.receive()
        assert number == 7
        return arrived


LAYOUTS = {
    "permuted": torch.arange(120, dtype=torch.uint8).view(2, 3, 4, 5).permute(0, 3, 1, 2),
    "sliced": torch.arange(20).view(4, 5)[:, 1::2],
    "expanded": torch.ones(1, 3).expand(4, 3),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "bf16": torch.randn(3, 2).bfloat16(),
    "bool": torch.tensor([True, False]),
    "learnt": Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tensor_of_any_layout_is_received_unchanged(name: str) -> None:
    sent = LAYOUTS[name]
    arrived = Line().carry({"tensor": sent, "words": ("a", None)})
    assert torch.equal(arrived["tensor"], sent) and arrived["tensor"].dtype == sent.dtype
    assert arrived["words"] == ("a", None) and type(arrived["tensor"]) is type(sent)
    assert torch.equal(from_bytes(to_bytes(sent)), sent)


def test_a_permuted_batch_keeps_its_layout() -> None:
    arrived = Line().carry(LAYOUTS["permuted"])
    assert arrived.stride() == LAYOUTS["permuted"].stride()
    arrived.zero_()  # and is writable


def test_to_bytes_can_be_unpickled_any_number_of_times() -> None:
    pickled = to_bytes([torch.arange(3)])
    assert [from_bytes(pickled)[0].tolist() for _ in range(3)] == [[0, 1, 2]] * 3


@examples(200)
@given(sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=20), held=st.data())
@pytest.mark.slow
def test_memory_is_not_reused_while_a_tensor_refers_to_it(sizes: list[int], held: st.DataObject) -> None:
    line, kept = Line(), {}
    for number, size in enumerate(sizes):
        kept[number] = line.carry({"values": torch.full((size,), number), "more": torch.full((3,), number)})
        if held.draw(st.booleans()):
            del kept[held.draw(st.sampled_from(sorted(kept)))]
        for which, value in kept.items():
            assert value["more"].tolist() == [which] * 3
            assert (value["values"] == which).all() and len(value["values"]) == sizes[which]


def test_free_memory_is_reused() -> None:
    line = Line()
    places = {line.carry(torch.full((5000,), number)).data_ptr() for number in range(10)}
    assert len(places) == 1


def test_a_part_of_a_value_keeps_its_memory() -> None:
    line = Line()
    row = line.carry(torch.arange(1000).view(10, 100))[3, :5]
    for _ in range(8):
        line.carry(torch.zeros(10, 100))
    assert row.tolist() == [300, 301, 302, 303, 304]


def test_neither_descriptors_nor_memory_grow_with_the_number_of_batches() -> None:
    line = Line()
    line.carry(torch.zeros(10))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        line.carry(torch.zeros(10))
    kept = [line.carry(torch.zeros(10)) for _ in range(50)]
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 3 and len(kept) == 50


def test_the_receiver_gets_the_end_after_all_values() -> None:
    near, far = socket_pair()
    sender, receiver = Sender(near), Receiver(far)
    sender.send(1, sender.pack(torch.ones(3)))
    near.close()
    assert receiver.receive()[1].tolist() == [1, 1, 1]
    with pytest.raises(EOFError):
        receiver.receive()

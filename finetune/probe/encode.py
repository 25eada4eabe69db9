"""Encode a data set into a feature store: fixed or random views, any of the layers, any number of "
"processes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kinemae.data_tools.command import log
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.progress import progress
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem, EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.loader import TrainingClips, read_items
from kinemae.data_tools.stream.read_ahead import Request
from kinemae.data_tools.stream.yuv_to_rgb import Pixels, join, on_device
from kinemae.finetune.probe.store import StoreShape, StoreWriter, slice_statistics
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.runtime.processes import Processes


class ViewItem(NamedTuple):
    """Some views of one sample, read from its video.

    Attributes:
        pixels: one clip per view.
        time_VT: timestamps of their frames.
        position: of the sample.
        first_view: number of the first of these views.
        skipped: why the sample could not be read; empty if it was read.
    """

    pixels: Pixels
    time_VT: Tensor
    position: int
    first_view: int
    skipped: str


Viewed = TypeVar("Viewed", ViewItem, EvaluationItem)


class FixedViews:
    """Reader of the fixed views of evaluation: one item per sample, in the order of the index."""

    def __init__(self, index: ShardIndex, clip: ClipConfig, *, temporal_clips: int, spatial_crops: int):
        self.views = temporal_clips * spatial_crops
        self.items_per_sample = 1
        self.videos = EvaluationVideos(
            index,
            range(len(index)),
            clip=clip,
            temporal_clips=temporal_clips,
            spatial_crops=spatial_crops,
        )

    def item(self, number: int, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> ViewItem:
        found = self.videos.read(number, quarantined=quarantined, on_sample=on_sample)
        reason = "" if found.skipped is None else found.skipped.reason
        return ViewItem(found.pixels, found.time_VT, found.position, 0, reason)

    def upcoming(self, number: int) -> list[Request]:
        return self.videos.upcoming(number)


class RandomViews:
    """Reader of random views, augmented as in training: one item per view.

    View v of a sample is its clip in epoch v of a training with this seed.
    """

    def __init__(self, index: ShardIndex, clip: ClipConfig, *, views: int, augment: AugmentConfig, seed: int):
        self.views = views
        self.items_per_sample = views
        self.samples = len(index)
        self.clips = TrainingClips(
            index, clip=clip, augment=augment, seed=derived_seed(seed, purpose="probe_views")
        )

    def item(self, number: int, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> ViewItem:
        batch = self.clips.batch(range(number, number + 1), quarantined=quarantined, on_sample=on_sample)
        reason = batch.skipped[0].reason if batch.skipped else ""
        epoch = number // self.samples
        return ViewItem(batch.pixels, batch.time_BT, int(batch.sample_B[0]), epoch, reason)

    def upcoming(self, number: int) -> list[Request]:
        return self.clips.upcoming(range(number, number + 1))


class SomeItems:
    """Items at some numbers of a reader, for `read_items`."""

    def __init__(self, reader: FixedViews | RandomViews, numbers: Sequence[int]):
        self.reader = reader
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> ViewItem:
        """See `worker.ItemReader`."""
        return self.reader.item(self.numbers[number], quarantined, on_sample)

    def upcoming(self, number: int) -> list[Request]:
        return self.reader.upcoming(self.numbers[number])


@dataclass(frozen=True, kw_only=True)
class LayerEncoder:
    """Compute the features of clips in several layers.

    Attributes:
        layers: numbers of blocks, from 0.
        kind: "statistics", "slices" or "tokens", see `FeaturesConfig`.
        clips_per_device: largest number of clips in a forward pass.
    """

    encoder: Encoder
    description: EncoderDescription
    layers: Sequence[int]
    kind: str
    is_bf16: bool
    clips_per_device: int

    def __call__(self, clip_BCTHW: Tensor) -> dict[int, Tensor]:
        """Encode uint8 RGB clips; return by layer tokens_BND, statistics_BX or statistics_BtX, float32."""
        self.encoder.check_clip(clip_BCTHW)
        device = clip_BCTHW.device
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.is_bf16):
            tokens = self._tokens(clip_BCTHW)
            if self.kind == "tokens":
                return {layer: tokens_BND.float() for layer, tokens_BND in tokens.items()}
            slices = self.description.grid.t if self.kind == "slices" else 1
            found = {layer: slice_statistics(x_BND.float(), slices) for layer, x_BND in tokens.items()}
            return found if self.kind == "slices" else {layer: x_B1X[:, 0] for layer, x_B1X in found.items()}

    def _tokens(self, clip_BCTHW: Tensor) -> dict[int, Tensor]:
        """Tokens after each block with the final norm, without registers."""
        encoder, shape = self.encoder, self.description.shape
        kept: dict[int, Tensor] = {}
        last = shape.depth - 1
        hooks = [
            encoder.blocks[layer].register_forward_hook(
                lambda module, inputs, output, layer=layer: kept.__setitem__(layer, output)
            )
            for layer in self.layers
            if layer != last
        ]
        try:
            patches_BNP = encoder.patches(clip_BCTHW, mean=self.description.mean, std=self.description.std)
            final_BND = encoder(patches_BNP, None)
        finally:
            for hook in hooks:
                hook.remove()
        tokens = {layer: encoder.norm(x_BND[:, shape.registers :]) for layer, x_BND in kept.items()}
        return {layer: tokens[layer] if layer != last else final_BND for layer in self.layers}


def resolve_layers(layers: Sequence[int], depth: int, *, key: str = "features.layers") -> list[int]:
    """Convert negative block numbers, sorted.

    Args:
        key: config key, for messages.

    Raises:
        ValueError: no such block, or one twice.
    """
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(
                f"{key}: expected blocks from 0 to {depth - 1}, or from -{depth} to -1, got "
                f"{layer}; "
                "fix: choose one of these"
            )
    resolved = sorted({layer % depth for layer in layers})
    if len(resolved) != len(layers):
        raise ValueError(
            f"{key}: expected different blocks, got {list(layers)}, which names one of the {depth} "
            "blocks twice; fix: remove one"
        )
    return resolved


def encode(  # noqa: PLR0913 - all but the first four by name
    writer: StoreWriter,
    reader: FixedViews | RandomViews,
    encode_clips: LayerEncoder,
    processes: Processes,
    *,
    workers: int,
    timeout_s: float,
    read_ahead: int,
) -> None:
    """Collective. Encode the missing chunks of a store; each process takes its share of them.

    A forward pass has clips of one chunk only, and chunks do not depend on the number of processes. So the
    features do not depend on it either.
    """
    chunks = chunk_items(writer.shape, reader)
    missing = [number for number in range(len(chunks)) if not writer.is_done(number)]
    own = missing[processes.rank :: processes.world]
    numbers = [number for chunk in own for number in chunks[chunk]]
    items = read_items(
        SomeItems(reader, numbers), workers, timeout_s, preload=[__name__], read_ahead=read_ahead
    )
    shown: Iterator[int] | Sequence[int] = own
    if processes.is_first and own:
        shown = progress(own, total=len(own), what=f"encoding {writer.folder.name}", unit="chunk")
    for chunk in shown:
        begin = time.monotonic()
        skipped = {}
        group = (next(items) for _ in chunks[chunk])
        for item, view, layers in encoded(group, encode_clips, processes.device):
            if item.skipped:
                if item.position not in skipped:
                    log.warning("sample %d has no features: %s", item.position, item.skipped)
                skipped[item.position] = item.skipped
            writer.write(item.position, item.first_view + view, layers, item.time_VT[view])
        writer.finish_chunk(chunk, skipped, time.monotonic() - begin)


def chunk_items(shape: StoreShape, reader: FixedViews | RandomViews) -> list[range]:
    """The items of each chunk."""
    items, size = shape.samples * reader.items_per_sample, shape.chunk_samples
    return [range(first, min(first + size, items)) for first in range(0, items, size)]


def encoded(
    items: Iterable[Viewed], encode_clips: LayerEncoder, device: torch.device
) -> Iterator[tuple[Viewed, int, dict[int, Tensor]]]:
    """Encode all views of some items in batches; yield item, view and features by layer, on the CPU."""
    waiting: list[tuple[Viewed, int]] = []

    def flush() -> Iterator[tuple[Viewed, int, dict[int, Tensor]]]:
        pixels = join([item.pixels[view : view + 1] for item, view in waiting])
        found = encode_clips(on_device(pixels, device))
        layers = {layer: values_BX.cpu() for layer, values_BX in found.items()}
        for row, (item, view) in enumerate(waiting):
            yield item, view, {layer: values_BX[row] for layer, values_BX in layers.items()}
        waiting.clear()

    for item in items:
        for view in range(len(item.pixels)):
            waiting.append((item, view))
            if len(waiting) == encode_clips.clips_per_device:
                yield from flush()
    if waiting:
        yield from flush()


def store_shape(
    description: EncoderDescription, reader: FixedViews | RandomViews, kind: str, samples: int
) -> StoreShape:
    """Sizes of the store of an encoder."""
    width, grid = description.shape.width, description.grid
    values = {"tokens": (grid.tokens, width), "slices": (grid.t, 2 * width), "statistics": (2 * width,)}
    return StoreShape(samples=samples, views=reader.views, frames=description.frames, values=values[kind])

"""One reader of `streaming.py` in a process of its own: reads an epoch of clips and prints a line of JSON.

    python tests/benchmarks/streaming_readers.py READER OPTIONS

OPTIONS is JSON; see `Options`. All readers draw the same starts, crops and flips for clip 0, 1, 2, ... of the
epoch, and decode on one thread: with our code, or with torchcodec and torchvision where the name says so.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from kinemae.data_tools.components import Component
from kinemae.data_tools.index import NO_LABEL, Sample, open_index
from kinemae.data_tools.orders.base import build_order
from kinemae.data_tools.randomness import generator
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig, training_timestamps_s
from kinemae.data_tools.stream.loader import training_loader
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.tar_list import open_tars
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.data_tools.stream.views import View, crop_views, training_view
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips

BATCH = 8
CLIP = ClipConfig()
AUGMENT = AugmentConfig()
SEED = 0
_VIDEO = Sample(
    key="", shard=0, offset=0, length=0, crc32=0, label=NO_LABEL, name="",
    frames=300, duration_s=10.0, width=340, height=256, codec="h264",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the clips are, and the sizes of the run.

    Attributes:
        store: URL or path of the folder that holds `tars`, `mds` and `litdata`.
        http: the same by HTTP.
        scratch: an empty folder.
        clips: their number, a multiple of `BATCH`.
        pattern: the tars, relative to `tars`.
        block_mb: size of a block, a tar and a chunk of all formats.
        window: blocks that are shuffled at a time; buffers of the peers hold as many samples.
        samples_per_block: mean.
    """

    store: str
    http: str
    endpoint: str
    scratch: str
    clips: int
    pattern: str
    block_mb: float
    window: int
    samples_per_block: int


def ours(options: Options, order: str, read_ahead: int) -> Iterator[list[str]]:
    """Read through the index."""
    cache = None
    if order == "blocks" and "://" in options.store:
        cache = Cache(folder=Path(options.scratch, "cache"), size=10**12).check()
    index = open_index(f"{options.store}/tars", cache=cache)
    sizes = {"block_mb": options.block_mb, "window": options.window} if order == "blocks" else {}
    built = build_order(Component(name=order, args=sizes))
    settings = {"clip": CLIP, "augment": AUGMENT, "seed": SEED}
    clips = TrainingClips(index, **settings, order=built, videos_per_step=BATCH)
    yield from _batches(clips, options, read_ahead)


def our_stream(options: Options) -> Iterator[list[str]]:
    """Read the tars in sequence, without the index."""
    tars = open_tars(f"{options.store}/tars/{options.pattern}")
    buffer = options.window * options.samples_per_block
    clips = StreamedClips(tars, clip=CLIP, augment=AUGMENT, seed=SEED, buffer=buffer)
    yield from _batches(clips, options, 0)


def _batches(clips: TrainingClips, options: Options, read_ahead: int) -> Iterator[list[str]]:
    plan = BatchPlan(global_clips=BATCH, world=1, micro_clips=BATCH, accumulation=1)
    steps = options.clips // BATCH
    numbers = {"rank": 0, "first_step": 0, "last_step": steps, "workers": 0}
    for batch in training_loader(clips, plan, **numbers, pin=False, read_ahead=read_ahead):
        assert not batch.skipped, batch.skipped
        yield list(batch.keys)


Read = tuple[str, bytes]
"""Key and video of a sample."""


def webdataset(options: Options) -> Iterator[Read]:
    """Read the tars with `webdataset.WebDataset`."""
    from webdataset import WebDataset

    buffer = options.window * options.samples_per_block
    urls = f"{options.http}/tars/{options.pattern}"
    samples = WebDataset(urls, shardshuffle=1000, seed=0, empty_check=False).shuffle(buffer)
    yield from ((sample["__key__"], sample["mp4"]) for sample in samples)


def mosaicml(options: Options) -> Iterator[Read]:
    """Read MDS shards with `streaming.StreamingDataset`."""
    from streaming import StreamingDataset

    os.environ["S3_ENDPOINT_URL"] = options.endpoint
    samples = StreamingDataset(
        remote=f"{options.store}/mds",
        local=f"{options.scratch}/mds",
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_block_size=max(options.window * options.samples_per_block, 2),
        batch_size=BATCH,
        num_canonical_nodes=1,
    )
    yield from ((sample["key"], sample["video"]) for sample in samples)


def litdata(options: Options) -> Iterator[Read]:
    """Read chunks with `litdata.StreamingDataset`."""
    from litdata import StreamingDataset
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # there is no option for it
    storage = {"endpoint_url": options.endpoint, "region_name": "us-east-1"}
    folder = {"cache_dir": f"{options.scratch}/litdata"}
    samples = StreamingDataset(f"{options.store}/litdata", shuffle=True, storage_options=storage, **folder)
    yield from ((sample["key"], sample["video"]) for sample in samples)


Choose = Callable[[int, int], list[View]]
"""Draws the views of a clip from height and width of its frames."""


def _decoded(
    samples: Iterator[Read], decode: Callable[[bytes, list[float], Choose], object]
) -> Iterator[list[str]]:
    """Decode a clip of each sample into batches, with the draws of `TrainingClips`."""
    keys: list[str] = []
    for position, (key, video) in enumerate(samples):
        start = generator(SEED, purpose="start", sample=position)
        decode(video, training_timestamps_s(_VIDEO, CLIP, start), partial(_views, position))
        keys.append(key)
        if len(keys) == BATCH:
            yield keys
            keys = []


def _views(position: int, height: int, width: int) -> list[View]:
    draw = generator(SEED, purpose="augment", sample=position)
    return [training_view(height, width, AUGMENT, draw)]


def _with_our_code(video: bytes, timestamps_s: list[float], choose: Choose) -> None:
    crop_views(yuv_frames_at(video, timestamps_s), choose, YuvClips.empty(1, CLIP.frames, CLIP.size))


def _with_torchcodec(video: bytes, timestamps_s: list[float], choose: Choose) -> torch.Tensor:
    """Decode and crop as the examples of torchcodec and torchvision do."""
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2 import functional

    decoder = VideoDecoder(video, num_ffmpeg_threads=1, seek_mode="approximate")
    clip_TCHW = decoder.get_frames_played_at(timestamps_s).data
    [view] = choose(*clip_TCHW.shape[-2:])
    crop = view.crop
    box = [crop.top, crop.left, crop.height, crop.width]
    clip_TCHW = functional.resized_crop(clip_TCHW, *box, [CLIP.size, CLIP.size], antialias=True)
    return functional.horizontal_flip(clip_TCHW) if view.flip else clip_TCHW


def write_mds(videos: Path, folder: Path, block_mb: float) -> None:
    """Write the clips as MDS shards."""
    from streaming import MDSWriter

    columns = {"key": "str", "video": "bytes"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=int(block_mb * 1e6)) as writer:
        for path in sorted(videos.iterdir()):
            writer.write(_as_item(path))


def write_litdata(videos: Path, folder: Path, block_mb: float) -> None:
    """Write the clips as chunks of litdata."""
    from litdata import optimize

    size = f"{int(block_mb * 1e6)}B"
    paths = [str(path) for path in sorted(videos.iterdir())]
    optimize(fn=_as_item, inputs=paths, output_dir=str(folder), num_workers=1, chunk_bytes=size)


def _as_item(path: str | Path) -> dict[str, object]:
    return {"key": Path(path).stem, "video": Path(path).read_bytes()}


OURS: dict[str, Callable[[Options], Iterator[list[str]]]] = {
    "ours, random order, one read at a time": lambda options: ours(options, "random", 0),
    "ours, random order, read-ahead": lambda options: ours(options, "random", 16),
    "ours, block order": lambda options: ours(options, "blocks", 16),
    "ours, tars without index": our_stream,
}
PEERS = {"webdataset": webdataset, "mosaicml-streaming": mosaicml, "litdata": litdata}
TORCHCODEC = ", torchcodec"  # ends the name of a peer
READERS = [*OURS, *PEERS, *(f"{name}{TORCHCODEC}" for name in PEERS)]


def read(name: str, options: Options) -> Iterator[list[str]]:
    """Read an epoch: the keys of each batch."""
    if name in OURS:
        return OURS[name](options)
    decode = _with_torchcodec if name.endswith(TORCHCODEC) else _with_our_code
    return _decoded(PEERS[name.removesuffix(TORCHCODEC)](options), decode)


def main() -> None:
    """Run one reader, or write a format of a peer."""
    torch.set_num_threads(1)
    sys.path.remove(str(Path(__file__).resolve().parent))  # its `streaming.py` hides the package of a peer
    if sys.argv[1] in ("write_mds", "write_litdata"):
        globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
        return
    options = Options(**json.loads(sys.argv[2]))
    begin_s, keys = time.perf_counter(), list[str]()
    at_s, cpu_s = list[float](), list[float]()  # at each batch
    for batch in read(sys.argv[1], options):
        at_s.append(time.perf_counter())
        cpu_s.append(time.process_time())
        keys += batch
    # In the second half of a short epoch, the reads of a large buffer or read-ahead are done.
    half = max(len(cpu_s) // 2, 1)
    result = {
        "first_s": at_s[0] - begin_s,
        "clips_per_s": (len(keys) - BATCH) / (at_s[-1] - at_s[0]),
        "cpu_ms": 1000 * (cpu_s[half] - cpu_s[0]) / (half * BATCH),
        "keys": keys,
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # threads of some peers do not end


if __name__ == "__main__":
    main()

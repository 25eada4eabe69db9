"""One reader of `streaming.py` in a process of its own: reads an epoch of clips and prints a line of JSON.

    python tests/benchmarks/streaming_readers.py READER OPTIONS

OPTIONS is JSON; see `Options`. All readers decode as many frames at the same stride, on one thread: with our
code, or with torchcodec and torchvision where the name says so.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch

from kinemae.data_tools.components import Component
from kinemae.data_tools.index import open_index
from kinemae.data_tools.orders.base import build_order
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.stream.augment import AugmentConfig, Crop
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.loader import training_loader
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.tar_list import open_tars
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.data_tools.stream.views import View, crop_views
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips

BATCH = 8
CLIP = ClipConfig()
_FPS = 30
_LATEST_START_S = 7.8  # of videos of 10 s


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
    settings = {"clip": CLIP, "augment": AugmentConfig(), "seed": 0}
    clips = TrainingClips(index, **settings, order=built, videos_per_step=BATCH)
    yield from _batches(clips, options, read_ahead)


def our_stream(options: Options) -> Iterator[list[str]]:
    """Read the tars in sequence, without the index."""
    tars = open_tars(f"{options.store}/tars/{options.pattern}")
    buffer = options.window * options.samples_per_block
    clips = StreamedClips(tars, clip=CLIP, augment=AugmentConfig(), seed=0, buffer=buffer)
    yield from _batches(clips, options, 0)


def _batches(clips: TrainingClips, options: Options, read_ahead: int) -> Iterator[list[str]]:
    plan = BatchPlan(global_clips=BATCH, world=1, micro_clips=BATCH, accumulation=1)
    steps = options.clips // BATCH
    numbers = {"rank": 0, "first_step": 0, "last_step": steps, "workers": 0}
    for batch in training_loader(clips, plan, **numbers, pin=False, read_ahead=read_ahead):
        assert not batch.skipped, batch.skipped
        yield list(batch.keys)


Sample = tuple[str, bytes]
"""Key and video of a sample."""


def webdataset(options: Options) -> Iterator[Sample]:
    """Read the tars with `webdataset.WebDataset`."""
    from webdataset import WebDataset

    buffer = options.window * options.samples_per_block
    urls = f"{options.http}/tars/{options.pattern}"
    samples = WebDataset(urls, shardshuffle=1000, seed=0, empty_check=False).shuffle(buffer)
    yield from ((sample["__key__"], sample["mp4"]) for sample in samples)


def mosaicml(options: Options) -> Iterator[Sample]:
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


def litdata(options: Options) -> Iterator[Sample]:
    """Read chunks with `litdata.StreamingDataset`."""
    from litdata import StreamingDataset
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # there is no option for it
    storage = {"endpoint_url": options.endpoint, "region_name": "us-east-1"}
    folder = {"cache_dir": f"{options.scratch}/litdata"}
    samples = StreamingDataset(f"{options.store}/litdata", shuffle=True, storage_options=storage, **folder)
    yield from ((sample["key"], sample["video"]) for sample in samples)


def _decoded(
    samples: Iterator[Sample], decode: Callable[[bytes, list[float]], object]
) -> Iterator[list[str]]:
    """Decode a clip of each sample into batches."""
    keys: list[str] = []
    for key, video in samples:
        start_s = crc32(key.encode()) % 100 / 100 * _LATEST_START_S
        decode(video, [start_s + CLIP.stride * (frame + 0.5) / _FPS for frame in range(CLIP.frames)])
        keys.append(key)
        if len(keys) == BATCH:
            yield keys
            keys = []


def _with_our_code(video: bytes, timestamps_s: list[float]) -> None:
    crop_views(yuv_frames_at(video, timestamps_s), _centre, YuvClips.empty(1, CLIP.frames, CLIP.size))


def _with_torchcodec(video: bytes, timestamps_s: list[float]) -> torch.Tensor:
    """Decode and crop as the examples of torchcodec and torchvision do."""
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2 import functional

    decoder = VideoDecoder(video, num_ffmpeg_threads=1, seek_mode="approximate")
    clip_TCHW = decoder.get_frames_played_at(timestamps_s).data
    [view] = _centre(*clip_TCHW.shape[-2:])
    crop = view.crop
    box = [crop.top, crop.left, crop.height, crop.width]
    return functional.resized_crop(clip_TCHW, *box, [CLIP.size, CLIP.size], antialias=True)


def _centre(height: int, width: int) -> list[View]:
    side = min(height, width) // 2 * 2
    top, left = (height - side) // 4 * 2, (width - side) // 4 * 2
    return [View(crop=Crop(top=top, left=left, height=side, width=side), flip=False)]


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
    begin_s, first_s, first_cpu_s, keys = time.perf_counter(), 0.0, 0.0, list[str]()
    for batch in read(sys.argv[1], options):
        if not keys:
            first_s, first_cpu_s = time.perf_counter(), time.process_time()
        keys += batch
    count = len(keys) - BATCH
    result = {
        "first_s": first_s - begin_s,
        "clips_per_s": count / (time.perf_counter() - first_s),
        "cpu_ms": 1000 * (time.process_time() - first_cpu_s) / count,
        "keys": keys,
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # threads of some peers do not end


if __name__ == "__main__":
    main()

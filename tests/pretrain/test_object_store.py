"""Shard, verify and train on an object store with frequent network faults."""

import json
from pathlib import Path

import pytest

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.storage.cache import Cache
from kinemae.pretrain.runtime.settings import StreamConfig
from tests.faulty_server import FaultyServer
from tests.forked import run_forked
from tests.sharding import shard

TINY = [
    *("steps=4", "save_every_steps=4", "batch.global_clips=4", "clip.frames=4", "data.num_workers=1"),
    *("model.width=24", "model.depth=2", "model.decoder_width=24", "model.decoder_depth=1"),
    *("log.every_steps=1", "pictures.every_steps=0", "engine.device=cpu", "seed=5"),
]


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_shards_on_s3_behind_a_faulty_network_train_as_local_ones_do(
    repo: Path,
    synth_videos: Path,
    tmp_path: Path,
    proxied_bucket: tuple[FaultyServer, str],
    capsys: pytest.CaptureFixture[str],
):
    proxy, bucket = proxied_bucket
    source = str(synth_videos / "unlabelled")
    here, there = str(tmp_path / "shards"), f"{bucket}/sets/x"
    proxy.at_random(0.12, seed=1)
    for out in (here, there):
        assert shard(source, out, "samples_per_shard=10") == 0
    assert run_program(PROGRAM, ["verify", there, "--full", "--json", "workers=1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"samples": 40, "shards": 4, "full": True, "faults": []}

    config = str(repo / "configs/pretrain/demo.yaml")
    cache = [f"data.cache_dir={tmp_path / 'cache'}", "data.cache_gb=1"]
    for name, shards in (("local", here), ("remote", there)):
        before = len(proxy.ranges())
        places = [f"data.shards={shards}/train", f"run_dir={tmp_path / name}"]
        run_forked("-m", "pretrain", config, *places, *TINY, *cache)
        fetched = [range_ for range_ in proxy.ranges()[before:] if not range_.startswith("bytes=0-")]
        assert bool(fetched) == (name == "remote")
    assert len(losses(tmp_path / "local")) == 4
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
    assert len(list((tmp_path / "cache").glob("sets/*/*.shard"))) == 4
    assert len(proxy.injected) >= 10 and {503, "short"} <= set(proxy.injected)


def test_a_cache_has_a_folder_and_a_size():
    assert StreamConfig().cache is None
    there = StreamConfig(cache_dir="/some/where", cache_gb=0.5)
    assert there.cache == Cache(folder=Path("/some/where"), size=500_000_000)
    with pytest.raises(ValueError, match=r"data.cache_gb must be above 0, got 0.0"):
        StreamConfig(cache_gb=0.0)

"""Features of a video with the encoder and the settings of existing features."""

import tempfile
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError, DataError
from kinemae.finetune.config import FinetuneClip
from kinemae.finetune.features.command import run
from kinemae.finetune.features.config import FeatureConfig, FeatureData, WindowConfig
from kinemae.finetune.features.files import FeatureTable, read_features
from kinemae.finetune.features.job import prepare
from kinemae.pretrain.runtime.processes import find_processes, init_process_group
from kinemae.pretrain.runtime.settings import EngineConfig


def encode_query(provenance: dict[str, Any], video: str, *, encoder: str | None, device: Any) -> FeatureTable:
    """Encode a video, or all videos of a folder, as other features were encoded.

    Args:
        provenance: of the other features.
        encoder: its place if it differs from the provenance's.

    Raises:
        DataError: features of other software, or an unreadable video.
        CheckpointError: the encoder has changed.
    """
    if "encoder_sha256" not in provenance:
        raise DataError(
            f"QUERY {video}: expected a key or a file of features, since FEATURES is of other software, got "
            "a video; fix: write FEATURES with `kinemae finetune features`"
        )
    config = FeatureConfig(
        **{name: provenance[name] for name in ("kind", "pool", "layer", "dtype", "clips_per_device")},
        thumbnails=0,
        window=WindowConfig(**provenance["window"]),
        clip=_clip(provenance["clip"]),
        data=FeatureData(num_workers=0),
        engine=EngineConfig(device=device),
    )
    processes = find_processes(device)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "query.parquet"
        job = prepare(config, encoder or provenance["encoder"], video, out, processes)
        if job.provenance["encoder_sha256"] != provenance["encoder_sha256"]:
            raise CheckpointError(
                f"{encoder or provenance['encoder']}: expected the encoder of FEATURES, sha256 "
                f"{provenance['encoder_sha256'][:12]}, got {job.provenance['encoder_sha256'][:12]}; fix: set "
                "encoder to its place, or write FEATURES again"
            )
        job.partial.mkdir()
        init_process_group(processes)
        run(job, processes)
        return read_features(out)


def _clip(clip: dict[str, Any]) -> FinetuneClip:
    """The section `clip` of a config that gives these clips."""
    sampling = "uniform" if clip["sampling"] == "uniform" else "fps" if clip["fps"] else "stride"
    chosen = {sampling: clip[sampling]} if sampling != "uniform" else {"sampling": "uniform"}
    return FinetuneClip(frames=clip["frames"], size=clip["size"], short_video=clip["short_video"], **chosen)

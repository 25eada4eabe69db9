"""Features of a video with the encoder and the settings of existing features."""

import tempfile
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError, DataError
from kinemae.finetune.features.command import run
from kinemae.finetune.features.config import FeatureConfig
from kinemae.finetune.features.files import FeatureTable, read_features
from kinemae.finetune.features.job import prepare
from kinemae.pretrain.runtime.processes import find_processes, init_process_group


def encode_query(provenance: dict[str, Any], video: str, *, encoder: str | None, device: str) -> FeatureTable:
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
    clip = provenance["clip"]
    is_uniform = clip["sampling"] == "uniform"
    config = FeatureConfig(
        **{name: provenance[name] for name in ("kind", "pool", "layer", "dtype", "clips_per_device")},
        **{name: clip[name] for name in ("frames", "size", "fps", "short_video")},
        **provenance["window"],
        stride=None if is_uniform or clip["fps"] else clip["stride"],
        thumbnails=0,
        num_workers=0,
        device=device,
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

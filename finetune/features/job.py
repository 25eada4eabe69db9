"""Job of `kinemae finetune features`: its checked arguments, and the provenance of the features."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log
from kinemae.data_tools.index import open_index
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips
from kinemae.data_tools.stream.video_files import data_set_in, list_video_files
from kinemae.finetune.features.config import FeatureConfig
from kinemae.finetune.features.detection import feature_grid
from kinemae.finetune.features.files import read_provenance
from kinemae.finetune.inference.load import load
from kinemae.finetune.probe.encode import resolve_layers
from kinemae.finetune.probe.encoders import digest
from kinemae.finetune.probe.store import differences
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import precision_on

FORMAT = 1
# Information that does not determine the features.
_INFORMATION = ("encoder", "source", "versions", "commit", "skipped")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Checked arguments of the command.

    Attributes:
        clip, windows: frames of a window, and the windows of a video.
        layer: number of the encoder's block, from 0.
        provenance: what determines the features.
    """

    config: FeatureConfig
    source: str
    out: Path
    encoder: Encoder
    description: EncoderDescription
    clip: ClipConfig
    windows: int | SlidingClips
    layer: int
    provenance: dict[str, Any]

    @property
    def partial(self) -> Path:
        """The folder of unfinished features."""
        return self.out.with_name(f"{self.out.name}.partial")


def prepare(config: FeatureConfig, encoder: str, source: str, out: Path, processes: Processes) -> Job:
    """Check encoder, source, config and existing features before a process group starts.

    Raises:
        ValueError: a config that does not fit the encoder or OUT, or OUT holds other features.
        DataError: no videos.
        CheckpointError: no encoder.
    """
    to_detection = config.check_out(out)
    model = load(encoder, frames=config.frames, size=config.size)
    description = model.description
    clip = config.window(description.clip)
    windows = config.windows(clip)
    _check_kind(config, model.encoder)
    [layer] = resolve_layers([config.layer], description.shape.depth, key="layer")
    provenance = {
        "format": FORMAT,
        "encoder_sha256": digest(model.encoder),
        "data": _fingerprint(config, source),
        **config.settings(),
        "layer": layer,
        "clip": asdict(clip),
        "crop": "centre",
        "precision": precision_on(config.engine, processes.device),
        **({"grid": feature_grid(config, clip, windows, description)} if to_detection else {}),
        "encoder": encoder,
        "source": source,
    }
    return Job(
        config=config,
        source=source,
        out=out,
        encoder=model.encoder,
        description=description,
        clip=clip,
        windows=windows,
        layer=layer,
        provenance=provenance,
    )


def _check_kind(config: FeatureConfig, encoder: Encoder) -> None:
    if config.kind in ("slices", "tokens") and encoder.merge_per_block:
        raise ValueError(
            f"kind: expected clip or pooled for an encoder that merges tokens, got {config.kind}; fix: set "
            "kind=clip"
        )


def _fingerprint(config: FeatureConfig, source: str) -> str:
    """Digest of a data set, or of the names, sizes and versions of video files."""
    if data_set_in(source) is not None:
        return open_index(source, outage_s=config.outage_s).identity
    files = [(video.name, video.place.version()) for video in list_video_files(location(source))]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def is_complete(job: Job) -> bool:
    """Check whether OUT holds the features of this job.

    Raises:
        DataError: it has no features of this command.
        ValueError: it holds other features.
    """
    if not job.out.exists():
        return False
    stored = read_provenance(job.out)  # also with rebuild, which must not replace something else
    if job.config.rebuild:
        return False
    check_same(job, stored, job.out)
    log.info("%s: complete", job.out)
    return True


def changes(job: Job, stored: dict[str, Any]) -> list[str]:
    """Describe how other features differ from those of the job."""
    own = json.loads(json.dumps(job.provenance))
    return differences(
        *({key: value for key, value in each.items() if key not in _INFORMATION} for each in (own, stored))
    )


def check_same(job: Job, stored: dict[str, Any], place: Path) -> None:
    """Reject features of another encoder, source or config.

    Raises:
        ValueError: names the differences.
    """
    found = changes(job, stored)
    if found:
        raise ValueError(
            f"OUT {place}: expected no features, or those of this encoder, source and config, got others "
            f"({'; '.join(found)}); fix: choose another OUT, or set rebuild=true to replace them"
        )

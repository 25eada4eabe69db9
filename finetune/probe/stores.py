"""The stores of one encoder: what they must hold, whether they exist, and how they are made."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.labels.labelled_data import open_labelled
from kinemae.finetune.probe.checks import check_finite, check_probe_data, labels_of
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.data import LabelledFeatures
from kinemae.finetune.probe.encode import (
    FixedViews,
    LayerEncoder,
    RandomViews,
    chunk_items,
    encode,
    resolve_layers,
    store_shape,
)
from kinemae.finetune.probe.encoders import EncoderSource, digest
from kinemae.finetune.probe.external import open_external
from kinemae.finetune.probe.store import (
    Features,
    Provenance,
    StoreWriter,
    check_store,
    open_store,
    remove_store,
)
from kinemae.finetune.tasks.base import Targets, Task, build_task
from kinemae.finetune.tasks.classification import Classification
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import precision_on

SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One data set of a probe.

    Attributes:
        key: config key and place, for messages.
        folder, provenance, state: of its store; None, None and "complete" for features of other software.
        external: features of other software.
    """

    name: str
    index: ShardIndex
    targets: Targets
    key: str
    folder: Path | None = None
    provenance: Provenance | None = None
    state: str = "complete"
    external: Features | None = None

    def open(self, task: Task) -> LabelledFeatures:
        """Open the features. Samples without a class are left out.

        Raises:
            DataError: a file is damaged, or features are not finite.
        """
        features = self.external
        if features is None:
            assert self.folder is not None and self.provenance is not None
            features = open_store(self.folder, self.provenance.layers)
        check_finite(features, self.index.column("key"), key=self.key)
        if isinstance(task, Classification):
            label_R = labels_of(self.targets, len(self.index))
            features = replace(features, readable=features.readable[label_R[features.readable] >= 0])
        return LabelledFeatures(features=features, targets=self.targets, index=self.index, key=self.key)


@dataclass(frozen=True, kw_only=True)
class ProbedEncoder:
    """One checked encoder of a command, with the task and the data sets for its clips.

    Attributes:
        name: of its folders and rows.
        source: None for features of other software.
        layers: numbers of its blocks; [0] for features of other software.
    """

    name: str
    source: EncoderSource | None
    task: Task
    train: Split
    validation: Split
    layers: list[int]
    clip: ClipConfig

    @property
    def splits(self) -> tuple[Split, Split]:
        return self.train, self.validation

    @property
    def is_encoded(self) -> bool:
        """True if both stores are complete."""
        return all(split.state == "complete" for split in self.splits)


def prepare_encoder(config: ProbeConfig, source: EncoderSource, processes: Processes) -> ProbedEncoder:
    """Open the data as one encoder's clips show it, and check data and existing stores.

    Raises:
        ValueError: a config that does not fit the encoder or the data, or a store of other features.
        DataError: unusable data.
        CheckpointError: unusable weights.
    """
    clip = replace(source.description.clip, short_video=config.clip.short_video)
    layers = resolve_layers(config.features.layers, source.description.shape.depth)
    task = build_task(config.task)
    indexes = {name: open_labelled(config.data.labelled, name, task=task, clip=clip) for name in SPLITS}
    targets = _read_targets(config, task, indexes)
    encoder_digest = digest(source.load())
    root = Path(config.features.folder or Path(config.run_dir) / "features") / source.name / config.store_kind
    splits = {}
    for name in SPLITS:
        provenance = Provenance(
            encoder=encoder_digest,
            data=indexes[name].identity,
            kind=config.store_kind,
            layers=layers,
            clip=asdict(clip),
            views=view_record(config, name),
            dtype=config.features.dtype,
            precision=precision_on(config.engine, processes.device),
        )
        key = f"data.{name}={getattr(config.data, name)}"
        state = "absent" if config.features.rebuild else check_store(root / name, provenance, key=key)
        splits[name] = Split(
            name=name,
            index=indexes[name],
            targets=targets[name],
            key=key,
            folder=root / name,
            provenance=provenance,
            state=state,
        )
    return ProbedEncoder(name=source.name, source=source, task=task, layers=layers, clip=clip, **splits)


def prepare_external(config: ProbeConfig) -> ProbedEncoder:
    """Open features of other software and check them.

    Raises:
        ValueError: a config that does not fit the data.
        DataError: unusable files.
    """
    found = dict(zip(SPLITS, open_external(config.data.train, config.data.validation), strict=True))
    indexes = {name: index for name, (_, index) in found.items()}
    is_pooled = any(features.kind != "tokens" for features, _ in found.values())
    needed = "not be attentive with pooled features: use tokens"
    require(config.method != "attentive" or not is_pooled, "method", needed, config.method)
    task = build_task(config.task)
    targets = _read_targets(config, task, indexes)
    splits = {
        name: Split(
            name=name,
            index=index,
            targets=targets[name],
            key=f"data.{name}={getattr(config.data, name)}",
            external=features,
        )
        for name, (features, index) in found.items()
    }
    for split in splits.values():
        split.open(task)  # checks the values before anything starts
    return ProbedEncoder(name="features", source=None, task=task, layers=[0], clip=ClipConfig(), **splits)


def _read_targets(config: ProbeConfig, task: Task, indexes: dict[str, ShardIndex]) -> dict[str, Targets]:
    task.fit(indexes["train"], key=f"data.train={config.data.train}")
    targets = {
        name: task.read(index, key=f"data.{name}={getattr(config.data, name)}")
        for name, index in indexes.items()
    }
    check_probe_data(config, task, indexes["train"], indexes["validation"], targets["train"])
    return targets


def view_record(config: ProbeConfig, name: str) -> dict[str, Any]:
    """The views of a data set as JSON, for the provenance."""
    if name == "train" and config.features.train_views:
        return {
            "random": config.features.train_views,
            "seed": config.seed,
            "augment": asdict(config.augment),
        }
    return {
        "temporal_clips": config.evaluate.temporal_clips,
        "spatial_crops": config.evaluate.spatial_crops,
    }


def make_stores(config: ProbeConfig, probed: ProbedEncoder, processes: Processes, *, workers: int) -> None:
    """Collective. Encode the missing features of an encoder.

    Raises:
        DataError: more unreadable samples than data.max_bad_fraction.
    """
    assert probed.source is not None
    if probed.is_encoded and not config.features.rebuild:
        return
    description = probed.source.description
    encoder = probed.source.load().to(processes.device)
    for split in probed.splits:
        if split.state == "complete":
            continue
        assert split.folder is not None and split.provenance is not None
        reader = _reader(config, probed, split)
        shape = store_shape(description, reader, split.provenance.kind, len(split.index))
        writer = StoreWriter(split.folder, split.provenance, shape)
        if processes.is_first:
            if config.features.rebuild:
                remove_store(split.folder)
            writer.create()
        processes.barrier()
        encode(
            writer,
            reader,
            LayerEncoder(
                encoder=encoder,
                description=description,
                layers=probed.layers,
                kind=split.provenance.kind,
                is_bf16=split.provenance.precision == "bf16",
                clips_per_device=config.clips_per_device,
            ),
            processes,
            workers=workers,
            timeout_s=config.data.timeout_s,
            read_ahead=config.data.read_ahead,
        )
        processes.barrier()
        if processes.is_first:
            writer.commit(split.index, len(chunk_items(shape, reader)))
    processes.barrier()


def _reader(config: ProbeConfig, probed: ProbedEncoder, split: Split) -> FixedViews | RandomViews:
    if split.name == "train" and config.features.train_views:
        return RandomViews(
            split.index,
            probed.clip,
            views=config.features.train_views,
            augment=config.augment,
            seed=config.seed,
        )
    return FixedViews(
        split.index,
        probed.clip,
        temporal_clips=config.evaluate.temporal_clips,
        spatial_crops=config.evaluate.spatial_crops,
    )


def check_readable(config: ProbeConfig, data: LabelledFeatures) -> None:
    """Reject a data set with too many unreadable samples.

    Raises:
        DataError: more than data.max_bad_fraction.
    """
    bad, total = len(data.features.skipped), len(data.index)
    if bad > config.data.max_bad_fraction * total:
        position, reason = next(iter(data.features.skipped.items()))
        raise DataError(
            f"{data.key}: expected at most data.max_bad_fraction={config.data.max_bad_fraction:g} of the "
            f"samples to be unreadable, got {bad} of {total}, first {data.index.sample(position).key}: "
            f"{reason}; fix: replace these videos, or raise data.max_bad_fraction"
        )

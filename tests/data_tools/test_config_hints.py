"""Hints for misspelt keys and for key names of other projects."""

from typing import Any

import pytest

from kinemae.data_tools.config import all_keys, component_keys, load_config
from kinemae.data_tools.config_hints import SYNONYMS, is_key, suggestions, unknown_key
from kinemae.data_tools.sharding.plan import ShardConfig
from kinemae.data_tools.synth import SynthConfig
from kinemae.finetune.config import FinetuneConfig
from kinemae.launch.k8s.cluster import KubernetesCluster
from kinemae.launch.local import LocalCluster
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.ssh import SshCluster
from kinemae.pretrain.config import PretrainConfig

SCHEMAS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "shard": ShardConfig,
    "synth": SynthConfig,
    "local": LocalCluster,
    "ssh": SshCluster,
    "slurm": SlurmCluster,
    "k8s": KubernetesCluster,
}


def keys_and_components(schema: type) -> tuple[list[str], list[str]]:
    return all_keys(schema), component_keys(schema)


def test_every_synonym_names_a_key_that_exists() -> None:
    for hints in SYNONYMS.values():
        for hint in hints:
            exists = any(is_key(hint, *keys_and_components(schema)) for schema in SCHEMAS.values())
            assert exists or " " in hint, hint


@pytest.mark.parametrize(
    ("schema", "given", "expected"),
    [
        ("local", "nproc_per_node", ["processes"]),
        ("slurm", "gpus", ["processes_per_node"]),
        ("k8s", "gres", ["resources"]),
        ("ssh", "nodelist", ["hosts"]),
        ("pretrain", "masking.ratio", ["masking.args.ratio"]),
        ("pretrain", "mask_ratio", ["masking.args.ratio"]),
        ("pretrain", "masking.ratoi", ["masking.args.ratio"]),
        ("pretrain", "noise.std", ["noise.args.std"]),
        ("pretrain", "model.attention.window", ["model.attention.args.window"]),
        ("pretrain", "lr", ["optim.lr"]),
        ("pretrain", "learning_rate", ["optim.lr"]),
        ("pretrain", "optim.learning_rate", ["optim.lr"]),
        ("pretrain", "optim.rl", ["optim.lr"]),
        ("pretrain", "optim.weigth_decay", ["optim.weight_decay"]),
        ("pretrain", "wd", ["optim.weight_decay"]),
        ("pretrain", "weight_decay", ["optim.weight_decay"]),
        ("pretrain", "warmup_epochs", ["optim.warmup_fraction"]),
        ("pretrain", "batch_size", ["batch.global_clips", "batch.clips_per_device"]),
        ("pretrain", "precision", ["engine.precision"]),
        ("pretrain", "fp16", ["engine.precision"]),
        ("pretrain", "num_frames", ["clip.frames"]),
        ("pretrain", "frames", ["clip.frames"]),
        ("pretrain", "sampling_rate", ["clip.stride"]),
        ("pretrain", "input_size", ["clip.size"]),
        ("pretrain", "patch_size", ["model.patch_size"]),
        ("pretrain", "decoder_depth", ["model.decoder_depth"]),
        ("pretrain", "epochs", ["steps"]),
        ("pretrain", "num_workers", ["data.num_workers"]),
        ("pretrain", "data_path", ["data.shards"]),
        ("pretrain", "output_dir", ["run_dir"]),
        ("pretrain", "resume", ["run_dir"]),
        ("pretrain", "encoder", ["init_from"]),
        ("pretrain", "drop_path", ["model.drop_path"]),
        ("pretrain", "min_scale", ["augment.min_scale"]),
        ("pretrain", "clip.frame", ["clip.frames"]),
        ("pretrain", "sed", ["seed"]),
        ("finetune", "steps", ["epochs"]),
        ("finetune", "init_from", ["encoder"]),
        ("finetune", "layer_decay", ["optim.layer_decay"]),
        ("finetune", "drop_path_rate", ["drop_path"]),
        ("finetune", "data_path", ["data.train"]),
        ("finetune", "smoothing", ["task.args.label_smoothing"]),
        ("finetune", "evaluate.num_crops", ["evaluate.spatial_crops"]),
        ("shard", "val_split", ["validation_fraction"]),
        ("shard", "num_workers", ["workers"]),
        ("shard", "layout.size", ["layout.args.short_side"]),
        ("pretrain", "zzz", []),
    ],
)
def test_key_names_of_other_projects_get_suggestions(schema: str, given: str, expected: list[str]) -> None:
    keys, components = keys_and_components(SCHEMAS[schema])
    assert suggestions(given, keys, components=components) == expected


def test_a_source_may_be_given_by_its_name_alone() -> None:
    config = load_config(ShardConfig, None, ["source=ucf101", "layout=copy"])
    assert config.source is not None and (config.source.name, config.layout.name) == ("ucf101", "copy")


def message(schema: type, given: str) -> Any:
    keys, components = keys_and_components(schema)
    return unknown_key(given, keys, components=components)


def test_some_unknown_keys_are_answered_with_a_sentence() -> None:
    assert "kinemae launch local processes=N" in message(PretrainConfig, "nproc_per_node")
    assert "the classes come from the data set" in message(FinetuneConfig, "num_classes")


def test_other_unknown_keys_are_answered_with_the_known_ones() -> None:
    assert message(PretrainConfig, "engine.zzz").endswith("engine.compile, engine.cpu_threads")
    assert "; expected one of run_dir, seed, " in message(PretrainConfig, "zzz")

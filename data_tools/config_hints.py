"""Hints for unknown config keys: misspellings, and the key names of other projects."""

import difflib
import re
from collections.abc import Sequence

_CUTOFF = 0.75
_MAX_HINTS = 3

# Our keys, each with the names that VideoMAE, MAE, V-JEPA, timm, transformers, torchrun, Slurm and others use
# for it. Keys that are not in the schema are skipped. A key with spaces is a sentence and is shown verbatim.
_FIELD_NAMES: dict[str, str] = {
    "masking.args.ratio": "ratio mask_ratio masking_ratio mask_prob encoder_mask_ratio",
    "masking": "mask mask_type mask_generator masking_strategy",
    "masks_per_clip": "num_masks n_masks masks clone_batch multi_mask multimask",
    "model.predict_ratio": "decoder_mask_ratio decode_ratio predict_ratio",
    "optim.lr": "lr learning_rate base_lr blr max_lr peak_lr initial_lr",
    "optim.final_lr": "min_lr end_lr lr_min eta_min",
    "optim.weight_decay": "weight_decay wd weight_decay_end",
    "optim.betas": "betas opt_betas adam_betas beta1 beta2 adam_beta1 adam_beta2",
    "optim.clip_norm": "clip_grad grad_clip clip_grad_norm max_grad_norm max_norm gradient_clip_val "
    "gradient_clipping",
    "optim.warmup_fraction": "warmup warmup_epochs warmup_steps warmup_ratio warmup_iters num_warmup_steps",
    "optim.layer_decay": "layer_decay llrd layer_wise_decay layer_decay_rate",
    "batch.global_clips": "batch_size global_batch_size train_batch_size total_batch_size",
    "batch.clips_per_device": "batch_size micro_batch_size batch_size_per_gpu per_device_train_batch_size "
    "train_micro_batch_size_per_gpu accum_iter update_freq gradient_accumulation_steps accum_steps "
    "accumulate_grad_batches",
    "engine.precision": "precision amp bf16 fp16 half dtype mixed_precision use_amp autocast",
    "engine.residual_dtype": "residual_in_bf16 fp32_residual residual_in_fp32 residual",
    "engine.zero_stage": "zero zero_stage stage zero_optimization deepspeed fsdp",
    "engine.compile": "compile torch_compile torchcompile",
    "engine.activation_checkpointing": "gradient_checkpointing grad_checkpointing use_checkpoint "
    "checkpoint_activations activation_checkpoint",
    "engine.device": "device accelerator",
    "clip.frames": "num_frames frames nframes n_frames clip_len clip_length frames_per_clip num_segments T",
    "clip.stride": "sampling_rate sample_rate frame_interval frame_stride stride frame_sample_rate "
    "frame_skip",
    "clip.fps": "fps target_fps sample_fps",
    "clip.sampling": "sampling sampler uniform_sampling",
    "clip.size": "input_size img_size image_size resolution crop_size short_side_size spatial_size",
    "model.size": "arch model_name backbone model_size vit",
    "model.patch_size": "patch_size spatial_patch_size",
    "model.patch_frames": "tubelet_size tubelet temporal_patch_size t_patch_size",
    "model.width": "embed_dim hidden_size dim width",
    "model.depth": "depth num_layers num_hidden_layers encoder_depth n_layers",
    "model.heads": "num_heads num_attention_heads n_heads",
    "model.decoder_width": "decoder_embed_dim decoder_dim decoder_hidden_size predictor_embed_dim",
    "model.decoder_depth": "decoder_depth decoder_num_hidden_layers decoder_num_layers pred_depth",
    "model.decoder_heads": "decoder_num_heads decoder_num_attention_heads",
    "model.drop_path": "drop_path drop_path_rate stochastic_depth",
    "drop_path": "drop_path drop_path_rate stochastic_depth",
    "model.positions": "pos_embed positional_encoding pos_emb use_rope rope",
    "model.attention": "attn attention_type attn_type",
    "target.args.normalize": "norm_pix_loss normalize_target normlize_target normalise norm_target",
    "target": "loss target_type",
    "data.num_workers": "workers dataloader_num_workers loader_workers",
    "workers": "num_workers workers num_processes processes nproc jobs",
    "data.shards": "data_path data_dir data_root dataset data_set train_data root data shards",
    "data.train": "data_path data_dir data_root dataset train_data train_path train shards",
    "data.validation": "val_data eval_data_path val_path validation val val_dir eval_data",
    "data.views_per_video": "views num_views repeated_aug num_sample repeated_augmentation num_repeats "
    "aug_repeats",
    "steps": "epochs num_epochs max_epochs num_train_epochs max_steps total_steps iters iterations max_iters "
    "train_steps num_steps",
    "epochs": "steps num_epochs max_epochs num_train_epochs total_epochs max_steps",
    "run_dir": "output_dir log_dir out_dir save_dir work_dir exp_dir logdir output out experiment_dir resume "
    "resume_from resume_from_checkpoint auto_resume load_checkpoint",
    "init_from": "pretrained checkpoint ckpt load_from weights init_weights encoder finetune init_checkpoint",
    "encoder": "pretrained init_from checkpoint ckpt load_from weights init_weights finetune "
    "model_path pretrained_checkpoint backbone_weights",
    "adapt.method": "freeze linear_probe freeze_backbone freeze_encoder linear_probing lora peft use_lora",
    "adapt.rank": "lora_r lora_rank r rank",
    "adapt.alpha": "lora_alpha",
    "adapt.dropout": "lora_dropout",
    "adapt.targets": "target_modules lora_target_modules",
    "head": "classifier head_type pooling use_mean_pooling",
    "task.args.label_smoothing": "label_smoothing smoothing label_smooth",
    "mix.mixup": "mixup mixup_alpha",
    "mix.cutmix": "cutmix cutmix_alpha",
    "mix.probability": "mixup_prob mix_prob",
    "mix.switch_probability": "mixup_switch_prob switch_prob switch",
    "data.order": "shuffle shuffle_algo shuffle_block_size",
    "data.read_ahead": "prefetch prefetch_factor predownload readahead",
    "data.balance": "class_balanced balanced_sampler weighted_sampler weighted_random_sampler oversample",
    "augment.flip": "flip hflip horizontal_flip random_flip",
    "augment.flip_pairs": "flip_label_map flip_labels left_right",
    "augment.erase.probability": "reprob random_erase random_erasing erase_prob",
    "augment.rand_augment.operations": "aa auto_augment autoaugment rand_augment randaug",
    "augment.min_scale": "scale crop_scale random_resized_crop min_area train_crop_scale",
    "evaluate.temporal_clips": "num_clips test_num_segment num_temporal_clips test_num_segments",
    "evaluate.spatial_crops": "num_crops test_num_crop num_spatial_crops test_num_crops three_crop",
    "save_every_steps": "save_freq save_steps save_ckpt_freq save_every checkpoint_every save_interval "
    "checkpoint_freq",
    "keep_checkpoints": "save_total_limit keep_last max_keep_ckpts save_top_k",
    "log.every_steps": "log_interval logging_steps print_freq log_every log_freq log_every_n_steps",
    "seed": "random_seed rng_seed manual_seed",
    "validation_fraction": "val_ratio val_split val_share validation_split test_size val_fraction",
    "samples_per_shard": "maxcount shard_size samples videos_per_shard",
    "megabytes_per_shard": "maxsize max_size mb_per_shard",
    "layout.args.short_side": "size resolution short_side resize height",
    "unlabelled": "unlabeled num_unlabelled",
    "processes": "nproc nproc_per_node num_gpus gpus ngpus ntasks num_processes np tasks",
    "processes_per_node": "nproc nproc_per_node num_gpus gpus ngpus ntasks num_processes np tasks "
    "ntasks_per_node tasks_per_node processes",
    "nodes": "nnodes num_nodes",
    "cpus_per_process": "cpus cpus_per_task cpus_per_node",
    "gpus_per_node": "gres gpus_per_task",
    "resources": "cpus cpus_per_task cpus_per_node gres gpus_per_task gpus_per_node mem memory_per_node",
    "memory": "mem memory_per_node",
    "time": "time_limit walltime",
    "environment": "env envs",
    "name": "job_name",
    "hosts": "nodelist hostlist host",
    "the launcher sets the processes: kinemae launch local processes=N -- pretrain CONFIG": "nproc "
    "nproc_per_node num_gpus gpus world_size n_gpus ngpus devices nodes nnodes num_nodes local_rank rank",
    "the classes come from the data set": "nb_classes num_classes n_classes num_labels",
}

_WRONG_TYPES = (
    re.compile(r"Value '(?P<value>.*)' of type '\w+' could not be converted to (?P<kind>\w+)"),
    re.compile(r"Value '(?P<value>.*)' is not a valid (?P<kind>\w+)"),
    re.compile(r"Incompatible value '(?P<value>.*)' for field of type '(?P<kind>\w+)'"),
)
_KINDS = {
    **dict.fromkeys(("integer", "int"), "a whole number"),
    **dict.fromkeys(("float",), "a number"),
    **dict.fromkeys(("bool", "boolean"), "true or false"),
    **dict.fromkeys(("str", "string"), "a text"),
}

SYNONYMS: dict[str, list[str]] = {}
for _key, _names in _FIELD_NAMES.items():
    for _name in _names.split():
        SYNONYMS.setdefault(_name.lower(), []).append(_key)


def unknown_key(key: str, keys: Sequence[str], *, components: Sequence[str] = ()) -> str:
    """The message for a key that a config does not have.

    Args:
        key: dotted, as it was given.
        keys: all existing dotted keys.
        components: those of them that hold a component, which takes arguments of its own.
    """
    hints = suggestions(key, keys, components=components)
    sentences = [hint for hint in hints if " " in hint]
    if sentences:
        return f"config key {key}: unknown key; {sentences[0]}"
    if hints:
        return f"config key {key}: unknown key; did you mean {' or '.join(hints)}?"
    above = key.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == above]
    known_keys = siblings or [known for known in keys if "." not in known]
    return f"config key {key}: unknown key; expected one of {', '.join(known_keys)}"


def wrong_type(text: str) -> str:
    """Reword omegaconf's message about a value of the wrong type as "expected ..., got ..."."""
    if text.endswith("is not Optional"):
        return "expected a value, got null; fix: quote it if it is text"
    found = next(filter(None, (pattern.match(text) for pattern in _WRONG_TYPES)), None)
    if found is None or found["kind"].lower() not in _KINDS:
        return text
    given = "no value" if found["value"] == "None" else repr(found["value"])
    return f"expected {_KINDS[found['kind'].lower()]}, got {given}"


def suggestions(key: str, keys: Sequence[str], *, components: Sequence[str] = ()) -> list[str]:
    """Up to three similar keys, the best match first; a sentence if no key fits."""
    above, _, leaf = key.rpartition(".")
    siblings = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == above}
    same_depth = [known for known in keys if known.count(".") == key.count(".")]
    same_leaf = [known for known in keys if known.rpartition(".")[2] == leaf]
    by_name = _from_synonym(leaf, keys, components)
    by_similar_name = [
        hint
        for name in difflib.get_close_matches(leaf.lower(), SYNONYMS, n=1, cutoff=0.8)
        for hint in _from_synonym(name, keys, components)
    ]
    candidates = (
        [hint for hint in by_name if above not in components or hint.startswith(f"{above}.")],
        _close(leaf, siblings),
        [hint for hint in by_similar_name if above in components and hint.startswith(f"{above}.")],
        [f"{above}.args.{leaf}"] if above in components else [],
        same_leaf,
        difflib.get_close_matches(key, same_depth, n=1, cutoff=_CUTOFF),
        _close(leaf, {known.rpartition(".")[2]: known for known in reversed(keys)}),
        by_similar_name,
    )
    return next((found[:_MAX_HINTS] for found in candidates if found), [])


def is_key(key: str, keys: Sequence[str], components: Sequence[str]) -> bool:
    """Check whether a dotted key exists; any argument of a component counts as a key."""
    return key in keys or any(key.startswith(f"{component}.args.") for component in components)


def _from_synonym(leaf: str, keys: Sequence[str], components: Sequence[str]) -> list[str]:
    """Translate a key name of another project to the keys of this schema, or to a sentence without one."""
    hints = SYNONYMS.get(leaf.lower(), [])
    known = [hint for hint in hints if is_key(hint, keys, components)]
    return known or [hint for hint in hints if " " in hint]


def _close(leaf: str, by_leaf: dict[str, str]) -> list[str]:
    return [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=_CUTOFF)]

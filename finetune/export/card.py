"""Model card: `README.md` of an exported folder, with the metadata of the Hugging Face hub.

Facts come from the description of the model, from the config and the result of its run, and from the export.
A fact that none of them contains is called unknown.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.export.base import Exporter
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.inference.video_model import VideoModel

FILE = "README.md"
UNKNOWN = "unknown"
_LIBRARIES = {"huggingface": "transformers", "kinemae": "kinemae", "torch-export": "pytorch"}
_PRETRAINING_KEYS = (
    "masking",
    "pruning",
    "target",
    "noise",
    "model.size",
    "model.decoder",
    "optim.lr",
    "epochs",
)
_FINETUNING_KEYS = (
    "task",
    "head",
    "adapt.method",
    "epochs",
    "optim.lr",
    "optim.layer_decay",
    "drop_path",
    "seed",
)
# Licences of the published weights by the start of the format's name, as in docs/which-checkpoint.md.
_PUBLISHED = {
    "VideoMAE": "CC BY-NC 4.0, not commercial (V1, and V2 on the hub); Apache 2.0 (V2 distilled)",
    "MAE-ST": "CC BY-NC 4.0, not commercial",
    "V-JEPA 2": "MIT, or Apache 2.0 on the hub",
    "UMT": "MIT",
    "InternVideo2": "Apache 2.0, or none stated (distilled)",
    "image ViT": "by model; DINOv2 Apache 2.0, MAE CC BY-NC 4.0",
}

Rows = list[tuple[str, object]]


def write_card(
    folder: Path,
    name: str,
    exporter: Exporter,
    report: Mapping[str, Any],
    options: ExportOptions,
    *,
    source: Path,
) -> None:
    """Write the model card of an exported folder.

    Args:
        name: of the folder, for the code that loads it.
        report: of the export.
        source: the exported model or its run.
    """
    model = exporter.model
    result = _read_json(_run_file(source, "result.json"))
    sections = {
        "Use": f"```python\n{exporter.usage(name)}\n```",
        "Model": _table(_model_rows(model, report)),
        "Training": _training(model, source),
        "Scores": _scores(result),
        "Starting weights and licence": _licence(model, options),
        "Check of the export": _check(report),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    metadata = _metadata(name, model, report, options, result)
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    atomic_write_text(folder / FILE, f"---\n{front}---\n\n# {name}\n\n{_summary(model)}\n\n{text}\n")


def _summary(model: VideoModel) -> str:
    what = "A video encoder"
    if model.task_model is not None:
        task = type(model.task_model.task).__name__.lower()
        what = (
            f"A video model for {task} with {len(model.classes)} classes"
            if model.classes
            else (f"A video model for {task}")
        )
    return f"{what}, exported by [KineMAE](https://github.com/kinemae/kinemae)."


def _model_rows(model: VideoModel, report: Mapping[str, Any]) -> Rows:
    shape, clip, description = model.description.shape, model.clip, model.description
    rate = f"{clip.fps:g} frames per second" if clip.fps else f"every frame of {clip.stride}"
    if clip.sampling == "uniform":
        rate = "evenly spaced over the video"
    pruned = None if model.task_model is None else model.task_model.pruning.keep
    rows: Rows = [
        ("encoder", f"vision transformer, width {shape.width}, {shape.depth} blocks, {shape.heads} heads"),
        ("patch", " x ".join(map(str, shape.patch)) + " (frames, pixels, pixels)"),
        ("attention, positions", f"{shape.attention.name}, {shape.positions.name}"),
        ("parameters", f"{report['parameters']:,}"),
        ("clip", f"{clip.frames} frames of {clip.size} x {clip.size} pixels, {rate}"),
        ("normalization", f"mean {list(description.mean)}, standard deviation {list(description.std)}, RGB"),
        ("FLOPs of a clip, forward", f"{report['gflops_per_clip']:.4g} G"),
    ]
    if pruned not in (None, 1.0):
        rows.append(("fraction of the tokens that are kept", pruned))
    if model.classes:
        rows.append(("classes", ", ".join(model.classes[:20]) + (", ..." if len(model.classes) > 20 else "")))
    return rows


def _training(model: VideoModel, source: Path) -> str:
    parts = []
    for stage in _stages(model.description.trained_by):
        title, rows = _stage_rows(stage)
        parts.append(f"### {title}\n\n{_table(rows)}")
    config = _read_yaml(_run_file(source, "config.yaml"))
    if "masking" in config:
        rows = _chosen(config, _PRETRAINING_KEYS)
        parts.append(f"### Recipe of the pretraining\n\n{_table(rows)}")
    return "\n\n".join(parts) or f"Data, recipe and FLOPs of the training: {UNKNOWN}."


def _stages(trained_by: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the stages of the training, the first one first."""
    before = trained_by.get("encoder_trained_by")
    if isinstance(before, Mapping):
        yield from _stages(before)
    if trained_by:
        yield trained_by


def _stage_rows(stage: Mapping[str, Any]) -> tuple[str, Rows]:
    """Return title and rows of a stage."""
    if "imported_from" in stage:
        named = Path(str(stage["imported_from"])).name
        return "Imported weights", [("file", named), ("format", stage.get("format", UNKNOWN))]
    config = stage.get("config")
    steps, clips = stage.get("steps"), stage.get("global_clips")
    if isinstance(config, Mapping):
        clips = _value(config, "batch.global_clips")
        data = _value(config, "data.train")
        rows: Rows = [("training data", UNKNOWN if data is None else Path(str(data)).name)]
        rows += _chosen(config, _FINETUNING_KEYS)
        title = {"probe": "Probe of the frozen encoder"}.get(str(stage.get("task")), "Fine-tuning")
    else:
        rows, title = [("fingerprint of the training data", stage.get("shards", UNKNOWN))], "Pretraining"
    rows += [("steps", steps or UNKNOWN), ("clips per step", clips or UNKNOWN)]
    if steps and clips:
        rows.append(("clips seen", f"{int(steps) * int(clips):,}"))
    return title, [*rows, ("FLOPs of the training", f"{UNKNOWN}: not recorded")]


def _scores(result: Mapping[str, Any]) -> str:
    """Return a table of the scores with a confidence interval or a floor, the selected metric first."""
    metric = result.get("metric")
    if not isinstance(metric, str):
        return f"Scores: {UNKNOWN}."
    given = result.get("floor")
    floor = given if isinstance(given, Mapping) else {}
    names = [metric, *(name for name in result if name != metric)]
    rows = [
        f"| {name} | {result[name]:.4g} | {_interval(result.get(f'{name}_ci95'))} | "
        f"{_number(floor.get(name))} |"
        for name in names
        if isinstance(result.get(name), int | float)
        and (name == metric or name in floor or f"{name}_ci95" in result)
    ]
    data = result.get("data") or {}
    folder = next((Path(str(data[key])).name for key in ("test", "validation") if data.get(key)), UNKNOWN)
    views = (result.get("views") or {}).get("total", UNKNOWN)
    about = (
        f"Data: {folder} (fingerprint {data.get('fingerprint', UNKNOWN)}), {result.get('videos', UNKNOWN)} "
        f"videos, {views} views per video. The floor is the score without looking at the videos."
    )
    selected = (result.get("selection") or {}).get("is_optimistic")
    if selected:
        about += " These data also selected the model, so the score is optimistic."
    head = "| metric | score | 95 % interval | floor |\n|---|---|---|---|"
    return "\n".join([head, *rows]) + f"\n\n{about}"


def _licence(model: VideoModel, options: ExportOptions) -> str:
    stages = list(_stages(model.description.trained_by))
    imported = next((stage for stage in stages if "imported_from" in stage), None)
    start = next((stage["init_from"] for stage in stages if stage.get("init_from")), None)
    if imported is not None:
        system = str(imported.get("format", UNKNOWN))
        text = f"The training started from imported weights ({system}). Licence of these weights: {UNKNOWN}."
        named = system.removeprefix("transformers ")
        published = next((text for name, text in _PUBLISHED.items() if named.startswith(name)), UNKNOWN)
        text += f" Licence of the published weights of this system: {published}."
    elif start is not None:
        text = f"The training started from {Path(str(start)).name}. Licence of these weights: {UNKNOWN}."
    elif stages and _is_from_scratch(stages[0]):
        text = "The training started from random weights: no other weights, and so no licence of such."
    else:
        text = f"Starting weights and their licence: {UNKNOWN}."
    return (
        f"{text}\n\nLicence of the training data: {UNKNOWN}.\n\nLicence of this model: "
        f"{options.license or UNKNOWN}."
    )


def _is_from_scratch(first: Mapping[str, Any]) -> bool:
    """Check whether the first stage is a pretraining, or a training of an encoder with random weights."""
    config = first.get("config")
    if isinstance(config, Mapping):
        return config.get("weights") == "random" or config.get("encoder", "") is None
    return "steps" in first


def _check(report: Mapping[str, Any]) -> str:
    if not report["checked"]:
        return "The export was not run (`check=false`)."
    sizes = " and ".join(map(str, report["batch_sizes"]))
    differences = ", ".join(f"{name} {value:.2g}" for name, value in report["differences"].items())
    return (
        f"Format {report['to']}. It was run with {sizes} generated clips and compared with KineMAE. Largest "
        f"difference, relative to the largest value if that is above 1: {differences} (tolerance "
        f"{report['tolerance']:g})."
    )


def _metadata(
    name: str,
    model: VideoModel,
    report: Mapping[str, Any],
    options: ExportOptions,
    result: Mapping[str, Any],
) -> dict[str, Any]:
    is_classifier = model.task_model is not None and bool(model.classes)
    metadata: dict[str, Any] = {
        "license": options.license or UNKNOWN,
        "library_name": _LIBRARIES.get(report["to"], "onnx"),
        "pipeline_tag": "video-classification" if is_classifier else "feature-extraction",
        "tags": ["video", "masked-autoencoder", "kinemae"],
    }
    top1 = result.get("top1")
    if is_classifier and isinstance(top1, float):
        data = result.get("data") or {}
        folder = next((Path(str(data[key])).name for key in ("test", "validation") if data.get(key)), UNKNOWN)
        metric = {"type": "accuracy", "name": "top1", "value": round(top1, 4)}
        entry = {
            "task": {"type": "video-classification"},
            "dataset": {"name": folder, "type": folder},
            "metrics": [metric],
        }
        metadata["model-index"] = [{"name": name, "results": [entry]}]
    return metadata


def _chosen(config: Mapping[str, Any], keys: tuple[str, ...]) -> Rows:
    """Return the rows of those keys that the config sets."""
    values = ((key, _value(config, key)) for key in keys)
    return [(f"`{key}`", _component(value)) for key, value in values if value is not None]


def _component(value: object) -> object:
    if isinstance(value, Mapping) and "name" in value:
        arguments = json.dumps(value["args"]) if value.get("args") else ""
        return f"{value['name']} {arguments}".strip()
    return value


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _table(rows: Rows) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _interval(value: object) -> str:
    if isinstance(value, list) and len(value) == 2:
        return f"{_number(value[0])} to {_number(value[1])}"
    return UNKNOWN


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else UNKNOWN


def _run_file(source: Path, name: str) -> Path:
    """Return a file of the run: `source` is the run, or a folder in it."""
    return source / name if (source / name).is_file() else source.parent / name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}

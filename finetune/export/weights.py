"""Formats of weights: KineMAE's own folder, VideoMAE's file, and folders of transformers."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinemae.finetune.conversion.command import convert
from kinemae.finetune.conversion.huggingface import huggingface_tensors, write_huggingface
from kinemae.finetune.conversion.key_rules import Tensors
from kinemae.finetune.conversion.model_bundle import ModelBundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import load_checkpoint
from kinemae.finetune.conversion.videomae import videomae_tensors
from kinemae.finetune.conversion.vjepa_export import vjepa_config, vjepa_tensors
from kinemae.finetune.export.base import Exporter, Run
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.export.source import encoder_alone, exported_folder, open_bundle
from kinemae.finetune.export.static_model import StaticModel
from kinemae.finetune.inference.load import from_bundle, load
from kinemae.pretrain.exported_model import load_description

_HEAD = ("head.json", "head.safetensors", "adapter")
_ENCODER = ("encoder.json", "encoder.safetensors", "decoder.json", "decoder.safetensors")


class OwnFolder(Exporter):
    """KineMAE's own files, unchanged, with a model card."""

    tolerance = 0.0

    def __init__(self, path: str, options: ExportOptions):
        self.folder = exported_folder(Path(path))
        load_description(self.folder)  # rejects other folders
        self.names = _ENCODER + (_HEAD if options.head else ())
        self.model = load(self.folder)
        if not options.head:
            self.model = encoder_alone(self.model)
        self.facts = {}

    def write(self, out: Path, clips: Tensor) -> None:
        out.mkdir()
        for name in self.names:
            source = self.folder / name
            if source.is_dir():
                shutil.copytree(source, out / name)
            elif source.exists():
                shutil.copyfile(source, out / name)

    def run(self, out: Path) -> Run:
        return _run(StaticModel(load(out)))

    def usage(self, name: str) -> str:
        call = "scores" if self.model.task_model else "features"
        return (
            "import kinemae\n\n"
            f'model = kinemae.load("{name}")\n'
            'clip = kinemae.read_clip("video.mp4", model.clip)\n'
            f"print(model.{call}(clip[None]))"
        )


class VideoMaeFile(Exporter):
    """One file, as VideoMAE's programs load it. It is read back by `import` and run by KineMAE."""

    tolerance = 3e-6

    def __init__(self, path: str, options: ExportOptions):
        self.bundle, folder = open_bundle(path, options)
        self.tensors = videomae_tensors(self.bundle, source=folder)
        self.model = from_bundle(self.bundle, source=path)
        self.facts = _facts(self.bundle, self.tensors)

    def write(self, out: Path, clips: Tensor) -> None:
        torch.save({"model": self.tensors}, out)  # VideoMAE's code expects the tensors under "model"

    def run(self, out: Path) -> Run:
        description, decoder = self.model.description, self.bundle.decoder
        options = ImportOptions(
            frames=description.frames,
            size=description.size,
            heads=description.shape.heads,
            decoder_heads=None if decoder is None else decoder.shape.heads,
            mean=list(description.mean),
            std=list(description.std),
        )
        return _run(StaticModel(from_bundle(convert(load_checkpoint(out), options), source=str(out))))


class HuggingFace(Exporter):
    """A folder that `from_pretrained` of transformers loads without code of its own."""

    tolerance = 3e-6
    runs_with = ("transformers",)
    install = "'kinemae[huggingface]'"

    def __init__(self, path: str, options: ExportOptions):
        self.bundle, folder = open_bundle(path, options)
        self.is_vjepa = self.bundle.description.shape.positions.name == "vjepa"
        if self.bundle.head is not None and not self.is_vjepa:
            self.tolerance = 1e-5  # transformers fixes the epsilon of the norm before the classifier to 1e-5
        convert_tensors = vjepa_tensors if self.is_vjepa else huggingface_tensors
        self.tensors = convert_tensors(self.bundle, source=folder)
        self.model = from_bundle(self.bundle, source=path)
        self.facts = _facts(self.bundle, self.tensors)

    def write(self, out: Path, clips: Tensor) -> None:
        config = vjepa_config(self.bundle) if self.is_vjepa else None
        write_huggingface(out, self.bundle, self.tensors, config)

    def run(self, out: Path) -> Run:
        from transformers import AutoModel, AutoModelForVideoClassification
        from transformers.utils import logging

        logging.set_verbosity_error()  # AutoModel reports a decoder that it does not use
        logging.disable_progress_bar()
        kind = AutoModel if self.bundle.head is None else AutoModelForVideoClassification
        model = kind.from_pretrained(out).eval()
        mean, std = self.model.description.mean, self.model.description.std
        skip = {"skip_predictor": True} if self.is_vjepa and self.bundle.head is None else {}

        def run(clips: Tensor) -> dict[str, Tensor]:
            colours = (torch.tensor(values)[:, None, None, None] for values in (mean, std))
            pixels = clips.float() / 255
            pixels_BTCHW = ((pixels - next(colours)) / next(colours)).transpose(1, 2)
            # oneDNN's convolution differs from PyTorch's own by more than the tolerance.
            with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
                found = model(**{model.main_input_name: pixels_BTCHW}, **skip)
            if self.bundle.head is not None:
                return {"output": found.logits}
            return {"tokens": found.last_hidden_state}

        return run

    def usage(self, name: str) -> str:
        kind = "AutoModel" if self.bundle.head is None else "AutoModelForVideoClassification"
        clip = self.model.clip
        shape = f"(1, {clip.frames}, 3, {clip.size}, {clip.size})"
        call = "model(pixels).logits"
        norm = ""
        if self.bundle.head is not None and not self.is_vjepa:
            norm = "model.fc_norm.eps = 1e-6  # as in training; transformers has 1e-5\n"
        if self.bundle.head is None:
            features = ("model(pixels).last_hidden_state", "model.get_vision_features(pixels)")
            call = features[self.is_vjepa]
        return (
            f"import torch\nfrom transformers import {kind}\n\n"
            f'model = {kind}.from_pretrained("{name}").eval()\n{norm}'
            f"pixels = torch.zeros{shape}  # RGB, (pixel / 255 - mean) / std\n"
            f"print({call}.shape)"
        )


def _facts(bundle: ModelBundle, tensors: Tensors) -> dict[str, Any]:
    return {"contents": bundle.contents, "parameters": bundle.parameters, "tensors": len(tensors)}


def _run(model: StaticModel) -> Run:
    """Run KineMAE itself."""

    def run(clips: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(model.output_names, model(clips), strict=True))

    return run

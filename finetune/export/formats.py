"""Table of the export formats."""

import json
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from kinemae import __version__
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.export import programs
from kinemae.finetune.export.base import Exporter, Run
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.export.source import open_program
from kinemae.finetune.export.static_model import StaticModel
from kinemae.finetune.export.weights import HuggingFace, OwnFolder, VideoMaeFile

PROGRAM_DESCRIPTION = "model.json"


class Program(Exporter):
    """A folder with a program and `model.json`, which describes its clips and outputs."""

    is_program = True
    file: ClassVar[str]

    def __init__(self, path: str, options: ExportOptions):
        self.model = open_program(path, options)
        self.batch = options.batch
        self.facts = {}

    def write(self, out: Path, clips: Tensor) -> None:
        out.mkdir()
        self.write_program(out / self.file, StaticModel(self.model), clips)
        text = json.dumps(self.description(), indent=2, ensure_ascii=False)
        atomic_write_text(out / PROGRAM_DESCRIPTION, text + "\n")

    def write_program(self, path: Path, model: StaticModel, clips: Tensor) -> None:
        """Write the program."""
        programs.write_onnx(path, model, clips, is_fixed=self.batch is not None)

    def run(self, out: Path) -> Run:
        return programs.read_onnx(out / self.file, StaticModel(self.model).output_names)

    def description(self) -> dict[str, Any]:
        """Return what a program that uses the export must know."""
        clip, task = self.model.clip, self.model.task_model
        return {
            "kinemae": __version__,
            "file": self.file,
            **self.facts,
            "input": {
                "name": programs.INPUT,
                "dtype": "uint8",
                "shape": [self.batch or "batch", 3, clip.frames, clip.size, clip.size],
                "order": "clips, colours (RGB), frames, rows, columns",
            },
            "outputs": list(StaticModel(self.model).output_names),
            "clip": {
                "frames": clip.frames,
                "stride": clip.stride,
                "fps": clip.fps,
                "sampling": clip.sampling,
                "size": clip.size,
            },
            "task": None if task is None else type(task.task).__name__.lower(),
            "classes": list(self.model.classes),
        }


class Onnx(Program):
    """ONNX with fixed shapes; positions are constants."""

    tolerance = 1e-4
    writes_with: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
    runs_with: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    install = "'kinemae[export]'"
    file = programs.ONNX_FILE

    def __init__(self, path: str, options: ExportOptions):
        super().__init__(path, options)
        self.facts = {"opset": programs.OPSET}

    def usage(self, name: str) -> str:
        clip = self.model.clip
        return (
            "import numpy as np\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{name}/{self.file}")\n'
            f"clip = np.zeros((1, 3, {clip.frames}, {clip.size}, {clip.size}), np.uint8)  # RGB\n"
            f'print(session.run(None, {{"{programs.INPUT}": clip}})[0].shape)'
        )


class OnnxInt8(Onnx):
    """ONNX whose linear layers have int8 weights."""

    tolerance = 0.1
    writes_with = ("onnx", "onnxscript", "onnxruntime")
    runs_with = ()

    def write_program(self, path: Path, model: StaticModel, clips: Tensor) -> None:
        programs.write_int8(path, model, clips, is_fixed=self.batch is not None)


class TorchExport(Program):
    """A program of `torch.export`."""

    tolerance = 1e-6
    file = programs.TORCH_FILE

    def write_program(self, path: Path, model: StaticModel, clips: Tensor) -> None:
        programs.write_torch(path, model, clips, is_fixed=self.batch is not None)

    def run(self, out: Path) -> Run:
        return programs.read_torch(out / self.file, StaticModel(self.model).output_names)

    def usage(self, name: str) -> str:
        clip = self.model.clip
        return (
            "import torch\n\n"
            f'model = torch.export.load("{name}/{self.file}").module()\n'
            f"clip = torch.zeros(1, 3, {clip.frames}, {clip.size}, {clip.size}, dtype=torch.uint8)  # RGB\n"
            "print(model(clip)[0].shape)"
        )


FORMATS: dict[str, type[Exporter]] = {
    "kinemae": OwnFolder,
    "videomae": VideoMaeFile,
    "huggingface": HuggingFace,
    "onnx": Onnx,
    "onnx-int8": OnnxInt8,
    "torch-export": TorchExport,
}

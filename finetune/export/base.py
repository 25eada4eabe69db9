"""Interface of export formats."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.inference.video_model import VideoModel

Run = Callable[[Tensor], dict[str, Tensor]]
"""Compute outputs of uint8 clips, by their names in `StaticModel`."""


class Exporter(ABC):
    """A format, built with the path of a model, which it loads.

    Attributes:
        tolerance: largest difference, see `ExportOptions.tolerance`.
        is_program: the export computes outputs of fixed shapes, and has no named weights.
        writes_with, runs_with: packages that writing and running need.
        install: what to install for them.
        model: the model as it is exported, for comparison.
        facts: for the report.
    """

    tolerance: float
    is_program: ClassVar[bool] = False
    writes_with: ClassVar[tuple[str, ...]] = ()
    runs_with: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""
    model: VideoModel
    facts: dict[str, Any]

    @abstractmethod
    def __init__(self, path: str, options: ExportOptions):
        """Load the model; raise an error if the format cannot hold it."""

    @abstractmethod
    def write(self, out: Path, clips: Tensor) -> None:
        """Write a file, or files in a folder.

        Args:
            clips: uint8, for tracing.
        """

    @abstractmethod
    def run(self, out: Path) -> Run:
        """Load what was written in its runtime."""

    def usage(self, name: str) -> str:
        """Python code that loads the export from the folder `name`, for the model card."""
        return ""

    @classmethod
    def check(cls, name: str, options: ExportOptions) -> None:
        """Check options and packages before the model is loaded.

        Args:
            name: of the format.

        Raises:
            ValueError: an option that the format has not, or a package that is not installed.
        """
        for key in ("frames", "size", "batch", "keep"):
            value = getattr(options, key)
            require(cls.is_program or value is None, key, f"be null for --to {name}", value)
        wanted = (*cls.writes_with, *(cls.runs_with if options.check else ()))
        missing = [package for package in wanted if importlib.util.find_spec(package) is None]
        if missing:
            without = " (or check=false)" if missing[0] not in cls.writes_with else ""
            raise ValueError(
                f"--to {name}: expected the package {missing[0]}, got none; fix: pip install {cls.install}"
                f"{without}"
            )

"""Options of `kinemae finetune export`."""

from dataclasses import dataclass

from kinemae.data_tools.config import require


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Keys of `kinemae finetune export FOLDER OUT --to FORMAT [key=value]`.

    Attributes:
        frames, size: of the clips of a program (onnx, onnx-int8, torch-export), to which positions are
            resampled; null for those of the model.
        batch: number of clips per call of a program; null for any number.
        keep: fraction of the tokens that a program's pruning keeps; null for that of the model.
        head: false exports the encoder alone.
        check: run the export and compare its outputs. If false, the runtime need not be installed.
        tolerance: largest difference of an output, relative to its largest value if that is above 1; null
            for that of the format.
        license: identifier for the model card, for example apache-2.0; null: unknown.
    """

    frames: int | None = None
    size: int | None = None
    batch: int | None = None
    keep: float | None = None
    head: bool = True
    check: bool = True
    tolerance: float | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        for key in ("frames", "size", "batch"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, "be null or at least 1", value)
        is_fraction = self.keep is None or 0 < self.keep <= 1
        require(is_fraction, "keep", "be null, or above 0 and at most 1", self.keep)
        require(self.tolerance is None or self.tolerance >= 0, "tolerance", "be 0 or more", self.tolerance)

"""KineMAE: masked-autoencoder pretraining of video encoders, and fine-tuning.

    model = kinemae.load("RUN")
    clip = kinemae.read_clip("video.mp4", model.clip, start_s=2.0)
    embedding_BD = model.embed(clip[None])

The names of `__all__` are imported at their first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kinemae.data_tools.stream.clip_dataset import ClipDataset as ClipDataset
    from kinemae.data_tools.stream.clip_dataset import clips as clips
    from kinemae.data_tools.stream.frame_sampling import ClipConfig as ClipConfig
    from kinemae.data_tools.stream.read_clip import read_clip as read_clip
    from kinemae.finetune.inference.load import load as load
    from kinemae.finetune.inference.transform import ClipTransform as ClipTransform
    from kinemae.finetune.inference.video_model import VideoModel as VideoModel
    from kinemae.finetune.train import finetune as finetune
    from kinemae.pretrain.command import pretrain as pretrain

_MODULES = {
    "ClipConfig": "kinemae.data_tools.stream.frame_sampling",
    "ClipDataset": "kinemae.data_tools.stream.clip_dataset",
    "ClipTransform": "kinemae.finetune.inference.transform",
    "VideoModel": "kinemae.finetune.inference.video_model",
    "clips": "kinemae.data_tools.stream.clip_dataset",
    "load": "kinemae.finetune.inference.load",
    "read_clip": "kinemae.data_tools.stream.read_clip",
}
_CALLABLE_PACKAGES = ("finetune", "pretrain")
__all__ = [*_MODULES, *_CALLABLE_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return importlib.import_module(f"kinemae.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'kinemae' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

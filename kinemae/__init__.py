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
    from kinemae.finetune.inference.load import load as load
    from kinemae.finetune.inference.transform import ClipTransform as ClipTransform
    from kinemae.finetune.inference.video_model import VideoModel as VideoModel

_MODULES = {
    "ClipTransform": "kinemae.finetune.inference.transform",
    "VideoModel": "kinemae.finetune.inference.video_model",
    "load": "kinemae.finetune.inference.load",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kinemae' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})

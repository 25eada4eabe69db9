"""Packages: which extra of KineMAE installs them, and errors if they are missing. Needs no torch."""

import gc
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from kinemae.data_tools.overrides import ConfigError

TRAINING = ("deepspeed", "tensorboard", "sklearn", "torchmetrics")
"""Modules that pretraining, fine-tuning and scores need, but not data sets, predictions and features."""

_EXTRAS = {
    **dict.fromkeys(TRAINING, "train"),
    "aiohttp": "http",
    "huggingface_hub": "hub",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "peft": "lora",
    "ray": "ray",
    "s3fs": "s3",
    "umap": "maps",
}


def require_packages(*modules: str, key: str = "packages") -> None:
    """Check that modules are installed, before anything starts.

    Args:
        key: config key that needs them, for the message.

    Raises:
        ValueError: names the missing module and the command that installs it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise missing_package(module, key)


def missing_package(module: str, key: str = "packages") -> ConfigError:
    """The error of a module that is not installed."""
    extra = _EXTRAS.get(module)
    fix = f"pip install 'kinemae[{extra}]'" if extra else f"pip install {module}"
    return ConfigError(f"{key}: expected the package {module}, got none; fix: {fix}")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large packages in this block without garbage collection: a quarter of their time at a start.

    They create many objects, and nearly all of them stay.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.unfreeze()  # moves all objects to the oldest generation, so that none is examined now
            gc.enable()


def as_config_error(error: BaseException) -> BaseException:
    """Convert the failed import of an optional package; return other errors unchanged."""
    if not isinstance(error, ModuleNotFoundError):
        return error
    module = (error.name or "").partition(".")[0]
    return missing_package(module) if module in _EXTRAS else error

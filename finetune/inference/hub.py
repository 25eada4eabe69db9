"""Download of models from the Hugging Face hub. Nothing that is downloaded is executed."""

import re
from pathlib import Path

from kinemae.data_tools.command import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DESCRIPTIONS = [
    "encoder.json",
    "head.json",
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
]
_WEIGHTS = ["encoder.safetensors", "head.safetensors", "model.safetensors"]
_PYTORCH_WEIGHTS = ["pytorch_model.bin"]


def is_hub_id(text: str) -> bool:
    """Check for the form OWNER/NAME."""
    return _ID.fullmatch(text) is not None


def download(hub_id: str, *, revision: str | None = None) -> Path:
    """Download the model files of a repository, or find them in the cache of huggingface_hub.

    Returns:
        The folder in the cache.

    Raises:
        CheckpointError: huggingface_hub is not installed, there is no such repository, or no model in it.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"{hub_id}: expected a local folder, or the package huggingface_hub to download it, got neither; "
            "fix: correct the path, or pip install 'kinemae[hub]'"
        ) from error
    folder = None
    try:
        for weights in (_WEIGHTS, _PYTORCH_WEIGHTS):
            patterns = [*_DESCRIPTIONS, *weights]
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
            if any((folder / name).is_file() for name in weights):
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{hub_id}: expected a local folder, or a model on the Hugging Face hub, got neither ({reason}); "
            "fix: correct the path or the id, or log in with `hf auth login`"
        ) from error
    expected = " or ".join([*_WEIGHTS, *_PYTORCH_WEIGHTS])
    raise CheckpointError(f"{hub_id}: expected {expected} on the Hugging Face hub, got none of them")

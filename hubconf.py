"""Entry points of `torch.hub`; KineMAE itself must be installed.

model = torch.hub.load("kinemae/kinemae", "video_model", "owner/name")
"""

from typing import Any

dependencies = ["kinemae", "torch"]


def video_model(path_or_hub_id: str, **settings: Any) -> Any:
    """Load a model for inference; see `kinemae.load`."""
    from kinemae import load

    return load(path_or_hub_id, **settings)

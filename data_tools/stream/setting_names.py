"""Names of the settings of a run's data in errors: keys of a config, or arguments of `kinemae.clips`."""

from typing import NamedTuple


class SettingNames(NamedTuple):
    """The name of each setting.

    Attributes:
        unordered: the settings that need the random order.
        step_videos: how the number of videos of a step is computed.
    """

    mixture: str = "data.mixture"
    concatenate: str = "data.concatenate"
    where: str = "data.where"
    weight: str = "data.weight"
    order: str = "data.order"
    unordered: str = "data.concatenate, data.weight and data.balance"
    step_videos: str = "batch.global_clips / data.views_per_video"


CONFIG_KEYS = SettingNames()
ARGUMENTS = SettingNames(
    mixture="shards",
    concatenate="shards",
    where="where",
    weight="weight",
    order="order",
    unordered="a list of shards or a weight",
    step_videos="batch_size * processes / views",
)
"""Those of `kinemae.clips`."""

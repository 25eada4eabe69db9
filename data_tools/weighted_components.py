"""Components that consist of several others, each with a weight."""

import math
from typing import Any, TypeVar

from kinemae.data_tools.components import Component, build_component, named_components
from kinemae.data_tools.config import require

Interface = TypeVar("Interface")


def build_weighted(
    folder: str, given: Any, interface: type[Interface], *, key: str, whole: str
) -> dict[str, tuple[float, Interface]]:
    """Build the parts of a weighted component: {"weight": ..., "args": {...}} by name, or a list of names.

    Args:
        key: the config key of the parts, as in `target.args.parts`.
        whole: name of the component that has the parts; it cannot be a part.

    Returns:
        the weight, 1 by default, and the component by name.

    Raises:
        ValueError: no parts, invalid settings, or an invalid part.
    """
    kind = key.partition(".")[0]
    built = {}
    for name, settings in named_components(given, key, kind).items():
        own = f"{key}.{name}"
        require(name != whole, own, f"be another {kind}: {whole} ones do not nest", settings)
        is_known = isinstance(settings, dict) and set(settings) <= {"weight", "args"}
        require(is_known, own, "hold nothing but weight and args, as in {weight: 0.5, args: {}}", settings)
        weight, args = settings.get("weight", 1.0), settings.get("args", {})
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        require(is_number and 0 < weight < math.inf, f"{own}.weight", "be a number above 0", weight)
        require(isinstance(args, dict), f"{own}.args", "be a mapping", args)
        try:
            part = build_component(folder, Component(name=name, args=args), interface)
        except ValueError as error:
            raise ValueError(f"{own}: {error}") from error
        built[name] = (float(weight), part)
    return built

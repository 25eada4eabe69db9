"""Arguments of components that have required arguments, for tests that build every component."""

from dataclasses import replace
from typing import Any, TypeVar

from kinemae.data_tools.components import Component, build_component

Interface = TypeVar("Interface")

ARGS: dict[str, dict[str, Any]] = {
    "kinemae.finetune.tasks.anticipation": {"segments": "segments", "gap_s": 0.1},
    "kinemae.finetune.tasks.dense": {"segments": "segments"},
    "kinemae.finetune.tasks.localization": {"segments": "segments"},
    "kinemae.finetune.tasks.multi_label": {"label": "tags"},
    "kinemae.finetune.tasks.multi_task": {"labels": ["verb", "grade"]},
    "kinemae.finetune.tasks.ordinal": {"label": "size", "order": ["low", "mid", "high"]},
    "kinemae.finetune.tasks.regression": {"labels": "speed"},
    "kinemae.pretrain.masking.jitter": {"of": "uniform", "min_ratio": 0.5, "max_ratio": 0.75},
    "kinemae.pretrain.masking.mixture": {
        "parts": {"future": {"weight": 2}, "uniform": {"args": {"ratio": 0.5}}, "motion": {}}
    },
    "kinemae.pretrain.noise.several": {
        "parts": {"photometric": {}, "gaussian": {}, "frames": {}, "token": {}}
    },
    "kinemae.pretrain.pruning.motion": {"keep": 0.5},
    "kinemae.pretrain.pruning.run_length": {"keep": 0.5},  # required in pretraining
    "kinemae.pretrain.targets.views": {"local_views": 2, "slices": 64, "hidden": 32, "width": 16},
    "kinemae.pretrain.targets.weighted": {"parts": {"pixels": {}, "features": {"weight": 0.5}}},
}


def default_component(folder: str, name: str) -> Component:
    """Return the component of a config, with its required arguments."""
    return Component(name=name, args=dict(ARGS.get(f"{folder}.{name}", {})))


def build_default(folder: str, name: str, interface: type[Interface], **given: Any) -> Interface:
    """Build a component with its defaults; fail with a fix if it has other required arguments."""
    component = default_component(folder, name)
    try:
        return build_component(folder, replace(component, args={**component.args, **given}), interface)
    except ValueError as error:
        message = (
            f"{folder}.{name} needs arguments: add them to ARGS in tests/default_components.py ({error})"
        )
        raise AssertionError(message) from error

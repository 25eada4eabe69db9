"""Configs of function calls: `kinemae.pretrain("demo", data={"shards": "SHARDS/train"}, steps=100)`."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from kinemae.data_tools.command import configure_logging, log
from kinemae.data_tools.config import load_config
from kinemae.data_tools.config_files import find_config
from kinemae.data_tools.overrides import as_overrides

Config = TypeVar("Config")


@contextmanager
def restored_environment() -> Iterator[None]:
    """Undo changes of environment variables, such as the LOCAL_RANK of a training without a launcher."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True, kw_only=True)
class CallConfig(Generic[Config]):
    """The config of a call, with the file and the overrides of the same command."""

    config: Config
    path: Path | None
    overrides: list[str]


def call_config(
    schema: type[Config], kind: str, given: str | Path | Mapping[str, Any], settings: Mapping[str, Any]
) -> CallConfig[Config]:
    """Build the config of a call, and log as the command does unless the application logs itself.

    Args:
        kind: folder of `configs/`: `pretrain` or `finetune`.
        given: a config's path, its name, or its keys.
        settings: keys that replace those of the config, nested or with dots.

    Raises:
        ValueError: see `find_config` and `load_config`.
    """
    if not (log.handlers or logging.getLogger().handlers):
        configure_logging()
    path, tree = (None, given) if isinstance(given, Mapping) else (find_config(str(given), kind), {})
    overrides = [*as_overrides(tree), *as_overrides(settings)]
    return CallConfig(config=load_config(schema, path, overrides), path=path, overrides=overrides)

"""The small real pretraining run is launched here as well."""

from tests.pretrain.runtime.conftest import small_run

__all__ = ["small_run"]

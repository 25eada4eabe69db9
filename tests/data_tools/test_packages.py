"""Imports of packages."""

import gc
import importlib

import pytest

from kinemae.data_tools.packages import quick_imports


def test_garbage_collection_is_off_only_during_imports():
    gc.enable()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled() and not gc.get_freeze_count()
    gc.disable()
    try:
        with pytest.raises(ImportError), quick_imports():
            importlib.import_module("kinemae.there_is_no_such_module")
        assert not gc.isenabled()
    finally:
        gc.enable()

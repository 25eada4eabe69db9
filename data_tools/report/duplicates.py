"""Exact duplicates by digest."""

import numpy as np

from kinemae.data_tools.curation.near_duplicates import groups_of_equal_rows
from kinemae.data_tools.report.collection import Collection


def exact_duplicates(collection: Collection) -> list[list[int]]:
    """Groups of rows that are the same segment of files with the same digest."""
    values, codes = collection.encoded("content")
    code_R = np.concatenate(codes)
    start_ms = np.round(np.concatenate(collection.columns("start_s")) * 1000)
    groups = groups_of_equal_rows(start_ms, code_R)
    return [group.tolist() for group in groups if values[int(code_R[group[0]])].as_py()]

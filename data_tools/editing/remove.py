"""`kinemae data remove SHARDS [KEYS]`: mark samples as removed; `compact` deletes their bytes."""

import argparse
import shlex

import numpy as np

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import load_config
from kinemae.data_tools.editing.selection import SelectionConfig, choose
from kinemae.data_tools.index import open_data_sets, write_removed
from kinemae.data_tools.overrides import as_yaml_override
from kinemae.data_tools.storage.location import location


def run_remove(arguments: argparse.Namespace) -> None:
    """Remove samples of a data set, or of all splits in a folder.

    Raises:
        DataError: a key that no sample has, or no sample would be left; nothing is changed.
    """
    keys = [] if arguments.keys is None else [as_yaml_override("keys", arguments.keys)]
    config = load_config(SelectionConfig, None, [*keys, *arguments.overrides])
    if not config.is_set:
        raise ValueError(
            "keys: expected a file of keys, or a condition, got none; fix: give KEYS, or where='CONDITION'"
        )
    sets = open_data_sets(location(arguments.shards), check_shards=False)
    chosen = choose(sets, config)
    for name, index in sets.items():
        before = np.zeros(len(chosen[name]), dtype=bool)
        before[index.removed_R] = True
        if (chosen[name] | before).all():
            raise DataError(
                f"{index.folder}: expected samples that stay, got a choice of all {len(index)}; nothing was "
                "changed; fix: correct the choice, or delete the folder"
            )
    for name, index in sets.items():
        removed = np.union1d(index.removed_R, np.flatnonzero(chosen[name]))
        count = len(removed) - len(index.removed_R)
        if count and not arguments.dry_run:
            write_removed(index.folder, index.state, removed, index.shards)
        old = int(chosen[name].sum()) - count
        again = f", {old} more were removed before" if old else ""
        what = (
            "dry run: %d of %d samples would be removed%s"
            if arguments.dry_run
            else "%d of %d samples removed%s"
        )
        log.info(f"%s: {what}", index.folder, count, len(index), again)
    if arguments.dry_run:
        return
    log.info(
        "the removed videos are no longer read; `kinemae data compact %s` deletes them",
        shlex.quote(arguments.shards),
    )

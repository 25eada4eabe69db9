"""Content of the page, by the names that the template uses."""

from typing import Any

from kinemae.data_tools.index import REJECTED_NAME
from kinemae.data_tools.report.checks import run_checks
from kinemae.data_tools.report.collection import Collection
from kinemae.data_tools.report.duplicates import exact_duplicates
from kinemae.data_tools.report.figures import ranking
from kinemae.data_tools.report.sampled_videos import (
    Card,
    ReportConfig,
    SampledVideos,
    decode_sampled_videos,
    decoded_near_groups,
    group_cards,
    stored_near_groups,
)
from kinemae.data_tools.report.tables import (
    class_counts,
    extra_columns,
    histograms,
    listed_files,
    origin,
    rankings,
    reasons,
    reference_frames,
    split_row,
)
from kinemae.data_tools.sharding.rejects import NOTES_NAME
from kinemae.data_tools.storage.location import Location

# Maximum lengths of the lists on the page.
LIMITS = {"groups": 24, "members": 6, "listed": 200, "cards": 12, "classes": 30}


def gather(collection: Collection, folder: Location, settings: ReportConfig) -> dict[str, Any]:
    """Decode the sampled videos and collect the content of the page."""
    groups = stored_near_groups(collection, settings)
    shown = [row for rows, _ in (groups or ())[: LIMITS["groups"]] for row in rows[: LIMITS["members"]]]
    sampled = decode_sampled_videos(collection, settings, shown)
    has_hashes = groups is not None
    groups = decoded_near_groups(sampled, settings) if groups is None else groups
    names, counts_SX = class_counts(collection)
    rejected = listed_files(folder, collection, REJECTED_NAME, "reason")
    content: dict[str, Any] = {
        "set_name": collection.name,
        "split_names": [split or collection.name for split in collection.splits],
        "settings": settings,
        "limits": LIMITS,
        "sampled": len(sampled.rows),
        "total": len(collection),
        "sheet": [sampled.card(row) for row in sampled.readable[: settings.pictures]],
        "splits": [split_row(collection, number) for number in range(len(collection.splits))],
        "histograms": histograms(sampled),
        "rankings": rankings(collection),
        "classes": ranking("Classes", names, counts_SX, shown=LIMITS["classes"]) if names else None,
        "static": _below(sampled, "motion", settings.static_threshold),
        "blank": _below(sampled, "contrast", settings.blank_threshold),
        "has_hashes": has_hashes,
        "near_duplicates": group_cards(sampled, groups),
        "near_duplicate_count": len(groups),
        "near_duplicate_mixed": sum(len(set(collection.split_numbers(rows))) > 1 for rows, _ in groups),
        "unreadable": sampled.unreadable,
        "rejected": rejected,
        "notes": listed_files(folder, collection, NOTES_NAME, "note"),
        "reasons": reasons(rejected),
        "columns": extra_columns(collection),
        "origin": origin(collection),
        "references": reference_frames(collection),
        **_duplicates(collection, sampled),
    }
    content["checks"] = run_checks(content, collection, names, counts_SX)
    return content


def _below(sampled: SampledVideos, statistic: str, threshold: float) -> list[Card]:
    """Videos with a statistic below a threshold, lowest first."""
    values = sorted((getattr(sampled.stats[row], statistic), row) for row in sampled.readable)
    return [sampled.card(row, f"{statistic} {value:.2f}") for value, row in values if value < threshold]


def _duplicates(collection: Collection, sampled: SampledVideos) -> dict[str, Any]:
    """Exact duplicates and leaks, as cards; long lists are cut and their lengths kept."""
    exact = exact_duplicates(collection)
    leaks = {column: collection.leaks(column) for column in ("content", "group")}
    shown = LIMITS["listed"]
    return {
        "exact_count": len(exact),
        "exact": [[sampled.card(row) for row in group[: LIMITS["members"]]] for group in exact[:shown]],
        "exact_sizes": [len(group) for group in exact[:shown]],
        "leaks": leaks,
        "leak_cards": {
            column: [
                (leak, [sampled.card(row) for row in collection.first_rows(leak)]) for leak in found[:shown]
            ]
            for column, found in leaks.items()
        },
    }

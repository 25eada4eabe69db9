"""All that the page shows, by the names that its template uses."""

from typing import Any

from kinemae.data_tools.index import REJECTED_NAME
from kinemae.data_tools.report.collection import Collection
from kinemae.data_tools.report.duplicates import exact_groups, leaks
from kinemae.data_tools.report.figures import ranking
from kinemae.data_tools.report.findings import (
    Finding,
    counted,
    findings_of_classes,
    findings_of_splits,
    worst_first,
)
from kinemae.data_tools.report.sampled_videos import Card, Looked, ReportConfig, look_at_some, near_duplicates
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

# How much of a long list stands on the page.
LIMITS = {"groups": 24, "members": 6, "listed": 200, "still": 12, "classes": 30}


def gather(collection: Collection, folder: Location, settings: ReportConfig) -> dict[str, Any]:
    """Decode the chosen videos and put together what is known of all."""
    looked = look_at_some(collection, settings)
    names, counts_SX = class_counts(collection)
    rejected = listed_files(folder, collection, REJECTED_NAME, "reason")
    content: dict[str, Any] = {
        "set_name": collection.name,
        "split_names": [split or collection.name for split in collection.splits],
        "settings": settings,
        "limits": LIMITS,
        "looked_at": len(looked.looks),
        "total": len(collection),
        "sheet": [looked.card(place) for place in looked.readable[: settings.pictures]],
        "splits": [split_row(collection, number) for number in range(len(collection.splits))],
        "histograms": histograms(looked),
        "rankings": rankings(collection),
        "classes": ranking("Classes", names, counts_SX, shown=LIMITS["classes"]) if names else None,
        "static": _still(looked, settings),
        "blank": _blank(looked, settings),
        "alike": near_duplicates(looked, settings),
        "unreadable": looked.unreadable,
        "rejected": rejected,
        "notes": listed_files(folder, collection, NOTES_NAME, "note"),
        "reasons": reasons(rejected),
        "columns": extra_columns(collection),
        "origin": origin(collection),
        "references": reference_frames(collection),
    }
    content |= _repeated(collection, looked)
    content["findings"] = worst_first(
        [
            *_findings_of_looks(content),
            *_findings_of_files(content, collection),
            *findings_of_splits(collection, content["leaks"]["content"], content["leaks"]["group"]),
            *findings_of_classes(collection, names, counts_SX),
        ]
    )
    return content


def _still(looked: Looked, settings: ReportConfig) -> list[Card]:
    """Videos in which next to nothing moves, the stillest first."""
    motion = {place: looked.looks[place].motion for place in looked.readable}
    still = sorted((value, place) for place, value in motion.items() if value < settings.static_threshold)
    return [looked.card(place, f"motion {value:.2f}") for value, place in still]


def _blank(looked: Looked, settings: ReportConfig) -> list[Card]:
    """Videos of a single grey."""
    contrast = {place: looked.looks[place].contrast for place in looked.readable}
    blank = sorted((value, place) for place, value in contrast.items() if value < settings.blank_threshold)
    return [looked.card(place, f"spread {value:.2f}") for value, place in blank]


def _repeated(collection: Collection, looked: Looked) -> dict[str, Any]:
    """Equal files, and files and groups in several splits, as cards; a long list is cut, its length told."""
    exact = exact_groups(collection)
    content, groups = leaks(collection, "content"), leaks(collection, "group")
    shown = LIMITS["listed"]
    return {
        "exact_count": len(exact),
        "exact": [[looked.card(place) for place in group[: LIMITS["members"]]] for group in exact[:shown]],
        "exact_sizes": [len(group) for group in exact[:shown]],
        "leaks": {"content": content, "group": groups},
        "leak_cards": {
            what: [(leak, [looked.card(place) for place in leak.places]) for leak in found[:shown]]
            for what, found in (("content", content), ("group", groups))
        },
    }


def _findings_of_files(content: dict[str, Any], collection: Collection) -> list[Finding]:
    """What sharding said of the files, and which are equal."""
    rejected, notes, exact = content["rejected"], content["notes"], content["exact_count"]
    most = f", most often: {content['reasons'][0][0]}" if rejected else ""
    found = [
        counted(
            len(rejected),
            f"rejected when the set was made: {len(rejected):,}{most}",
            "no file was rejected when the set was made",
            section="rejected",
        )
    ]
    if notes:
        text = f"odd, but used: {len(notes):,}, first {notes[0][1]}"
        found.append(Finding(level="look", text=text, section="notes"))
    if collection.says("content"):
        some = f"files that are there more than once: {exact:,}"
        return [*found, counted(exact, some, "no file is there twice", section="exact")]
    unknown = "the index holds no digests of the original files: equal files cannot be told"
    return [*found, Finding(level="look", text=unknown, section="exact")]


def _findings_of_looks(content: dict[str, Any]) -> list[Finding]:
    """What the videos that were decoded look like."""
    looked = f"{content['looked_at']:,} videos looked at"
    unreadable, still, blank = len(content["unreadable"]), len(content["static"]), len(content["blank"])
    groups = content["alike"]
    across = sum(len({card.split for card in group}) > 1 for group in groups)
    apart = f", {across:,} of them in more than one split" if across else ""
    alike = f"look-alikes: {len(groups):,} {'group' if len(groups) == 1 else 'groups'} of videos{apart}"
    static = f"next to nothing moves in {still:,} of {looked}"
    return [
        counted(
            unreadable,
            f"{unreadable:,} of {looked} cannot be read",
            f"all {looked} can be read",
            section="unreadable",
            level="bad",
        ),
        counted(len(groups), alike, f"none of {looked} looks like another", section="alike"),
        counted(still, static, f"something moves in all {looked}", section="static"),
        counted(blank, f"blank: {blank:,} of {looked}", f"none of {looked} is blank", section="static"),
    ]

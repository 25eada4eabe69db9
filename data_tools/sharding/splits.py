"""Which video goes into which split, so that what is alike stays together."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from kinemae.data_tools.manifest.videos import SPLITS, SourceVideo
from kinemae.data_tools.sharding.keys import shuffled

Contents = Mapping[str, str]


def divide(
    videos: Sequence[SourceVideo], contents: Contents, *, validation_fraction: float, seed: int
) -> dict[str, list[SourceVideo]]:
    """Videos by split, sorted by name: as the source says, else by a seeded draw that is balanced by class.

    In a draw, videos of one group and videos of the same content stay in one split, and each class gets its
    share as well as these allow. A class of two or more such families keeps one on either side if it can
    (unless the share is 0). Families without a label go to train.

    Args:
        contents: the digest of each video, by its name.
    """
    splits: dict[str, list[SourceVideo]] = defaultdict(list)
    drawn = []
    for video in sorted(videos, key=lambda video: video.name):
        if video.split is None and validation_fraction > 0:
            drawn.append(video)
        else:
            splits[video.split or "train"].append(video)
    for family, is_held_out in _draw(families(drawn, contents), validation_fraction, seed):
        splits["validation" if is_held_out else "train"] += family
    return {split: sorted(splits[split], key=lambda video: video.name) for split in SPLITS if splits[split]}


def families(videos: Sequence[SourceVideo], contents: Contents) -> list[list[SourceVideo]]:
    """Videos that have a group or a content in common, directly or through others, in the order given."""
    first: dict[tuple[str, str], int] = {}
    parent = list(range(len(videos)))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for position, video in enumerate(videos):
        for mark in _marks(video, contents):
            one, other = sorted((root(position), root(first.setdefault(mark, position))))
            parent[other] = one
    found: dict[int, list[SourceVideo]] = defaultdict(list)
    for position, video in enumerate(videos):
        found[root(position)].append(video)
    return list(found.values())


def leaks(splits: Mapping[str, Sequence[SourceVideo]], contents: Contents) -> list[str]:
    """What stands in several splits: a line for each content and each group that does, naming two videos."""
    first: dict[tuple[str, str], tuple[str, SourceVideo]] = {}
    found: dict[tuple[str, str], str] = {}
    for split, videos in splits.items():
        for video in videos:
            for mark in _marks(video, contents):
                where, other = first.setdefault(mark, (split, video))
                if where != split and mark not in found:
                    what = f"are of the group {mark[1]!r}" if mark[0] == "group" else "have the same content"
                    found[mark] = f"{other.name} ({where}) and {video.name} ({split}) {what}"
    return list(found.values())


def copies(videos: Sequence[SourceVideo], contents: Contents) -> int:
    """How many whole videos have the content of another one."""
    whole = [video for video in videos if video.start_s is None and video.end_s is None]
    return len(whole) - len({contents.get(video.name) or video.name for video in whole})


def _marks(video: SourceVideo, contents: Contents) -> list[tuple[str, str]]:
    marks = [("group", video.group or ""), ("content", contents.get(video.name, ""))]
    return [mark for mark in marks if mark[1]]


def _draw(
    found: Sequence[list[SourceVideo]], share: float, seed: int
) -> list[tuple[list[SourceVideo], bool]]:
    """Each family, and whether it is held out for validation."""
    order = shuffled(found, seed=seed, purpose="shard/split")
    order.sort(key=len, reverse=True)  # small ones last, they fill what the large ones leave
    counts = [Counter(video.label for video in family if video.label is not None) for family in order]
    total: Counter[str] = Counter()
    spread: Counter[str] = Counter()
    for count in counts:
        total.update(count)
        spread.update(set(count))
    missing = {
        label: min(max(round(total[label] * share), 1), total[label] - 1) if spread[label] > 1 else 0
        for label in total
    }
    chosen = []
    left = Counter(spread)  # families that train could still have of a class
    for family, count in zip(order, counts, strict=True):
        brings_closer = sum(abs(missing[label]) - abs(missing[label] - count[label]) for label in count) > 0
        takes_the_last = any(left[label] == 1 for label in count)
        is_held_out = brings_closer and not takes_the_last
        if is_held_out:
            for label in count:
                missing[label] -= count[label]
                left[label] -= 1
        chosen.append((family, is_held_out))
    return _none_without(chosen, left, spread) if share else chosen


def _none_without(
    chosen: list[tuple[list[SourceVideo], bool]], left: Counter[str], spread: Counter[str]
) -> list[tuple[list[SourceVideo], bool]]:
    """Hold out a small family of each class whose families all were larger than its share."""
    for position, (family, is_held_out) in reversed(list(enumerate(chosen))):
        labels = {video.label for video in family if video.label is not None}
        is_wanted = any(left[label] == spread[label] > 1 for label in labels)
        if is_wanted and not is_held_out and all(left[label] > 1 for label in labels):
            chosen[position] = (family, True)
            left.subtract(labels)
    return chosen

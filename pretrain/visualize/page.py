"""Content of the page of `visualize`."""

from typing import Any

from kinemae.data_tools.report.render import data_uri
from kinemae.pretrain.visualize.draw import Drawn, still_frames
from kinemae.pretrain.visualize.videos import Video

_MOST_BYTES = 8 << 20  # of an mp4 on the page


def video_content(video: Video, shown: list[int], drawn: list[Drawn]) -> dict[str, Any]:
    """What the template needs for a video."""
    sample, clip = video.sample, video.clip
    frames = still_frames(len(shown), clip.frames)
    times = [f"{time_s:.2f} s" for time_s in video.time_VT[shown][:, frames].flatten().tolist()]
    size = f"{clip.frames} frames of {clip.size}x{clip.size}"
    return {
        "name": sample.name,
        "facts": f"{sample.duration_s:.2f} s of {sample.width}x{sample.height}, {sample.frames} frames; "
        f"windows of {size} (the square in the centre): {len(video.time_VT)}",
        "rows": ", ".join(times),
        "figures": [_figure(each) for each in drawn],
    }


def _figure(drawn: Drawn) -> dict[str, Any]:
    """A picture, and the mp4 unless it is too large."""
    is_small = drawn.mp4.stat().st_size <= _MOST_BYTES
    return {
        "name": drawn.mp4.stem,
        "title": drawn.view.title,
        "text": drawn.view.text,
        "picture": data_uri(drawn.png.read_bytes(), "image/png"),
        "video": data_uri(drawn.mp4.read_bytes(), "video/mp4") if is_small else "",
        "size": drawn.mp4.stat().st_size,
        "file": f"{drawn.mp4.parent.name}/{drawn.mp4.name}",
    }

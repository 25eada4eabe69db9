"""`index` notes the anomalies of accepted videos."""

import io
import json
import tarfile
from pathlib import Path

from kinemae.data_tools.__main__ import PROGRAM
from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import open_index
from tests.data_tools.stream.matrix import videos
from tests.filming import SHIPPED


def test_videos_with_anomalies_are_accepted_and_noted(tmp_path: Path) -> None:
    made = dict(videos())
    stream = made["mpegts/h264_pyramid"]()
    members = {
        "whole.mp4": (SHIPPED / "h264_b_frames.mp4").read_bytes(),
        "wide.mp4": (SHIPPED / "anamorphic.mp4").read_bytes(),
        "fields.ts": (SHIPPED / "interlaced.ts").read_bytes(),
        "capture.ts": made["mpegts/cut_at_0.45"](),
        "crash.mp4": made["mp4/fragments_cut_at_0.45"](),
        "turned.ts": made["mpegts/resized"](),
        "lost.ts": stream[: 57 * 188] + stream[58 * 188 :],  # without one transport packet
    }
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, video in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(video)
            shard.addfile(info, io.BytesIO(video))
    assert run_program(PROGRAM, ["index", str(tmp_path), "workers=1"]) == 0
    entries = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    notes = {entry["path"]: entry["note"] for entry in entries}
    assert notes.keys() == members.keys() - {"whole.mp4"}
    assert notes["wide.mp4"].endswith("are made square when it is read")
    assert "frames are interlaced: read combed" in notes["fields.ts"]
    assert "its size changes within the video" in notes["turned.ts"]
    assert notes["lost.ts"].startswith("1 packets are marked as corrupt: frames near them")
    index = open_index(tmp_path)
    frames = {index.sample(place).name: index.sample(place).frames for place in range(len(index))}
    for name in ("capture.ts", "crash.mp4"):
        assert notes[name].startswith(f"its end is damaged: {frames[name]} frames are whole")
    assert frames["capture.ts"] == frames["crash.mp4"] == 24

"""Measure thresholds on real clips: fractions kept by pruning, and motion left visible by masks.

    .venv/bin/python tests/benchmarks/kept_tokens.py [CLIPS]

Clips have 16 frames at stride 2, 224 px, from the middle of the videos in `../shared/videos/surveillance`;
patches are 2x16x16. docs/performance.md has the numbers.
"""

import sys
from pathlib import Path

import torch

from kinemae.data_tools.randomness import generator
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.views import crop_views, evaluation_views
from kinemae.data_tools.stream.yuv_planes import yuv_frames_at
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips, to_luma
from kinemae.pretrain.masking.motion import MotionMasking
from kinemae.pretrain.model.motion_energy import luma_grid, motion
from kinemae.pretrain.pruning.run_length import RunLengthPruning

VIDEOS = Path(__file__).resolve().parents[3] / "shared/videos/surveillance"
FRAMES, STRIDE, SIZE, PATCH = 16, 2, 224, (2, 16, 16)


def read_clip(file: Path) -> YuvClips:
    """Read the clip in the middle of a video as planes."""
    video = probe(file)
    step_s = STRIDE * video.duration_s / video.frames
    start_s = max(0.0, (video.duration_s - FRAMES * step_s) / 2)
    timestamps_s = [min(start_s + i * step_s, video.duration_s * 0.999) for i in range(FRAMES)]
    planes = YuvClips.empty(1, FRAMES, SIZE)
    crop_views(yuv_frames_at(file.read_bytes(), timestamps_s), lambda h, w: evaluation_views(h, w, 1), planes)
    return planes


def main(count: int) -> None:
    """Print the numbers."""
    torch.set_num_threads(1)
    files = sorted(VIDEOS.rglob("*.mp4"))
    clips = [read_clip(file) for file in files[:: max(1, len(files) // count)][:count]]
    luma_BTHW = torch.cat([to_luma(clip) for clip in clips])
    print(f"{len(clips)} clips")
    for threshold in (0.5, 1, 2, 3, 5):
        kept_B = (
            RunLengthPruning(threshold=threshold)
            .score_tokens(luma_BTHW, PATCH)
            .is_kept_BN.float()
            .mean(dim=1)
        )
        low, mean, high = kept_B.min(), kept_B.mean(), kept_B.max()
        print(f"run_length, threshold {threshold}: keeps {mean:.2f} (minimum {low:.2f}, maximum {high:.2f})")
    motion_BN = motion(luma_BTHW, PATCH)
    for threshold in (1, 2, 3, 5):
        print(f"motion of at least {threshold}: {(motion_BN >= threshold).float().mean():.2f} of the tokens")
    grid = luma_grid(luma_BTHW, PATCH)
    for led, temperature in (("hidden", 1.0), ("visible", 1.0), ("hidden", 2.0), ("visible", 2.0)):
        masking = MotionMasking(ratio=0.9, led=led, temperature=temperature)
        ratios = []
        for clip, motion_N in enumerate(motion_BN):
            chance = generator(0, purpose="masking", sample=clip)
            visible_K, _ = masking.split(grid, chance, motion_N)
            ratios.append(motion_N[visible_K].mean() / motion_N.mean())
        print(f"mask led {led}, temperature {temperature}: visible {torch.stack(ratios).mean():.2f} of mean")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)

"""Synthetic videos with labels of several kinds; motion alone decides them, so a single frame does not.

A video is one texture, or four in a grid, with an episode of motion after another; between episodes the
texture stands still. At all times position, rotation and scale of the texture are uniform.

    attributes     one move: the columns direction, speed_level, speed_px, velocity_x, velocity_y
    multi_label    a grid of four textures, of which one to three move, each in another way: motions
    events         a long video with several motions: segments
    anticipation   a long video in which a cue and a pause come before each motion: segments
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.synthetic_scenes import (
    MOTIONS,
    WAVE,
    Motion,
    SceneConfig,
    noise_tiles,
    pixels,
    rotation,
    shade,
)

TASKS = ("attributes", "multi_label", "events", "anticipation")
MIN_EVENT_FRAMES = 32
_CELLS = 4  # textures of a "multi_label" video
_MOST_LABELS = 3
_EVENT_FRAMES, _GAP_FRAMES, _EDGE_FRAMES = (8, 16), (6, 20), (4, 10)
_CUE_FRAMES, _PAUSE_FRAMES, _PREDICTED_FRAMES = 8, 6, 8


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Settings of the videos of a task.

    Attributes:
        task: one of `TASKS`.
        classes: the motions; of "anticipation" cues (rotation, zoom) and as many predicted ones (moves).
        frames: number of frames.
        fps: frames per second, for the times of segments.
        speed_levels: number of equal intervals of the speed.
        scene: appearance and ranges of speeds.
    """

    task: str
    classes: tuple[str, ...]
    frames: int
    fps: int
    speed_levels: int
    scene: SceneConfig


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A motion from frame `begin` to frame `end`; all numbers are per frame.

    Attributes:
        move_2: pixels to the right and down.
        turn: radians clockwise.
        zoom: octaves inwards.
    """

    begin: int
    end: int
    kind: str
    move_2: tuple[float, float]
    turn: float
    zoom: float


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Episodes of each texture of a video, and its labels by column."""

    episodes: tuple[tuple[Episode, ...], ...]
    labels: dict[str, Any]


def draw_scenario(settings: TaskConfig, generator: torch.Generator) -> Scenario:
    """Draw motions and labels of a video."""
    return _DRAWS[settings.task](settings, generator)


def columns_of(task: str) -> tuple[str, ...]:
    """Names of the label columns of a task."""
    if task == "attributes":
        return ("direction", "speed_level", "speed_px", "velocity_x", "velocity_y")
    return ("motions",) if task == "multi_label" else ("segments",)


def cue_of(classes: Sequence[str]) -> dict[str, str]:
    """The cue of each predicted motion of "anticipation": the first rotation or zoom of the first move, ...

    Raises:
        ValueError: there are not as many cues as moves, at least two.
    """
    moves = [name for name in classes if is_move(name)]
    cues = [name for name in classes if not is_move(name)]
    if len(moves) != len(cues) or len(moves) < 2:
        raise ValueError(
            f"classes: expected as many moves as rotations and zooms together, two or more, for "
            f"task=anticipation, got {len(moves)} moves and {len(cues)} others; fix: omit classes"
        )
    return dict(zip(moves, cues, strict=True))


def is_move(kind: str) -> bool:
    """Check whether a motion is a translation."""
    return bool(MOTIONS[kind].x or MOTIONS[kind].y)


def render_scenario(scenario: Scenario, settings: TaskConfig, generator: torch.Generator) -> Tensor:
    """Draw the frames of a scenario: frames_THWC, uint8 RGB."""
    if len(scenario.episodes) == 1:
        return _texture(scenario.episodes[0], settings, settings.scene.size, generator)
    half = settings.scene.size // 2
    cells = [_texture(episodes, settings, half, generator) for episodes in scenario.episodes]
    return torch.cat([torch.cat(cells[:2], dim=2), torch.cat(cells[2:], dim=2)], dim=1)


def _attributes(settings: TaskConfig, generator: torch.Generator) -> Scenario:
    episode = _episode(0, settings.frames, _choice(settings.classes, generator), settings.scene, generator)
    speed = math.hypot(*episode.move_2)
    slowest, fastest = settings.scene.move_px
    level = int((speed - slowest) / max(fastest - slowest, 1e-9) * settings.speed_levels)
    labels = {
        "direction": episode.kind,
        "speed_level": min(max(level, 0), settings.speed_levels - 1),
        "speed_px": round(speed, 4),
        "velocity_x": round(episode.move_2[0], 4),
        "velocity_y": round(episode.move_2[1], 4),
    }
    return Scenario(episodes=((episode,),), labels=labels)


def _multi_label(settings: TaskConfig, generator: torch.Generator) -> Scenario:
    count = _integer(1, min(_MOST_LABELS, len(settings.classes)), generator)
    kinds = [settings.classes[number] for number in _shuffled(len(settings.classes), generator)[:count]]
    episodes = [[_episode(0, settings.frames, kind, settings.scene, generator)] for kind in kinds]
    episodes += [[] for _ in range(_CELLS - count)]
    placed = tuple(tuple(episodes[number]) for number in _shuffled(_CELLS, generator))
    present = [name for name in settings.classes if name in kinds]
    return Scenario(episodes=placed, labels={"motions": ";".join(present)})


def _events(settings: TaskConfig, generator: torch.Generator) -> Scenario:
    episodes = []
    begin = _integer(*_EDGE_FRAMES, generator)
    while (end := begin + _integer(*_EVENT_FRAMES, generator)) <= settings.frames - _EDGE_FRAMES[0]:
        kind = _choice(settings.classes, generator)
        episodes.append(_episode(begin, end, kind, settings.scene, generator))
        begin = end + _integer(*_GAP_FRAMES, generator)
    return Scenario(episodes=(tuple(episodes),), labels={"segments": _segments(episodes, settings.fps)})


def _anticipation(settings: TaskConfig, generator: torch.Generator) -> Scenario:
    cue = cue_of(settings.classes)
    episodes, predicted = [], []
    begin = _integer(0, _PAUSE_FRAMES, generator)
    while True:
        starts = begin + _CUE_FRAMES + _PAUSE_FRAMES
        end = starts + _PREDICTED_FRAMES
        if end > settings.frames:
            break
        kind = _choice(list(cue), generator)
        episodes.append(_episode(begin, begin + _CUE_FRAMES, cue[kind], settings.scene, generator))
        predicted.append(_episode(starts, end, kind, settings.scene, generator))
        episodes.append(predicted[-1])
        begin = end + _integer(4, 8, generator)
    return Scenario(episodes=(tuple(episodes),), labels={"segments": _segments(predicted, settings.fps)})


_DRAWS: dict[str, Callable[[TaskConfig, torch.Generator], Scenario]] = {
    "attributes": _attributes,
    "multi_label": _multi_label,
    "events": _events,
    "anticipation": _anticipation,
}


def _segments(episodes: Sequence[Episode], fps: int) -> str:
    return json.dumps([[each.begin / fps, each.end / fps, each.kind] for each in episodes])


def _episode(begin: int, end: int, kind: str, scene: SceneConfig, generator: torch.Generator) -> Episode:
    """Draw the speed and the exact direction of a motion."""
    motion: Motion = MOTIONS[kind]
    move, turn, zoom = (
        slowest + (fastest - slowest) * _uniform(generator)
        for slowest, fastest in (scene.move_px, scene.turn_degrees, scene.zoom_octaves)
    )
    jitter = math.radians(scene.direction_jitter_degrees) * (2 * _uniform(generator) - 1)
    x, y = (move * part for part in (motion.x, motion.y))
    turned = (
        x * math.cos(jitter) - y * math.sin(jitter),
        x * math.sin(jitter) + y * math.cos(jitter),
    )
    return Episode(
        begin=begin,
        end=end,
        kind=kind,
        move_2=turned,
        turn=math.radians(motion.turn * turn),
        zoom=motion.zoom * zoom,
    )


def _texture(
    episodes: Sequence[Episode], settings: TaskConfig, size: int, generator: torch.Generator
) -> Tensor:
    """Draw a texture with these motions: frames_THWC."""
    scene = replace(settings.scene, size=max(size, 16))
    fields_OXGG = noise_tiles(scene.octaves, generator)
    octave_OT, places_OTHW2 = _places(episodes, settings.frames, scene, generator)
    colours_CTHW, _ = shade(fields_OXGG, octave_OT, places_OTHW2, scene, generator)
    frames_CTHW = colours_CTHW[:, :, :size, :size]
    return frames_CTHW.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _places(
    episodes: Sequence[Episode], frames: int, scene: SceneConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sampling grid of each octave, as in `synthetic_scenes`: octave_OT and places_OTHW2 in texels.

    Each episode turns and zooms about a centre of its own. The offset of the grid changes with the centre,
    so that the texture does not jump.
    """
    origin_2 = _centre(scene, generator)
    angle = 2 * math.pi * _uniform(generator)
    phase = scene.octaves * _uniform(generator)
    offset_O2 = 128 * torch.rand(scene.octaves, 2, generator=generator)
    starting = {episode.begin: episode for episode in episodes}
    pixel_HW2, octave = pixels(scene.size), torch.arange(scene.octaves)
    octaves, places = [], []
    current: Episode | None = None
    for frame in range(frames):
        octave_O = (octave + phase) % scene.octaves
        texels_per_px_O1 = (WAVE / (scene.finest_px * 2**octave_O))[:, None]
        turn_22 = rotation(torch.tensor(angle))
        if frame in starting:
            current = starting[frame]
            centre_2 = _centre(scene, generator)
            offset_O2 = offset_O2 + ((centre_2 - origin_2) @ turn_22) * texels_per_px_O1
            origin_2 = centre_2
        turned_HW2 = (pixel_HW2 - origin_2) @ turn_22
        octaves.append(octave_O)
        places.append(turned_HW2 * texels_per_px_O1[..., None, None] + offset_O2[:, None, None])
        if current is not None and frame < current.end:
            origin_2 = origin_2 + torch.tensor(current.move_2)
            angle, phase = angle + current.turn, phase + current.zoom
    return torch.stack(octaves, dim=1), torch.stack(places, dim=1)


def _centre(scene: SceneConfig, generator: torch.Generator) -> Tensor:
    return scene.size * (0.3 + 0.4 * torch.rand(2, generator=generator))


def _choice(names: Sequence[str], generator: torch.Generator) -> str:
    return names[_integer(0, len(names) - 1, generator)]


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()

"""Synthetic scenes whose classes differ only in motion.

A scene has a background layer and a foreground layer, which a mask of blobs makes visible. Each layer is
noise of several octaves. Both layers have the same kind of motion at different speeds.

A single frame does not reveal the class: rotation, position and scale of the noise are uniform, so that a
rotated, moved or zoomed scene is equally likely. For zoom, octaves fade in at the finest scale and out at the
coarsest (like a Shepard tone). Otherwise late frames of `zoom_in` would be coarse and those of `zoom_out`
fine.

Speeds range from almost static to fast. In slow scenes a hidden patch can be copied from the frame before; in
fast scenes only along the motion. With fast scenes alone, a small masked autoencoder learns neither within
thousands of steps. With slow scenes alone, it does not need to learn motion.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.config import require

TILE = 128  # side of a seamless noise tile in texels
WAVE = 8.0  # texels per wavelength of the noise; enough for sharp bilinear sampling
COLOURS = 2  # noise fields per layer, each with its own colour


@dataclass(frozen=True)
class Motion:
    """Direction of motion: x to the right, y down, turn clockwise, zoom inwards."""

    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    zoom: float = 0.0


_DIAGONAL = math.sqrt(0.5)

MOTIONS = {
    "move_left": Motion(x=-1),
    "move_right": Motion(x=1),
    "move_up": Motion(y=-1),
    "move_down": Motion(y=1),
    "move_up_left": Motion(x=-_DIAGONAL, y=-_DIAGONAL),
    "move_up_right": Motion(x=_DIAGONAL, y=-_DIAGONAL),
    "move_down_left": Motion(x=-_DIAGONAL, y=_DIAGONAL),
    "move_down_right": Motion(x=_DIAGONAL, y=_DIAGONAL),
    "rotate_clockwise": Motion(turn=1),
    "rotate_counterclockwise": Motion(turn=-1),
    "zoom_in": Motion(zoom=1),
    "zoom_out": Motion(zoom=-1),
}


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Appearance and motion of the scenes.

    Attributes:
        frames, size: number of frames and side in pixels.
        move_px, turn_degrees, zoom_octaves: lowest and highest speed per frame.
        direction_jitter_degrees: maximum deviation from the direction of motion.
        finest_px, octaves: wavelength of the finest noise, and number of doublings.
        coarseness: base-2 logarithm of the amplitude ratio of successive octaves.
        foreground: approximate range of the fraction of the frame that the blobs cover.
        contrast: standard deviation of the noise in grey levels.
    """

    frames: int = 16
    size: int = 32
    move_px: tuple[float, float] = (0.3, 2.5)
    turn_degrees: tuple[float, float] = (1.0, 9.0)
    zoom_octaves: tuple[float, float] = (0.015, 0.13)
    direction_jitter_degrees: float = 10.0
    finest_px: float = 4.0
    octaves: int = 3
    coarseness: float = 0.0
    foreground: tuple[float, float] = (0.0, 0.1)
    contrast: float = 45.0

    def __post_init__(self) -> None:
        require(self.frames >= 2, "scene.frames", "be at least 2", self.frames)
        even = self.size >= 16 and self.size % 2 == 0
        require(even, "scene.size", "be an even number of pixels, at least 16", self.size)
        for name in ("move_px", "turn_degrees", "zoom_octaves"):
            slowest, fastest = getattr(self, name)
            require(
                0 < slowest <= fastest, f"scene.{name}", "be [slowest, fastest] above 0", [slowest, fastest]
            )
        jitter = self.direction_jitter_degrees
        require(0 <= jitter < 22.5, "scene.direction_jitter_degrees", "lie in [0, 22.5)", jitter)
        require(self.finest_px >= 2, "scene.finest_px", "be at least 2 pixels", self.finest_px)
        require(3 <= self.octaves <= 8, "scene.octaves", "be between 3 and 8", self.octaves)
        low, high = self.foreground
        require(0 <= low <= high < 1, "scene.foreground", "be [min, max] within [0, 1)", [low, high])
        require(-2 <= self.coarseness <= 2, "scene.coarseness", "lie in [-2, 2]", self.coarseness)
        require(self.contrast > 0, "scene.contrast", "be above 0", self.contrast)


def make_scene(kind: str, settings: SceneConfig, generator: torch.Generator) -> Tensor:
    """Draw one scene of a class.

    All classes use the generator in the same way. With equal generators, all classes have the same middle
    frame, and opposite classes are time-reversed copies of each other.

    Returns:
        frames_THWC, uint8 RGB.

    Raises:
        ValueError: unknown class.
    """
    if kind not in MOTIONS:
        raise ValueError(f"classes: no motion named {kind!r}; expected one of {', '.join(MOTIONS)}")
    motion = MOTIONS[kind]
    behind_CTHW, _ = _layer(motion, settings, generator)
    before_CTHW, blobs_THW = _layer(motion, settings, generator)
    low, high = settings.foreground
    fraction = low + (high - low) * _uniform(generator)
    # The field of the blobs is standard normal, so its quantile sets the covered fraction.
    level = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * fraction)).clamp(-4, 4).item()
    cover_THW = torch.sigmoid(8.0 * (blobs_THW - level))
    frames_CTHW = behind_CTHW + cover_THW * (before_CTHW - behind_CTHW)
    return frames_CTHW.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _layer(motion: Motion, settings: SceneConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A moving layer: colours_CTHW in grey levels and a field_THW of standard normal values."""
    fields_OXGG = noise_tiles(settings.octaves, generator)
    octave_OT, places_OTHW2 = _places(motion, settings, generator)
    return shade(fields_OXGG, octave_OT, places_OTHW2, settings, generator)


def shade(
    fields_OXGG: Tensor,
    octave_OT: Tensor,
    places_OTHW2: Tensor,
    settings: SceneConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Sample noise and draw its colours.

    Args:
        fields_OXGG: tiles of noise.
        octave_OT: octave of each tile, from 0 (finest) to `octaves`.
        places_OTHW2: position in texels of each pixel.

    Returns:
        colours_CTHW in grey levels, and a field_THW of standard normal values.
    """
    read_OXTHW = torch.stack([_read(*pair) for pair in zip(fields_OXGG, places_OTHW2, strict=True)])
    coarseness_X = torch.tensor(
        [settings.coarseness] * COLOURS + [settings.coarseness + 1.0]
    )  # blobs are smooth
    window_OT = torch.sin(math.pi * octave_OT / settings.octaves)
    weight_OXT = window_OT[:, None] * 2 ** (coarseness_X[:, None] * octave_OT[:, None])
    weight_OXT = weight_OXT / weight_OXT.square().sum(dim=0).sqrt()
    fields_XTHW = (read_OXTHW * weight_OXT[..., None, None]).sum(dim=0)
    colour_XC = torch.randn(COLOURS, 3, generator=generator)
    colour_XC = settings.contrast * math.sqrt(3) * torch.nn.functional.normalize(colour_XC, dim=1)
    base_C = 70 + 115 * torch.rand(3, generator=generator)
    colours_CTHW = (
        torch.einsum("xthw,xc->cthw", fields_XTHW[:COLOURS], colour_XC) + base_C[:, None, None, None]
    )
    return colours_CTHW, fields_XTHW[COLOURS]


def noise_tiles(octaves: int, generator: torch.Generator) -> Tensor:
    """Seamless isotropic noise of one wavelength and unit variance, per octave and field."""
    # Double precision, so that rounding of the transform does not change grey levels.
    frequency_G = torch.fft.fftfreq(TILE, dtype=torch.float64)
    radius_GG = torch.hypot(frequency_G[:, None], frequency_G[None, : TILE // 2 + 1])
    ring_GG = torch.exp(-0.5 * (torch.log2(radius_GG.clamp(min=1e-6) * WAVE) / 0.3) ** 2)
    white_OXGG = torch.randn(octaves, COLOURS + 1, TILE, TILE, generator=generator)
    noise_OXGG = torch.fft.irfft2(torch.fft.rfft2(white_OXGG.double()) * ring_GG, s=(TILE, TILE))
    return (noise_OXGG / noise_OXGG.square().mean(dim=(2, 3), keepdim=True).sqrt()).float()


def _places(motion: Motion, settings: SceneConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sampling grid of each octave: octave_OT from 0 (finest) to `octaves`, places_OTHW2 in texels."""
    # Time 0 is the middle frame, which all classes share; opposite classes are time-reversed.
    time_T = torch.arange(settings.frames) - (settings.frames - 1) / 2
    move, turn, zoom = (
        slowest + (fastest - slowest) * _uniform(generator)
        for slowest, fastest in (settings.move_px, settings.turn_degrees, settings.zoom_octaves)
    )
    jitter = math.radians(settings.direction_jitter_degrees) * (2 * _uniform(generator) - 1)
    centre_2 = settings.size * (0.3 + 0.4 * torch.rand(2, generator=generator))
    angle_T = 2 * math.pi * _uniform(generator) + math.radians(motion.turn * turn) * time_T
    phase_T = settings.octaves * _uniform(generator) + motion.zoom * zoom * time_T
    start_O2 = TILE * torch.rand(settings.octaves, 2, generator=generator)
    direction_2 = torch.tensor([motion.x, motion.y]) @ rotation(torch.tensor(jitter))

    octave_OT = (torch.arange(settings.octaves)[:, None] + phase_T) % settings.octaves
    texels_per_px_OT = WAVE / (settings.finest_px * 2**octave_OT)
    pixel_HW2 = pixels(settings.size)
    moved_T2 = centre_2 + move * direction_2 * time_T[:, None]
    turned_THW2 = (pixel_HW2 - moved_T2[:, None, None]) @ rotation(angle_T)[:, None]
    return octave_OT, turned_THW2 * texels_per_px_OT[..., None, None, None] + start_O2[:, None, None, None]


def pixels(size: int) -> Tensor:
    """Coordinates (x, y) of the pixels of a square frame, (H, W, 2)."""
    side = torch.arange(size, dtype=torch.float32)
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)


def rotation(angle: Tensor) -> Tensor:
    """Inverse rotations (..., 2, 2) of row vectors (x, y); the sampled scene turns clockwise."""
    rows = (angle.cos(), -angle.sin(), angle.sin(), angle.cos())
    return torch.stack(rows, dim=-1).unflatten(-1, (2, 2))


def _read(tile_XGG: Tensor, places_THW2: Tensor) -> Tensor:
    """Sample a seamless tile bilinearly: fields_XTHW."""
    padded_XGG = torch.nn.functional.pad(tile_XGG, (0, 1, 0, 1), mode="circular")
    frames, height, width, _ = places_THW2.shape
    grid_THW2 = (places_THW2 % TILE) * (2 / TILE) - 1
    read_XTHW = torch.nn.functional.grid_sample(
        padded_XGG[None], grid_THW2.reshape(1, frames * height, width, 2), align_corners=True
    )
    return read_XTHW.view(-1, frames, height, width)


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()

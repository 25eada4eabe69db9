"""The encoders of a probe: exported folders and checkpoints of a pretraining run."""

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.randomness import derived_seed
from kinemae.finetune.build import frame_sampling
from kinemae.finetune.config import FinetuneClip
from kinemae.pretrain.checkpoint_encoder import (
    describe_checkpoint_encoder,
    is_checkpoint,
    load_checkpoint_encoder,
)
from kinemae.pretrain.exported_model import (
    EncoderDescription,
    build_encoder,
    load_description,
    load_encoder,
    with_clip,
)
from kinemae.pretrain.folder_kinds import exported_in
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.runtime.checkpoint_files import list_checkpoints


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """One encoder.

    Attributes:
        folder: of an exported encoder or a checkpoint.
        name: unique among the encoders of a command; names folders and rows of tables.
        step: pretraining steps; None if unknown.
        description: of the encoder, with the clip of the probe.
        is_random: whether the weights are random instead of the stored ones.
        seed: of random weights.
    """

    folder: Path
    name: str
    step: int | None
    description: EncoderDescription
    is_random: bool = False
    seed: int = 0

    def load(self) -> Encoder:
        """Load the weights, or draw them; in evaluation mode without gradients.

        Raises:
            CheckpointError: the weights are missing or damaged.
        """
        grid = self.description.grid
        if self.is_random:
            torch.manual_seed(derived_seed(self.seed, purpose="weights"))
            encoder = build_encoder(self.description)
        elif is_checkpoint(self.folder):
            encoder, _ = load_checkpoint_encoder(self.folder, grid=grid)
        else:
            encoder, _ = load_encoder(self.folder, grid=grid)
        return encoder.eval().requires_grad_(False)


def find_encoders(
    given: Sequence[str], clip: FinetuneClip, *, is_random: bool, seed: int
) -> list[EncoderSource]:
    """Find the encoders that the config names, checkpoints of one run in the order of their steps.

    Raises:
        CheckpointError: a name gives no encoder.
        ValueError: a clip that an encoder cannot take.
    """
    folders = list(dict.fromkeys(folder for name in given for folder in _folders(name)))
    names = _unique_names(folders)
    sources = []
    for folder, name in zip(folders, names, strict=True):
        is_saved = is_checkpoint(folder)
        description = describe_checkpoint_encoder(folder) if is_saved else load_description(folder)
        sources.append(
            EncoderSource(
                folder=folder,
                name=name,
                step=_step(folder, description),
                description=with_clip(
                    description, frames=clip.frames, size=clip.size, **frame_sampling(clip)
                ),
                is_random=is_random,
                seed=seed,
            )
        )
    return sources


def digest(encoder: Encoder) -> str:
    """Digest of architecture and weights: equal for a checkpoint and its export."""
    found = hashlib.sha256(repr((encoder.shape, encoder.grid, encoder.reference)).encode())
    for name, value in sorted(encoder.state_dict().items()):
        found.update(f"{name}{tuple(value.shape)}".encode())
        found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _folders(name: str) -> list[Path]:
    """The folders of encoders that one entry of the config names."""
    if glob.has_magic(name):
        found = [Path(path) for path in sorted(glob.glob(name))]
        found = [path for path in found if is_checkpoint(path) or (path / "encoder.json").is_file()]
        if not found:
            raise CheckpointError(
                f"encoder={name}: expected folders of encoders or checkpoints, got none; fix: correct the "
                "pattern"
            )
        return found
    folder = Path(name)
    if folder.name == "checkpoints" and not (folder / "encoder.json").exists():
        steps = list_checkpoints(folder)
        if not steps:
            raise CheckpointError(
                f"encoder={name}: expected checkpoints of a pretraining run, got none; fix: give "
                "RUN/checkpoints"
            )
        return list(steps.values())
    exported = None if (folder / "encoder.json").exists() or is_checkpoint(folder) else exported_in(folder)
    return [exported or folder]


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell the folders apart."""
    for count in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        names = ["-".join(folder.parts[-count:]).strip("/-") or "encoder" for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"encoder-{number}" for number in range(len(folders))]


def _step(folder: Path, description: EncoderDescription) -> int | None:
    if is_checkpoint(folder):
        return int(folder.name.removeprefix("step-"))
    steps = description.trained_by.get("steps")
    return steps if isinstance(steps, int) else None

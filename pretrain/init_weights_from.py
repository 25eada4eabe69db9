"""Initialize a run with the weights of an exported encoder: config key `init_from`."""

from dataclasses import dataclass, fields
from pathlib import Path

from kinemae.data_tools.components import Component
from kinemae.pretrain.exported_model import (
    WEIGHTS,
    DecoderDescription,
    EncoderDescription,
    check_same_encoder,
    describe_decoder,
    has_decoder,
    load_decoder,
    load_description,
)
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.serialization import check_weights, read_weights

# Config keys of fields of `EncoderShape` whose key is not `model.FIELD`.
_KEYS = {
    "mlp_width": "model.size (the MLP's width)",
    "patch": "model.patch_frames and model.patch_size",
    "run_lengths": "pruning (number of run lengths)",
    "scorer": "pruning (learned or not)",
    "final_norm": "final norm (required in pretraining)",
    "norm": "norm (layer in pretraining)",
}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """An exported encoder, and the decoder in the same folder if there is one."""

    folder: Path
    description: EncoderDescription

    def load_pretrained(self, model: MaskedAutoencoder, target: Component) -> str:
        """Load the encoder's weights into a model with the same reference grid; the decoder's if they fit.

        Args:
            target: the model's target.

        Returns:
            A description for the log.

        Raises:
            CheckpointError: the config has another encoder, or a file is damaged.
        """
        self._check_same_encoder(model)
        weights = read_weights(self.folder / WEIGHTS)
        check_weights(model.encoder, weights, self.folder / WEIGHTS)
        model.encoder.load_state_dict(weights)
        model.target.bind(model.encoder)  # again: a target may copy the encoder's weights
        return f"initial weights: the encoder in {self.folder}; {self._load_decoder(model, target)}"

    def _check_same_encoder(self, model: MaskedAutoencoder) -> None:
        own, theirs = model.encoder.shape, self.description.shape
        pairs = {
            _KEYS.get(known.name, f"model.{known.name}"): (
                getattr(own, known.name),
                getattr(theirs, known.name),
            )
            for known in fields(own)
        }
        pairs |= {
            "model.mean": (model.mean, self.description.mean),
            "model.std": (model.std, self.description.std),
        }
        check_same_encoder(f"init_from={self.folder}", pairs)

    def _load_decoder(self, model: MaskedAutoencoder, target: Component) -> str:
        """Load the decoder if it fits; return a description for the log."""
        if model.decoder is None:
            return "the target needs no decoder"
        if not has_decoder(self.folder):
            return "the decoder has random weights: the folder has no decoder"
        given, found = load_decoder(self.folder)
        expected = describe_decoder(model.decoder, target=target)
        differ = _differences(expected, found)
        if differ:
            return f"the decoder has random weights: the exported one differs: {', '.join(differ)}"
        model.decoder.load_state_dict(given.state_dict())
        changed = (
            f", trained on the target {found.target.name} {found.target.args}"
            if target != found.target
            else ""
        )
        return f"the decoder is the exported one{changed}"


def open_pretrained(folder: str | None) -> Pretrained | None:
    """Open `init_from`; None for random weights.

    Raises:
        CheckpointError: no exported encoder there.
    """
    return (
        None
        if folder is None
        else Pretrained(folder=Path(folder), description=load_description(Path(folder)))
    )


def _differences(expected: DecoderDescription, found: DecoderDescription) -> list[str]:
    free = {"grid", "target", "format"}
    return [
        f"{known.name}: config {getattr(expected, known.name)}, exported {getattr(found, known.name)}"
        for known in fields(expected)
        if known.name not in free and getattr(expected, known.name) != getattr(found, known.name)
    ]

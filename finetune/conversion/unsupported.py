"""What VideoMAE, official or Hugging Face's, cannot be: such models are refused by name, not bent."""

from torch import nn

from kinemae.data_tools.command import CheckpointError, log
from kinemae.finetune.conversion.model_bundle import Kin
from kinemae.finetune.heads.linear import LinearHead
from kinemae.pretrain.model.tokens import MEAN, STD


def refuse_inexpressible(kin: Kin, system: str, *, source: object, may_scale: bool = False) -> None:
    """Refuse a model that a system's files cannot hold, with everything that stands in the way.

    Args:
        system: its name, for the message.
        source: our folder, for the message.
        may_scale: whether the file can hold `layer_scale`.

    Raises:
        CheckpointError: what the model would have to be.
    """
    reasons = [*_of_encoder(kin, may_scale=may_scale), *_of_decoder(kin), *_of_head(kin)]
    if reasons:
        raise CheckpointError(f"{source} cannot be written as {system}: it needs {'; '.join(reasons)}")
    if (kin.description.mean, kin.description.std) != (MEAN, STD):
        log.warning(
            "%s normalises pixels by mean %s and std %s, and %s by ImageNet's unless it is told otherwise",
            source,
            kin.description.mean,
            kin.description.std,
            system,
        )


def _of_encoder(kin: Kin, *, may_scale: bool) -> list[str]:
    shape, reference = kin.description.shape, kin.description.reference
    needed = {
        f"model.attention=joint, not {shape.attention.name}": shape.attention.name == "joint",
        f"model.positions=flat_sine, not {shape.positions.name}": shape.positions.name == "flat_sine",
        "model.qk_norm=false": not shape.qk_norm,
        "model.layer_scale=null": shape.layer_scale is None or may_scale,
        f"model.registers=0, not {shape.registers}": shape.registers == 0,
        "an encoder without run lengths (pruning)": shape.run_lengths == 0,
        "an encoder without a scorer (pruning)": not shape.scorer,
        f"the clip of its pretraining: its positions are resampled from {reference}": (
            kin.description.grid == reference
        ),
    }
    return [reason for reason, is_met in needed.items() if not is_met]


def _of_decoder(kin: Kin) -> list[str]:
    decoder = kin.decoder_description
    if decoder is None:
        return []
    shape, values = decoder.shape, kin.description.shape.patch_values
    needed = {
        f"model.decoder=self, not {decoder.kind}": decoder.kind == "self",
        f"model.decoder_attention=joint, not {shape.attention.name}": shape.attention.name == "joint",
        f"the decoder's positions to be flat_sine, not {shape.positions.name}": (
            shape.positions.name == "flat_sine"
        ),
        "model.noise_conditioning=false": not decoder.noise_conditioned,
        f"a decoder of a patch's {values} pixels, not of {decoder.values} values": decoder.values == values,
        "an encoder with a last norm before its decoder": kin.description.shape.final_norm,
    }
    return [reason for reason, is_met in needed.items() if not is_met]


def _of_head(kin: Kin) -> list[str]:
    if kin.head is None:
        return []
    is_linear = isinstance(kin.head, LinearHead) and kin.head.pool == "mean"
    is_normed = is_linear and isinstance(kin.head.norm, nn.LayerNorm)
    needed = {
        "head={name: linear, args: {pool: mean, norm: layer}}": is_normed,
        "an encoder without a last norm (fine-tuned with final_norm=false, as VideoMAE is)": (
            not kin.description.shape.final_norm
        ),
    }
    return [reason for reason, is_met in needed.items() if not is_met]

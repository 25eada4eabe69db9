"""Adapters of the encoder's linear layers by `peft`: LoRA, DoRA and IA3.

The base weights are frozen. Adapters are merged into them for scoring and export, so that a fine-tuned model
has the ordinary format.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kinemae.data_tools.config import require
from kinemae.data_tools.packages import require_packages
from kinemae.data_tools.randomness import ClipRandom, derived_seed
from kinemae.finetune.adapt.config import DEFAULT_RANK, AdaptConfig
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.serialization import save_tensors

if TYPE_CHECKING:
    import peft

_NAME = "default"  # of the adapter, in peft's parameter names


class ClipDropout(nn.Module):
    """Dropout whose random numbers depend on the clip, unlike `nn.Dropout` with its global generator.

    Attributes:
        draws: random numbers of the clips of the present forward pass.
    """

    draws: ClipRandom | None = None

    def __init__(self, rate: float, purpose: str):
        super().__init__()
        self.rate = rate
        self.purpose = purpose

    def forward(self, x_BND: Tensor) -> Tensor:
        """Set values to 0 with probability `rate` and scale the others, in training."""
        if not self.training:
            return x_BND
        assert self.draws is not None, "dropout in training needs draws"
        is_kept_BND = self.draws.uniform(self.purpose, x_BND.shape[1:]) >= self.rate
        return x_BND * is_kept_BND / (1 - self.rate)


def check_adapters(config: AdaptConfig, *, zero_stage: int, is_packed: bool) -> None:
    """Check before anything starts that the adapters can be trained.

    Args:
        is_packed: whether clips keep different numbers of tokens and are packed into one row.

    Raises:
        ValueError: peft is not installed, or another setting does not support the method.
    """
    if not config.has_adapters:
        return
    require_packages("peft", key=f"adapt.method={config.method}")
    if config.method == "dora":
        reason = "be below 3 with adapt.method=dora, which reads whole weights"
        require(zero_stage < 3, "engine.zero_stage", reason, zero_stage)
    if config.dropout:
        require(not is_packed, "adapt.dropout", "be 0 with pruning.args.keep=null", config.dropout)


def add_adapters(encoder: Encoder, config: AdaptConfig, *, seed: int) -> None:
    """Freeze the encoder and add adapters, whose initial weights depend only on the seed.

    LoRA's second matrix starts at zero and IA3's scales at one: the encoder computes the same as before.
    """
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, purpose="adapters"))
        peft.inject_adapter_in_model(_peft_config(config), encoder, adapter_name=_NAME)
    if config.dropout:
        for name, layer in _adapted(encoder):
            layer.lora_dropout[_NAME] = ClipDropout(config.dropout, f"adapter_dropout/{name}")
        _record(encoder).lora_dropout = config.dropout


def clip_dropouts(module: nn.Module) -> list[ClipDropout]:
    """The dropout layers that need `draws` before each forward pass in training."""
    return [child for child in module.modules() if isinstance(child, ClipDropout)]


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """While entered, the adapters below `module` are merged into the weights; then the weights are as before.

    Kept weights are restored: subtracting the adapters again would round them.
    """
    kept = []
    for _, layer in _adapted(module):
        base = layer.get_base_layer()
        kept.append((layer, base.weight.data, base.bias.data))
        layer.merge(safe_merge=True)  # into new tensors
    try:
        yield
    finally:
        for layer, weight, bias in kept:
            layer.merged_adapters.clear()
            base = layer.get_base_layer()
            base.weight.data, base.bias.data = weight, bias


def merged_encoder(encoder: Encoder) -> Encoder:
    """Return an ordinary encoder with the adapters merged into its weights; itself without adapters."""
    if not _adapted(encoder):
        return encoder
    with merged(encoder), torch.random.fork_rng(devices=[]):
        plain = Encoder(encoder.shape, encoder.grid, reference=encoder.reference)
        names = plain.state_dict().keys()
        state = {name.replace(".base_layer.", "."): value for name, value in encoder.state_dict().items()}
        plain.load_state_dict({name: state[name] for name in names}, assign=True)
    return plain


def save_adapter(encoder: Encoder, folder: Path) -> None:
    """Write the adapter in peft's format; `peft.PeftModel.from_pretrained(encoder, folder)` loads it."""
    import peft

    folder.mkdir(parents=True, exist_ok=True)
    weights = peft.get_peft_model_state_dict(encoder, adapter_name=_NAME)
    contiguous = {f"base_model.model.{name}": value.cpu().contiguous() for name, value in weights.items()}
    save_tensors(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _record(encoder).save_pretrained(str(folder))


def _record(encoder: Encoder) -> Any:
    """The `peft.PeftConfig` that peft keeps in a module with adapters."""
    configs: Any = encoder.peft_config
    return configs[_NAME]


def _peft_config(config: AdaptConfig) -> "peft.PeftConfig":
    import peft

    targets = _pattern(config.adapted_layers)
    if config.method == "ia3":
        # Where the paper scales an MLP: the values between its two layers.
        is_inner = [name for name in config.adapted_layers if name == "fc2"]
        return peft.IA3Config(target_modules=targets, feedforward_modules=_pattern(is_inner or ["-"]))
    rank = config.rank or DEFAULT_RANK
    alpha: Any = rank if config.alpha is None else config.alpha  # peft accepts fractions
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=config.rslora,
        use_dora=config.method == "dora",
        target_modules=targets,
    )


def _pattern(layers: Any) -> str:
    """A regular expression for the full names of these layers in all blocks."""
    return rf"blocks\.\d+\.(attn|extra_attns\.\d+|mlp)\.({'|'.join(layers)})"


def _adapted(module: nn.Module) -> list[tuple[str, Any]]:
    """The layers that peft has replaced, with their names."""
    if sys.modules.get("peft") is None:  # importing it takes seconds
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, child) for name, child in module.named_modules() if isinstance(child, BaseTunerLayer)]

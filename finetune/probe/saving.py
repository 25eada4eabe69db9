"""Save the chosen head with its encoder as a fine-tuned run that `finetune evaluate` scores."""

from dataclasses import asdict, replace
from pathlib import Path

from kinemae.data_tools.config import to_yaml
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.adapt.config import AdaptConfig
from kinemae.finetune.config import EvaluateConfig, FinetuneConfig, FinetuneOptim
from kinemae.finetune.model_file import FinetunedModel, save_model
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.data import Outcome
from kinemae.finetune.probe.stores import ProbedEncoder
from kinemae.finetune.task_model import TaskModel
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.folder_kinds import MODEL_FOLDER
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.runtime.settings import BatchConfig


def save_probe(config: ProbeConfig, probed: ProbedEncoder, outcome: Outcome, folder: Path) -> None:
    """Write `model/` and `config.yaml`. The encoder ends at the block whose tokens the head reads."""
    source, head, component = probed.source, outcome.head, outcome.head_component
    assert source is not None and head is not None and component is not None
    chosen = outcome.chosen
    encoder, description = truncated(source.load(), source.description, outcome.layer + 1)
    trained_by = {
        "task": "probe",
        "config": asdict(config),
        "encoder_trained_by": description.trained_by,
    }
    model = TaskModel(
        encoder, head, probed.task.cpu(), freeze=True, mean=description.mean, std=description.std
    )
    finetuned = FinetunedModel(
        model=model.eval(), description=replace(description, trained_by=trained_by), task=config.task
    )
    save_model(folder / MODEL_FOLDER, finetuned, head=component)
    stored = FinetuneConfig(
        run_dir=str(folder),
        seed=config.seed,
        encoder=str(source.folder),
        weights=config.weights,
        head=component,
        adapt=AdaptConfig(method="frozen"),
        task=config.task,
        epochs=config.train.epochs,
        data=config.data.labelled,
        clip=config.clip,
        optim=FinetuneOptim(lr=chosen["lr"], final_lr=0.0, weight_decay=chosen["weight_decay"]),
        batch=BatchConfig(clips_per_device=config.clips_per_device),
        evaluate=EvaluateConfig(**asdict(config.evaluate), data="validation"),
        engine=config.engine,
    )
    atomic_write_text(folder / "config.yaml", to_yaml(stored))


def truncated(
    encoder: Encoder, description: EncoderDescription, depth: int
) -> tuple[Encoder, EncoderDescription]:
    """The first blocks of an encoder with its final norm."""
    if depth == description.shape.depth:
        return encoder, description
    shape = replace(description.shape, depth=depth)
    shorter = Encoder(shape, description.grid, reference=description.reference)
    kept = shorter.state_dict().keys()
    shorter.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in kept})
    return shorter.eval().requires_grad_(False), replace(description, shape=shape)

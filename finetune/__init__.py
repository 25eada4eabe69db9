"""Fine-tuning of video encoders; `kinemae.finetune(...)` is `kinemae.finetune.train.finetune`."""

from kinemae.callable_module import make_callable

make_callable(__name__, "kinemae.finetune.train", "finetune")

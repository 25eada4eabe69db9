"""Pretraining of video encoders; `kinemae.pretrain(...)` is `kinemae.pretrain.command.pretrain`."""

from kinemae.callable_module import make_callable

make_callable(__name__, "kinemae.pretrain.command", "pretrain")

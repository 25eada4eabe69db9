"""`kinemae data|pretrain|finetune|launch|configs ...`, also as `python -m kinemae`."""

import importlib
import os
import sys
from collections.abc import Sequence

from kinemae.data_tools.exit_codes import EXIT_CONFIG

_MODULES = {
    "data": "kinemae.data_tools.__main__",
    "pretrain": "kinemae.pretrain.__main__",
    "finetune": "kinemae.finetune.__main__",
    "launch": "kinemae.launch.__main__",
    "configs": "kinemae.data_tools.config_files",
}
_HELP = """usage: kinemae COMMAND ...

  data       make, shard, index, check, show and measure data sets of videos
  pretrain   pretrain a video encoder, or resume a run
  finetune   fine-tune and evaluate an encoder, convert checkpoints
  launch     start a training on this machine, on hosts by ssh, on Slurm or on Kubernetes
  configs    list the configs that come with KineMAE, print one

`kinemae COMMAND --help` shows the arguments of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; import only that command's modules."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--version"]:
        from kinemae import __version__

        sys.stdout.write(f"kinemae {__version__}\n")
        return 0
    if not words or words[0] not in _MODULES:
        is_help = words[:1] in (["--help"], ["-h"])
        if words and not is_help:
            expected = ", ".join(_MODULES)
            sys.stderr.write(f"kinemae: expected one of {expected}, got {words[0]!r}\n")
        (sys.stdout if is_help else sys.stderr).write(_HELP)
        return 0 if is_help else EXIT_CONFIG
    try:
        code = importlib.import_module(_MODULES[words[0]]).main(words[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # as in `kinemae configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Packages that benchmarks compare with and that need not be installed."""

import importlib


def why_missing(module: str, install: str) -> str | None:
    """Return the reason, in one line, for which a package cannot be measured; None if it can.

    Args:
        module: the module to import, as in "torchcodec.decoders".
        install: argument of `pip install`.
    """
    name = module.partition(".")[0]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in (name, module):
            return f"{name} is not installed: its rows are left out; fix: pip install {install}"
        return f"{name} cannot be imported: no module named {error.name}: its rows are left out"
    except (ImportError, OSError, RuntimeError) as error:  # a shared library is missing, usually FFmpeg's
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
        return f"{name} cannot be imported: {lines[0][:200]}: its rows are left out"
    return None

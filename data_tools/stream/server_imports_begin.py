"""The first import of the server of the workers: turns garbage collection off, see `quick_imports`."""

import gc

gc.disable()

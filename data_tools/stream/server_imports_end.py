"""The last import of the server of the workers: turns garbage collection on again, for all its workers.

Collections leave out the imported objects, so that workers share their memory with the server.
"""

import gc

gc.freeze()
gc.enable()

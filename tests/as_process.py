"""`dpads` in a process of its own whose keys are known and bound to nothing, so that runs of any number of
processes have the same ones. Only process 0 has the key and its digest: the others have to be told."""

from __future__ import annotations

import os
import sys

from dpads import training
from dpads.cli import main

if __name__ == "__main__":
    first = "--process-id" not in sys.argv or sys.argv[sys.argv.index("--process-id") + 1] == "0"
    training.fresh_master_key = lambda: bytes(32) if first else os.urandom(32)
    training.digest_of = lambda _: "the first one's" if first else os.urandom(8).hex()
    main()

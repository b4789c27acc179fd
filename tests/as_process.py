"""`dpads` in a process of its own, whose keys are bound to noise_seed alone: runs of any number of processes
then have the same ones, and their parameters can be compared."""

from __future__ import annotations

from dpads import training
from dpads.cli import main

if __name__ == "__main__":
    training.digest_of = lambda _: "the same however many processes there are"
    main()

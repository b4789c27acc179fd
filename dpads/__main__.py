"""`python -m dpads`, and the `dpads` command."""

from __future__ import annotations


def main() -> None:
    """Runs the command line; it ends with 0, 1 (run failed) or 2 (wrong use, bad input)."""
    from dpads.cli import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()

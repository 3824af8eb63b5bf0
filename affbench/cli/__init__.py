"""The command line."""

from affbench.cli.app import main

__all__ = ["main"]

"""The command line: one thin file a command, loaded when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

import click

import graphmem
from graphmem.cli.errors import ErrorsInOneLine

_COMMANDS = ("inspect", "trace", "train", "plan", "infer", "measure", "show")


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"graphmem.cli.{cmd_name}").command
        return command


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(graphmem.__version__, prog_name="graphmem")
def _group() -> None:
    """How much memory a PyTorch model needs, where it goes, and what would make it fit."""


def main() -> None:
    """The ``graphmem`` command."""
    with ErrorsInOneLine():
        status = _group.main(prog_name="graphmem", standalone_mode=False)
    sys.exit(status if isinstance(status, int) else 0)

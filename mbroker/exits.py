"""How ``mbroker`` and ``mbrokerd`` end: what an error means to the shell that called them."""

from __future__ import annotations

from enum import IntEnum

from mbroker.config import ConfigError, NoSuchFile
from mbroker.control import NoSuchThing, Unreachable
from mbroker.plugins import BadOptions, UnknownPlugin
from mchannel.errors import AddressError
from mchannel.keys import KeyNameError, NoSuchKey

__all__ = ["Exit", "Failure", "Interrupted", "Misuse", "exit_of"]


class Failure(Exception):
    """A command cannot do what it was asked for; one line says why."""


class Misuse(Failure):
    """The command line is wrong; one line says how to write it."""


class Interrupted(Failure):
    """The operator did not wait for the end; one line says what goes on without the command."""


class Exit(IntEnum):
    """Exit codes, the same for all commands."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """The command line or the configuration is wrong."""
    UNREACHABLE = 3
    NOT_FOUND = 4
    INTERRUPTED = 130
    """As a shell tells of a command that SIGINT ended."""


def exit_of(error: Exception) -> Exit:
    """Return the code that tells a caller what kind of failure *error* is."""
    match error:
        case NoSuchFile() | FileNotFoundError() | UnknownPlugin() | NoSuchKey() | NoSuchThing():
            return Exit.NOT_FOUND
        case Misuse() | ConfigError() | BadOptions() | AddressError() | KeyNameError():
            return Exit.USAGE
        case Unreachable():
            return Exit.UNREACHABLE
        case Interrupted():
            return Exit.INTERRUPTED
        case _:
            return Exit.FAILED

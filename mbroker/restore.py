"""``python -m mbroker.restore --state DIR``: put back what a dead broker changed on this machine.

For ``ExecStopPost=`` of its unit: it runs after a crash as after an orderly stop, needs no
configuration, and does nothing when nothing is left to restore. Exit code 0 when every original
is back, 1 when one is not, 2 for a usage error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mchannel.errors import JournalError

from .actuators.originals import Originals, boot_id

__all__ = ["main", "restore"]


def restore(state: Path) -> list[str]:
    """Put back the originals of every journal in *state*; return a line for each that is not back."""
    failures: list[str] = []
    for path in sorted(state.glob("*.originals")):
        try:
            originals = Originals(path, boot=boot_id())
            try:
                failures += [result.error for result in originals.restore() if result.error]
            finally:
                originals.close()
        except (JournalError, OSError) as error:
            failures.append(str(error))
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m mbroker.restore", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where the broker keeps its journals")
    state: Path = parser.parse_args(arguments).state
    if not state.is_dir():
        parser.error(f"{state} is no directory")
    failures = restore(state)
    sys.stderr.writelines(f"{line}\n" for line in failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

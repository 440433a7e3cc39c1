"""SIGKILL before each line of Python that runs in chosen files."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from .points import WHOLE, Check, Program, Report, Seed, Violation, judged, spread

__all__ = ["enumerate_lines"]


def enumerate_lines(
    program: Program,
    check: Check,
    *,
    modules: Sequence[ModuleType],
    folder: Path,
    seed: Seed = lambda _: None,
    most: int | None = None,
    first: bool = False,
) -> Report:
    """Kill *program* before each line of *modules*; *seed* fills the directory first.

    A program that waits for others may come to its end before a line that it ran at first; it is judged then, too.
    *most* bounds the points unless MCHANNEL_VERIFY=1; *first* ends at the first violation. Raises
    RuntimeError when the program fails without being killed: then it is not the one that was
    meant to be tested.
    """
    files = {module.__file__ for module in modules}
    start = folder / "whole"
    start.mkdir(parents=True)
    seed(start)
    _, lines = _forked(program, start, files, None)
    violations: list[Violation] = list(judged(check, start, lines[1:], "no kill"))
    points = spread(range(1, int(lines[0]) + 1), None if WHOLE else most)
    for point in points:
        if first and violations:
            break
        work = folder / str(point)
        work.mkdir()
        seed(work)
        where, acked = _forked(program, work, files, point)
        violations += judged(check, work, acked, f"line event {point} ({where})")
    return Report(len(points), tuple(violations))


def _forked(program: Program, folder: Path, files: set[str | None], point: int | None) -> tuple[str, list[str]]:
    """Return where the program was killed and what it had acknowledged (at no kill: the count before it)."""
    said, say = os.pipe()
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        _child(program, folder, files, point, say, tell)
    os.close(say)
    os.close(tell)
    with open(said, encoding="utf-8") as acks, open(told, encoding="utf-8") as place:  # noqa: PTH123
        lines, where = acks.read().splitlines(), place.read()
    _, status = os.waitpid(child, 0)
    killed = point is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if status and not killed:
        raise RuntimeError(f"the program did not run as before at line event {point}: status {status} {where}")
    return where, [where, *lines] if point is None else lines


def _child(program: Program, folder: Path, files: set[str | None], point: int | None, say: int, tell: int) -> NoReturn:
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        nonlocal seen
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            seen += 1
            if seen == point:
                os.write(tell, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}".encode())
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def ack(text: str) -> None:
        os.write(say, f"{text}\n".encode())

    status = 1
    try:
        sys.settrace(trace)
        program(folder, ack)
        sys.settrace(None)
        os.write(tell, str(seen).encode())
        status = 0
    except BaseException:
        sys.settrace(None)
        traceback.print_exc()
    finally:
        os._exit(status)

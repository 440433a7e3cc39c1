"""Socket files: where a local name is found, and how a dead broker's is taken over."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mchannel.address import Address, runtime_dir
from mchannel.errors import AddressError

__all__ = ["listen", "socket_path"]

_LONGEST = 107  # bytes of a path that fit into sockaddr_un with its zero
_QUEUE = 128  # connections that the kernel keeps until they are accepted
_TURN = 1.0  # seconds to wait for another broker that starts in the same folder


def socket_path(address: Address) -> Path:
    """Return the socket file of *address*, named after its scheme; raise AddressError when it can be none."""
    path = address.file(f".{address.scheme}")
    if (size := len(os.fsencode(path))) > _LONGEST:
        raise AddressError(f"{address}: the socket file's path has {size} bytes, at most {_LONGEST} work; shorten it")
    return path


def listen(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket of *kind* that listens at *path* and that its owner alone can connect to.

    The folder of names is made when it is missing. What a killed broker left behind is replaced;
    raises AddressError when one is alive, and for a file that is no socket.
    """
    try:
        if path.parent == runtime_dir():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.parent.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise AddressError(
                    f"{path.parent} is not a folder that you alone can write; remove it, or chown and chmod 700"
                )
        with _turn(path.parent):
            _clear(path, kind)
            listener = socket.socket(socket.AF_UNIX, kind)
            try:
                listener.bind(os.fspath(path))
                path.chmod(0o600)  # before listen(): nobody could connect yet
                listener.listen(_QUEUE)
            except BaseException:
                listener.close()
                raise
            return listener
    except OSError as error:
        raise AddressError(f"cannot listen at {path}: {error.strerror}") from None


@contextmanager
def _turn(folder: Path) -> Generator[None]:
    """Let brokers that start in one folder look for each other one after the other."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        late = time.monotonic() + _TURN
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > late:
                    raise AddressError(f"{folder} is locked by another program; stop that one") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _clear(path: Path, kind: int) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressError(f"{path} is there and is no socket; choose another name or move it away")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(os.fspath(path))
    if refused in (0, errno.EAGAIN):
        raise AddressError(f"a broker is already listening at {path}; stop it or choose another name")
    if refused != errno.ECONNREFUSED:
        raise OSError(refused, os.strerror(refused))
    path.unlink()

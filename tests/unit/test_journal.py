from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mchannel.errors import JournalError, MChannelError, MessageTooBig
from mchannel.journal import MAX_RECORD, Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.journal"


def written(path: Path, *records: bytes) -> bytes:
    with Journal.open(path) as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes()


def read(path: Path) -> tuple[bytes, ...]:
    with Journal.open(path) as journal:
        return journal.records


@contextmanager
def file_size_limit(size: int) -> Generator[None]:
    """A real refusal by the kernel: the write that crosses the limit is short, the next fails."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_missing_journal_is_made_empty_and_private(path: Path) -> None:
    assert read(path) == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_records_come_back_in_order(path: Path) -> None:
    written(path, b"one", b"", b"three")
    assert read(path) == (b"one", b"", b"three")


def test_records_is_what_was_found_at_open(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.append(b"new")
        assert journal.records == ()


def test_records_of_a_batch_come_back(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.append_many([b"a", b"b"])
        journal.append(b"mark", sync=False)
    assert read(path) == (b"a", b"b", b"mark")


def test_append_syncs_once_before_it_returns_and_a_mark_does_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with Journal.open(path) as journal:
        monkeypatch.setattr(os, "fsync", synced.append)
        journal.append(b"record")
        assert len(synced) == 1
        journal.append(b"mark", sync=False)
        assert len(synced) == 1
        journal.append_many([b"a", b"b", b"c"])
        assert len(synced) == 2
        journal.sync()
        assert len(synced) == 2  # nothing to do
        journal.append(b"mark", sync=False)
        journal.sync()
        assert len(synced) == 3


def test_the_name_of_a_new_file_is_synced_after_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal.open(path) as journal:
        assert synced == ["file", "directory"]
        journal.rewrite([b"new"])
        assert synced == ["file", "directory"] * 2


def test_a_journal_is_opened_when_nobody_changes_names_in_its_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    opening = threading.Thread(target=written, args=(path, b"one"))
    opening.start()
    opening.join(0.2)
    waited = opening.is_alive() and not path.exists()
    os.close(directory)
    opening.join(20)
    assert waited
    assert read(path) == (b"one",)


def test_a_torn_tail_is_dropped_wherever_it_was_torn(path: Path) -> None:
    whole = written(path, b"kept")
    longer = written(path, b"torn record")
    for end in range(len(whole), len(longer)):
        path.write_bytes(longer[:end])
        assert read(path) == (b"kept",)
        assert path.stat().st_size == len(whole)


def test_a_tail_of_zeros_is_dropped(path: Path) -> None:
    path.write_bytes(written(path, b"kept") + bytes(4096))
    assert read(path) == (b"kept",)


def test_a_record_after_a_hole_that_was_never_synced_is_dropped_with_it(path: Path) -> None:
    start = len(written(path, b"kept"))
    with Journal.open(path) as journal:
        journal.append_many([b"first page lost", b"second page written"], sync=False)
    data = bytearray(path.read_bytes())
    data[start + 30] ^= 1
    path.write_bytes(data)
    assert read(path) == (b"kept",)


def test_damage_before_the_tail_is_reported_with_its_offset_and_nothing_is_changed(path: Path) -> None:
    offset = len(written(path, b"one"))
    data = bytearray(written(path, b"two", b"three"))
    data[offset + 25] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match=rf"inbox\.journal is damaged at offset {offset}"):
        Journal.open(path)
    assert path.read_bytes() == data


def test_any_flipped_bit_of_a_rewritten_journal_is_reported(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.rewrite([b"one", b"two"])
    data = path.read_bytes()
    padding = range(28, 32)  # of the header: nothing is kept there
    for bit in range(len(data) * 8):
        if bit // 8 not in padding:
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(JournalError, match="is damaged at offset"):
                Journal.open(path)


def test_a_flipped_bit_in_any_byte_of_an_appended_journal_is_reported_or_costs_the_last_record_only(path: Path) -> None:
    data = written(path, b"one", b"two")
    for offset in range(len(data)):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        try:
            assert read(path) in {(b"one", b"two"), (b"one",)}
        except JournalError as error:
            assert "is damaged at offset" in str(error)  # noqa: PT017 - either is right


def test_any_truncation_of_a_rewritten_journal_is_reported(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.rewrite([b"one", b"two"])
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(JournalError, match="is damaged at offset"):
            Journal.open(path)


def test_a_payload_that_looks_like_a_record_is_not_taken_for_one(path: Path, tmp_path: Path) -> None:
    foreign = written(tmp_path / "other", b"forged", b"forged again")
    whole = written(path, b"kept")
    longer = written(path, foreign + b"the end")
    path.write_bytes(longer[:-1])
    assert read(path) == (b"kept",)
    assert len(whole) == path.stat().st_size


def test_a_live_journal_is_not_opened_twice(path: Path) -> None:
    with Journal.open(path), pytest.raises(JournalError, match="is open in another process"):
        Journal.open(path)
    read(path)


def test_a_live_journal_stays_locked_through_a_rewrite(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.rewrite([b"one"])
        with pytest.raises(JournalError, match="is open in another process"):
            Journal.open(path)


def test_a_killed_owner_leaves_the_journal_free(path: Path) -> None:
    program = (
        "import os, signal, sys; from mchannel.journal import Journal\n"
        "j = Journal.open(sys.argv[1]); j.append(b'one'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -9
    assert read(path) == (b"one",)


def test_rewrite_replaces_all_records_and_appending_goes_on(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.append_many([b"one", b"two"])
        before = journal.size
        journal.rewrite([b"two"])
        assert journal.size < before
        journal.append(b"three")
    assert read(path) == (b"two", b"three")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_a_killed_rewrite_left_is_cleared_away(path: Path) -> None:
    written(path, b"one")
    spare = path.with_name(path.name + ".new")
    spare.write_bytes(b"half")
    assert read(path) == (b"one",)
    assert not spare.exists()


def test_a_full_disk_fails_the_append_and_leaves_the_journal_as_it_was(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.append(b"one")
        before = path.read_bytes()
        with file_size_limit(len(before) + 10), pytest.raises(JournalError, match="File too large") as caught:
            journal.append(b"does not fit")
        assert isinstance(caught.value.__cause__, OSError)
        assert path.read_bytes() == before
        journal.append(b"two")
    assert read(path) == (b"one", b"two")


def test_a_full_disk_fails_the_rewrite_and_leaves_the_journal_as_it_was(path: Path) -> None:
    with Journal.open(path) as journal:
        journal.append(b"one")
        with file_size_limit(40), pytest.raises(JournalError, match="cannot rewrite journal"):
            journal.rewrite([b"does not fit"])
        journal.append(b"two")
    assert read(path) == (b"one", b"two")


def test_short_writes_are_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def short(fd: int, data: bytes, at: int) -> int:
        return pwrite(fd, data[:3], at)

    monkeypatch.setattr(os, "pwrite", short)
    written(path, b"written three bytes at a time")
    assert read(path) == (b"written three bytes at a time",)


def test_a_failed_sync_takes_the_record_and_the_marks_in_doubt_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal.open(path) as journal:
        journal.append(b"one")
        journal.append(b"mark", sync=False)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(JournalError, match=r"cannot append to journal .*: Input/output error"):
                journal.append(b"two")
        journal.append(b"three")
    assert read(path) == (b"one", b"three")


def test_an_interrupted_batch_leaves_no_ghost_of_its_later_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def interrupted(fd: int, data: bytes, at: int) -> int:
        pwrite(fd, data, at)
        raise KeyboardInterrupt

    with Journal.open(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", interrupted)
            with pytest.raises(KeyboardInterrupt):
                journal.append_many([b"first", b"ghost"])
        journal.append(b"other")  # as long as the first one
    assert read(path) == (b"other",)


class InterruptedOnce(Journal):
    """Meets a KeyboardInterrupt at the last moment of its first append."""

    _left = 1

    def append(self, record: bytes, *, sync: bool = True) -> None:
        self._armed = True
        super().append(record, sync=sync)

    def _flush(self) -> None:
        super()._flush()
        if self._armed and self._left:
            self._left = 0
            raise KeyboardInterrupt

    _armed = False


def test_an_append_interrupted_at_its_last_moment_does_not_spoil_the_next(path: Path) -> None:
    with InterruptedOnce.open(path) as journal:
        with pytest.raises(KeyboardInterrupt):
            journal.append(b"a long record that was interrupted")
        journal.append(b"one", sync=False)
        journal.append(b"two")
    assert read(path) == (b"one", b"two")
    data = bytearray(path.read_bytes())
    data[32 + 24] ^= 1  # in "one", which "two" vouches for only if it was synced with it
    path.write_bytes(data)
    assert read(path) == ()


def test_a_closed_journal_says_so(path: Path) -> None:
    journal = Journal.open(path)
    journal.close()
    journal.close()
    for attempt in (journal.sync, lambda: journal.append(b""), lambda: journal.rewrite(())):
        with pytest.raises(JournalError, match="is closed; open it again"):
            attempt()
    assert read(path) == ()


def test_something_else_under_the_name_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"dear diary\n" * 10)
    with pytest.raises(JournalError, match="is no journal of this version"):
        Journal.open(path)
    assert path.read_bytes() == b"dear diary\n" * 10


def test_a_symbolic_link_or_a_fifo_is_refused(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match="cannot open journal"):
        Journal.open(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(JournalError, match="is not a regular file"):
        Journal.open(path)


def test_a_record_has_a_greatest_length(path: Path) -> None:
    with Journal.open(path) as journal:
        with pytest.raises(MessageTooBig, match=str(MAX_RECORD)):
            journal.append(bytes(MAX_RECORD + 1))
        journal.append(b"fits")
    assert read(path) == (b"fits",)


def test_its_errors_are_caught_by_the_root_and_as_os_errors(tmp_path: Path) -> None:
    with pytest.raises(MChannelError):
        Journal.open(tmp_path / "missing" / "journal")
    with pytest.raises(OSError, match=r"cannot open journal .*: No such file"):
        Journal.open(tmp_path / "missing" / "journal")

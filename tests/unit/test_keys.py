from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq

from mchannel import keys
from mchannel.errors import KeyFileError
from mchannel.keys import NoSuchKey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    keys.new(tmp_path / "stranger", "stranger")
    return keys.show(tmp_path / "stranger")


def test_a_new_key_is_read_back(folder: Path) -> None:
    made = keys.new(folder, "web1")
    assert keys.own(folder) == made
    assert made.name == "web1"
    assert zmq.curve_public(made.secret) == made.public.text.encode()


def test_secret_file_and_folder_are_closed_to_others(folder: Path) -> None:
    old = os.umask(0)
    try:
        keys.new(folder, "web1")
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "identity.key").stat().st_mode & 0o777 == 0o600


def test_a_secret_is_in_no_repr_and_no_public_file(folder: Path) -> None:
    key = keys.new(folder, "web1")
    secret = key.secret.decode()
    assert secret not in repr(key)
    assert secret not in (folder / "identity.pub").read_text()
    assert secret not in keys.show(folder)


def test_a_key_is_never_overwritten_silently(folder: Path) -> None:
    made = keys.new(folder, "web1")
    with pytest.raises(KeyFileError, match="--force"):
        keys.new(folder, "web2")
    assert keys.own(folder) == made


def test_force_replaces_both_halves(folder: Path) -> None:
    old = keys.new(folder, "web1")
    made = keys.new(folder, "web2", force=True)
    assert keys.own(folder) == made != old
    assert (folder / "identity.pub").read_text() == keys.show(folder)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_can_reach_is_refused(folder: Path, mode: int) -> None:
    keys.new(folder, "web1")
    (folder / "identity.key").chmod(mode)
    with pytest.raises(KeyFileError, match="chmod"):
        keys.own(folder)


def test_a_folder_that_others_can_reach_is_refused(folder: Path, stranger: str) -> None:
    keys.new(folder, "web1")
    folder.chmod(0o750)
    for use in (
        lambda: keys.own(folder),
        lambda: keys.trusted(folder),
        lambda: keys.trust(folder, "a", stranger),
        lambda: keys.new(folder, "web1", force=True),
    ):
        with pytest.raises(KeyFileError, match="chmod"):
            use()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["", "identity.key"])
def test_a_key_that_belongs_to_someone_else_is_refused(folder: Path, what: str) -> None:
    keys.new(folder, "web1")
    os.chown(folder / what, 65534, 65534)
    with pytest.raises(KeyFileError, match="belongs to user 65534"):
        keys.own(folder)


def test_a_link_in_place_of_the_secret_is_not_followed(folder: Path, tmp_path: Path) -> None:
    keys.new(folder, "web1")
    (folder / "identity.key").rename(tmp_path / "elsewhere")
    (folder / "identity.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        keys.own(folder)


def test_a_fifo_in_place_of_the_secret_does_not_hang(folder: Path) -> None:
    keys.new(folder, "web1")
    (folder / "identity.key").unlink()
    os.mkfifo(folder / "identity.key", 0o600)
    with pytest.raises(KeyFileError, match="regular file"):
        keys.own(folder)


def test_a_missing_key_says_how_to_make_one(folder: Path) -> None:
    with pytest.raises(KeyFileError, match="mbroker keys new"):
        keys.own(folder)


def test_what_one_end_shows_the_other_can_trust(folder: Path, stranger: str) -> None:
    keys.trust(folder, "web1", stranger)
    (key,) = keys.trusted(folder).values()
    assert key.text in stranger
    assert not key.server


def test_a_bare_key_can_be_trusted(folder: Path) -> None:
    bare = zmq.curve_keypair()[0].decode()
    keys.trust(folder, "web1", f" {bare}\r\n")
    assert keys.trusted(folder)["web1"].text == bare


def test_a_role_is_given_by_who_trusts_not_by_the_text(folder: Path, stranger: str) -> None:
    keys.trust(folder, "web1", stranger.replace("public", "server"))
    assert not keys.trusted(folder)["web1"].server


def test_a_server_mark_survives_on_disk(folder: Path, stranger: str) -> None:
    keys.trust(folder, "mvm1", stranger, server=True)
    assert keys.trusted(folder)["mvm1"].server


def test_trusting_the_same_again_changes_nothing(folder: Path, stranger: str) -> None:
    keys.trust(folder, "web1", stranger)
    before = (folder / "trusted" / "web1.pub").stat().st_ino
    keys.trust(folder, "web1", stranger)
    assert (folder / "trusted" / "web1.pub").stat().st_ino == before


def test_another_key_under_a_trusted_name_is_refused(folder: Path, stranger: str) -> None:
    keys.trust(folder, "web1", stranger)
    with pytest.raises(KeyFileError, match="untrust it first"):
        keys.trust(folder, "web1", zmq.curve_keypair()[0].decode())
    assert keys.trusted(folder)["web1"].text in stranger


def test_one_key_has_one_name(folder: Path, stranger: str) -> None:
    keys.trust(folder, "web1", stranger)
    with pytest.raises(KeyFileError, match="web1"):
        keys.trust(folder, "web2", stranger)


def test_a_secret_key_is_never_trusted(folder: Path) -> None:
    keys.new(folder, "web1")
    with pytest.raises(KeyFileError, match="secret") as caught:
        keys.trust(folder, "web2", (folder / "identity.key").read_text())
    assert keys.own(folder).secret.decode() not in str(caught.value)


@pytest.mark.parametrize("text", ["", "x" * 40 + "~", "#" * 40, "x" * 39, "\0" * 40, " " * 5000 + "x" * 40, "é" * 40])
def test_text_that_is_no_key_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(KeyFileError, match="Z85"):
        keys.trust(folder, "web1", text)
    assert not (folder / "trusted").exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "x" * 65, "a\n", "a b"])
def test_a_name_that_is_no_file_name_is_refused(folder: Path, stranger: str, name: str) -> None:
    for use in (
        lambda: keys.new(folder, name),
        lambda: keys.trust(folder, name, stranger),
        lambda: keys.untrust(folder, name),
    ):
        with pytest.raises(KeyFileError, match="name"):
            use()
    assert not folder.exists()


def test_an_untrusted_key_is_gone(folder: Path, stranger: str) -> None:
    keys.trust(folder, "web1", stranger)
    keys.untrust(folder, "web1")
    assert not keys.trusted(folder)
    with pytest.raises(KeyFileError, match="web1"):
        keys.untrust(folder, "web1")


def test_where_nothing_was_trusted_yet_a_key_to_forget_is_not_this_ends_own(folder: Path) -> None:
    keys.new(folder, "mvm1")
    with pytest.raises(NoSuchKey, match="trusts no key called web1"):
        keys.untrust(folder, "web1")


def test_a_damaged_trusted_file_locks_out_only_its_owner(
    folder: Path, stranger: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys.trust(folder, "web1", stranger)
    (folder / "trusted" / "bad.pub").write_bytes(b"\xff" * 600)
    (folder / "trusted" / "dir.pub").symlink_to(folder / "trusted" / "web1.pub")
    (folder / "trusted" / "notes").write_text("not a key")
    assert list(keys.trusted(folder)) == ["web1"]
    assert "bad.pub" in caplog.text
    assert "dir.pub" in caplog.text


def test_a_trusted_file_that_others_may_write_is_not_trusted(folder: Path, stranger: str) -> None:
    keys.trust(folder, "web1", stranger)
    (folder / "trusted" / "web1.pub").chmod(0o666)
    assert not keys.trusted(folder)


def test_a_disk_that_fails_leaves_the_old_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = keys.new(folder, "web1")
    before = sorted(folder.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        keys.new(folder, "web2", force=True)
    assert keys.own(folder) == made
    assert sorted(folder.iterdir()) == before


def test_a_fingerprint_is_grouped_sha256() -> None:
    key = keys.PublicKey(zmq.curve_keypair()[0].decode())
    groups = key.fingerprint.split()
    assert [len(group) for group in groups] == [4] * 16


def test_the_environment_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCHANNEL_KEYS", str(folder))
    assert keys.default_folder() == folder


def test_root_and_users_have_different_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCHANNEL_KEYS", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert keys.default_folder() == Path("/etc/mchannel/keys")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert keys.default_folder() == Path.home() / ".config/mchannel/keys"

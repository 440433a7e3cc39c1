"""The guest image: the same bytes each time, made without root."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.guest_image import CACHE, PYTHON, Entry, Image, NoPackages, cpio, image

pytestmark = pytest.mark.timeout(600)  # the first run downloads


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Image:
    try:
        return image(tmp_path_factory.mktemp("guest"))
    except NoPackages as error:
        pytest.skip(f"the guest is made of Debian 12's packages: {error}")


@pytest.mark.system
def test_two_builds_from_the_same_packages_are_the_same_bytes(built: Image, tmp_path: Path) -> None:
    debs = tmp_path / "debs"  # downloaded once, built twice
    debs.symlink_to(CACHE / "debs")
    again = image(tmp_path, PYTHON, cache=tmp_path)
    assert again.kernel.read_bytes() == built.kernel.read_bytes()
    assert again.initrd.read_bytes() == built.initrd.read_bytes()


@pytest.mark.system
def test_a_second_image_comes_from_the_cache(built: Image, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in CACHE.iterdir()}
    assert image(tmp_path).kernel == built.kernel
    assert {path: path.stat().st_mtime_ns for path in CACHE.iterdir()} == before


def test_an_archive_names_the_folders_of_its_files_and_ends() -> None:
    archive = cpio({"a/b/c": Entry(b"text")})
    names = [archive.index(name + b"\0") for name in (b"a", b"a/b", b"a/b/c", b"TRAILER!!!")]
    assert names == sorted(names)
    assert len(archive) % 4 == 0

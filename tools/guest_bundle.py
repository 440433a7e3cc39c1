"""Make the guest bundle: what a guest without compiler and pip needs beside its distribution's packages.

``magent/`` is a plain folder that Python runs as it stands (``python3 magent --help``) and that applications put on
their ``PYTHONPATH``. ``magent.pyz`` is the same in one file, without the C ring, which cannot be loaded from an
archive: no shared memory. Both need python3, python3-cffi-backend and python3-msgpack of the guest; ``tcp://`` needs
python3-zmq too. The same tree gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
NAME = "magent"
MAIN = b"from mchannel.agents.main import main\n\nmain()\n"
SHEBANG = b"#!/usr/bin/env python3\n"
RING = "mchannel/_ring.abi3.so"

_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive can say


def bundle() -> dict[str, bytes]:
    """Return every file of the bundle by its path in it, sorted."""
    return dict(sorted({"__main__.py": MAIN, **dict(_service()), **dict(_mchannel()), **dict(_attrs())}.items()))


def _service() -> Iterator[tuple[str, bytes]]:
    """Yield what an operator copies to where systemd and magent look for it."""
    for path in (HOUSE / "mbroker/systemd/magent.service", HOUSE / "examples/magent.toml"):
        yield path.name, path.read_bytes()


def _mchannel() -> Iterator[tuple[str, bytes]]:
    package = HOUSE / "mchannel"
    for folder in (package, package / "agents", package / "transports"):  # two of them are links
        for path in (*folder.glob("*.py"), *folder.glob("*.so")):
            yield str(path.relative_to(HOUSE)), path.read_bytes()
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    info = f"mchannel-{project['version']}.dist-info"
    metadata = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    yield f"{info}/METADATA", "".join(f"{key}: {value}\n" for key, value in metadata.items()).encode()
    transports = project["entry-points"]["mchannel.transports"]
    points = ["[mchannel.transports]", *(f"{name} = {value}" for name, value in sorted(transports.items()))]
    yield f"{info}/entry_points.txt", ("\n".join(points) + "\n").encode()
    yield f"{info}/LICENSE", (HOUSE / "LICENSE").read_bytes()


def _attrs() -> Iterator[tuple[str, bytes]]:
    for file in distribution("attrs").files or ():
        if file.suffix == ".py" or file.name in {"METADATA", "LICENSE"}:
            yield str(file), file.read_binary()


def archive(files: dict[str, bytes]) -> bytes:
    """Return *files* as an executable zip archive that Python runs."""
    out = io.BytesIO(SHEBANG)
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(out, "a") as pyz:
        for name, content in files.items():
            if not name.endswith(".so"):
                pyz.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def write(files: dict[str, bytes], output: Path) -> None:
    """Write the folder and the archive below *output*, in place of older ones."""
    folder = output / NAME
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pyz = output / f"{NAME}.pyz"
    pyz.write_bytes(archive(files))
    pyz.chmod(0o755)


def main() -> None:
    """Run ``./dev guest-bundle``."""
    parser = argparse.ArgumentParser(prog="./dev guest-bundle", description="Make the bundle that runs in guests.")
    parser.add_argument(
        "--output", type=Path, default=HOUSE / "build/guest", metavar="DIR", help="where (default: build/guest)"
    )
    output = parser.parse_args().output
    files = bundle()
    try:
        write(files, output)
    except OSError as error:
        sys.exit(f"guest-bundle: cannot write the bundle: {error}")
    if RING not in files:
        print("guest-bundle: the C ring is not built here, so the bundle has no shared memory", file=sys.stderr)
    print(f"{output / NAME}/")
    print(output / f"{NAME}.pyz")


if __name__ == "__main__":
    main()

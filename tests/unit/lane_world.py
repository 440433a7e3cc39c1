"""A PCI device of shared memory as a guest's kernel shows it, over a file."""

from __future__ import annotations

from pathlib import Path

from mchannel.transports.slot import SIZE


class Device:
    """A device that comes and goes; what a process has mapped of it stays mapped."""

    def __init__(self, folder: Path, *, slots: int = 6) -> None:
        self.devices = folder / "devices"
        self.devices.mkdir()
        bridge = self.devices / "0000:00:00.0"
        bridge.mkdir()
        (bridge / "vendor").write_text("0x8086\n")
        (bridge / "device").write_text("0x29c0\n")
        self._folder = folder
        self._slots = slots
        self._number = 0
        self.memory = self.plug()

    @property
    def path(self) -> Path:
        """The device's folder."""
        return self.devices / "0000:06:00.0"

    def plug(self) -> Path:
        """Plug in new memory, at the same place, and return the MVM's file of it."""
        self.unplug()
        self._number += 1
        self.memory = self._folder / f"memory{self._number}"
        self.memory.write_bytes(bytes(SIZE * self._slots))
        self.path.mkdir()
        (self.path / "vendor").write_text("0x1af4\n")
        (self.path / "device").write_text("0x1110\n")
        (self.path / "enable").write_text("0\n")
        (self.path / "resource2").symlink_to(self.memory)
        return self.memory

    def unplug(self) -> None:
        """Take it out."""
        if self.path.exists():
            for file in self.path.iterdir():
                file.unlink()
            self.path.rmdir()

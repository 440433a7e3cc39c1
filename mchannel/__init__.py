"""M-channels: one open/read/write/close over every wire a host has."""

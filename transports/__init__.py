"""Physical channels, one a file; each registers under ``mchannel.transports``."""

"""M-brokers: containers that host coordination policies."""

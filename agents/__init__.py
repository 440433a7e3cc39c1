"""M-agents: they observe, report and actuate, and decide nothing."""

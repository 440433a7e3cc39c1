#!/bin/busybox sh
# Domain 0's first process: what it needs in any case, then the broker, which runs the scenario.
. /dom0.sh
echo "domain 0: up after $(cut -d' ' -f1 /proc/uptime) s"
python3 -u /broker.py
poweroff -f

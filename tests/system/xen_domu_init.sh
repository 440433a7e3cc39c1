#!/bin/busybox sh
# The guest's first process: drivers, then the agent; when that ends, the guest does.
export PATH=/bin:/usr/bin PYTHONPATH=/opt/magent
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
for module in /modules/*; do insmod "$module"; done
mount -t xenfs xen /proc/xen
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s as $(cat /sys/hypervisor/guest_type)"
python3 -u /agent.py xen:///mgmt 0.2
poweroff -f

#!/bin/busybox sh
# The guest's first process: drivers, devices by name, the control program, then nothing more to do.
export PATH=/bin:/usr/bin PYTHONPATH=/opt/magent
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/virtio-ports
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
for module in /modules/*; do insmod "$module"; done
for port in /sys/class/virtio-ports/*; do # as udev does
    [ -s "$port/name" ] && ln -s "../${port##*/}" "/dev/virtio-ports/$(cat "$port/name")"
done
ip link set lo up
ip link set eth0 up
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s, boot $(cat /proc/sys/kernel/random/boot_id)"
python3 /control.py &
while :; do wait; sleep 1; done # the parent of whoever lost his own

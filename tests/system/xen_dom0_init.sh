#!/bin/busybox sh
# Domain 0's first process: drivers, the toolstack's daemons, then the broker, which runs the scenario.
export PATH=/bin:/usr/bin:/usr/lib/xen-4.17/bin PYTHONPATH=/opt/magent
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /run/xen /run/xenstored /run/lock /var/lib/xen /var/lib/xenstored /var/log/xen/console /etc/xen
ln -s /run /var/run
ln -s /run/lock /var/lock
: >/etc/xen/xl.conf
for module in /modules/*; do insmod "$module"; done
mount -t xenfs xen /proc/xen
ip link set lo up
xenstored --pid-file /run/xenstored.pid
while [ ! -S /run/xenstored/socket ]; do sleep 0.1; done
xen-init-dom0 >/dev/null
xenconsoled --log=all --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid
echo "domain 0: up after $(cut -d' ' -f1 /proc/uptime) s"
python3 -u /broker.py
poweroff -f

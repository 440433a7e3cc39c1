# What domain 0 needs in any case: file systems, drivers, the toolstack's daemons.
export PATH=/bin:/usr/bin:/usr/sbin:/usr/lib/xen-4.17/bin PYTHONPATH=/opt/host:/opt/magent
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

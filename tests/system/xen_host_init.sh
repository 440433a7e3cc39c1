#!/bin/busybox sh
# Domain 0 as a host of a fleet: network, libvirtd, and what runs the test's commands. Which host it is, the command line says.
. /dom0.sh
export LIBVIRT_DEFAULT_URI=xen:///system
number=$(sed -n 's/.*host=\([12]\).*/\1/p' /proc/cmdline)
hostname "xen$number"
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
echo 'root:x:0:' >/etc/group
printf '127.0.0.1 localhost\n10.9.0.1 xen1\n10.9.0.2 xen2\n' >/etc/hosts
echo 'hosts: files' >/etc/nsswitch.conf
ip address add "10.9.0.$number/24" dev eth0
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth1
ip link set eth1 up
# libvirt has no name for an emulated CPU, and does not work without one.
echo '<cpus><model name="emulated"><decode host="on" guest="off"/><feature name="fpu"/></model></cpus>' \
    >/usr/share/libvirt/cpu_map/x86_emulated.xml
sed -i 's,<include filename=.x86_486.xml./>,&<include filename="x86_emulated.xml"/>,' /usr/share/libvirt/cpu_map/index.xml
mkdir -p /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
cat >/etc/libvirt/libvirtd.conf <<END
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
host_uuid = "0000000$number-1111-4111-8111-111111111111"
END
libvirtd --listen >/var/log/libvirtd.log 2>&1 &
python3 -u /serve.py
poweroff -f

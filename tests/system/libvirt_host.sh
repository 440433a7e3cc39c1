#!/bin/bash
# One host of the test bed: "libvirt_host.sh NAME ADDRESS UUID HOSTS". Runs as the first process of its own pid, mount,
# network, uts, ipc and cgroup namespaces and ends when its input ends, that is also when whoever started it is
# killed; then the kernel ends every process in here and forgets every mount, address and file below.
set -euo pipefail
name=$1 address=$2 uuid=$3 hosts=$4
hostname "$name"

mount -t sysfs sysfs /sys # of this network namespace; the control groups stood below it
if [ -n "$MCHANNEL_CGROUPS" ]; then
    mount -t tmpfs cgroups /sys/fs/cgroup
    for controller in $MCHANNEL_CGROUPS; do
        mkdir "/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
    done
    groups=$MCHANNEL_CGROUPS
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir /sys/fs/cgroup/init # controllers are handed down only by groups without processes
    echo $$ >/sys/fs/cgroup/init/cgroup.procs
    for controller in cpu cpuset; do echo +$controller >/sys/fs/cgroup/cgroup.subtree_control || true; done
    groups=init
fi
for folder in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /dev/shm; do
    mkdir -p $folder
    mount -t tmpfs host $folder
done
mkdir /run/lock /var/log/libvirt/qemu
printf '127.0.0.1 localhost\n%s\n' "$hosts" >/run/hosts
mount --bind /run/hosts /etc/hosts
for file in passwd group; do # libvirtd wants this account to exist; the package that makes it also starts a libvirtd
    if ! grep -q ^libvirt-qemu: /etc/$file; then
        cp /etc/$file /run/$file
        [ $file = passwd ] && account=:64055::/:/usr/sbin/nologin || account=:
        echo "libvirt-qemu:x:64055$account" >>/run/$file
        mount --bind /run/$file /etc/$file
    fi
done
cat >/run/enter <<S
#!/bin/sh
for group in $groups; do echo \$\$ >/sys/fs/cgroup/\$group/cgroup.procs; done
exec setpriv --pdeathsig=KILL "\$@"
S
chmod +x /run/enter

cat >/etc/libvirt/libvirtd.conf <<C
listen_tls = 0
listen_tcp = 1
listen_addr = "$address"
auth_tcp = "none"
auth_unix_rw = "none"
host_uuid = "$uuid"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
C
cat >/etc/libvirt/qemu.conf <<C
user = "root"
group = "root"
security_driver = "none"
namespaces = []
stdio_handler = "file"
cgroup_controllers = ["cpu", "cpuset", "cpuacct"]
remember_owner = 0
migration_host = "$address"
migration_address = "$address"
C

ip link set lo up
# For guests that use tcp://. Every host has this address towards its own guests, and no way beyond.
ip link add mvm0 address 02:6d:63:00:00:01 type bridge
ip address add 169.254.42.1/24 dev mvm0
ip link set mvm0 up

echo ready
read -r _ || true

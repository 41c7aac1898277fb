#!/bin/bash
# Boots a systemd as PID 1 of new namespaces, on an overlay of its files that vanishes at the end.
# Network and clock are this machine's. A reboot inside boots again, on the same files; poweroff ends
# the script.
#   ROOT     whose systemd and files: / for this machine's, or a folder with those of another
#   STATE    an empty folder; STATE/console gets what the console shows, STATE/unshare the pid whose
#            child is the booted PID 1
#   CGROUP   a new folder of the unified hierarchy
set -eu
mkdir -p "$CGROUP"
echo $$ >"$CGROUP/cgroup.procs"   # else it would manage this machine's root
mkdir -p "$STATE/os"
mount -t tmpfs -o size=4g,mode=755 tmpfs "$STATE/os"
mkdir -p "$STATE/os/upper" "$STATE/os/merged"
: >"$STATE/console"

once() {
    R=$STATE/os/merged
    rm -rf "$STATE/os/work"
    mkdir "$STATE/os/work"
    mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=$STATE/os/upper,workdir=$STATE/os/work" "$R"
    if [ ! -e "$R/etc/limpet-rig" ]; then
        # The services that ROOT has otherwise stay out.
        rm -rf "$R"/etc/systemd/system "$R"/etc/systemd/user
        mkdir -p "$R/etc/systemd/system"
        for unit in systemd-{sysctl,modules-load,remount-fs,udevd,udev-trigger,random-seed} \
            systemd-{update-utmp,update-utmp-runlevel,binfmt,logind,user-sessions,repart,pcrphase} \
            systemd-{pcrphase-sysinit,firstboot,machine-id-commit,networkd,resolved} \
            networking ssh dbus kmod-static-nodes; do
            ln -s /dev/null "$R/etc/systemd/system/$unit.service"
        done
        for unit in dev-hugepages dev-mqueue sys-fs-fuse-connections sys-kernel-config \
            sys-kernel-debug sys-kernel-tracing; do
            ln -s /dev/null "$R/etc/systemd/system/$unit.mount"
        done
        for unit in getty.target remote-fs.target dbus.socket systemd-udevd-control.socket \
            systemd-udevd-kernel.socket systemd-journald-audit.socket proc-sys-fs-binfmt_misc.automount; do
            ln -s /dev/null "$R/etc/systemd/system/$unit"
        done
        : >"$R/etc/fstab"
        : >"$R/etc/limpet-rig"
    fi
    mount -t proc proc "$R/proc"
    mount -t sysfs sysfs "$R/sys"
    mount --bind "$R/proc/sys" "$R/proc/sys"
    mount -o remount,bind,ro "$R/proc/sys"
    mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$R/dev"
    for node in null zero full random urandom tty; do
        : >"$R/dev/$node"
        mount --bind "/dev/$node" "$R/dev/$node"
    done
    ln -s /proc/self/fd "$R/dev/fd"
    mkdir "$R/dev/pts" "$R/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$R/dev/pts"
    ln -s pts/ptmx "$R/dev/ptmx"
    mount -t tmpfs tmpfs "$R/dev/shm"
    : >"$R/dev/console"
    mount --bind "$STATE/console" "$R/dev/console"
    mount -t tmpfs -o mode=755 tmpfs "$R/run"
    mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
    cd "$R"
    mkdir -p .old
    pivot_root . .old
    umount -l /.old
    mount --make-rshared /   # else LoadCredential= fails with EACCES
    exec env -i container=limpet-rig PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=multi-user.target --log-target=console </dev/null
}
export -f once

while true; do
    setpriv --pdeathsig KILL unshare --mount --pid --uts --ipc --cgroup --fork \
        --kill-child=SIGKILL --propagation private bash -euc once &
    echo $! >"$STATE/unshare"
    code=0
    wait $! || code=$?
    [ $code = 129 ] || exit 0   # SIGHUP is how a PID 1 that reboots looks from outside
done

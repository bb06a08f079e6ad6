# shellcheck shell=bash
# Process 1 of a host, in namespaces of its own: gives them the look of a machine, says under which
# number it is known outside, and reaps orphans until it is killed, which ends everything in the host.
# Usage: bash -c "$(cat host.sh)" host.sh DIRECTORY NAME [LIBVIRT]
set -eu
directory=$1 name=$2 libvirt=${3-}

read -r outside _ </proc/self/stat # this is still the /proc of outside

# A private /run keeps the machine's own libvirt, D-Bus and systemd out.
mount -n -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/libvirt /run/lock /run/sshd
mount -t proc proc /proc
echo "$name" >/proc/sys/kernel/hostname

# A /dev without kvm: where QEMU's user may not open it, libvirt finds what it knows of QEMU stale on every
# call, and asks QEMU again, a second each time and a dozen times in a migration. Loop devices are made
# here as they are needed.
mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
for node in null zero full random urandom tty; do
  touch "/run/dev/$node"
  mount --bind "/dev/$node" "/run/dev/$node"
done
for part in pts shm; do
  mkdir "/run/dev/$part"
  mount --rbind "/dev/$part" "/run/dev/$part"
done
ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
ln -s fd/0 /run/dev/stdin
ln -s fd/1 /run/dev/stdout
ln -s fd/2 /run/dev/stderr
mount --move /run/dev /dev
rmdir /run/dev

mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
mount --bind "$directory/etc" /etc/libvirt
mount --bind "$directory/lib" /var/lib/libvirt
mount --bind "$directory/log" /var/log/libvirt
mount --bind "$directory/cache" /var/cache/libvirt
mount --bind "$directory/hosts" /etc/hosts
mount --bind "$directory/shadow" /etc/shadow
# Another libvirt than the machine's, whose packages are unpacked in that directory, takes its place.
if [ -n "$libvirt" ]; then
  for file in usr/sbin/libvirtd usr/bin/virsh usr/share/libvirt usr/lib/libvirt usr/lib/*-linux-gnu/libvirt; do
    for found in "$libvirt"/$file; do mount --bind "$found" "${found#"$libvirt"}"; done
  done
  for library in "$libvirt"/usr/lib/*-linux-gnu/libvirt*.so.0; do
    there=${library#"$libvirt"}
    [ ! -e "$there" ] || mount --bind "$(readlink -f "$library")" "$(readlink -f "$there")"
  done
fi
ip link set lo up

echo "$outside"
exec >/dev/null
trap : HUP INT TERM
while :; do sleep 86400 & wait || :; done

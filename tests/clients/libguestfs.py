"""libguestfs makes disks and asks about them, without an appliance: what it starts is qemu-img alone."""

import os

import guestfs

guest = guestfs.GuestFS(python_return_dict=True)
guest.disk_create("base.qcow2", "qcow2", 64 << 20)
guest.disk_create("disk.img", "raw", 16 << 20, preallocation="sparse")
guest.disk_create("full.img", "raw", 1 << 20, preallocation="full")
guest.disk_create("metadata.qcow2", "qcow2", 16 << 20, preallocation="metadata")
guest.disk_create(
    "o,1.qcow2", "qcow2", -1, backingfile="base.qcow2", backingformat="qcow2", compat="1.1", clustersize=4096
)
for name, expected in {
    "base.qcow2": ("qcow2", 64 << 20, False),
    "disk.img": ("raw", 16 << 20, False),
    "metadata.qcow2": ("qcow2", 16 << 20, False),
    "o,1.qcow2": ("qcow2", 64 << 20, True),
}.items():
    found = guest.disk_format(name), guest.disk_virtual_size(name), bool(guest.disk_has_backing_file(name))
    assert found == expected, (name, found)
assert os.stat("full.img").st_blocks * 512 >= 1 << 20
assert os.stat("metadata.qcow2").st_size > 16 << 20

with open(os.environ["QEMU_IMG_CALLS"]) as calls:
    commands = [line.split()[0] for line in calls]
assert commands.count("create") >= 3 and commands.count("info") >= 4, commands

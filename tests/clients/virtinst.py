"""virt-install makes a guest with new disks and an overlay of a template, virt-clone copies it, through a session of libvirt."""

import os
import sys
import xml.etree.ElementTree as tree

from session import calls, image, pool, run, session, virsh

programs = sys.argv[1]


def tool(name, *words):
    return run(sys.executable, os.path.join(programs, name), "--connect", "qemu:///session", *words)


def disks(guest):
    domain = tree.fromstring(virsh("dumpxml", "--inactive", guest))
    return {disk.find("target").get("dev"): disk.find("source").get("file") for disk in domain.iter("disk")}


with session():
    virsh("vol-create-as", "p", "template.qcow2", "1G", "--format", "qcow2")
    template = os.path.join(pool, "template.qcow2")
    install = ["--name", "guest", "--virt-type", "qemu", "--memory", "64", "--osinfo", "generic", "--network", "none"]
    install += ["--graphics", "none", "--noautoconsole", "--import"]
    install += ["--disk", f"path={pool}/system.qcow2,size=1,format=qcow2,backing_store={template},backing_format=qcow2"]
    install += ["--disk", f"path={pool}/data.qcow2,size=2,format=qcow2,sparse=yes"]
    install += ["--disk", f"path={pool}/raw.img,size=0.02,format=raw,sparse=yes"]
    tool("virt-install", *install)
    found = image("system.qcow2")
    assert found["virtual-size"] == 1 << 30 and found["full-backing-filename"] == template, found
    assert image("data.qcow2")["virtual-size"] == 2 << 30
    assert [os.path.basename(path) for path in disks("guest").values()] == ["system.qcow2", "data.qcow2", "raw.img"]
    virsh("destroy", "guest")
    virsh("vol-resize", "data.qcow2", "3G", "--pool", "p")

    tool("virt-clone", "--original", "guest", "--name", "copy", "--auto-clone")
    copies = disks("copy")
    assert not set(copies.values()) & set(disks("guest").values()), copies
    for path, size in zip(copies.values(), [1 << 30, 3 << 30, 20 << 20]):
        assert abs(image(os.path.basename(path))["virtual-size"] - size) <= 2 << 20, (path, size)

commands = calls()
assert all(command in commands for command in ["create", "convert"]), commands

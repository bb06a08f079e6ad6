"""A session of libvirt makes, clones, copies and resizes volumes, and says what they are."""

import os
import subprocess
import xml.etree.ElementTree as tree

from session import calls, image, pool, session, virsh

with session():
    create = ["vol-create-as", "p"]
    virsh(*create, "base.qcow2", "64M", "--format", "qcow2")
    virsh(*create, "disk.raw", "16M", "--format", "raw")
    backing = ["--backing-vol", "base.qcow2", "--backing-vol-format", "qcow2"]
    virsh(*create, "over.qcow2", "64M", "--format", "qcow2", *backing)
    virsh(*create, "metadata.qcow2", "16M", "--format", "qcow2", "--prealloc-metadata")
    virsh("vol-resize", "over.qcow2", "128M", "--pool", "p")
    virsh("vol-clone", "base.qcow2", "clone.qcow2", "--pool", "p")
    with open(os.path.join(pool, "disk.raw"), "r+b") as disk:
        disk.write(b"guest")
    with open("volume.xml", "w") as volume:
        volume.write(
            "<volume><name>copy.qcow2</name><capacity unit='M'>16</capacity><target><format type='qcow2'/>"
            "<compat>1.1</compat><features><lazy_refcounts/></features></target></volume>"
        )
    virsh("vol-create-from", "p", "volume.xml", "disk.raw", "--inputpool", "p")
    virsh("pool-refresh", "p")

    over = tree.fromstring(virsh("vol-dumpxml", "over.qcow2", "--pool", "p"))
    assert over.findtext("capacity") == str(128 << 20)
    assert over.find("target/format").get("type") == "qcow2"
    assert over.findtext("backingStore/path") == os.path.join(pool, "base.qcow2")
    assert "Capacity:       64.00 MiB" in virsh("vol-info", "clone.qcow2", "--pool", "p")
    for name, size in [("base", 64), ("over", 128), ("metadata", 16), ("clone", 64), ("copy", 16)]:
        assert image(f"{name}.qcow2")["virtual-size"] == size << 20, name
    assert image("over.qcow2")["backing-filename-format"] == "qcow2"
    assert image("copy.qcow2")["format-specific"]["data"]["lazy-refcounts"]
    assert os.path.getsize(os.path.join(pool, "metadata.qcow2")) > 16 << 20
    virsh("vol-download", "copy.qcow2", "downloaded", "--pool", "p")
    raw = subprocess.check_output(["qemu-img", "convert", "-O", "raw", "downloaded", "content"])
    with open("content", "rb") as content:
        assert content.read(5) == b"guest" and raw == b""

commands = calls()
assert all(command in commands for command in ["create", "convert"]), commands

"""OpenStack's parser and its inspector of images read what qemu-img says, and what it makes."""

import logging
import subprocess

from oslo_utils import imageutils
from oslo_utils.imageutils import format_inspector

logging.disable()
MIB = 1 << 20


def qemu_img(*words):
    done = subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout


qemu_img("create", "-f", "raw", "disk.raw", "8M")
qemu_img("create", "-f", "qcow2", "base.qcow2", "8M")
qemu_img("create", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "old.qcow2", "8M")
qemu_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "16M")
qemu_img("create", "-f", "qcow2", "-o", "data_file=data.raw", "data.qcow2", "8M")
qemu_img("convert", "-c", "-O", "qcow2", "disk.raw", "converted.qcow2")
qemu_img("snapshot", "-c", "before", "base.qcow2")
qemu_img("snapshot", "-c", "after", "base.qcow2")
qemu_img("resize", "base.qcow2", "10M")
qemu_img("rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")

for name, image_format, size, backing, snapshots in [
    ("disk.raw", "raw", 8 * MIB, None, 0),
    ("base.qcow2", "qcow2", 10 * MIB, None, 2),
    ("old.qcow2", "qcow2", 8 * MIB, None, 0),
    ("top.qcow2", "qcow2", 16 * MIB, "base.qcow2", 0),
    ("converted.qcow2", "qcow2", 8 * MIB, None, 0),
]:
    info = imageutils.QemuImgInfo(qemu_img("info", name, "--force-share", "--output=json"), format="json")
    assert (info.image, info.file_format, info.virtual_size) == (name, image_format, size), info
    assert info.backing_file == backing and len(info.snapshots) == snapshots, info
    assert info.disk_size is not None and not info.encrypted, info
    if image_format == "qcow2":
        assert info.cluster_size and info.format_specific["type"] == "qcow2", info
    if backing:
        assert info.backing_file_format == "qcow2", info
    with open(name, "rb") as file:
        inspector = format_inspector.detect_file_format(name)
        assert str(inspector) == image_format, (name, str(inspector))
        assert image_format == "raw" or inspector.virtual_size == size, (name, inspector.virtual_size)
    # What must not come from a stranger: a backing file, a data file.
    try:
        inspector.safety_check()
        assert backing is None, name
    except format_inspector.SafetyCheckFailed as refused:
        assert backing is not None and "backing_file" in refused.failures, refused.failures

try:
    format_inspector.detect_file_format("data.qcow2").safety_check()
    raise SystemExit("an image with a data file passed for a stranger's")
except format_inspector.SafetyCheckFailed as refused:
    assert "data_file" in refused.failures, refused.failures

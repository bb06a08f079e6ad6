"""A session of libvirt of one's own, with a pool for volumes, for clients that go through it."""

import contextlib
import json
import os
import subprocess
import time

here = os.getcwd()
pool = os.path.join(here, "pool")
os.environ.update(
    HOME=here, XDG_RUNTIME_DIR=here, XDG_CONFIG_HOME=f"{here}/config", XDG_CACHE_HOME=f"{here}/cache"
)
os.environ["PATH"] += ":/usr/sbin:/sbin"


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def virsh(*words):
    return run("virsh", "-q", "-c", "qemu:///session", *words)


def image(name):
    """What QEMU's own program, or else ours, says of a volume."""
    program = "/usr/bin/qemu-img" if os.path.exists("/usr/bin/qemu-img") else "qemu-img"
    path = os.path.join(pool, name)
    found = json.loads(subprocess.check_output([program, "info", "-U", "--output", "json", path]))
    if found["format"] == "qcow2":
        subprocess.run([program, "check", "-U", "-q", path], check=True)
    return found


@contextlib.contextmanager
def session():
    """The daemon of the session, with the pool `p`."""
    os.mkdir(pool)
    daemon = subprocess.Popen(["libvirtd"], stdout=open("daemon.log", "w"), stderr=subprocess.STDOUT)
    try:
        for _ in range(100):
            if os.path.exists("libvirt/libvirt-sock"):
                break
            time.sleep(0.1)
        virsh("pool-define-as", "p", "dir", "--target", pool)
        virsh("pool-start", "p")
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def calls():
    """The commands that qemu-img was called with."""
    with open(os.environ["QEMU_IMG_CALLS"]) as lines:
        return [line.split()[0] for line in lines]

//! The 85 invocations of `qemu-img` by other programs, each under its number: run by us and by QEMU's own program, with the
//! same exit code, standard output, silence on standard error, and content of what is made.

use fixtures::needs_qemu;

use crate::beside::Beside;

/// What is done with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Both succeed, silent on standard error, with the same output.
    Same(&'static str),
    /// As a line of a shell.
    Shell(&'static str),
    /// Both fail with 1.
    Fails(&'static str),
    /// As a line of a shell, only ours: what is looked for in a text that distributions change.
    Ours(&'static str),
    /// Ours refuses it with 1: encryption is not here.
    Refused(&'static str),
}

use How::{Fails, Ours, Refused, Same, Shell};

/// A row of the list.
struct Row {
    number: u32,
    /// Program and purpose.
    who: &'static str,
    lines: &'static [How],
    /// What has to hold the same afterwards: name and format.
    made: &'static [(&'static str, &'static str)],
    /// Keys of the JSON that the last line prints, as pointers.
    takes: &'static [&'static str],
}

const fn row(
    number: u32,
    who: &'static str,
    lines: &'static [How],
    made: &'static [(&'static str, &'static str)],
) -> Row {
    Row { number, who, lines, made, takes: &[] }
}

const fn reading(
    number: u32,
    who: &'static str,
    lines: &'static [How],
    takes: &'static [&'static str],
) -> Row {
    Row { number, who, lines, made: &[], takes }
}

const TOP: &[(&str, &str)] = &[("top.qcow2", "qcow2")];
const BASE: &[(&str, &str)] = &[("base.qcow2", "qcow2")];
const NEW: &[(&str, &str)] = &[("n", "qcow2")];
const NEW_RAW: &[(&str, &str)] = &[("n", "raw")];
const USUAL: &[&str] = &["/format", "/virtual-size", "/actual-size", "/backing-filename"];

const ROWS: &[Row] = &[
    reading(
        1,
        "oslo.utils: parser",
        &[Same("info top.qcow2"), Same("info --output=json top.qcow2")],
        &[
            "/filename",
            "/backing-filename",
            "/backing-filename-format",
            "/format",
            "/virtual-size",
            "/cluster-size",
            "/actual-size",
            "/format-specific/data/compat",
        ],
    ),
    reading(
        2,
        "Nova: info, limited",
        &[Shell(
            "ulimit -v 1048576; ulimit -t 30; env LC_ALL=C LANG=C qemu-img info top.qcow2 --force-share --output=json -f qcow2",
        )],
        USUAL,
    ),
    row(
        3,
        "Nova: create",
        &[Same("create -f raw n.raw 20G"), Same("create -f qcow2 n 21474836480")],
        NEW,
    ),
    row(
        4,
        "Nova: overlay",
        &[Same(
            "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=65536,size=8388608 n",
        )],
        NEW,
    ),
    row(
        5,
        "Nova: convert",
        &[
            Same("convert -t none -O raw -f qcow2 top.qcow2 n.raw"),
            Same("convert -t writeback -O qcow2 -c top.qcow2 n"),
        ],
        &[("n.raw", "raw"), ("n", "qcow2")],
    ),
    row(
        6,
        "Nova: rebase",
        &[Same("rebase -b other.qcow2 -F qcow2 top.qcow2"), Same("rebase -b \"\" top.qcow2")],
        TOP,
    ),
    row(7, "Nova: resize", &[Same("resize top.qcow2 8388608")], TOP),
    row(
        8,
        "Glance: import",
        &[
            Same("info -f qcow2 --output=json base.qcow2"),
            Same("convert -f qcow2 -O raw base.qcow2 n"),
        ],
        NEW_RAW,
    ),
    reading(
        9,
        "Cinder: info, limited",
        &[Shell(
            "ulimit -v 1048576; ulimit -t 30; env LC_ALL=C qemu-img info -f qcow2 --output=json --force-share top.qcow2",
        )],
        USUAL,
    ),
    reading(
        10,
        "Cinder: version",
        &[Shell(
            "qemu-img --version | sed -nE 's/^qemu-img version ([0-9]+\\.[0-9]+\\.[0-9]+).*/\\1/p'",
        )],
        &[],
    ),
    row(
        11,
        "Cinder: convert",
        &[
            Same("convert -O raw -t none -S 0 -f qcow2 top.qcow2 n.raw"),
            Same("convert -O qcow2 -c -f qcow2 top.qcow2 n"),
        ],
        &[("n.raw", "raw"), ("n", "qcow2")],
    ),
    row(
        12,
        "Cinder: decrypt",
        &[Refused(
            "convert --object secret,id=sec1,format=raw,file=key --object secret,id=sec2,format=raw,file=key --image-opts encrypt.format=luks,encrypt.key-secret=sec1,file.filename=base.qcow2 -O luks -o key-secret=sec2 n",
        )],
        &[],
    ),
    row(
        13,
        "Cinder NFS: snapshot",
        &[Same("create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 n")],
        NEW,
    ),
    row(14, "Cinder NFS: rebase", &[Same("rebase -u -b other.qcow2 top.qcow2 -F qcow2")], TOP),
    row(15, "Cinder NFS: commit", &[Same("commit -d top.qcow2")], BASE),
    row(16, "Cinder: resize", &[Same("resize -f qcow2 base.qcow2 20G")], BASE),
    reading(
        17,
        "Ironic: info",
        &[Shell("env LC_ALL=C LANG=C qemu-img info top.qcow2 --output=json -f qcow2")],
        USUAL,
    ),
    row(
        18,
        "Ironic: convert",
        &[Same("convert -O raw -t none -S 4k -f qcow2 -W top.qcow2 n")],
        NEW_RAW,
    ),
    reading(
        19,
        "vdsm: info",
        &[Same("bitmap --add top.qcow2 b"), Same("info --output json -f qcow2 -U top.qcow2")],
        &[
            "/format",
            "/virtual-size",
            "/actual-size",
            "/cluster-size",
            "/backing-filename",
            "/format-specific/data/compat",
            "/format-specific/data/bitmaps/0/name",
        ],
    ),
    reading(
        20,
        "vdsm: measure",
        &[Same(
            "measure --output json -O qcow2 json:{\"file\":{\"driver\":\"file\",\"filename\":\"top.qcow2\"},\"driver\":\"qcow2\",\"backing\":null}",
        )],
        &["/required", "/fully-allocated", "/bitmaps"],
    ),
    row(
        21,
        "vdsm: create",
        &[Same(
            "create -f qcow2 -o compat=1.1 -b base.qcow2 -F qcow2 -o preallocation=off -u n 4194304",
        )],
        NEW,
    ),
    reading(
        22,
        "vdsm: check",
        &[Same("check --output json -f qcow2 base.qcow2")],
        &["/image-end-offset"],
    ),
    row(
        23,
        "vdsm: convert",
        &[
            Same(
                "convert -p -t none -T none -f qcow2 -O raw -o preallocation=falloc top.qcow2 n.raw",
            ),
            Same("create -f qcow2 -b base.qcow2 -F qcow2 over"),
            Same("convert -p -t none -T none -f qcow2 -O qcow2 -n -B base.qcow2 -W top.qcow2 over"),
            Same("bitmap --add base.qcow2 b"),
            Same(
                "convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1 -c --bitmaps base.qcow2 n",
            ),
        ],
        &[("n.raw", "raw"), ("over", "qcow2"), ("n", "qcow2")],
    ),
    row(24, "vdsm: commit", &[Same("commit -p -t none -b base.qcow2 -f qcow2 top.qcow2")], BASE),
    reading(
        25,
        "vdsm: map",
        &[Same("map --output json top.qcow2")],
        &["/0/start", "/0/depth", "/0/zero"],
    ),
    row(26, "vdsm: amend", &[Same("amend -o compat=1.1 top.qcow2")], TOP),
    row(27, "vdsm: resize", &[Same("resize -f raw base.raw 8388608")], &[("base.raw", "raw")]),
    row(
        28,
        "vdsm: rebase",
        &[
            Same("rebase -t none -T none -u -f qcow2 -F qcow2 -b other.qcow2 top.qcow2"),
            Same("rebase -t none -T none -f qcow2 -F qcow2 -b base.qcow2 top.qcow2"),
        ],
        TOP,
    ),
    reading(29, "vdsm: compare", &[Same("compare -p -f qcow2 -F raw base.qcow2 base.raw")], &[]),
    row(
        30,
        "vdsm: bitmap",
        &[
            Same("bitmap --add --enable base.qcow2 one -g 65536"),
            Same("bitmap --add --disable other.qcow2 two -g 65536"),
            Same("bitmap --merge one -F qcow2 -b base.qcow2 other.qcow2 two"),
            Same("bitmap --remove base.qcow2 one"),
        ],
        &[("base.qcow2", "qcow2"), ("other.qcow2", "qcow2")],
    ),
    reading(
        31,
        "vdsm: help",
        &[Ours("qemu-img --help | grep -qE '^\\s+bitmap (.+) filename bitmap'")],
        &[],
    ),
    reading(
        32,
        "KubeVirt CDI: info, limited",
        &[Shell("ulimit -v 1048576; ulimit -t 30; qemu-img info --output=json top.qcow2")],
        USUAL,
    ),
    row(
        33,
        "CDI: convert",
        &[Same("convert -t none -p -O raw top.qcow2 n -o preallocation=falloc")],
        NEW_RAW,
    ),
    row(34, "CDI: resize", &[Same("resize -f raw base.raw 8388608")], &[("base.raw", "raw")]),
    row(35, "CDI: create", &[Same("create -f raw n 1048576 -o preallocation=falloc")], NEW_RAW),
    row(36, "KubeVirt: overlay", &[Same("create -f qcow2 -b base.qcow2 -F qcow2 n")], NEW),
    row(
        37,
        "KubeVirt: create",
        &[Same("create -f raw n.raw 1048576"), Same("create -f qcow2 n 1048576")],
        NEW,
    ),
    row(
        38,
        "CloudStack: create",
        &[Same("create -o cluster_size=65536 -f qcow2 -F qcow2 -b base.qcow2 n 8388608")],
        NEW,
    ),
    row(
        39,
        "CloudStack: convert",
        &[
            Same("create -f qcow2 n 4M"),
            Same(
                "convert -n --target-is-zero -W -S 1M -O qcow2 -t none -U --image-opts driver=qcow2,file.filename=top.qcow2 n",
            ),
            Same("snapshot -c s base.qcow2"),
            Same(
                "convert -O qcow2 -o cluster_size=65536 -l snapshot.name=s -U --image-opts driver=qcow2,file.filename=base.qcow2 m",
            ),
        ],
        &[("n", "qcow2"), ("m", "qcow2")],
    ),
    reading(
        40,
        "CloudStack: info",
        &[Shell(
            "qemu-img info -U top.qcow2 | grep -E '^(virtual size|file format|backing file|cluster_size|cluster size):'",
        )],
        &[],
    ),
    row(
        41,
        "CloudStack: resize",
        &[
            Same("resize top.qcow2 +1048576"),
            Fails("resize top.qcow2 -1048576"),
            Same("resize --image-opts driver=qcow2,file.filename=top.qcow2 8388608"),
        ],
        TOP,
    ),
    row(
        42,
        "CloudStack: rebase",
        &[
            Same("rebase -F qcow2 -b other.qcow2 top.qcow2"),
            Same("rebase -u -F qcow2 -b other.qcow2 top.qcow2"),
        ],
        TOP,
    ),
    row(
        43,
        "CloudStack: snapshot",
        &[
            Same("snapshot -c one --image-opts driver=qcow2,file.filename=base.qcow2"),
            Same("snapshot -d one --image-opts driver=qcow2,file.filename=base.qcow2"),
            Fails("snapshot -d one --image-opts driver=qcow2,file.filename=base.qcow2"),
        ],
        BASE,
    ),
    row(
        44,
        "CloudStack: scripts",
        &[
            Shell(
                "qemu-img snapshot -c a base.qcow2; qemu-img snapshot -l base.qcow2 | tail -n +3 | awk '{print $1}'",
            ),
            Shell("cloud-qemu-img snapshot -U -l base.qcow2 | tail -n +3 | awk '{print $2}'"),
            Shell("ccp-qemu-img convert -U -f qcow2 -O qcow2 -l snapshot.name=a base.qcow2 n"),
        ],
        NEW,
    ),
    reading(45, "CloudStack: help", &[Ours("qemu-img --help | grep -q -- --target-is-zero")], &[]),
    row(
        46,
        "libvirt: create",
        &[Same(
            "create -f qcow2 -b base.qcow2 -o backing_fmt=qcow2,nocow=on,compat=1.1,lazy_refcounts n 4096K",
        )],
        NEW,
    ),
    row(
        47,
        "libvirt: convert",
        &[Same("convert -f qcow2 -O qcow2 -o compat=1.1 base.qcow2 n")],
        NEW,
    ),
    row(
        48,
        "libvirt: luks",
        &[Refused(
            "create -f luks --object secret,id=X_luks0,file=key -o key-secret=X_luks0 n 1024K",
        )],
        &[],
    ),
    row(
        49,
        "libvirt: snapshot, resize, overlay",
        &[
            Same("snapshot -c one base.qcow2"),
            Same("snapshot -a one base.qcow2"),
            Same("snapshot -d one base.qcow2"),
            Same("resize base.qcow2 8192K"),
            Same("create -f qcow2 -F qcow2 -b base.qcow2 n"),
        ],
        NEW,
    ),
    reading(
        50,
        "libvirt (old): options",
        &[Ours("qemu-img create -o '?' -f qcow2 /dev/null | grep -q cluster_size=")],
        &[],
    ),
    row(
        51,
        "Proxmox VE: create",
        &[
            Same("create -o preallocation=off -f qcow2 n1 1024K"),
            Same("create -o preallocation=metadata -f qcow2 n2 1024K"),
            Same("create -o preallocation=falloc -f qcow2 n3 1024K"),
            Same("create -o preallocation=full -f raw n4 1024K"),
        ],
        &[("n1", "qcow2"), ("n2", "qcow2"), ("n3", "qcow2"), ("n4", "raw")],
    ),
    row(
        52,
        "Proxmox: linked clone",
        &[Shell("mkdir dir; cd dir; qemu-img create -b ../base.qcow2 -F qcow2 -f qcow2 n")],
        &[("dir/n", "qcow2")],
    ),
    reading(53, "Proxmox: info", &[Same("info --output=json top.qcow2 -f qcow2")], USUAL),
    row(54, "Proxmox: resize", &[Same("resize -f qcow2 base.qcow2 8388608")], BASE),
    row(
        55,
        "Proxmox: snapshot",
        &[
            Same("snapshot -c one base.qcow2"),
            Same("snapshot -a one base.qcow2"),
            Same("snapshot -d one base.qcow2"),
        ],
        BASE,
    ),
    row(
        56,
        "Proxmox: move a disk",
        &[
            Shell("truncate -s 4M volume"),
            Same("convert -p -n -t none -T none -r 1048576K -f qcow2 -O raw base.qcow2 volume"),
            Same("create -f qcow2 n 4M"),
            Same(
                "convert -p -n -f qcow2 base.qcow2 --target-image-opts driver=qcow2,discard-no-unref=true,file.driver=file,file.filename=n",
            ),
        ],
        &[("volume", "raw"), ("n", "qcow2")],
    ),
    reading(
        57,
        "libguestfs: info, limited",
        &[Shell("ulimit -v 1048576; ulimit -t 10; qemu-img info -U --output json ./top.qcow2")],
        &["/format", "/virtual-size", "/backing-filename"],
    ),
    reading(
        58,
        "libguestfs: help",
        &[Ours("qemu-img --help | grep -sqE '\\binfo\\b.*-U\\b'")],
        &[],
    ),
    row(
        59,
        "libguestfs: overlay",
        &[
            Shell("cp base.qcow2 a,b.qcow2"),
            Same(
                "create -f qcow2 -o backing_file=a,,b.qcow2,backing_fmt=qcow2,preallocation=off,compat=1.1,cluster_size=65536 ./n",
            ),
        ],
        NEW,
    ),
    row(
        60,
        "virt-v2v: overlay and convert",
        &[
            Same("create -q -f qcow2 -b base.qcow2 -F qcow2 -o compat=1.1 n"),
            Same("convert -q -f qcow2 -O raw n n.raw"),
        ],
        &[("n", "qcow2"), ("n.raw", "raw")],
    ),
    row(61, "Packer: create", &[Same("create -f qcow2 -b base.qcow2 -F qcow2 n 40960M")], NEW),
    row(62, "Packer: convert", &[Same("convert -c -O qcow2 base.qcow2 n")], NEW),
    row(63, "Packer: resize", &[Same("resize -f qcow2 base.qcow2 40G")], BASE),
    reading(
        64,
        "vagrant-libvirt: info",
        &[
            Shell("qemu-img info top.qcow2 | grep 'backing file:' | cut -d ':' -f2"),
            Shell("qemu-img info top.qcow2 | grep 'virtual size' | awk '{print $3;}' | tr -d 'G'"),
        ],
        &[],
    ),
    row(65, "vagrant-libvirt: rebase", &[Same("rebase -p -b \"\" top.qcow2")], TOP),
    reading(
        66,
        "sysprep tools: info",
        &[Same("rebase -p -b \"\" top.qcow2"), Same("info --output=json top.qcow2")],
        &["/format", "/virtual-size"],
    ),
    reading(
        67,
        "Incus: info",
        &[Same("info -f qcow2 --output=json base.qcow2")],
        &["/virtual-size"],
    ),
    row(
        68,
        "Incus: unpack",
        &[
            Shell("truncate -s 4M volume"),
            Shell(
                "nice -n19 qemu-img convert -p -f qcow2 -O raw -t writeback -T none -t none -W -n --target-is-zero top.qcow2 volume | wc -l | grep -vc '^0$' || true",
            ),
        ],
        &[("volume", "raw")],
    ),
    reading(
        69,
        "Lima: info",
        &[Same("info --output=json --force-share base.qcow2")],
        &["/children/0/info/filename"],
    ),
    row(
        70,
        "Lima: convert and overlay",
        &[
            Same("convert -O raw base.qcow2 n.raw"),
            Same("create -f qcow2 -F qcow2 -b base.qcow2 n 8M"),
        ],
        &[("n.raw", "raw"), ("n", "qcow2")],
    ),
    row(71, "Multipass: resize", &[Same("resize base.qcow2 8388608")], BASE),
    row(
        72,
        "Multipass: convert",
        &[Same("info --output=json base.raw"), Same("convert -p -O qcow2 base.raw n")],
        NEW,
    ),
    row(
        73,
        "Multipass: snapshots",
        &[Same("snapshot -c snap base.qcow2"), Same("snapshot -l base.qcow2")],
        BASE,
    ),
    reading(
        74,
        "OpenNebula: info",
        &[Same("info top.qcow2 --output json --force-share")],
        &["/full-backing-filename"],
    ),
    row(
        75,
        "OpenNebula: create",
        &[
            Same("create n -f qcow2 -o backing_fmt=qcow2 -b base.qcow2"),
            Same("create m -f qcow2 -F raw -b base.raw"),
        ],
        &[("n", "qcow2"), ("m", "qcow2")],
    ),
    row(
        76,
        "OpenNebula: backup",
        &[
            Same("create -f qcow2 -b base.qcow2 -F qcow2 n"),
            Same("commit n -q"),
            Same("rebase n -U -u -F qcow2 -q -b \"\""),
            Same("convert base.qcow2 m -m 4 -O qcow2 -U"),
            Same("bitmap base.qcow2 b --add"),
            Same("bitmap base.qcow2 b --remove"),
        ],
        &[("n", "qcow2"), ("m", "qcow2"), ("base.qcow2", "qcow2")],
    ),
    row(
        77,
        "KIWI: convert",
        &[Same("convert -c -f raw base.raw -O qcow2 -o cluster_size=64k n")],
        NEW,
    ),
    row(
        78,
        "osbuild: convert",
        &[Same("convert -O qcow2 -c -o compat=1.1 -m 8 base.qcow2 n")],
        NEW,
    ),
    reading(
        79,
        "virtnbdbackup: create and info",
        &[Same("create -f qcow2 n -o size=1048576"), Same("info n --output json --force-share")],
        &["/virtual-size"],
    ),
    row(
        80,
        "avocado-vt: templates",
        &[
            Same("check -f qcow2 base.qcow2"),
            Same("compare -f qcow2 -F raw base.qcow2 base.raw"),
            Same("map --output=json base.qcow2"),
            Same("dd -f qcow2 -O qcow2 bs=64k count=16 if=base.qcow2 of=n"),
            Same("amend -o lazy_refcounts=on base.qcow2"),
            Ours("qemu-img -h | grep -q -- -U"),
        ],
        &[("n", "qcow2"), ("base.qcow2", "qcow2")],
    ),
    row(
        81,
        "os-autoinst: create",
        &[Same("create -f qcow2 n 8M"), Fails("create -f qcow2 -b base.qcow2 m 8M")],
        NEW,
    ),
    row(
        82,
        "quickemu: snapshots",
        &[
            Same("snapshot -q -c tag base.qcow2"),
            Same("snapshot -q -a tag base.qcow2"),
            Same("info base.qcow2"),
            Same("snapshot -q -d tag base.qcow2"),
        ],
        BASE,
    ),
    row(
        83,
        "minimega: overlay, commit, rebase",
        &[
            Same("create -f qcow2 -b base.qcow2 -F qcow2 n"),
            Same("commit -d n"),
            Same("rebase -b other.qcow2 -F qcow2 n"),
        ],
        NEW,
    ),
    row(
        84,
        "BOSH: convert",
        &[Same("convert -c -O qcow2 -o compat=0.10 base.qcow2 n"), Same("info n")],
        NEW,
    ),
    reading(85, "Nomad: info", &[Same("info --output=json base.qcow2")], &["/format"]),
];

/// A base with data, another like it, an overlay with data and zeros, a raw file, and a key.
fn images() -> Beside {
    let beside = Beside::new();
    beside.set_up(
        "qemu-img create -q -f qcow2 base.qcow2 4M
         qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 2M 192k' base.qcow2 >/dev/null
         cp base.qcow2 other.qcow2
         qemu-io -f qcow2 -c 'write -P 7 3M 64k' other.qcow2 >/dev/null
         qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
         qemu-io -f qcow2 -c 'write -P 3 64k 64k' -c 'write -z 256k 128k' top.qcow2 >/dev/null
         qemu-img convert -O raw base.qcow2 base.raw
         printf password > key",
    );
    beside
}

/// The words of a line, of which `""` is an empty one.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().map(|word| if word == "\"\"" { "" } else { word }).collect()
}

#[test]
fn every_invocation_of_the_list_is_here_once() {
    let numbers: Vec<u32> = ROWS.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=85).collect::<Vec<_>>());
    assert!(ROWS.iter().all(|row| !row.lines.is_empty() && row.who.len() > 5));
}

#[test]
fn each_invocation_of_other_programs_does_what_they_count_on() {
    needs_qemu!();
    let template = images();
    for row in ROWS {
        println!("{}: {}", row.number, row.who);
        let beside = Beside::like(&template);
        let mut out = String::new();
        for line in row.lines {
            out = match line {
                Same(line) => beside.both(&words(line)).ok(),
                Shell(line) => beside.shell(line).ok(),
                Fails(line) => beside.both(&words(line)).refused(),
                Ours(line) => beside.our_shell(line).ok(),
                Refused(line) => beside.ours(&words(line)).refused(),
            };
        }
        if !row.takes.is_empty() {
            let json: serde_json::Value = serde_json::from_str(&out).unwrap();
            for key in row.takes {
                assert!(json.pointer(key).is_some(), "{}: {key} in {out}", row.number);
            }
        }
        for (name, format) in row.made {
            beside.same_content(name, format);
        }
    }
}

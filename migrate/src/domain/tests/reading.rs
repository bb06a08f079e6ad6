//! What is read from domains.

use super::*;
use crate::ErrorKind;

fn source(xml: &str, target: &str) -> Source {
    disk(xml, target).source
}

#[test]
fn a_running_guest_with_the_chains_that_libvirt_found() {
    let domain = parse(LIVE).unwrap();
    assert_eq!(domain.name, "web");
    assert_eq!(domain.uuid.as_deref(), Some("6f1a9b52-6f2b-4a6e-9a53-0d8a6d0a7c11"));
    let file = "/var/lib/libvirt/images/web.qcow2";
    let layers = [
        (file, "qcow2"),
        ("/var/lib/libvirt/images/middle.qcow2", "qcow2"),
        ("/dev/vg0/template", "raw"),
    ];
    let vda = XmlDisk {
        target: "vda".into(),
        device: Device::Disk,
        source: Source::File { path: file.into() },
        format: Some("qcow2".into()),
        cache: Some("none".into()),
        discard: true,
        readonly: false,
        shareable: false,
        transient: false,
        mirror: None,
        special: None,
        chain: chain(&layers, true),
    };
    assert_eq!(domain.disks[0], vda);
    let raw = [("/var/lib/libvirt/images/data.raw", "raw")];
    assert_eq!(domain.disks[1].chain, chain(&raw, true));
    assert_eq!(domain.disks[1].cache, None);
    assert_eq!(domain.disks.len(), 2);
}

#[test]
fn a_chain_that_just_stops_and_one_with_a_volume_in_it() {
    assert_eq!(disk(SNAPSHOT, "vdb").chain, chain(&[("/srv/vm/db-log.qcow2", "qcow2")], false));
    let layers = [
        ("/srv/vm/db.snap2", "qcow2"),
        ("/srv/vm/db.snap1", "qcow2"),
        ("volume:default/db.qcow2", "qcow2"),
    ];
    assert_eq!(disk(SNAPSHOT, "vda").chain, chain(&layers, false));
}

#[test]
fn every_kind_of_source() {
    let volume =
        Source::Volume { pool: "default".into(), volume: "guest.qcow2".into(), path: None };
    assert_eq!(source(SOURCES, "vda"), volume);
    assert_eq!(source(SOURCES, "vdb"), Source::Network { protocol: "rbd".into(), local: None });
    assert_eq!(source(SOURCES, "vdc"), Source::Network { protocol: "nbd".into(), local: None });
    assert_eq!(source(SOURCES, "vdd"), Source::Other { kind: "nvme".into() });
    assert_eq!(source(SOURCES, "vde"), Source::Other { kind: "vhostuser".into() });
    assert_eq!(source(SOURCES, "vdf"), Source::Other { kind: "vhostvdpa".into() });
    assert_eq!(source(SOURCES, "fda"), Source::Other { kind: "dir".into() });
    assert_eq!(source(SOURCES, "sdz"), Source::Block { path: "/dev/sdq".into() });
    assert_eq!(source(KUBEVIRT, "vda"), Source::Block { path: "/dev/rootdisk".into() });
    assert_eq!(source(MEDIA, "sda"), Source::File { path: "/iso/install.iso".into() });
    assert_eq!(source(MEDIA, "sdb"), Source::None);
    assert_eq!(source(MEDIA, "fdb"), Source::None, "an empty name is no name");
}

#[test]
fn servers_that_only_the_own_host_reaches() {
    let own = |host: &str| {
        let xml = format!(
            "<domain><name>n</name><uuid>11111111-2222-4333-8444-555555555555</uuid><devices><disk type='network'><source protocol='nbd' name='x'>{host}</source>\
             <target dev='vda'/></disk></devices></domain>"
        );
        let parsed = parse(&xml).unwrap();
        let Source::Network { local, .. } = parsed.disks[0].source.clone() else { panic!("{xml}") };
        local
    };
    assert_eq!(own("<host transport='unix' socket='/run/s'/>"), Some("/run/s".into()));
    assert_eq!(own("<host name='localhost' port='10809'/>"), Some("/".into()));
    assert_eq!(own("<host name='127.0.0.9'/>"), Some("/".into()));
    assert_eq!(own("<host name='::1'/>"), Some("/".into()));
    assert_eq!(own("<host name='192.0.2.1'/>"), None);
    assert_eq!(own("<host name='nbd.example'/>"), None);
    assert_eq!(own(""), None);
}

#[test]
fn a_chain_never_hides_a_layer_that_is_no_path() {
    assert_eq!(disk(SOURCES, "vda").chain, XmlChain::default());
    assert_eq!(disk(SOURCES, "vdb").chain, XmlChain::default());
    let layers = [("nbd:export", "qcow2"), ("iscsi:iqn.2013-07.com.example:iscsi-pool/1", "raw")];
    assert_eq!(disk(SOURCES, "vdc").chain, chain(&layers, true));
}

#[test]
fn what_the_guest_and_others_may_do() {
    let of = |xml, target| {
        let disk = disk(xml, target);
        (disk.device, disk.readonly, disk.shareable, disk.transient)
    };
    assert_eq!(of(MEDIA, "sda"), (Device::Cdrom, true, false, false), "without <readonly/>");
    assert_eq!(of(MEDIA, "fda"), (Device::Floppy, false, false, false));
    assert_eq!(of(SOURCES, "fda"), (Device::Floppy, true, false, false));
    assert_eq!(of(SOURCES, "sdz"), (Device::Lun, false, false, false));
    assert_eq!(of(SOURCES, "vdb"), (Device::Disk, false, true, false));
    assert_eq!(of(SOURCES, "vdg"), (Device::Disk, false, false, true));
    assert_eq!(of(VENDORS, "vdb"), (Device::Disk, false, false, false), "without a device");
}

#[test]
fn jobs_that_mirror_a_disk() {
    assert_eq!(disk(BUSY, "vda").mirror.as_deref(), Some("copy"));
    assert_eq!(disk(BUSY, "vdb").mirror.as_deref(), Some("active-commit"));
    let old = BUSY.replace(" job='active-commit'", "");
    assert_eq!(disk(&old, "vdb").mirror.as_deref(), Some("copy"));
}

#[test]
fn names_are_unescaped_and_metadata_is_not_mistaken_for_devices() {
    let domain = parse(VENDORS).unwrap();
    assert_eq!(domain.name, "a <b> \u{263a} \"c\"");
    assert_eq!(domain.uuid, None);
    let targets: Vec<_> = domain.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vda", "vdb"]);
    let path = "/a/it's & more.qcow2".into();
    assert_eq!(domain.disks[0].source, Source::File { path });
    assert_eq!(parse(KUBEVIRT).unwrap().disks.len(), 2);
}

#[test]
fn a_layer_without_a_type_ends_the_chain_as_it_does_for_libvirt() {
    let xml = LIVE.replace("<backingStore type='block' index='4'>", "<backingStore>");
    let disk = disk(&xml, "vda");
    assert_eq!(disk.chain.layers.len(), 2);
    assert!(disk.chain.terminated);
}

#[test]
fn what_is_no_domain() {
    let domain = |inner: &str| format!("<domain><name>x</name><devices>{inner}</devices></domain>");
    let disk = "<disk><target dev='vda'/></disk>";
    let two = format!("{disk}{disk}");
    let broken = [
        String::new(),
        "vda".to_owned(),
        "<domain>".to_owned(),
        "<domain/>".to_owned(),
        "<network><name>x</name></network>".to_owned(),
        "<domain xmlns='urn:x'><name>x</name></domain>".to_owned(),
        domain("<disk/>"),
        domain("<disk><target bus='virtio'/></disk>"),
        domain("<disk device='tape'><target dev='vda'/></disk>"),
        domain("<disk><target dev='&vda;'/></disk>"),
        domain(&two),
    ];
    for xml in broken {
        let error = parse(&xml).expect_err(&xml);
        assert_eq!(error.kind(), ErrorKind::Usage, "{xml}");
    }
    assert_eq!(parse(&domain(disk)).unwrap().disks.len(), 1);
}

#[test]
fn files_besides_disks() {
    use crate::facts::FileRole::*;
    let xml = "<domain><name>g</name><uuid>u-1</uuid><os>
        <loader readonly='yes' type='pflash'>/usr/share/OVMF/C.fd</loader>
        <nvram template='/usr/share/OVMF/V.fd' type='file'><source file='/n/g.fd'/></nvram>
        <kernel> /boot/k </kernel><initrd>/boot/i</initrd><dtb>/boot/d</dtb>
        <acpi><table type='slic'>/etc/slic</table></acpi></os>
        <sysinfo type='fwcfg'><entry name='a' file='/etc/a'/><entry name='b'>text</entry></sysinfo>
        <devices>
        <interface><rom file='/roms/net'/></interface>
        <memory model='nvdimm'><source><path>/m/nv</path></source></memory>
        <memory model='dimm'><source/></memory>
        <tpm><backend type='emulator' version='2.0'/></tpm></devices></domain>";
    let found = files(xml).unwrap();
    let expected = [
        (Loader, "/usr/share/OVMF/C.fd"),
        (Nvram, "/n/g.fd"),
        (NvramTemplate, "/usr/share/OVMF/V.fd"),
        (Kernel, "/boot/k"),
        (Initrd, "/boot/i"),
        (Dtb, "/boot/d"),
        (AcpiTable, "/etc/slic"),
        (FirmwareConfig, "/etc/a"),
        (Rom, "/roms/net"),
        (Nvdimm, "/m/nv"),
    ];
    let expected: Vec<_> = expected.map(|(role, path)| (role, PathBuf::from(path))).into();
    assert_eq!(found.files, expected);
    assert_eq!(found.tpm_state, Some("/var/lib/libvirt/swtpm/u-1/tpm2".into()));

    let old = "<domain><name>g</name><os><loader readonly='no' type='pflash'>/n/both.fd</loader>
        <nvram>/n/old.fd</nvram></os><devices><tpm><backend type='passthrough'/></tpm></devices></domain>";
    let found = files(old).unwrap();
    let expected = vec![(Nvram, PathBuf::from("/n/both.fd")), (Nvram, "/n/old.fd".into())];
    assert_eq!((found.files, found.tpm_state), (expected, None));
    assert_eq!(files("<domain><name>g</name></domain>").unwrap(), XmlFiles::default());
}

//! Domains and pools, as libvirt's own test driver tells of them: it needs no daemon.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use fixtures::{Scratch, args, needs_qemu, qemu};

use super::{Found, pair};
use common::qcowtool;

/// A host of libvirt's test driver.
struct Host {
    scratch: Scratch,
    text: String,
    domains: u32,
}

impl Host {
    fn new() -> Self {
        Self { scratch: Scratch::new(), text: String::new(), domains: 0 }
    }

    fn pool(&mut self, name: &str, path: &Path) {
        self.text += &format!(
            "<pool type='dir'><name>{name}</name><target><path>{}</path></target></pool>",
            path.display()
        );
    }

    fn domain(&mut self, name: &str, runs: bool, disks: &str) {
        self.domains += 1;
        let state = if runs { 1 } else { 5 };
        let number = self.domains;
        self.text += &format!(
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
             <name>{name}</name><uuid>00000000-0000-4000-8000-{number:012}</uuid>\
             <memory>8192</memory><os><type>hvm</type></os><devices>{disks}</devices>\
             <test:runstate>{state}</test:runstate></domain>"
        );
    }

    /// Its URI, or `None` if there is no program with libvirt to ask it.
    fn uri(&self) -> Option<String> {
        let program = common::binary().with_file_name("qcowtool-libvirt");
        let path = self.scratch.file("host.xml", format!("<node>{}</node>", self.text).as_bytes());
        program.exists().then(|| format!("test://{}", path.display()))
    }

    fn audit(&self) -> Option<Found> {
        Some(Found::of(args!["--connect", self.uri()?]))
    }
}

fn disk(target: &str, format: &str, path: &Path, more: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>{more}\
         <target dev='{target}' bus='virtio'/></disk>",
        path.display()
    )
}

fn below(path: &Path, more: &str) -> String {
    format!(
        "<backingStore type='file'><format type='qcow2'/><source file='{}'/>{more}</backingStore>",
        path.display()
    )
}

#[test]
fn pools_are_scanned_and_what_no_domain_names_is_unused() {
    needs_qemu!();
    let (mut host, images) = (Host::new(), Scratch::new());
    pair(&images);
    qemu::create(images.path("used.qcow2"), "", "1M");
    qemu::create(images.path("unused.qcow2"), "", "1M");
    images.file("used.img", &[0; 512]);
    images.file("unused.img", &[0; 512]);
    host.pool("images", images.dir());
    let chain = below(&images.path("base.qcow2"), "<backingStore/>");
    let disks = [
        disk("vda", "qcow2", &images.path("overlay.qcow2"), &chain),
        disk("vdb", "qcow2", &images.path("used.qcow2"), ""),
        disk("vdc", "raw", &images.path("used.img"), ""),
    ];
    host.domain("vm", true, &disks.concat());
    let Some(found) = host.audit() else { return };
    found.has_only(&["info base-unused unused.img", "info base-unused unused.qcow2"]);
    assert_eq!(found.json["summary"]["domains"], 1);
    let overlay = images.path("overlay.qcow2").canonicalize().unwrap();
    assert_eq!(found.image(&overlay)["domains"][0], "vm");
}

#[test]
fn volumes_of_pools_that_are_no_directories_are_looked_at() {
    needs_qemu!();
    let (mut host, images) = (Host::new(), Scratch::new());
    pair(&images);
    host.text = format!(
        "<pool type='logical'><name>vg</name><source><name>vg</name></source>\
         <target><path>/dev/vg</path></target><volume type='block'><name>lv</name>\
         <capacity>1048576</capacity><target><path>{}</path><format type='qcow2'/></target></volume></pool>",
        images.path("overlay.qcow2").display()
    );
    let Some(uri) = host.uri() else { return };
    let asked = args!["dependents", images.path("base.qcow2"), "--connect", uri];
    let listed = qcowtool(asked).ok();
    assert!(listed.ends_with("overlay.qcow2 (directly)\n"), "{listed}");
}

#[test]
fn two_domains_that_write_to_one_image() {
    needs_qemu!();
    let images = Scratch::new();
    let image = images.path("disk.qcow2");
    qemu::create(&image, "", "1M");
    std::os::unix::fs::symlink(&image, images.path("link")).unwrap();
    // Another name of the file does not hide it.
    let link = images.path("link");
    let of = |second_runs: bool, more: &str| {
        let mut host = Host::new();
        host.domain("one", true, &disk("vda", "qcow2", &image, more));
        host.domain("two", second_runs, &disk("vda", "qcow2", &link, more));
        host.audit()
    };
    let Some(both) = of(true, "") else { return };
    both.has_only(&["error two-writers disk.qcow2"]);
    of(false, "").unwrap().has_only(&["warning two-writers disk.qcow2"]);
    of(true, "<shareable/>").unwrap().has_only(&[]);
    of(true, "<readonly/>").unwrap().has_only(&[]);
}

#[test]
fn a_domain_that_writes_to_a_base() {
    needs_qemu!();
    let (mut host, images) = (Host::new(), Scratch::new());
    pair(&images);
    host.pool("images", images.dir());
    host.domain("vm", true, &disk("vda", "qcow2", &images.path("overlay.qcow2"), ""));
    let base = disk("vda", "qcow2", &images.path("base.qcow2"), "");
    host.domain("builder", false, &base);
    let Some(found) = host.audit() else { return };
    found.has_only(&["error base-written base.qcow2"]);
    assert!(found.said("base-written").contains("shut-off domain 'builder'"));
}

#[test]
fn a_chain_in_the_xml_that_is_not_that_of_the_headers() {
    needs_qemu!();
    let images = Scratch::new();
    pair(&images);
    let (base, overlay) = (images.path("base.qcow2"), images.path("overlay.qcow2"));
    let other = images.path("other.qcow2");
    fs::copy(&base, &other).unwrap();
    let of = |chain: &str| {
        let mut host = Host::new();
        host.domain("vm", true, &disk("vda", "qcow2", &overlay, chain));
        host.audit()
    };
    let end = "<backingStore/>";
    let Some(found) = of(&below(&other, end)) else { return };
    found.has_only(&["error chains-disagree overlay.qcow2"]);
    assert!(found.said("chains-disagree").contains("works until the guest is restarted"));
    of(end).unwrap().has_only(&["error chains-disagree overlay.qcow2"]);
    of(&below(&base, &below(&other, end)))
        .unwrap()
        .has_only(&["error chains-disagree overlay.qcow2"]);
    of(&below(&base, end)).unwrap().has_only(&[]);
    // Where the XML says nothing, libvirt follows the headers.
    of("").unwrap().has_only(&[]);
    // The same file by another name is the same file.
    fs::remove_file(&other).unwrap();
    fs::hard_link(&base, &other).unwrap();
    of(&below(&other, end)).unwrap().has_only(&[]);
}

#[test]
fn disks_that_are_gone_or_of_another_format() {
    needs_qemu!();
    let (mut host, images) = (Host::new(), Scratch::new());
    let image = images.path("disk.qcow2");
    qemu::create(&image, "", "1M");
    let disks = [disk("vda", "raw", &image, ""), disk("vdb", "raw", &images.path("gone"), "")];
    host.domain("vm", false, &disks.concat());
    let Some(found) = host.audit() else { return };
    found.has_only(&["error format-wrong disk.qcow2", "error disk-missing gone"]);
}

#[test]
fn domains_depend_on_what_they_name() {
    needs_qemu!();
    let (mut host, images) = (Host::new(), Scratch::new());
    pair(&images);
    let alone = images.path("alone.qcow2");
    qemu::create(&alone, "", "1M");
    host.domain("vm", false, &disk("vda", "qcow2", &images.path("overlay.qcow2"), ""));
    host.domain("direct", true, &disk("vda", "qcow2", &alone, ""));
    let empty = Host::new();
    let (Some(uri), Some(other)) = (host.uri(), empty.uri()) else { return };
    let ask = |image: &Path| {
        let twice: Vec<OsString> = args!["--connect", uri, "--connect", other];
        qcowtool([args!["dependents", image, "--may-delete"], twice].concat())
    };
    // No directory was given: the header of the domain's disk is followed.
    let run = ask(&images.path("base.qcow2"));
    assert_eq!(run.code(), Some(1), "{}", run.stderr());
    assert!(run.stdout().contains("overlay.qcow2 (directly)\ndomain vm (disk vda, shut off)\n"));
    let run = ask(&alone);
    assert_eq!(
        (run.code(), run.stdout().as_str()),
        (Some(1), "domain direct (disk vda, running)\n")
    );
    qemu::create(images.path("free.qcow2"), "", "1M");
    let run = ask(&images.path("free.qcow2"));
    assert_eq!(run.code(), Some(0), "{}", run.stderr());
}

#[test]
fn a_chain_that_libvirt_names_is_told_where_its_base_is_gone_before_a_migration_fails() {
    needs_qemu!();
    let scratch = Scratch::new();
    pair(&scratch);
    let base = scratch.path("base.qcow2");
    let chain = format!(
        "<backingStore type='file'><format type='qcow2'/><source file='{}'/><backingStore/></backingStore>",
        base.display()
    );
    let audit = |chain: &str, runs: bool| {
        let mut host = Host::new();
        let disk = disk("vda", "qcow2", &scratch.path("overlay.qcow2"), chain);
        host.domain("web", runs, &disk);
        host.audit()
    };
    // Without libvirt in this build there is nothing to ask.
    let Some(found) = audit(&chain, true) else { return };
    let named = |found: &Found| found.findings().iter().any(|it| it.contains("chain-named"));
    assert!(!named(&found));
    fs::remove_file(&base).unwrap();
    let found = audit(&chain, true).unwrap();
    let said = found.said("chain-named");
    assert!(said.contains("'web', disk vda") && said.contains("does not exist any more"), "{said}");
    // Where libvirt does not name it, or the guest does not run, nothing fails for that.
    assert!(!named(&audit("", true).unwrap()));
    assert!(!named(&audit(&chain, false).unwrap()));
}

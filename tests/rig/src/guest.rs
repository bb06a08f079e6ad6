//! A guest: what it is made of, where it runs, what it says of its disks.

use std::fmt::Write as _;
use std::fs;

use crate::disk::{Kind, Template};
use crate::host::{Host, IMAGES, OTHER_LIBVIRT};
use crate::rig::Rig;
use crate::wait_for;

/// A disk in a guest's XML.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Path of its file or device.
    pub source: String,
    /// `qcow2` or `raw`.
    pub format: &'static str,
    /// The chain below, given in the XML: paths and formats. `None` leaves it to the headers.
    pub chain: Option<Vec<(String, &'static str)>>,
    /// `disk` or `cdrom`.
    pub device: &'static str,
    /// It is a block device.
    pub block: bool,
    /// More elements of the disk.
    pub more: &'static str,
}

impl Disk {
    /// A QCOW2 image.
    pub fn qcow2(source: impl Into<String>) -> Self {
        let source = source.into();
        Self { source, format: "qcow2", chain: None, device: "disk", block: false, more: "" }
    }

    /// A raw image.
    pub fn raw(source: impl Into<String>) -> Self {
        Self { format: "raw", ..Self::qcow2(source) }
    }

    /// A block device that holds the disk as it is.
    pub fn device(source: impl Into<String>) -> Self {
        Self { block: true, ..Self::raw(source) }
    }

    /// A CD-ROM with a medium.
    pub fn cdrom(source: impl Into<String>) -> Self {
        Self { device: "cdrom", more: "<readonly/>", ..Self::raw(source) }
    }

    /// The same with the chain below in the XML.
    #[must_use]
    pub fn over(self, chain: &[(&str, &'static str)]) -> Self {
        Self { chain: Some(chain.iter().map(|&(p, f)| (p.into(), f)).collect()), ..self }
    }

    /// The same with more elements.
    #[must_use]
    pub fn with(self, more: &'static str) -> Self {
        Self { more, ..self }
    }

    /// `index` is its place among disks of its kind.
    fn xml(&self, index: u8, cache: &str) -> String {
        let (kind, attribute) = if self.block { ("block", "dev") } else { ("file", "file") };
        let letter = char::from(b'a' + index);
        // The firmware shows the guest those disks only that it might boot from.
        let (target, bus, boot) = match self.device {
            "cdrom" => ("hd", "ide", String::new()),
            _ => ("vd", "virtio", format!("<boot order='{}'/>", index + 1)),
        };
        let mut chain = String::new();
        if let Some(layers) = &self.chain {
            for (path, format) in layers {
                let _ = write!(
                    chain,
                    "<backingStore type='file'><format type='{format}'/><source file='{path}'/>"
                );
            }
            chain.push_str("<backingStore/>");
            chain.push_str(&"</backingStore>".repeat(layers.len()));
        }
        format!(
            "<disk type='{kind}' device='{}'><driver name='qemu' type='{}' cache='{cache}'/>\
             <source {attribute}='{}'/>{chain}<target dev='{target}{letter}' bus='{bus}'/>{boot}{}</disk>\n",
            self.device, self.format, self.source, self.more
        )
    }
}

/// A guest, with a directory of its own in all hosts' storage. It goes with this value.
#[derive(Debug)]
pub struct Guest<'a> {
    rig: &'a Rig,
    /// Its name.
    pub name: String,
    /// What its disk was made from.
    pub template: Template,
    /// Cache mode of its disks: `none` as CloudStack has, where the file system can do that.
    pub cache: &'static str,
    /// What else its XML has: before which tag, and what.
    pub more: Vec<(&'static str, String)>,
}

impl<'a> Guest<'a> {
    /// A guest with nothing yet but its directories.
    pub fn new(rig: &'a Rig, name: &str) -> Self {
        let (template, more) = (Template::default(), Vec::new());
        let guest = Self { rig, name: name.into(), template, cache: "none", more };
        for host in rig.all() {
            fs::create_dir_all(host.outside(guest.directory())).unwrap();
            host.run(["chmod", "711", &guest.directory()]).ok();
        }
        guest
    }

    /// Its directory in either host's storage.
    pub fn directory(&self) -> String {
        format!("{IMAGES}/{}", self.name)
    }

    /// A file of this name in its directory.
    pub fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.directory())
    }

    /// Defines it on a host.
    pub fn define(&self, host: &Host, disks: &[Disk]) {
        let file = self.path("domain.xml");
        let plain = xml(&self.name, self.cache, disks);
        let full = self
            .more
            .iter()
            .fold(plain, |xml, (tag, more)| xml.replacen(tag, &format!("{more}{tag}"), 1));
        fs::write(host.outside(&file), full).unwrap();
        host.virsh(["define", &file]).ok();
        fs::remove_file(host.outside(&file)).unwrap();
    }

    /// Starts it and waits for its first writes.
    pub fn start(&self, host: &Host) {
        let _ = fs::remove_file(host.qemu_log(&self.serial_name()));
        host.virsh(["start", &self.name]).ok();
        self.wait_writes(host, 1);
    }

    /// Template on A, overlay on it, defined and running there: the guest that most stories begin with.
    /// The images are `template.qcow2` and `disk.qcow2`.
    pub fn run_on_template(&self) {
        let a = &self.rig.a;
        a.make_template(&self.path("template.qcow2"), &self.template);
        a.make_overlay(&self.path("disk.qcow2"), &self.path("template.qcow2"));
        self.define(a, &[Disk::qcow2(self.path("disk.qcow2"))]);
        self.start(a);
    }

    /// libvirt's word for what it does on a host; `None` if it is not known there.
    pub fn state(&self, host: &Host) -> Option<String> {
        let ran = host.virsh(["domstate", &self.name]);
        ran.succeeded().then(|| ran.stdout().trim().to_owned())
    }

    /// What it has said on a host.
    pub fn serial(&self, host: &Host) -> String {
        let bytes = fs::read(host.qemu_log(&self.serial_name())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn serial_name(&self) -> String {
        format!("{}-serial.log", self.name)
    }

    /// The number of writes that it last reported on a host.
    pub fn writes(&self, host: &Host) -> u32 {
        let serial = self.serial(host);
        let whole = &serial[..serial.rfind('\n').map_or(0, |at| at + 1)];
        let mut lines = whole.lines().rev();
        lines.find_map(|l| u32::from_str_radix(l, 16).ok().filter(|_| l.len() == 8)).unwrap_or(0)
    }

    /// What it found wrong with its disk, if anything. The number of a write may have the same letters.
    pub fn complaint(&self, host: &Host) -> Option<String> {
        let serial = self.serial(host);
        serial.lines().find(|l| l.contains("BAD ") || l.contains("ERROR")).map(Into::into)
    }

    /// Waits until it has reported `number` writes on a host, and found nothing wrong: as long as it goes on writing,
    /// however slowly a busy machine lets it.
    #[track_caller]
    pub fn wait_writes(&self, host: &Host, number: u32) {
        let mut writes = self.writes(host);
        while writes < number {
            let what = format!("write after {writes} of {} on {}", self.name, host.name());
            writes = wait_for(40, &what, || {
                assert_eq!(self.complaint(host), None, "{} on {}", self.name, host.name());
                Some(self.writes(host)).filter(|now| *now > writes)
            });
        }
        assert_eq!(self.complaint(host), None, "{} on {}", self.name, host.name());
    }

    /// Waits for 100 writes more than it has reported on a host.
    #[track_caller]
    pub fn goes_on(&self, host: &Host) {
        self.wait_writes(host, self.writes(host) + 100);
    }

    /// Pauses the guest, checks every sector of one of its disks, lets it go on, and returns how many
    /// writes are on the disk.
    #[track_caller]
    pub fn check_disk(&self, host: &Host, path: &str, kind: Kind) -> u32 {
        let running = self.state(host).as_deref() == Some("running");
        if running {
            host.virsh(["suspend", &self.name]).ok();
        }
        let reported = self.writes(host);
        let found = host.check(path, &self.template, kind);
        if running {
            host.virsh(["resume", &self.name]).ok();
        }
        let found = found.unwrap_or_else(|e| panic!("{path} on {}: {e}", host.name()));
        assert!(found >= reported, "{path}: {found} writes of {reported} on {}", host.name());
        found
    }

    /// Makes plain libvirt migrate it from A to B, with flags besides the usual ones.
    pub fn virsh_migrate(&self, flags: &[&str]) -> crate::Ran {
        let usual = ["migrate", "--live", "--p2p", "--persistent", "--undefinesource"];
        let to = self.rig.b.uri();
        let words = usual.iter().copied().chain(flags.iter().copied()).chain([&*self.name, &*to]);
        self.rig.a.virsh(words)
    }
}

/// XML of a guest with these disks.
pub fn xml(name: &str, cache: &str, disks: &[Disk]) -> String {
    let (cdroms, others): (Vec<_>, Vec<_>) = disks.iter().partition(|d| d.device == "cdrom");
    let xml = |disks: Vec<&Disk>| -> String {
        disks.iter().zip(0..).map(|(disk, index)| disk.xml(index, cache)).collect()
    };
    let disks = xml(others) + &xml(cdroms);
    // libvirt before 9.2 has guests without ACPI by an option that QEMU has no more.
    let features = match std::env::var_os(OTHER_LIBVIRT) {
        Some(_) => "<features><acpi/></features>\n",
        None => "",
    };
    format!(
        "<domain type='qemu'>\n<name>{name}</name>\n<memory unit='MiB'>16</memory>\n<vcpu>1</vcpu>\n\
         <os><type arch='x86_64' machine='pc'>hvm</type></os>\n{features}<devices>\n{disks}\
         <controller type='usb' model='none'/>\n\
         <serial type='file'><source path='/var/log/libvirt/qemu/{name}-serial.log' append='on'/>\
         <target port='0'/></serial>\n<memballoon model='none'/>\n</devices>\n</domain>\n"
    )
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        for host in self.rig.all() {
            if std::thread::panicking() {
                self.dump(host);
            }
            if !fs::exists(host.outside("/")).unwrap_or(false) {
                continue; // it is down
            }
            host.virsh(["destroy", &self.name]);
            host.virsh(["undefine", "--snapshots-metadata", "--nvram", &self.name]);
            let _ = fs::remove_dir_all(host.outside(self.directory()));
            let _ = fs::remove_file(host.qemu_log(&self.serial_name()));
        }
    }
}

impl Guest<'_> {
    /// What may explain why a test failed.
    fn dump(&self, host: &Host) {
        let tail = |text: &str, lines: usize| {
            let all: Vec<_> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        eprintln!("--- {} on {}: {:?}", self.name, host.name(), self.state(host));
        eprintln!("{}", host.run(["ls", "-lai", &self.directory()]).stdout());
        eprintln!("serial port:\n{}", tail(&self.serial(host), 5));
        let qemu = fs::read_to_string(host.qemu_log(&format!("{}.log", self.name)));
        eprintln!("QEMU:\n{}", tail(&qemu.unwrap_or_default(), 6));
        eprintln!("libvirtd:\n{}", tail(&host.log(), 10));
    }
}

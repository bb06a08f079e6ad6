//! `qcowtool hook` under real libvirt: the cases of docs/hook.md, migrated by plain `virsh`, directly as CloudStack does and
//! peer to peer. What happens without the hook is in `baseline`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::OnceLock;

use crate::trial::{binary, needs_migration};
use rig::host::IMAGES;
use rig::{Disk, Guest, Host, Kind, Ran, Rig, Template, wait_for};

const FULL: &str = "--copy-storage-all";
const INCREMENTAL: &str = "--copy-storage-inc";
const CONFIG: &str = "/etc/libvirt/qcowtool-hook.conf";

/// What CloudStack's own hook does with the XML of an arriving guest: it reads and prints it with minidom.
const MINIDOM: &str = "#!/usr/bin/python3
import sys
from xml.dom.minidom import parse
if sys.argv[1].startswith('minidom') and sys.argv[2:4] == ['migrate', 'begin']:
    print(parse(sys.stdin).toxml())
";

/// Guests are moved by libvirt alone, with one of these.
const WAYS: [&[&str]; 2] = [&[], &["--p2p"]];

fn qcowtool(host: &Host, words: &[&str]) -> Ran {
    let program = binary();
    host.run([program.to_str().unwrap()].iter().chain(words))
}

fn restart(host: &Host) {
    host.stop_daemon();
    host.start_daemon();
}

fn install(host: &Host) -> String {
    qcowtool(host, &["hook", "--config", CONFIG, "install", "--root", IMAGES]).ok()
}

fn main_hook(host: &Host) {
    let path = host.outside("/etc/libvirt/hooks/qemu");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, MINIDOM).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Two hosts, the hook on B behind another one. Not those of other tests, which show what libvirt does by itself.
fn hooked() -> &'static Rig {
    static HOOKED: OnceLock<Rig> = OnceLock::new();
    HOOKED.get_or_init(|| {
        let rig = Rig::up();
        main_hook(&rig.b);
        install(&rig.b);
        restart(&rig.b);
        rig
    })
}

fn migrate(guest: &Guest<'_>, rig: &Rig, flags: &[&str]) -> Ran {
    let usual = ["migrate", "--live", "--persistent", "--undefinesource"];
    let to = rig.b.uri();
    rig.a.virsh(usual.iter().chain(flags).copied().chain([&*guest.name, &*to]))
}

fn annotate(guest: &Guest<'_>, rig: &Rig) {
    qcowtool(&rig.a, &["annotate", &guest.name]).ok();
}

/// The hook's log on B, which tells why it did what it did.
fn log(rig: &Rig) -> String {
    fs::read_to_string(rig.b.outside("/var/log/libvirt/qemu/qcowtool-hook.log")).unwrap_or_default()
}

/// The guest is on B, every sector of its disk is right there, and it goes on.
#[track_caller]
fn arrived(guest: &Guest<'_>, rig: &Rig, ran: &Ran) {
    assert!(ran.succeeded(), "{ran}{}", log(rig));
    guest.goes_on(&rig.b);
    guest.check_disk(&rig.b, &guest.path("disk.qcow2"), Kind::Boot);
    assert_eq!(guest.state(&rig.a), None);
}

/// The migration was refused in these words, and the guest goes on where it is with its disk as it was.
#[track_caller]
fn stayed(guest: &Guest<'_>, rig: &Rig, ran: &Ran, words: &str) {
    assert!(!ran.succeeded() && ran.stderr().contains(words), "no '{words}': {ran}{}", log(rig));
    guest.goes_on(&rig.a);
    guest.check_disk(&rig.a, &guest.path("disk.qcow2"), Kind::Boot);
    assert_eq!(guest.state(&rig.b), None);
}

fn disk_is_on_b(guest: &Guest<'_>, rig: &Rig) -> bool {
    rig.b.has(guest.path("disk.qcow2"))
}

/// A guest of this name that runs on a template on A, whose XML names its chain, as after a restart of libvirtd.
fn with_named_chain<'a>(rig: &'a Rig, name: &str) -> Guest<'a> {
    let guest = Guest::new(rig, name);
    let (disk, template) = (guest.path("disk.qcow2"), guest.path("template.qcow2"));
    rig.a.make_template(&template, &guest.template);
    rig.a.make_overlay(&disk, &template);
    guest.define(&rig.a, &[Disk::qcow2(disk).over(&[(&template, "qcow2")])]);
    guest.start(&rig.a);
    guest
}

fn copy_template_to_b(guest: &Guest<'_>, rig: &Rig) {
    let path = guest.path("template.qcow2");
    fs::copy(rig.a.outside(&path), rig.b.outside(&path)).unwrap();
}

#[test]
fn with_nothing_prepared_a_full_copy_arrives() {
    needs_migration!();
    let rig = hooked();
    for (way, number) in WAYS.into_iter().zip(0..) {
        let guest = Guest::new(rig, &format!("hook-nothing-{number}"));
        guest.run_on_template();
        annotate(&guest, rig);
        arrived(&guest, rig, &migrate(&guest, rig, &[&[FULL], way].concat()));
    }
}

#[test]
fn with_nothing_prepared_and_no_metadata_the_refusal_says_what_to_do() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-unknown");
    guest.run_on_template();
    stayed(&guest, rig, &migrate(&guest, rig, &[FULL]), "run `qcowtool annotate GUEST`");
    assert!(!disk_is_on_b(&guest, rig));
    annotate(&guest, rig);
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
}

#[test]
fn with_nothing_prepared_an_incremental_copy_is_refused_and_nothing_stays() {
    needs_migration!();
    let rig = hooked();
    for (way, number) in WAYS.into_iter().zip(0..) {
        let guest = Guest::new(rig, &format!("hook-bare-inc-{number}"));
        guest.run_on_template();
        annotate(&guest, rig);
        let ran = migrate(&guest, rig, &[&[INCREMENTAL], way].concat());
        stayed(&guest, rig, &ran, "would lose everything");
        assert!(!disk_is_on_b(&guest, rig), "{}", log(rig));
    }
}

#[test]
fn an_incremental_copy_gets_its_overlay_over_a_proven_template() {
    needs_migration!();
    let rig = hooked();
    let guest = with_named_chain(rig, "hook-thin");
    copy_template_to_b(&guest, rig);
    annotate(&guest, rig);
    arrived(&guest, rig, &migrate(&guest, rig, &[INCREMENTAL]));
    let disk = fs::metadata(rig.b.outside(guest.path("disk.qcow2"))).unwrap();
    assert!(disk.blocks() * 512 < 8 << 20, "{} bytes are not thin", disk.blocks() * 512);
}

#[test]
fn an_empty_stub_of_a_manager_is_no_target_for_an_incremental_copy() {
    needs_migration!();
    let rig = hooked();
    for annotated in [true, false] {
        let guest = Guest::new(rig, &format!("hook-stub-{annotated}"));
        guest.run_on_template();
        if annotated {
            annotate(&guest, rig);
        }
        rig.b.qemu_img(["create", "-q", "-f", "qcow2", &guest.path("disk.qcow2"), "64M"]).ok();
        let ran = migrate(&guest, rig, &[INCREMENTAL]);
        stayed(&guest, rig, &ran, "which is empty and has no backing file");
        assert!(disk_is_on_b(&guest, rig), "it is the manager's");
        arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
    }
}

#[test]
fn an_overlay_on_another_template_of_that_name_is_refused() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-other");
    guest.run_on_template();
    annotate(&guest, rig);
    let other = Template { tag: *b"ELSE", ..guest.template };
    rig.b.make_template(&guest.path("template.qcow2"), &other);
    rig.b.make_overlay(&guest.path("disk.qcow2"), &guest.path("template.qcow2"));
    let ran = migrate(&guest, rig, &[INCREMENTAL]);
    stayed(&guest, rig, &ran, "does not hold what the source's backing file holds");
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
}

#[test]
fn an_overlay_on_the_right_template_is_filled() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-right");
    guest.run_on_template();
    annotate(&guest, rig);
    copy_template_to_b(&guest, rig);
    rig.b.make_overlay(&guest.path("disk.qcow2"), &guest.path("template.qcow2"));
    arrived(&guest, rig, &migrate(&guest, rig, &[INCREMENTAL, "--p2p"]));
}

#[test]
fn of_two_disks_the_missing_one_is_created_to_the_byte() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-two");
    let (disk, data) = (guest.path("disk.qcow2"), guest.path("data.raw"));
    rig.a.make_template(&disk, &guest.template);
    rig.a.qemu_img(["create", "-q", "-f", "raw", &data, "104857600"]).ok();
    rig.a.run(["qemu-io", "-f", "raw", "-c", "write -q -P 7 5M 1M", &data]).ok();
    guest.define(&rig.a, &[Disk::qcow2(&*disk), Disk::raw(&*data)]);
    guest.start(&rig.a);
    annotate(&guest, rig);
    rig.b.qemu_img(["create", "-q", "-f", "qcow2", &disk, "64M"]).ok();
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
    assert_eq!(fs::metadata(rig.b.outside(&data)).unwrap().len(), 104_857_600);
    let (a, b) = (rig.a.raw_copy(&data), rig.b.raw_copy(&data));
    assert!(fs::read(a.path()).unwrap() == fs::read(b.path()).unwrap());
}

#[test]
fn an_outdated_size_fails_loudly_and_nothing_stays() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-stale");
    guest.run_on_template();
    let element = "<disks><disk target='vda' virtual-size='60000256' base='none'/></disks>";
    let (namespace, key) = ("urn:qcowtool:disks:1", "qcowtool");
    let set = ["metadata", &guest.name, "--uri", namespace, "--key", key, "--set", element];
    rig.a.virsh(set.iter().chain(&["--live"])).ok();
    stayed(&guest, rig, &migrate(&guest, rig, &[FULL]), "different sizes");
    assert!(!disk_is_on_b(&guest, rig), "{}", log(rig));
}

#[test]
fn behind_a_hook_that_prints_a_parsed_document() {
    needs_migration!();
    let rig = hooked();
    let guest = with_named_chain(rig, "minidom-first");
    annotate(&guest, rig);
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
    let xml = rig.b.virsh(["dumpxml", &guest.name]).ok();
    assert!(!xml.contains("template.qcow2"), "{xml}");
}

#[test]
fn an_abort_takes_away_what_the_hook_created() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-abort");
    guest.run_on_template();
    annotate(&guest, rig);
    let (name, to) = (guest.name.clone(), rig.b.uri());
    std::thread::scope(|scope| {
        let words = ["migrate", "--live", "--persistent", FULL, "--bandwidth", "2", &name, &to];
        let running = scope.spawn(move || rig.a.virsh(words));
        wait_for(20, "target", || disk_is_on_b(&guest, rig).then_some(()));
        wait_for(20, "abort", || {
            rig.a.virsh(["domjobabort", &guest.name]).succeeded().then_some(())
        });
        stayed(&guest, rig, &running.join().unwrap(), "");
    });
    assert!(!disk_is_on_b(&guest, rig), "{}", log(rig));
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
}

#[test]
fn a_guest_that_arrived_keeps_its_disk_when_it_ends() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-ends");
    guest.run_on_template();
    annotate(&guest, rig);
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
    let pid = format!("/run/libvirt/qemu/{}.pid", guest.name);
    let pid = rig.b.run(["cat", &pid]).ok();
    rig.b.run(["kill", "-KILL", pid.trim()]).ok();
    wait_for(20, "end of the guest", || {
        (guest.state(&rig.b).as_deref() == Some("shut off")).then_some(())
    });
    assert!(disk_is_on_b(&guest, rig), "{}", log(rig));
    guest.start(&rig.b);
}

#[test]
fn qcowtool_migrate_goes_through_the_hook() {
    needs_migration!();
    let rig = hooked();
    let guest = Guest::new(rig, "hook-migrate");
    guest.run_on_template();
    rig.b.pool("hook-migrate", &guest.directory());
    let ran =
        qcowtool(&rig.a, &["migrate", &guest.name, "--to", &rig.b.uri(), "--verify", "content"]);
    arrived(&guest, rig, &ran);
}

/// CloudStack #10246: after libvirtd was restarted, the XML that goes to the destination names a template that is not
/// there. Then the same with another template of that name.
#[test]
fn a_restart_of_libvirtd_names_the_template_and_the_hook_ends_the_chain() {
    needs_migration!();
    let rig = &Rig::up();
    let stub = |guest: &Guest<'_>| {
        rig.b.qemu_img(["create", "-q", "-f", "qcow2", &guest.path("disk.qcow2"), "64M"]).ok();
    };
    let guest = Guest::new(rig, "restarted");
    guest.run_on_template();
    let migratable = || rig.a.virsh(["dumpxml", "--migratable", &guest.name]).ok();
    assert!(!migratable().contains("template.qcow2"));
    restart(&rig.a);
    assert!(migratable().contains("template.qcow2"));
    stub(&guest);
    let ran = migrate(&guest, rig, &[FULL]);
    stayed(&guest, rig, &ran, "template.qcow2");

    // There is a hook already when libvirt starts, and ours comes later: no restart is needed.
    main_hook(&rig.b);
    restart(&rig.b);
    assert!(!install(&rig.b).contains("restart libvirtd"));
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
    let xml = rig.b.virsh(["dumpxml", &guest.name]).ok();
    assert!(!xml.contains("template.qcow2"), "{xml}");

    let replaced = Guest::new(rig, "replaced");
    replaced.run_on_template();
    restart(&rig.a);
    let other = Template { tag: *b"ELSE", ..replaced.template };
    rig.b.make_template(&replaced.path("template.qcow2"), &other);
    stub(&replaced);
    arrived(&replaced, rig, &migrate(&replaced, rig, &[FULL]));
    let xml = rig.b.virsh(["dumpxml", &replaced.name]).ok();
    assert!(!xml.contains("template.qcow2"), "{xml}");
}

#[test]
fn the_source_is_asked_for_sizes_where_the_operator_allows_it() {
    needs_migration!();
    let rig = &Rig::up();
    install(&rig.b);
    let allowed = format!("ask = qemu+tcp://{{peer}}/system\npeer = {}\n", rig.a.address());
    let path = rig.b.outside(CONFIG);
    let text = fs::read_to_string(&path).unwrap();
    restart(&rig.b);
    let guest = Guest::new(rig, "hook-asks");
    guest.run_on_template();
    let elsewhere = text.clone() + &allowed.replace(rig.a.address(), "198.51.100.0/24");
    fs::write(&path, elsewhere).unwrap();
    stayed(&guest, rig, &migrate(&guest, rig, &[FULL]), "exact size is not known");
    assert!(log(rig).contains("no host that may be asked"), "{}", log(rig));
    fs::write(&path, text + &allowed).unwrap();
    arrived(&guest, rig, &migrate(&guest, rig, &[FULL]));
}

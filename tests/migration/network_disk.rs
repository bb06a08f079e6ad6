//! A guest of libvirt whose disk comes over NBD from `qcowtool serve`.

use std::process::{Child, Stdio};

use crate::trial::{REFUSED, binary, needs_migration};
use rig::{Guest, Host, Kind, Ran, Rig, wait_for};

/// `serve` on a host, until this value goes.
struct Server(Child);

impl Server {
    fn start(host: &Host, words: &[&str]) -> Self {
        let mut command = host.command(binary());
        command.args(["serve", "-q"]).args(words).stdout(Stdio::null());
        Self(command.spawn().expect("qcowtool starts"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn xml(name: &str, host: &str) -> String {
    let place = format!("<source protocol='nbd' name='disk.qcow2'><host {host}/></source>");
    let plain = rig::guest::xml(name, "none", &[rig::Disk::raw("/dev/null")]);
    plain
        .replace("type='file' device='disk'", "type='network' device='disk'")
        .replace("<source file='/dev/null'/>", &place)
}

#[test]
fn it_boots_writes_and_migrates_unless_only_its_own_host_reaches_the_server() {
    needs_migration!();
    let rig = Rig::shared();
    let guest = Guest::new(rig, "over-nbd");
    let (a, b) = (&rig.a, &rig.b);
    let (disk, template) = (guest.path("disk.qcow2"), guest.path("template.qcow2"));
    a.make_template(&template, &guest.template);
    a.make_overlay(&disk, &template);
    let define = |host: &str| {
        a.virsh(["undefine", &guest.name]);
        let file = guest.path("domain.xml");
        std::fs::write(a.outside(&file), xml(&guest.name, host)).unwrap();
        a.virsh(["define", &file]).ok();
    };
    let (to, shell) = (b.uri(), b.remote_shell());
    let tool = |verb: &str| {
        let mut command = a.command(binary());
        command.args([verb, &guest.name, "--to", &to, "-e", &shell, "--output", "json"]);
        Ran::of(verb, command.output().expect("qcowtool starts"))
    };
    let rows = |ran: &Ran| {
        let said: serde_json::Value = serde_json::from_str(&ran.stdout()).unwrap();
        (said["disks"][0]["row"].clone(), said["refusals"][0]["code"].clone())
    };

    // By a socket, which the other host does not have.
    let socket = guest.path("socket");
    let server = Server::start(a, &["--socket", &socket, &disk]);
    wait_for(30, "the socket", || a.has(&socket).then_some(()));
    a.run(["chmod", "666", &socket]).ok();
    define(&format!("transport='unix' socket='{socket}'"));
    guest.start(a);
    guest.goes_on(a);
    let ran = tool("plan");
    assert_eq!((ran.code(), rows(&ran).1), (Some(REFUSED), "D03".into()), "{ran}");
    assert_eq!(tool("migrate").code(), Some(REFUSED));
    a.virsh(["suspend", &guest.name]).ok();
    a.virsh(["destroy", &guest.name]).ok();
    drop(server);
    let before = a.check(&disk, &guest.template, Kind::Boot).unwrap();
    assert!(before > 100, "{before}");

    // By an address that both reach: nothing is copied, and the server stays where it is.
    let address = format!("{}:10809", a.address());
    let server = Server::start(a, &["--listen", &address, &disk]);
    define(&format!("name='{}' port='10809'", a.address()));
    wait_for(30, "a start", || a.virsh(["start", &guest.name]).succeeded().then_some(()));
    guest.wait_writes(a, before + 1);
    let ran = tool("plan");
    assert_eq!((ran.code(), rows(&ran).0), (Some(0), "D03".into()), "{ran}");
    tool("migrate").ok();
    assert_eq!((guest.state(a), guest.state(b).as_deref()), (None, Some("running")));
    guest.wait_writes(b, guest.writes(a) + 100);
    b.virsh(["suspend", &guest.name]).ok();
    let written = guest.writes(b);
    b.virsh(["destroy", &guest.name]).ok();
    drop(server);
    let found = a.check(&disk, &guest.template, Kind::Boot).unwrap();
    assert!(found >= written, "{found} writes are on the disk, and {written} were reported");
    a.qemu_img(["check", "-q", &disk]).ok();
}

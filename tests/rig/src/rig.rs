//! The hosts, which are two, or three where guests need a choice of where to go.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::host::{Host, outside, which};

/// Where a rig's directory is, and what its name begins with. Sockets have short names.
const PREFIX: &str = "qcowtool-rig.";

/// Hosts that A sees, and that see A. They end with this value or with the process that holds it, however
/// that ends.
#[derive(Debug)]
pub struct Rig {
    /// Where guests come from.
    pub a: Host,
    /// Where they go.
    pub b: Host,
    /// Another place to go to, which only A reaches.
    third: Option<Host>,
    directory: PathBuf,
    janitor: Child,
    _lock: File,
}

/// Says that a test is not run, in a line that the test harness does not swallow. With the environment
/// variable `CI` set that is a failure. Where the rig is switched off, whoever did that says so.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    if std::env::var_os("QCOWTOOL_RIG").is_some_and(|v| v == "off") {
        return;
    }
    let line = format!("SKIPPED: {test}: {why} (see make test-migration)\n");
    assert!(std::env::var_os("CI").is_none(), "{line}");
    // In one piece, and not through eprintln!, which the harness captures.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Why there can be no rig here; `None` if there can.
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(look_what_is_missing).clone()
}

fn look_what_is_missing() -> Option<String> {
    if std::env::var_os("QCOWTOOL_RIG").is_some_and(|v| v == "off") {
        return Some("QCOWTOOL_RIG=off".into());
    }
    let programs = [
        "unshare",
        "nsenter",
        "setpriv",
        "ip",
        "libvirtd",
        "virsh",
        "qemu-system-x86_64",
        "qemu-img",
        "qemu-io",
        "sshd",
        "ssh",
        "ssh-keygen",
        "losetup",
    ];
    if let Some(program) = programs.iter().find(|p| which(p).is_none()) {
        return Some(format!("there is no {program}"));
    }
    let namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--", "true"];
    let tried = outside("unshare").args(namespaces).output().expect("unshare starts");
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        return Some(format!("no namespaces can be made, which needs root ({said})"));
    }
    None
}

impl Rig {
    /// Starts two hosts.
    pub fn up() -> Self {
        Self::of(None)
    }

    /// Starts three hosts: B and C each have a cable to A.
    pub fn up_with_third() -> Self {
        Self::of(Some('c'))
    }

    fn of(third: Option<char>) -> Self {
        sweep();
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap().keep();
        let lock = File::create(directory.join("lock")).unwrap();
        lock.lock().unwrap();
        // The janitor's input ends when we end, even if we are killed.
        let janitor = janitor(&directory).stdin(Stdio::piped()).spawn().expect("bash starts");
        let a = Host::new(&directory, 'a');
        let b = Host::new(&directory, 'b');
        let third = third.map(|letter| Host::new(&directory, letter));
        let rig = Self { a, b, third, directory, janitor, _lock: lock };
        let each = |start: fn(&Host)| {
            std::thread::scope(|scope| {
                for host in rig.all() {
                    scope.spawn(move || start(host));
                }
            });
        };
        each(Host::start);
        rig.join();
        each(Host::start_services);
        rig
    }

    /// Two hosts that all tests of one process share. Who harms a host takes his own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Rig> = OnceLock::new();
        SHARED.get_or_init(Self::up)
    }

    /// A and B.
    pub fn hosts(&self) -> [&Host; 2] {
        [&self.a, &self.b]
    }

    /// The third host of [`up_with_third`](Self::up_with_third).
    #[track_caller]
    pub fn c(&self) -> &Host {
        self.third.as_ref().expect("a rig of three hosts")
    }

    /// All hosts.
    pub fn all(&self) -> Vec<&Host> {
        self.hosts().into_iter().chain(&self.third).collect()
    }

    /// Where the rig keeps everything. It is the same directory in both hosts and outside.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a host that was [crashed](Host::crash): its storage is as it was, its guests are gone.
    pub fn revive(&self, host: &Host) {
        host.start();
        self.join();
        host.start_services();
    }

    /// Lays the cables between the hosts.
    fn join(&self) {
        self.cable("eth0", &self.b);
        ip(&self.a, &format!("addr add {}/24 dev eth0", self.a.address()));
        ip(&self.a, "link set eth0 up");
        if let Some(third) = &self.third {
            self.cable("eth1", third);
            // Of the same network as the other cable, so that this one gets what is for that host alone.
            ip(&self.a, &format!("addr add {}/32 dev eth1", self.a.address()));
            ip(&self.a, "link set eth1 up");
            ip(&self.a, &format!("route add {}/32 dev eth1", third.address()));
        }
    }

    /// A cable from A, where its end has this name, to another host.
    fn cable(&self, name: &str, to: &Host) {
        // The end of a cable to a host that died may linger for a moment.
        ip(&self.a, &format!("link del {name}"));
        ip(to, "link del eth0");
        let peer = to.pid();
        let made = ip(&self.a, &format!("link add {name} type veth peer name eth0 netns {peer}"));
        assert!(made.status.success(), "ip link: {}", String::from_utf8_lossy(&made.stderr));
        ip(to, &format!("addr add {}/24 dev eth0", to.address()));
        ip(to, "link set eth0 up");
    }
}

/// Sets up a host's network.
fn ip(host: &Host, words: &str) -> std::process::Output {
    let arguments = words.split(' ').map(Into::into).collect::<Vec<std::ffi::OsString>>();
    outside("nsenter")
        .args(["-t", &host.pid().to_string(), "-n", "ip"])
        .args(arguments)
        .output()
        .unwrap()
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
        for host in self.all() {
            host.reap();
        }
    }
}

fn janitor(directory: &Path) -> Command {
    let mut command = outside("bash");
    command
        .args(["-c", include_str!("janitor.sh"), "janitor.sh"])
        .arg(directory)
        .stdout(Stdio::null())
        .process_group(0); // Ctrl-C is not for the janitor
    command
}

/// Takes away what rigs left whose janitor was killed as well. A rig that lives holds its lock.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let directory = entry.path();
        let abandoned = match File::open(directory.join("lock")) {
            Ok(lock) => lock.try_lock().is_ok(),
            // It may be about to be locked.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let age = entry.metadata().and_then(|m| m.modified()).ok();
                age.and_then(|t| t.elapsed().ok()).is_some_and(|age| age.as_secs() > 60)
            }
            Err(_) => false,
        };
        if abandoned {
            let _ = janitor(&directory).stdin(Stdio::null()).status();
        }
    }
}

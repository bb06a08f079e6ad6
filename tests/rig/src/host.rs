//! One host.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use crate::disk::{Kind, Template};
use crate::wait_for;

/// Where each host has its local storage.
pub const IMAGES: &str = "/var/lib/libvirt/images";

/// Environment variable with the directory of another libvirt, which hosts then have in place of the machine's.
pub(crate) const OTHER_LIBVIRT: &str = "QCOWTOOL_RIG_LIBVIRT";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A host of a [`Rig`](crate::Rig).
#[derive(Debug)]
pub struct Host {
    /// `a`, `b` or `c`.
    letter: char,
    directory: PathBuf,
    process: Mutex<Option<Child>>,
}

/// A program to be run outside of all hosts.
pub(crate) fn outside(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{PATH}")).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Where a program is.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places = path.split(':').chain(PATH.split(':'));
    places.find_map(|p| Some(Path::new(p).join(program)).filter(|p| p.is_file()))
}

impl Host {
    pub(crate) fn new(rig: &Path, letter: char) -> Self {
        let host = Self::at(rig, letter);
        host.configure(rig);
        host
    }

    /// The host `a`, `b` or `c` of a rig that another process started.
    pub fn at(rig: &Path, letter: char) -> Self {
        Self { letter, directory: rig.join(letter.to_string()), process: Mutex::new(None) }
    }

    /// The host's name, which all hosts can resolve.
    pub fn name(&self) -> String {
        format!("host-{}", self.letter)
    }

    /// Its address.
    pub fn address(&self) -> &'static str {
        match self.letter {
            'a' => "192.0.2.1",
            'b' => "192.0.2.2",
            _ => "192.0.2.3",
        }
    }

    /// How the other host reaches its libvirtd.
    pub fn uri(&self) -> String {
        format!("qemu+tcp://{}/system", self.name())
    }

    /// A command line that runs words on this host, when it is called on the other one.
    pub fn remote_shell(&self) -> String {
        let rig = self.directory.parent().expect("a rig").display();
        format!(
            "ssh -q -F none -i {rig}/key -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 root@{}",
            self.name()
        )
    }

    fn configure(&self, rig: &Path) {
        for part in ["etc", "lib/images", "log/qemu", "cache"] {
            fs::create_dir_all(self.directory.join(part)).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(self.directory.join(name), text).unwrap();
        write(
            "hosts",
            "127.0.0.1 localhost\n192.0.2.1 host-a\n192.0.2.2 host-b\n192.0.2.3 host-c\n",
        );
        // Without PAM, sshd refuses an account whose password is locked.
        write("shadow", "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n");
        let uuid =
            format!("{0}{0}{0}{0}-0000-4000-8000-000000000000", self.letter.to_string().repeat(2));
        // Both hosts would otherwise read one UUID from the machine's firmware.
        write(
            "etc/libvirtd.conf",
            &format!(
                "host_uuid = \"{uuid}\"\nlisten_tls = 0\nlisten_tcp = 1\nlisten_addr = \"{}\"\n\
                 auth_tcp = \"none\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n\
                 keepalive_interval = 1\nkeepalive_count = 4\n\
                 log_outputs = \"3:file:/var/log/libvirt/libvirtd.log\"\n",
                self.address()
            ),
        );
        let user = if has_user("libvirt-qemu") { "libvirt-qemu" } else { "root" };
        let group = if user == "root" { "root" } else { "kvm" };
        write(
            "etc/qemu.conf",
            &format!(
                "user = \"{user}\"\ngroup = \"{group}\"\nsecurity_driver = \"none\"\nnamespaces = []\n\
                 cgroup_controllers = []\nseccomp_sandbox = 0\nremember_owner = 0\n\
                 keepalive_interval = 1\nkeepalive_count = 4\nstdio_handler = \"file\"\n"
            ),
        );
        let key = rig.join("key");
        if !key.exists() {
            let made = outside("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&key)
                .status();
            assert!(made.expect("ssh-keygen starts").success());
        }
        write(
            "etc/sshd_config",
            &format!(
                "ListenAddress {}\nHostKey {rig}/key\nAuthorizedKeysFile {rig}/key.pub\nStrictModes no\n\
                 UsePAM no\nPermitRootLogin prohibit-password\nPidFile none\nUseDNS no\n\
                 SetEnv PATH={}:{PATH} QCOWTOOL_STATE_DIR=/var/lib/libvirt/qcowtool\n",
                self.address(),
                program_directory().display(),
                rig = rig.display(),
            ),
        );
    }

    pub(crate) fn start(&self) {
        let mut process = self.process.lock().unwrap();
        let log = fs::File::create(self.directory.join("init.log")).unwrap();
        let mut child = outside("unshare")
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child=KILL"])
            .args([
                "--propagation",
                "private",
                "--",
                "bash",
                "-c",
                include_str!("host.sh"),
                "host.sh",
            ])
            .arg(&self.directory)
            .arg(self.name())
            .args(std::env::var_os(OTHER_LIBVIRT))
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0) // Ctrl-C is not for the host
            .spawn()
            .expect("unshare starts");
        let mut pid = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        if pid.is_empty() {
            let log = fs::read_to_string(self.directory.join("init.log")).unwrap_or_default();
            panic!("{} did not start: {log}", self.name());
        }
        fs::write(self.directory.join("pid"), pid).unwrap();
        *process = Some(child);
    }

    pub(crate) fn start_services(&self) {
        self.run(["/usr/sbin/sshd", "-f", "/etc/libvirt/sshd_config"]).ok();
        self.start_daemon();
    }

    /// The host's process 1 as a number that holds outside.
    pub fn pid(&self) -> u32 {
        let pid = fs::read_to_string(self.directory.join("pid")).expect("the host was started");
        pid.trim().parse().expect("a process number")
    }

    /// A program to be run in the host. It dies with what waits for it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = outside("nsenter");
        command
            .args(["-t", &self.pid().to_string(), "-m", "-u", "-i", "-n", "-p", "-r", "--"])
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .env("QCOWTOOL_STATE_DIR", "/var/lib/libvirt/qcowtool");
        command
    }

    /// Runs a program in the host.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        let words: Vec<_> = words.into_iter().map(|w| w.as_ref().to_owned()).collect();
        let shown: Vec<_> = words.iter().map(|w| w.to_string_lossy()).collect();
        let shown = format!("{}: {}", self.name(), shown.join(" "));
        let output = self.command(&words[0]).args(&words[1..]).output().expect("nsenter starts");
        Ran { shown, output }
    }

    /// Runs virsh, connected to the host's own libvirtd.
    pub fn virsh<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        let virsh = ["virsh", "-q", "-c", "qemu:///system"].map(Into::into);
        self.run(virsh.into_iter().chain(words.into_iter().map(|w| w.as_ref().to_owned())))
    }

    /// Runs qemu-img.
    pub fn qemu_img<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        let words = words.into_iter().map(|w| w.as_ref().to_owned());
        self.run(std::iter::once("qemu-img".into()).chain(words))
    }

    /// A path of the host as it is called outside.
    pub fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(path.as_ref().strip_prefix("/").expect("an absolute path"))
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        fs::symlink_metadata(self.outside(path)).is_ok()
    }

    /// Names in a directory, sorted; none if it does not exist.
    pub fn list(&self, directory: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.outside(directory)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Makes a bootable template, a QCOW2 image.
    pub fn make_template(&self, path: &str, template: &Template) {
        let raw = format!("{path}.making");
        template.write(&self.outside(&raw));
        self.qemu_img(["convert", "-f", "raw", "-O", "qcow2", &raw, path]).ok();
        fs::remove_file(self.outside(&raw)).unwrap();
    }

    /// Makes an empty overlay on a QCOW2 image.
    pub fn make_overlay(&self, path: &str, base: &str) {
        self.qemu_img(["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path]).ok();
    }

    /// Checks every sector of a disk, whose guest is paused or shut off, and returns the number of the last
    /// write on it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, path: &str, template: &Template, kind: Kind) -> Result<u32, String> {
        let raw = self.raw_copy(path);
        template.check(raw.path(), kind)
    }

    /// What a disk holds, whose guest is paused or shut off, as a raw image.
    pub fn raw_copy(&self, path: &str) -> tempfile::NamedTempFile {
        let rig = self.directory.parent().expect("a rig");
        let raw = tempfile::Builder::new().prefix("raw.").tempfile_in(rig).unwrap();
        let info = self.qemu_img(["info", "-U", "--output=json", path]).ok();
        let format = if info.contains("\"format\": \"qcow2\"") { "qcow2" } else { "raw" };
        let target = raw.path().to_str().unwrap();
        self.qemu_img(["convert", "-U", "-f", format, "-O", "raw", path, target]).ok();
        raw
    }

    /// Defines and starts a storage pool over a directory.
    pub fn pool(&self, name: &str, directory: &str) {
        self.virsh(["pool-define-as", name, "dir", "--target", directory]).ok();
        self.virsh(["pool-start", name]).ok();
    }

    /// Puts a small file system at `directory`.
    pub fn small_file_system(&self, directory: &str, mebibytes: u32) {
        fs::create_dir_all(self.outside(directory)).unwrap();
        let options = format!("size={mebibytes}m,mode=711");
        self.run(["mount", "-t", "tmpfs", "-o", &options, "tmpfs", directory]).ok();
    }

    /// Makes a block device of a file of this size, and returns its path in the host; `None` if this
    /// machine has no loop devices.
    pub fn block_device(&self, name: &str, bytes: u64) -> Option<String> {
        let file = self.directory.join("lib").join(format!("{name}.device"));
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let made = outside("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let number = device.strip_prefix("/dev/loop")?.to_owned();
        self.run(["mknod", "-m", "660", &device, "b", "7", &number]).succeeded().then_some(device)
    }

    /// Cuts the cable, or mends it.
    pub fn link(&self, up: bool) {
        self.run(["ip", "link", "set", "eth0", if up { "up" } else { "down" }]).ok();
    }

    /// Starts libvirtd and waits until it answers.
    pub fn start_daemon(&self) {
        self.run([
            "env",
            "-i",
            "LC_ALL=C",
            &format!("PATH={PATH}"),
            "libvirtd",
            "--daemon",
            "--listen",
            "--pid-file",
            "/run/libvirt/libvirtd.pid",
            "--config",
            "/etc/libvirt/libvirtd.conf",
        ])
        .ok();
        wait_for(30, "answer from libvirtd", || self.virsh(["version"]).succeeded().then_some(()));
    }

    /// Kills libvirtd, as a crash does; guests go on.
    pub fn stop_daemon(&self) {
        let pid = self.run(["cat", "/run/libvirt/libvirtd.pid"]).ok();
        self.run(["kill", "-KILL", pid.trim()]).ok();
        let process = format!("/proc/{}", pid.trim());
        wait_for(20, "end of libvirtd", || (!self.has(&process)).then_some(()));
    }

    /// Kills everything in the host at once, as a power cut does. Its storage stays.
    pub fn crash(&self) {
        let pid = self.pid().to_string();
        outside("kill").args(["-KILL", &pid]).status().unwrap();
        self.reap();
    }

    pub(crate) fn reap(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            let _ = child.wait();
        }
    }

    /// libvirtd's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log/libvirtd.log")).unwrap_or_default()
    }

    /// A file of the host's `/var/log/libvirt/qemu`.
    pub(crate) fn qemu_log(&self, name: &str) -> PathBuf {
        self.directory.join("log/qemu").join(name)
    }
}

/// Where programs under test are: beside the running one, or above a test.
fn program_directory() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let directory = own.parent().expect("a directory");
    match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().expect("a directory").into(),
        _ => directory.into(),
    }
}

fn has_user(name: &str) -> bool {
    outside("id").arg(name).output().is_ok_and(|o| o.status.success())
}

/// A program that has run.
#[derive(Debug)]
pub struct Ran {
    shown: String,
    output: Output,
}

impl Ran {
    /// What a program that was started in another way did.
    pub fn of(shown: impl Into<String>, output: Output) -> Self {
        Self { shown: shown.into(), output }
    }

    /// It ended well.
    pub fn succeeded(&self) -> bool {
        self.output.status.success()
    }

    /// Its exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// What it printed.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it complained about.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Asserts that it ended well; returns what it printed.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert!(self.succeeded(), "{self}");
        self.stdout()
    }

    /// Asserts that it failed and complained in these words.
    #[track_caller]
    pub fn fails_with(&self, words: &str) {
        assert!(!self.succeeded(), "succeeded: {self}");
        assert!(self.stderr().contains(words), "no '{words}': {self}");
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.output.status;
        write!(f, "{}: {status}\n{}{}", self.shown, self.stdout(), self.stderr())
    }
}

//! The sandbox: commands do in it what they do without it, and what was given up is gone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::TcpStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use common::{binary, command, qcowtool, qcowtool_in};
use fixtures::loops::skipped;
use fixtures::pattern::{mixed, write_raw};
use fixtures::{Scratch, args, needs_qemu, qemu, qemu_img, qemu_io};
use qcowtool::sandbox::{Mode, Plan, Sandbox};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Whether this kernel has what `--sandbox on` asks for.
fn offered() -> bool {
    let scratch = Scratch::new();
    let run = qcowtool(args!["create", "--sandbox", "on", scratch.path("x"), "1M"]);
    let offered = run.succeeded();
    if !offered {
        skipped(&run.stderr());
    }
    offered
}

/// A directory with images of every kind.
fn images() -> Scratch {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name);
    write_raw(path("base.raw"), 8 << 20, &[(4096, &mixed(1, 1 << 20)), (5 << 20, &[7; 70_000])]);
    // By relative names, so that a copy of the directory stands alone.
    let create = |words: &str| {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).args(words.split(' '));
        assert!(create.current_dir(path(".")).status().unwrap().success(), "{words}");
    };
    create("-b base.raw -F raw middle.qcow2");
    qemu_io("qcow2", path("middle.qcow2"), &["write -P 3 1M 200k", "write -z 5M 64k"]);
    qemu_img(&args!["snapshot", "-c", "before", path("middle.qcow2")]);
    create("-b middle.qcow2 -F qcow2 -o cluster_size=4k top.qcow2");
    qemu_io("qcow2", path("top.qcow2"), &["write -P 9 2M 300k"]);
    qemu_img(&args!["convert", "-c", "-O", "qcow2", path("top.qcow2"), path("packed.qcow2")]);
    let outside = ["-o", "data_file=outside.data", "top.qcow2", "outside.qcow2"];
    qcowtool_in(
        &path("."),
        [args!["flatten", "--sandbox", "off"], outside.map(Into::into).to_vec()].concat(),
    )
    .ok();
    // A cluster that is taken and not used.
    qemu::create(path("leaky.qcow2"), "", "4M");
    let mut leaky = fixtures::Patch::open(path("leaky.qcow2"));
    let len = leaky.append(&[0; 65536]);
    leaky.set_u16(0x20000 + 2 * (len >> 16), 1).save();
    std::os::unix::fs::symlink("top.qcow2", path("link.qcow2")).unwrap();
    scratch
}

fn copied(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status();
    assert!(status.unwrap().success());
}

/// Every command and every family of options. What is made by one can be read by those after it.
const COMMANDS: &[&str] = &[
    "info top.qcow2",
    "info --output json outside.qcow2",
    "info middle.qcow2",
    "info --snapshot before middle.qcow2",
    "info -b --output json top.qcow2",
    "info -b --allow-dir . link.qcow2",
    "info --untrusted -f qcow2 packed.qcow2",
    "info --untrusted -f qcow2 top.qcow2",
    "info -f raw base.raw",
    "info missing.qcow2",
    "info .",
    "info file:top.qcow2",
    "info json:{\"driver\":\"qcow2\",\"file\":{\"filename\":\"top.qcow2\"}}",
    "map -v top.qcow2",
    "map --output json --allow-dir . top.qcow2",
    "map --allow-dir / top.qcow2",
    "map --allow-dir /usr top.qcow2",
    "map --picture top.svg top.qcow2",
    "map --force --picture top.svg middle.qcow2",
    "map --snapshot before middle.qcow2",
    "measure --size 1G",
    "measure -O qcow2 top.qcow2",
    "measure -O qcow2 --exact -c --threads 3 top.qcow2",
    "measure -O qcow2 -o help",
    "compare top.qcow2 packed.qcow2",
    "compare --strict --all --output json middle.qcow2 top.qcow2",
    "compare -F raw --threads 2 outside.qcow2 outside.data",
    "compare top.qcow2 missing.qcow2",
    "checksum top.qcow2",
    "checksum --threads 1 --snapshot before middle.qcow2",
    "checksum --algorithm sha256 outside.qcow2",
    "checksum --algorithm blake3-tree --untrusted -f qcow2 --allow-dir . top.qcow2",
    "checksum --manifest disk.manifest top.qcow2",
    "checksum --manifest disk.manifest top.qcow2",
    "checksum --manifest disk.manifest --force top.qcow2",
    "checksum --verify disk.manifest packed.qcow2",
    "checksum --verify disk.manifest middle.qcow2",
    "checksum --cached disk.manifest top.qcow2",
    "check top.qcow2",
    "check --output json --threads 2 packed.qcow2",
    "check base.raw",
    "check leaky.qcow2",
    "check -r leaks --dry-run leaky.qcow2",
    "check -r all leaky.qcow2",
    "check leaky.qcow2",
    "create -f qcow2 new.qcow2 1G",
    "create -f qcow2 new.qcow2 1G",
    "create --force -f qcow2 -o preallocation=full new.qcow2 4M",
    "create -f qcow2 -o preallocation=falloc falloc.qcow2 4M",
    "create -f qcow2 -o data_file=sub/new.data,data_file_raw=on data.qcow2 4M",
    "create -f raw -o preallocation=full new.raw 3M",
    "create -f qcow2 -b top.qcow2 -F qcow2 over.qcow2",
    "create -f qcow2 -b missing.qcow2 -F qcow2 over2.qcow2",
    "create -f qcow2 -u -b missing.qcow2 -F qcow2 over2.qcow2 1M",
    "create -f qcow2 -b sub/../top.qcow2 -F qcow2 --allow-dir /usr over3.qcow2",
    "create --like top.qcow2 like.qcow2",
    "create -f qcow2 nowhere/new.qcow2 1G",
    "flatten top.qcow2 flat.qcow2",
    "flatten top.qcow2 flat.qcow2",
    "flatten --force top.qcow2 top.qcow2",
    "flatten --force link.qcow2 base.raw",
    "flatten --force -c --digest --output json --threads 4 top.qcow2 flat.qcow2",
    "flatten -c -o compression_type=zstd --compression-level 9 top.qcow2 sub/zstd.qcow2",
    "flatten --direct --no-reflink -v top.qcow2 direct.qcow2",
    "flatten -O raw -o preallocation=falloc outside.qcow2 flat.raw",
    "flatten -o data_file=flat.data top.qcow2 sub/data.qcow2",
    "flatten --snapshot before --untrusted -f qcow2 --allow-dir . middle.qcow2 old.qcow2",
    "flatten --untrusted -f qcow2 packed.qcow2 sub/packed.qcow2",
    "flatten -O raw --device top.qcow2 flat.raw",
    "flatten -O raw top.qcow2 -",
    "flatten -c top.qcow2 -",
    "flatten top.qcow2 nowhere/flat.qcow2",
    "flatten --force top.qcow2 sub",
];

/// What is in a directory, the manifests aside: they know which inode was read.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(content(&path).into_iter().map(|(k, v)| (Path::new("sub").join(k), v)));
        } else if path.extension().is_none_or(|extension| extension != "manifest") {
            all.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn every_command_does_the_same_in_the_sandbox() {
    needs_qemu!();
    if !offered() {
        return;
    }
    let scratch = images();
    let kept = Scratch::new();
    let dirs = ["on", "off"].map(|mode| {
        let dir = kept.path(mode);
        copied(&scratch.path("."), &dir);
        fs::create_dir(dir.join("sub")).unwrap();
        (mode, dir)
    });
    for line in COMMANDS {
        let [on, off] = dirs.each_ref().map(|(mode, dir)| {
            let words = line.split(' ').map(OsString::from).collect();
            let run = qcowtool_in(dir, [words, args!["--sandbox", mode]].concat());
            let at_home = |text: String| text.replace(&*dir.to_string_lossy(), "DIR");
            (run.code(), at_home(run.stdout()), at_home(run.stderr()))
        });
        assert_eq!(on, off, "{line}");
    }
    let [on, off] = dirs.each_ref().map(|(_, dir)| content(dir));
    assert_eq!(on.keys().collect::<Vec<_>>(), off.keys().collect::<Vec<_>>());
    for (name, bytes) in &on {
        assert!(*bytes == off[name], "{}", name.display());
    }
    let made =
        ["flat.qcow2", "sub/zstd.qcow2", "sub/data.qcow2", "old.qcow2", "over.qcow2", "top.svg"];
    assert!(made.iter().all(|name| on.contains_key(Path::new(name))), "{:?}", on.keys());
}

/// What a child of a test is to try, and where.
const PROBE: &str = "SANDBOX_PROBE";

/// What is tried, by the names of a case; whether it is tried when all is open, or in which mode.
#[derive(Clone, Copy)]
enum Stage {
    Without,
    Before,
    After,
}

/// How a child ended that tried something.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    Refused,
    Unknown,
    Killed,
    Other(String),
}

impl End {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(40), _) => Self::Done,
            (Some(41), _) => Self::Refused,
            (Some(42), _) => Self::Unknown,
            (_, Some(libc::SIGSYS)) => Self::Killed,
            _ => Self::Other(status.to_string()),
        }
    }
}

/// A directory with an image, a place for the output, and somebody else's things.
fn house() -> Scratch {
    let scratch = Scratch::new();
    fs::write(scratch.path("image"), [1; 4096]).unwrap();
    fs::write(scratch.subdir("out").join("begun"), [2; 4096]).unwrap();
    fs::write(scratch.subdir("elsewhere").join("secret"), [3; 4096]).unwrap();
    scratch
}

/// Runs this test again, in a process of its own, to try `what` in `dir`.
fn tried(test: &str, stage: Stage, what: &str, dir: &Path) -> End {
    let stage = stage as u8;
    let mut child = Command::new(env::current_exe().unwrap());
    child.args([test, "--exact"]).env(PROBE, format!("{stage} {what}")).current_dir(dir);
    End::of(child.stdout(Stdio::null()).status().unwrap())
}

/// In that process: gives up what a command would, and tries it.
fn probe(attempt: fn(&str) -> io::Result<()>) {
    let Ok(words) = env::var(PROBE) else { return };
    let (stage, what) = words.split_once(' ').unwrap();
    let mode = if stage == "0" { Mode::Off } else { Mode::On };
    let plan = Plan::new().image(Path::new("image")).making(Path::new("out/target"));
    let sandbox = Sandbox::enter(mode, plan).unwrap();
    if stage == "2" {
        sandbox.all_is_open().unwrap();
    }
    let error = match attempt(what) {
        Ok(()) => process::exit(40),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EXDEV) => process::exit(41),
        Some(libc::ENOSYS) => process::exit(42),
        _ => panic!("{error}"),
    }
}

fn attempt_file(what: &str) -> io::Result<()> {
    match what.split_once(' ').unwrap() {
        ("read", path) => fs::read(path).map(drop),
        ("list", path) => fs::read_dir(path).map(drop),
        ("write", path) => fs::OpenOptions::new().write(true).open(path).map(drop),
        ("make", path) => fs::OpenOptions::new().write(true).create_new(true).open(path).map(drop),
        ("remove", path) => fs::remove_file(path),
        ("rename", path) => fs::rename("out/begun", path),
        ("thread-read", path) => {
            let path = path.to_owned();
            thread::spawn(move || fs::read(path).map(drop)).join().unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_the_plan_does_not_need_are_out_of_reach() {
    const TEST: &str = "sandbox::files_that_the_plan_does_not_need_are_out_of_reach";
    probe(attempt_file);
    if !offered() {
        return;
    }
    use End::{Done, Refused};
    for (what, before, after) in [
        ("read image", Done, Refused),
        ("write image", Refused, Refused),
        ("remove image", Refused, Refused),
        ("read elsewhere/secret", Refused, Refused),
        ("read /etc/passwd", Refused, Refused),
        ("read /proc/self/environ", Refused, Refused),
        ("thread-read elsewhere/secret", Refused, Refused),
        ("thread-read image", Done, Refused),
        ("list elsewhere", Refused, Refused),
        ("write elsewhere/secret", Refused, Refused),
        ("make elsewhere/new", Refused, Refused),
        ("remove elsewhere/secret", Refused, Refused),
        ("rename elsewhere/new", Refused, Refused),
        ("make out/new", Done, Refused),
        ("read out/begun", Done, Refused),
        ("write out/begun", Done, Refused),
        ("rename out/target", Done, Done),
        ("remove out/begun", Done, Done),
    ] {
        let end = |stage| tried(TEST, stage, what, &house().path("."));
        assert_eq!(end(Stage::Without), Done, "{what}, without");
        assert_eq!(end(Stage::Before), before, "{what}, before all is open");
        assert_eq!(end(Stage::After), after, "{what}, when all is open");
    }
}

/// A system call with arguments that mean nothing: what counts is whether it gets anywhere.
#[expect(unsafe_code, reason = "no safe function makes these calls")]
fn raw(number: libc::c_long, arguments: [libc::c_long; 6]) -> io::Result<()> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: what is called is refused, fails for want of sensible arguments, or maps fresh memory.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn attempt_call(what: &str) -> io::Result<()> {
    let nothing = [-1; 6];
    match what {
        "exec" => Command::new("/bin/true").status().map(drop),
        "exec in place" => Err(Command::new("/bin/true").exec()),
        "connect" => TcpStream::connect("127.0.0.1:9").map(drop),
        "unix socket" => std::os::unix::net::UnixStream::pair().map(drop),
        "ptrace" => raw(libc::SYS_ptrace, nothing),
        "read another process" => raw(libc::SYS_process_vm_readv, nothing),
        "kill" => raw(libc::SYS_kill, [i64::from(i32::MAX), 0, 0, 0, 0, 0]),
        "mount" => raw(libc::SYS_mount, [0; 6]),
        "unshare" => raw(libc::SYS_unshare, nothing),
        "bpf" => raw(libc::SYS_bpf, nothing),
        "io_uring" => raw(libc::SYS_io_uring_setup, [0; 6]),
        "setuid" => raw(libc::SYS_setresuid, nothing),
        "module" => raw(libc::SYS_init_module, nothing),
        "make a directory" => fs::create_dir("out/new"),
        "a call of the future" => raw(1000, nothing),
        "executable memory" => {
            let (any, len) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 4096);
            let rights = libc::PROT_READ | libc::PROT_EXEC;
            raw(libc::SYS_mmap, [0, len, rights.into(), any.into(), -1, 0])
        }
        "thread" => thread::spawn(|| ()).join().map_err(|_| io::Error::other("it died")),
        "yield" => raw(libc::SYS_sched_yield, [0; 6]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn system_calls_that_no_command_makes_end_the_process_or_do_not_exist() {
    const TEST: &str =
        "sandbox::system_calls_that_no_command_makes_end_the_process_or_do_not_exist";
    probe(attempt_call);
    if !offered() {
        return;
    }
    use End::{Done, Killed, Refused, Unknown};
    for (what, expected) in [
        ("exec", Killed),
        ("exec in place", Killed),
        ("connect", Killed),
        ("unix socket", Killed),
        ("ptrace", Killed),
        ("read another process", Killed),
        ("kill", Killed),
        ("mount", Killed),
        ("unshare", Killed),
        ("bpf", Killed),
        ("io_uring", Killed),
        ("setuid", Killed),
        ("module", Killed),
        ("make a directory", Unknown),
        ("a call of the future", Unknown),
        ("executable memory", Refused),
        ("thread", Done),
        ("yield", Done),
    ] {
        let end = |stage| tried(TEST, stage, what, &house().path("."));
        assert_eq!(end(Stage::Before), expected, "{what}, before all is open");
        assert_eq!(end(Stage::After), expected, "{what}, when all is open");
    }
    // It is the sandbox that does it.
    for what in ["exec", "unix socket", "make a directory", "executable memory"] {
        assert_eq!(tried(TEST, Stage::Without, what, &house().path(".")), Done, "{what}");
    }
}

/// A flatten that waits for its input, begun so far that its output is there.
fn waiting(options: &[&str], out: &Path) -> Child {
    let mut arguments = args!["flatten", "-q", "--size", "1M", "--threads", "2"];
    arguments.extend(options.iter().map(Into::into));
    arguments.extend(args!["-", out.join("disk.qcow2")]);
    let mut child = command(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while fs::read_dir(out).unwrap().count() == 0 || tasks(&child).len() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "ended before it began");
        assert!(begun.elapsed() < Duration::from_secs(60), "never began");
        thread::sleep(Duration::from_millis(1));
    }
    child
}

/// What the kernel says about each thread of a process.
fn tasks(child: &Child) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok()).collect()
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn the_sandbox_is_on_unasked_in_every_thread_of_a_running_flatten() {
    if !offered() {
        return;
    }
    let ours = fs::read_to_string("/proc/self/status").unwrap();
    for (options, seccomp, privileges, core) in [
        (&[][..], "2".to_owned(), "1".to_owned(), Some("1")),
        (&["--sandbox", "off"], field(&ours, "Seccomp"), field(&ours, "NoNewPrivs"), None),
    ] {
        let scratch = Scratch::new();
        let mut child = waiting(options, &scratch.subdir("out"));
        let threads = tasks(&child);
        assert!(threads.len() >= 3, "{threads:?}");
        for status in threads {
            assert_eq!(field(&status, "Seccomp"), seccomp, "{options:?}: {status}");
            assert_eq!(field(&status, "NoNewPrivs"), privileges, "{options:?}: {status}");
        }
        let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        if let Some(core) = core {
            let words: Vec<_> = line.split_whitespace().collect();
            assert_eq!(words[4..6], [core, core], "{line}");
        }
        // It is well, and ends as ever when its input is too short.
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(fs::read_dir(scratch.path("out")).unwrap().count(), 0);
    }
}

/// Makes a kernel without these system calls of this process, and runs the binary on it.
fn on_an_old_kernel(calls: &[libc::c_long], arguments: &[OsString]) -> ! {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let arch = if cfg!(target_arch = "x86_64") { TargetArch::x86_64 } else { TargetArch::aarch64 };
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    panic!("{}", Command::new(binary()).args(arguments).exec());
}

#[test]
fn where_the_kernel_cannot_who_insists_is_refused_and_who_does_not_is_served() {
    const TEST: &str =
        "sandbox::where_the_kernel_cannot_who_insists_is_refused_and_who_does_not_is_served";
    if let Ok(words) = env::var(PROBE) {
        let (missing, mode) = words.split_once(' ').unwrap();
        let calls = match missing {
            "landlock" => &[libc::SYS_landlock_create_ruleset],
            _ => &[libc::SYS_seccomp],
        };
        on_an_old_kernel(calls, &args!["create", "--sandbox", mode, "new.raw", "1M"]);
    }
    if !offered() {
        return;
    }
    for (missing, words) in [
        ("landlock", "file access cannot be restricted"),
        ("seccomp", "system calls cannot be filtered"),
    ] {
        for mode in ["auto", "on"] {
            let scratch = Scratch::new();
            let mut child = Command::new(env::current_exe().unwrap());
            child.args([TEST, "--exact", "--nocapture"]).env(PROBE, format!("{missing} {mode}"));
            let output = child.current_dir(scratch.path(".")).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if mode == "auto" {
                assert!(output.status.success(), "{missing}: {said}");
                assert_eq!(scratch.names(), ["new.raw"]);
            } else {
                assert_eq!(output.status.code(), Some(1), "{missing}: {said}");
                assert!(said.contains(words) && said.contains("--sandbox auto"), "{said}");
                assert_eq!(scratch.names(), [""; 0]);
            }
        }
    }
}

#[test]
fn a_guest_that_runs_is_reached_through_others_so_there_is_no_sandbox_to_ask_for() {
    let run = qcowtool(args!["flatten", "--live", "--sandbox", "on", "guest", "vda"]);
    run.refused_naming(&["--live", "--sandbox"]);
}

//! Runs the binary call by call: counts its system calls on our files, makes any of them fail, come back
//! short or be its last, and writes down what it wrote.
//!
//! strace can inject faults too, but counts calls for each thread by itself, so that "the third write" is
//! another one in each, and cannot make a call short. Here calls are counted in the order in which they
//! happen, whoever makes them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Seek as _;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Which arguments of a call say what file it is about.
#[derive(Debug, Clone, Copy)]
enum Subject {
    /// A descriptor.
    Fd(usize),
    /// A directory and a name in it; the descriptor alone if the name is empty.
    At(usize, usize),
    /// A name.
    Name(usize),
    /// Memory, or the like: of no file.
    Memory,
}

use Subject::{At, Fd, Memory, Name};

/// The type that a file system on another machine has, NFS.
const REMOTE: i64 = 0x6969;

/// What is looked at, by number: name, and what it is about.
const CALLS: [(c_long, &str, Subject); 55] = [
    (libc::SYS_read, "read", Fd(0)),
    (libc::SYS_write, "write", Fd(0)),
    (libc::SYS_readv, "readv", Fd(0)),
    (libc::SYS_writev, "writev", Fd(0)),
    (libc::SYS_pread64, "pread64", Fd(0)),
    (libc::SYS_pwrite64, "pwrite64", Fd(0)),
    (libc::SYS_preadv, "preadv", Fd(0)),
    (libc::SYS_pwritev, "pwritev", Fd(0)),
    (libc::SYS_preadv2, "preadv2", Fd(0)),
    (libc::SYS_pwritev2, "pwritev2", Fd(0)),
    (libc::SYS_copy_file_range, "copy_file_range", Fd(2)),
    (libc::SYS_sendfile, "sendfile", Fd(0)),
    (libc::SYS_ioctl, "ioctl", Fd(0)),
    (libc::SYS_fcntl, "fcntl", Fd(0)),
    (libc::SYS_poll, "poll", Memory),
    (libc::SYS_lseek, "lseek", Fd(0)),
    (libc::SYS_fstat, "fstat", Fd(0)),
    (libc::SYS_stat, "stat", Name(0)),
    (libc::SYS_lstat, "lstat", Name(0)),
    (libc::SYS_newfstatat, "newfstatat", At(0, 1)),
    (libc::SYS_statx, "statx", At(0, 1)),
    (libc::SYS_fstatfs, "fstatfs", Fd(0)),
    (libc::SYS_getdents64, "getdents64", Fd(0)),
    (libc::SYS_readlink, "readlink", Name(0)),
    (libc::SYS_readlinkat, "readlinkat", At(0, 1)),
    (libc::SYS_access, "access", Name(0)),
    (libc::SYS_faccessat2, "faccessat2", At(0, 1)),
    (libc::SYS_open, "open", Name(0)),
    (libc::SYS_openat, "openat", At(0, 1)),
    (libc::SYS_openat2, "openat2", At(0, 1)),
    (libc::SYS_ftruncate, "ftruncate", Fd(0)),
    (libc::SYS_fallocate, "fallocate", Fd(0)),
    (libc::SYS_fchmod, "fchmod", Fd(0)),
    (libc::SYS_fchown, "fchown", Fd(0)),
    (libc::SYS_flistxattr, "flistxattr", Fd(0)),
    (libc::SYS_fgetxattr, "fgetxattr", Fd(0)),
    (libc::SYS_fsetxattr, "fsetxattr", Fd(0)),
    (libc::SYS_fremovexattr, "fremovexattr", Fd(0)),
    (libc::SYS_flock, "flock", Fd(0)),
    (libc::SYS_fsync, "fsync", Fd(0)),
    (libc::SYS_fdatasync, "fdatasync", Fd(0)),
    (libc::SYS_mkdir, "mkdir", Name(0)),
    (libc::SYS_mkdirat, "mkdirat", At(0, 1)),
    (libc::SYS_rmdir, "rmdir", Name(0)),
    (libc::SYS_rename, "rename", Name(0)),
    (libc::SYS_renameat, "renameat", At(0, 1)),
    (libc::SYS_renameat2, "renameat2", At(0, 1)),
    (libc::SYS_linkat, "linkat", At(0, 1)),
    (libc::SYS_unlink, "unlink", Name(0)),
    (libc::SYS_unlinkat, "unlinkat", At(0, 1)),
    (libc::SYS_getcwd, "getcwd", Memory),
    (libc::SYS_mmap, "mmap", Memory),
    (libc::SYS_mremap, "mremap", Memory),
    (libc::SYS_brk, "brk", Memory),
    (libc::SYS_clone3, "clone3", Memory),
];

/// One call that the binary made.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    /// The file that it is about; empty for memory.
    pub(crate) path: PathBuf,
    /// The other name, of a rename or a link.
    pub(crate) to: PathBuf,
    /// How many calls of its name came before.
    pub(crate) nth: usize,
    pub(crate) arguments: [u64; 6],
    /// What was to be written, if calls are recorded.
    pub(crate) data: Vec<u8>,
    pub(crate) result: i64,
}

impl Call {
    /// Whether it brings or takes bytes, as many as its third argument says.
    pub(crate) fn moves_bytes(&self) -> bool {
        ["read", "write", "pread64", "pwrite64"].contains(&self.name)
    }

    pub(crate) fn is_on_a_stream(&self) -> bool {
        ["read", "write", "ioctl", "poll"].contains(&self.name) && self.arguments[0] < 3
    }

    /// Whether it is about the file of this name.
    pub(crate) fn is_on(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Whether it changes a file or a directory.
    pub(crate) fn changes_files(&self) -> bool {
        let changing = ["ftruncate", "fallocate", "copy_file_range", "linkat"];
        let removes = ["unlink", "unlinkat", "rmdir"].contains(&self.name);
        let creates = self.name == "openat" && self.arguments[2] as i32 & libc::O_CREAT != 0;
        let names = ["rename", "mkdir"].iter().any(|verb| self.name.starts_with(verb));
        creates || removes || names || self.writes() || changing.contains(&self.name)
    }

    fn writes(&self) -> bool {
        ["write", "pwrite64"].contains(&self.name)
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It does not happen and fails with this.
    Fails(Errno),
    /// It moves half of the bytes only.
    Short,
    /// The process is killed instead.
    Killed,
    /// Something else happens just before it.
    Meanwhile,
    /// The process is asked to stop just before it, by this signal.
    Signalled(Signal),
}

/// When the process is to be disturbed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disturbance {
    None,
    /// At the call of this name with this number (from 0) of those of its name that are looked at.
    AtCall(&'static str, usize, Fate),
    /// From that call on all calls on files fail, as if the disk were gone; but those on the standard streams.
    GoneFrom(&'static str, usize),
    /// Killed at the call with this number of all, whatever it is.
    KilledAtAny(usize),
    /// Each call that one of these is about fails, as on a file system that cannot do it.
    Cannot(&'static [Refusal]),
}

/// Calls that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) name: &'static str,
    pub(crate) on: On,
    pub(crate) errno: Errno,
}

/// Which calls of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    All,
    /// Those on a directory.
    Directories,
    /// Those on the file of this name.
    File(&'static str),
    /// Those whose argument with this index is this number.
    Argument(usize, u64),
    /// Those whose argument with this index has these bits.
    Bits(usize, u64),
}

impl Refusal {
    fn is_about(&self, call: &Call) -> bool {
        self.name == call.name
            && match self.on {
                On::All => true,
                On::Directories => call.path.is_dir(),
                On::File(name) => call.path.file_name().is_some_and(|file| file == name),
                On::Argument(index, value) => call.arguments[index] == value,
                On::Bits(index, bits) => call.arguments[index] & bits == bits,
            }
    }
}

/// Where a run takes place.
pub(crate) struct World<'w> {
    /// Calls on files in here are looked at.
    pub(crate) watched: &'w Path,
    /// And on this.
    pub(crate) device: Option<&'w Path>,
    /// All file systems say that they are on another machine.
    pub(crate) remote: bool,
    /// What happens at a call with [`Fate::Meanwhile`].
    pub(crate) meanwhile: &'w dyn Fn(),
}

impl<'w> World<'w> {
    pub(crate) fn of(watched: &'w Path) -> Self {
        Self { watched, device: None, remote: false, meanwhile: &|| () }
    }
}

/// How a run ended, and what it did.
#[derive(Debug)]
pub(crate) struct Traced {
    /// The exit code, or the signal that ended it.
    pub(crate) ended: Result<i32, Signal>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) calls: Vec<Call>,
    /// How many calls it made in all, from the first that is looked at on.
    pub(crate) all_calls: usize,
}

/// Whether this process may trace another one on this machine.
pub(crate) fn can_trace() -> bool {
    let dir = fixtures::Scratch::new();
    let mut command = Command::new("true");
    let traced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run(&mut command, &World::of(dir.dir()), Disturbance::None)
    }))
    .is_ok();
    if !traced {
        assert!(std::env::var_os("CI").is_none(), "this machine allows no tracing");
        fixtures::skipped("this machine allows no tracing");
    }
    traced
}

/// Runs a command to its end. Calls are looked at that are about files in a directory, pipes, and
/// standard output and error, which are files there too; memory, from the first of those on.
///
/// # Panics
/// When the process cannot be started or traced.
pub(crate) fn run(command: &mut Command, world: &World<'_>, disturbance: Disturbance) -> Traced {
    let stream = || tempfile::tempfile_in(world.watched).expect("a file for a stream");
    let (mut out, mut err) = (stream(), stream());
    command.stdout(out.try_clone().expect("a twin")).stderr(err.try_clone().expect("a twin"));
    traced_by_parent(command);
    #[expect(clippy::zombie_processes, reason = "it is waited for below, with all of its threads")]
    let child = command.spawn().expect("the binary starts");
    let main = Pid::from_raw(i32::try_from(child.id()).expect("a process's number"));
    let first = waitpid(main, Some(WaitPidFlag::__WALL)).expect("it stops when it is loaded");
    assert!(matches!(first, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{first:?}");
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(main, options).expect("it can be traced");
    let mut tracer = Tracer {
        main,
        memory: File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{main}/mem"))
            .expect("its memory"),
        world,
        disturbance,
        within: HashMap::new(),
        calls: Vec::new(),
        all: 0,
        gone: false,
    };
    ptrace::syscall(main, None).expect("it goes on");
    let ended = tracer.follow();
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().expect("a file");
        std::io::Read::read_to_end(file, &mut bytes).expect("what it printed");
        bytes
    };
    let (stdout, stderr) = (read(&mut out), String::from_utf8_lossy(&read(&mut err)).into_owned());
    Traced { ended, stdout, stderr, calls: tracer.calls, all_calls: tracer.all }
}

#[expect(unsafe_code, reason = "there is no other way to be traced from the first call on")]
fn traced_by_parent(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call and takes no memory.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
}

/// A call that has begun and not ended.
#[derive(Debug)]
struct Within {
    registers: user_regs_struct,
    /// Where it stands in the list, if it is looked at.
    number: Option<usize>,
    fate: Option<Fate>,
}

struct Tracer<'w> {
    main: Pid,
    memory: File,
    world: &'w World<'w>,
    disturbance: Disturbance,
    /// By thread.
    within: HashMap<i32, Option<Within>>,
    calls: Vec<Call>,
    all: usize,
    /// Whether the disk is.
    gone: bool,
}

impl Tracer<'_> {
    fn follow(&mut self) -> Result<i32, Signal> {
        // Children of this thread only: other tests trace from other threads.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(flags)) {
                Err(Errno::EINTR) => continue,
                status => status.expect("it is there"),
            };
            // A thread that was killed may be gone before it is told to go on.
            match status {
                WaitStatus::Exited(pid, code) if pid == self.main => return Ok(code),
                WaitStatus::Signaled(pid, signal, _) if pid == self.main => return Err(signal),
                WaitStatus::PtraceSyscall(pid) => {
                    match self.within.remove(&pid.as_raw()).flatten() {
                        None => self.enters(pid),
                        Some(within) => self.leaves(pid, within),
                    }
                    let _ = ptrace::syscall(pid, None);
                }
                // The first stop of a new thread.
                WaitStatus::Stopped(pid, Signal::SIGSTOP)
                    if !self.within.contains_key(&pid.as_raw()) && pid != self.main =>
                {
                    self.within.insert(pid.as_raw(), None);
                    let _ = ptrace::syscall(pid, None);
                }
                WaitStatus::Stopped(pid, signal) => drop(ptrace::syscall(pid, signal)),
                WaitStatus::PtraceEvent(pid, ..) => drop(ptrace::syscall(pid, None)),
                _ => {}
            }
        }
    }

    fn enters(&mut self, pid: Pid) {
        let Ok(registers) = ptrace::getregs(pid) else { return };
        let number = self.look_at(pid, &registers);
        self.all += usize::from(!self.calls.is_empty());
        let fate = match self.disturbance {
            Disturbance::AtCall(name, nth, fate) => number
                .and_then(|number| self.calls.get(number))
                .filter(|call| (call.name, call.nth) == (name, nth))
                .map(|_| fate),
            Disturbance::GoneFrom(name, nth) => number
                .and_then(|number| self.calls.get(number))
                .filter(|call| !call.path.as_os_str().is_empty() && !call.is_on_a_stream())
                .filter(|call| {
                    self.gone |= (call.name, call.nth) == (name, nth);
                    self.gone
                })
                .map(|_| Fate::Fails(Errno::EIO)),
            Disturbance::Cannot(refusals) => number
                .and_then(|number| self.calls.get(number))
                .and_then(|call| refusals.iter().find(|refusal| refusal.is_about(call)))
                .map(|refusal| Fate::Fails(refusal.errno)),
            Disturbance::KilledAtAny(at) if self.all == at && at > 0 => Some(Fate::Killed),
            _ => None,
        };
        let mut changed = registers;
        match fate {
            Some(Fate::Short) => changed.rdx = registers.rdx.div_ceil(2),
            Some(Fate::Fails(_) | Fate::Killed) => changed.orig_rax = u64::MAX,
            Some(Fate::Meanwhile) => (self.world.meanwhile)(),
            Some(Fate::Signalled(signal)) => drop(kill(self.main, signal)),
            None => {}
        }
        if fate.is_some() {
            let _ = ptrace::setregs(pid, changed);
        }
        if fate == Some(Fate::Killed) {
            let _ = kill(self.main, Signal::SIGKILL);
        }
        self.within.insert(pid.as_raw(), Some(Within { registers, number, fate }));
    }

    fn leaves(&mut self, pid: Pid, within: Within) {
        // The key stays: the thread is known.
        self.within.insert(pid.as_raw(), None);
        let Ok(mut registers) = ptrace::getregs(pid) else { return };
        match within.fate {
            Some(Fate::Fails(errno)) => registers.rax = (-i64::from(errno as i32)) as u64,
            // The kernel leaves it alone, and so the program expects what it put there.
            Some(Fate::Short) => registers.rdx = within.registers.rdx,
            _ => {}
        }
        if within.fate.is_some() {
            let _ = ptrace::setregs(pid, registers);
        }
        if let Some(call) = within.number.and_then(|number| self.calls.get_mut(number)) {
            call.result = registers.rax as i64;
            // The type is the first member of what the call fills.
            if self.world.remote && (call.name, call.result) == ("fstatfs", 0) {
                let kind = REMOTE.to_ne_bytes();
                self.memory.write_all_at(&kind, call.arguments[1]).expect("its memory");
            }
        }
    }

    /// The call's number, if it is one that is looked at.
    fn look_at(&mut self, pid: Pid, registers: &user_regs_struct) -> Option<usize> {
        let (_, name, subject) =
            CALLS.iter().find(|(number, ..)| *number as u64 == registers.orig_rax)?;
        let r = registers;
        let arguments = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
        let path = match *subject {
            Memory if self.calls.is_empty() => return None,
            Memory => PathBuf::new(),
            Fd(at) => self.descriptor(pid, arguments[at])?,
            Name(at) => self.name(pid, libc::AT_FDCWD as u64, arguments[at])?,
            At(dir, at) => self.name(pid, arguments[dir], arguments[at])?,
        };
        let pipe = path.to_string_lossy().starts_with("pipe:");
        let watched = path.starts_with(self.world.watched) || self.world.device == Some(&*path);
        if !matches!(subject, Memory) && !pipe && !watched {
            return None;
        }
        let to = match *name {
            "rename" => self.name(pid, libc::AT_FDCWD as u64, arguments[1])?,
            "renameat" | "renameat2" | "linkat" => self.name(pid, arguments[2], arguments[3])?,
            _ => PathBuf::new(),
        };
        let nth = self.calls.iter().filter(|call| call.name == *name).count();
        let mut call = Call { name, path, to, nth, arguments, data: Vec::new(), result: 0 };
        if call.writes() {
            call.data = self.bytes(arguments[1], arguments[2] as usize);
        }
        self.calls.push(call);
        Some(self.calls.len() - 1)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, address).expect("its memory");
        bytes
    }

    fn descriptor(&self, pid: Pid, fd: u64) -> Option<PathBuf> {
        let path = std::fs::read_link(format!("/proc/{pid}/fd/{}", fd as i32)).ok()?;
        // A file that has lost its name is still where it was.
        let text = path.to_string_lossy();
        Some(text.strip_suffix(" (deleted)").map_or(path.clone(), PathBuf::from))
    }

    fn name(&self, pid: Pid, dir: u64, address: u64) -> Option<PathBuf> {
        let mut text = Vec::new();
        let mut byte = [0];
        while address != 0
            && self.memory.read_at(&mut byte, address + text.len() as u64).ok()? == 1
            && byte != [0]
        {
            text.push(byte[0]);
        }
        let text = String::from_utf8(text).ok()?;
        let of_dir = || match dir as i32 {
            libc::AT_FDCWD => std::fs::read_link(format!("/proc/{pid}/cwd")).ok(),
            _ => self.descriptor(pid, dir),
        };
        if let Some(fd) = text.strip_prefix("/proc/self/fd/") {
            return self.descriptor(pid, fd.parse().ok()?);
        }
        if text.starts_with('/') {
            return Some(text.into());
        }
        let dir = of_dir()?;
        Some(if text.is_empty() || text == "." { dir } else { dir.join(text) })
    }
}

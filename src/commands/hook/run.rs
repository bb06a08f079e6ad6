//! One call of libvirt: standard input in, the edited XML or one line of refusal out.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use migrate::hook::annotation::Annotation;
use migrate::hook::{Call, Config, Hook, Paths, install};
use migrate::{CancelToken, Error, ErrorKind};
use qcow::Escaped;

use super::ask;
use crate::failure::Failure;
use crate::output::{eprint_line, print};

/// No XML of libvirt's is longer, in bytes.
const LONGEST_XML: u64 = 4 << 20;

/// After the deadline, a call that does not return by itself has this long to do so.
const GRACE: Duration = Duration::from_secs(15);

/// The exit code of a call that was cut off.
const CUT_OFF: i32 = 6;

/// What libvirt calls the hook with.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Directory of the hook's records; it must be empty after a boot
    #[arg(
        long,
        value_name = "DIR",
        env = "QCOWTOOL_HOOK_STATE",
        default_value = "/run/qcowtool/hook"
    )]
    state_dir: PathBuf,

    /// libvirt's directory of status XML
    #[arg(
        long,
        value_name = "DIR",
        env = "QCOWTOOL_HOOK_STATUS",
        default_value = "/run/libvirt/qemu"
    )]
    status_dir: PathBuf,

    /// The guest's name
    #[arg(value_name = "GUEST")]
    guest: String,

    /// What happens to the guest: 'migrate', 'started', 'stopped', 'release'
    #[arg(value_name = "OPERATION")]
    operation: String,

    /// 'begin' or 'end'
    #[arg(value_name = "SUB-OPERATION")]
    sub_operation: String,

    /// Why
    #[arg(value_name = "EXTRA", default_value = "-")]
    extra: String,
}

impl Run {
    /// Serves the call.
    pub(super) fn run(self, config: &Path) -> Result<(), Failure> {
        let call = Call {
            guest: self.guest,
            operation: self.operation,
            sub_operation: self.sub_operation,
            extra: self.extra,
        };
        let config = install::load(config);
        let (deadline, log) = match &config {
            Ok(config) => (config.deadline, config.log.clone()),
            Err(_) => (Config::default().deadline, Config::default().log),
        };
        let log = Log { path: log, call: &call };
        let cancel = CancelToken::new();
        limit(deadline, cancel.clone());
        let answer = text_of_input().and_then(|xml| {
            let write = |line: &str| log.write(line);
            let paths = Paths { state: self.state_dir, status: self.status_dir };
            let peers = config.as_ref().ok().and_then(|config| config.ask.clone());
            let question = peers.map(|peers| ask::Question { peers, deadline });
            let ask = |uuid: &str, targets: &[String]| match &question {
                Some(question) => question.put(uuid, targets),
                None => Ok(Annotation::default()),
            };
            let hook = Hook::new(config, paths, &write, cancel);
            let hook = if question.is_some() { hook.asking(&ask) } else { hook };
            hook.call(&call, &xml)
        });
        match answer {
            Ok(None) => Ok(()),
            Ok(Some(xml)) => print(xml),
            Err(error) => {
                let what = if error.kind() == ErrorKind::Refused { "refused" } else { "failed" };
                log.write(&format!("{what}: {error}"));
                // A guest that is started, stopped or released must not suffer from a fault of the hook.
                match call.operation.as_str() {
                    "migrate" | "started" => Err(error.into()),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// The XML on standard input.
fn text_of_input() -> Result<String, Error> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(LONGEST_XML.saturating_add(1))
        .read_to_string(&mut text)
        .map_err(|error| Error::io("could not read the XML on standard input", error))?;
    match u64::try_from(text.len()).unwrap_or(u64::MAX) > LONGEST_XML {
        true => Err(Error::new(ErrorKind::Limit, "the XML on standard input is too long")),
        false => Ok(text),
    }
}

/// Cancels the call at its deadline, and ends the process if that does not help: libvirt waits for a hook without limit.
fn limit(deadline: Duration, cancel: CancelToken) {
    let watch = move || {
        std::thread::sleep(deadline);
        cancel.cancel();
        std::thread::sleep(GRACE);
        eprint_line("qcowtool: no answer within the deadline of qcowtool hook");
        std::process::exit(CUT_OFF);
    };
    // Without a thread there is no limit, which is how hooks are anyway.
    let _ = std::thread::Builder::new().spawn(watch);
}

/// The hook's log: a line for each decision. That it cannot be written decides nothing.
struct Log<'a> {
    path: PathBuf,
    call: &'a Call,
}

impl Log<'_> {
    fn write(&self, what: &str) {
        let Call { guest, operation, sub_operation, .. } = self.call;
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let line = format!("{time} {guest} {operation} {sub_operation}: {what}");
        let line = format!("{}\n", Escaped(&line));
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprint_line(format_args!("qcowtool: {}: {error}", self.path.display()));
        }
    }
}

//! The files of another host: the same as those of this one, whatever the far end and the line between do.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::store_common::{Host, Stopper, bytes_of, noise, put, sparse, tree_hash};
use migrate::agent::serve;
use migrate::facts::Content;
use migrate::store::{LocalStore, Mode, RemoteStore, Store, Wanted};
use migrate::{ErrorKind, Remedy};
use proptest::prelude::*;
use qcow::chain::Format;
use qcow::{CancelToken, Observer, Silent};

/// The far end, when this file runs as a child of its own tests. Standard output belongs to the test
/// harness, so that the stream is descriptor 3. Otherwise nothing.
#[test]
fn far_end() {
    let Some(root) = std::env::var_os("FAR_ROOT") else { return };
    let store = LocalStore::new(Path::new(&root)).unwrap();
    let out = fs::OpenOptions::new().write(true).open("/dev/fd/3").unwrap();
    let input = File::open("/dev/fd/0").unwrap();
    serve(input, out, &store).unwrap();
}

/// Connects by pipes within this process. The line there is cut after `cut` bytes.
fn try_connect(far: &Host, cut: u64) -> migrate::Result<(RemoteStore, Line)> {
    let (from_near, to_line) = pipe().unwrap();
    let (from_line, to_far) = pipe().unwrap();
    let (from_far, to_near) = pipe().unwrap();
    let store = far.local();
    let far = std::thread::spawn(move || serve(from_line, to_near, &store));
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    std::thread::spawn(move || forward(from_near, to_far, cut, &count));
    let store = RemoteStore::over(from_far.into(), to_line.into())?;
    Ok((store, Line { sent, far }))
}

pub(crate) fn connect(far: &Host, cut: u64) -> (RemoteStore, Line) {
    try_connect(far, cut).unwrap()
}

pub(crate) struct Line {
    sent: Arc<AtomicU64>,
    pub(crate) far: JoinHandle<migrate::Result<()>>,
}

fn forward(mut from: PipeReader, mut to: PipeWriter, cut: u64, count: &AtomicU64) {
    let mut buffer = vec![0; 50_000];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let before = count.fetch_add(read as u64, Ordering::SeqCst);
        let most = cut.saturating_sub(before).min(read as u64) as usize;
        if to.write_all(&buffer[..most]).is_err() || most < read {
            break;
        }
    }
}

pub(crate) const WHOLE: u64 = u64::MAX;

#[test]
fn the_far_end_does_what_the_near_end_would_do() {
    let far = Host::new();
    let (remote, line) = connect(&far, WHOLE);
    let local = far.local();
    let data = [(0, noise(1, 70_000)), (30 << 20, noise(2, 3 << 20))];
    let content = sparse(64 << 20, &data);
    let (path, cancel) = (Path::new("/images/disk"), CancelToken::new());
    let made = remote.put(path, &content, Mode::ReadOnly, &Silent, &cancel).unwrap();
    assert!(fs::read(far.real("/images/disk")).unwrap() == bytes_of(&content));
    let status = fs::metadata(far.real("/images/disk")).unwrap();
    assert_eq!(status.mode() & 0o7777, 0o444);
    assert!(status.blocks() * 512 < 8 << 20, "holes stay holes");
    assert!(line.sent.load(Ordering::SeqCst) < 8 << 20, "holes do not travel");
    assert_eq!(far.names(), ["disk"]);

    assert_eq!(remote.look(path).unwrap(), local.look(path).unwrap());
    assert_eq!(remote.look(path).unwrap().unwrap().identity, made);
    assert_eq!(remote.look(Path::new("/images/none")).unwrap(), None);
    let directory = Path::new("/images");
    assert_eq!(remote.list(directory, 10).unwrap(), local.list(directory, 10).unwrap());
    assert!(remote.available(directory).unwrap() > 0);
    let format = Some(Format::Raw);
    assert_eq!(remote.chain(path, format).unwrap(), local.chain(path, format).unwrap());
    let copy = remote.fetch(path, 64 << 20).unwrap();
    assert!(bytes_of(&copy) == bytes_of(&content));

    let compare = |store: &dyn Store, digest: &str| {
        let (wanted, cancel) = (Wanted::new(digest), CancelToken::new());
        store.same_content(path, Format::Raw, &wanted, &Silent, &cancel).unwrap()
    };
    assert_eq!(compare(&remote, &"0".repeat(64)), Content::Different);
    let digest = tree_hash(&far.real("/images/disk"));
    assert_eq!(compare(&remote, &digest), Content::Equal { digest: digest.clone() });

    assert!(remote.remove(path, &made).unwrap());
    assert!(!remote.remove(path, &made).unwrap());
    drop(remote);
    line.far.join().unwrap().unwrap();
}

#[test]
fn errors_of_the_far_end_arrive_and_the_connection_goes_on() {
    let far = Host::new();
    let (remote, _line) = connect(&far, WHOLE);
    fs::write(far.real("/images/disk"), "theirs").unwrap();
    let content = sparse(4096, &[]);
    let error = put(&remote, "/images/disk", &content).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.what_next().is_some());
    let error = remote.fetch(Path::new("/images/disk"), 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let error = remote.fetch(Path::new("/images/none"), 3).unwrap_err();
    assert!(error.to_string().contains("/images/none"), "{error}");
    remote.look(Path::new("relative")).unwrap_err();
    assert_eq!(fs::read(far.real("/images/disk")).unwrap(), b"theirs");
    put(&remote, "/images/other", &content).unwrap();
}

#[test]
fn files_of_all_lengths_arrive() {
    let far = Host::new();
    let (remote, _line) = connect(&far, WHOLE);
    let piece = 1 << 20;
    for len in [0, 1, 511, 4096, piece - 1, piece, piece + 1, 3 * piece + 5] {
        let content = sparse(len, &[(0, noise(len, len as usize))]);
        for (store, path) in
            [(&remote as &dyn Store, "/images/far"), (&far.local(), "/images/near")]
        {
            let made = put(store, path, &content).unwrap();
            assert!(fs::read(far.real(path)).unwrap() == bytes_of(&content), "{len} {path}");
            assert_eq!(made.size, len);
            store.remove(Path::new(path), &made).unwrap();
        }
    }
}

#[test]
fn what_is_stopped_is_put_back_there_too() {
    let far = Host::new();
    let (remote, _line) = connect(&far, WHOLE);
    let content = sparse(8 << 20, &[(0, noise(1, 8 << 20))]);
    let cancel = CancelToken::new();
    let path = Path::new("/images/disk");
    let error =
        remote.put(path, &content, Mode::Private, &Stopper(cancel.clone()), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert!(far.names().is_empty(), "{:?}", far.names());
    put(&remote, "/images/disk", &content).unwrap();
}

#[test]
fn after_a_cut_only_the_rest_travels() {
    let far = Host::new();
    let content = sparse(40 << 20, &[(0, noise(1, 8 << 20)), (20 << 20, noise(2, 8 << 20))]);
    let (remote, line) = connect(&far, 12 << 20);
    let error = put(&remote, "/images/disk", &content).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    line.far.join().unwrap().unwrap_err();
    let temporary = remote.temporary(Path::new("/images/disk"), &content).unwrap().unwrap();
    let temporary = far.real(temporary);
    let inode = fs::metadata(&temporary).unwrap().ino();
    // The connection is gone, and says so.
    remote.look(Path::new("/images/disk")).unwrap_err();

    // Some of what is there is damaged.
    let damaged = fs::OpenOptions::new().write(true).open(&temporary).unwrap();
    damaged.write_all_at(&noise(7, 100_000), 1_500_000).unwrap();
    damaged.write_all_at(&noise(8, 100_000), 15 << 20).unwrap();
    drop(damaged);
    let (remote, line) = connect(&far, WHOLE);
    let made = put(&remote, "/images/disk", &content).unwrap();
    assert_eq!(made.inode, Some(inode));
    assert!(fs::read(far.real("/images/disk")).unwrap() == bytes_of(&content));
    let sent = line.sent.load(Ordering::SeqCst);
    assert!(sent < 8 << 20, "{sent} bytes went again");
    assert_eq!(far.names(), ["disk"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Wherever the line breaks, and however often: what is there in the end is the content, and
    /// until then nothing has its name.
    #[test]
    fn a_line_that_breaks_anywhere_does_no_harm(cuts in proptest::collection::vec(0u64..7 << 20, 0..3)) {
        let far = Host::new();
        let content = sparse(9 << 20, &[(1 << 20, noise(1, 3 << 20)), (5_000_000, noise(2, 3 << 20))]);
        for cut in cuts {
            let Ok((remote, _)) = try_connect(&far, cut) else { continue };
            let result = put(&remote, "/images/disk", &content);
            if let Err(error) = &result {
                prop_assert!(matches!(error.kind(), ErrorKind::Environment | ErrorKind::Refused));
            }
            match fs::read(far.real("/images/disk")) {
                Ok(bytes) => prop_assert!(bytes == bytes_of(&content)),
                Err(_) => prop_assert!(result.is_err()),
            }
            let _ = fs::remove_file(far.real("/images/disk"));
        }
        let (remote, _line) = connect(&far, WHOLE);
        put_when_free(&remote, &content);
        prop_assert!(fs::read(far.real("/images/disk")).unwrap() == bytes_of(&content));
        prop_assert_eq!(far.names(), ["disk"]);
    }
}

/// The far end of a line that was cut may take a moment to notice.
fn put_when_free(remote: &RemoteStore, content: &File) {
    for _ in 0..100 {
        match put(remote, "/images/disk", content) {
            Ok(_) => return,
            Err(error) if error.to_string().contains("another process is writing it") => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it was never free");
}

fn words(script: &str) -> Vec<String> {
    ["bash", "-c", script].map(str::to_owned).to_vec()
}

/// The remote shell's script that runs this file as the far end.
fn as_child(far: &Host) -> (Vec<String>, String) {
    let root = far.real("/").to_str().unwrap().to_owned();
    let script = format!(
        "echo $$ > {root}/pid; exec 3>&1 1>/dev/null 2>/dev/null; export FAR_ROOT={root}; \
         [ \"$1\" = agent ] && exec \"$0\" --exact store_remote::far_end --nocapture"
    );
    let program = std::env::current_exe().unwrap();
    (words(&script), program.to_str().unwrap().to_owned())
}

/// Ends the far end's process in the middle.
struct Killer<'a>(&'a Host, AtomicU64);

impl Observer for Killer<'_> {
    fn progress(&self, done: u64, _total: u64) {
        if done > 4 << 20 && self.1.fetch_add(1, Ordering::SeqCst) == 0 {
            let id = fs::read_to_string(self.0.real("/pid")).unwrap();
            let kill = std::process::Command::new("kill").args(["-9", id.trim()]).status();
            assert!(kill.unwrap().success());
        }
    }
}

#[test]
fn a_process_that_is_killed_is_started_again_and_goes_on() {
    let far = Host::new();
    let (shell, program) = as_child(&far);
    let remote = RemoteStore::spawn(&shell, &program).unwrap();
    assert!(remote.describe().contains("bash -c"), "{}", remote.describe());
    let content = sparse(40 << 20, &[(0, noise(1, 24 << 20))]);
    let killer = Killer(&far, AtomicU64::new(0));
    let path = Path::new("/images/disk");
    let error =
        remote.put(path, &content, Mode::Private, &killer, &CancelToken::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.to_string().contains("signal: 9"), "{error}");
    assert!(!far.real("/images/disk").exists());
    let made = put(&remote, "/images/disk", &content).unwrap();
    assert!(fs::read(far.real("/images/disk")).unwrap() == bytes_of(&content));
    assert_eq!(made.size, 40 << 20);
    assert_eq!(far.names(), ["disk"]);
}

#[test]
fn a_far_end_that_cannot_be_started_is_named_with_what_it_said() {
    let spawn = |script: &str| {
        RemoteStore::spawn_patient(&words(script), "qcowtool", Duration::from_millis(300))
            .unwrap_err()
    };
    let error = spawn("echo 'no route to host' >&2; exit 255");
    assert_eq!(error.kind(), ErrorKind::Environment);
    for part in ["bash -c", "qcowtool agent", "255", "no route to host"] {
        assert!(error.to_string().contains(part), "'{part}' in {error}");
    }
    let error = spawn("echo 'Welcome to host-b'; sleep 0.1");
    assert!(error.to_string().contains("Welcome to host-b"), "{error}");
    assert_eq!(error.what_next(), Some(&Remedy::OnlyAgent));
    assert_eq!(spawn("exit 1").what_next(), Some(&Remedy::StartAgent));
    let far = Host::new();
    let (shell, program) = as_child(&far);
    RemoteStore::spawn(&shell, &program).unwrap();
    assert!(spawn("exec sleep 100").to_string().contains("nothing was heard"));
    let error = RemoteStore::spawn(&[], "/no/such/program").unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    let noisy = spawn("head -c 100000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 3");
    assert!(noisy.message().ends_with("the end"), "{noisy}");
    assert!(noisy.to_string().len() < 4000);
}

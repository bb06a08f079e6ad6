//! The files of another host: the same as those of this one, whatever the far end and the line between do.

#![allow(clippy::restriction, clippy::pedantic, reason = "tests assert by panicking")]

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use migrate::ErrorKind;
use migrate::agent::{PROTOCOL, serve};
use migrate::facts::Content;
use migrate::store::{LocalStore, Mode, RemoteStore, Store, Wanted};
use proptest::prelude::*;
use qcow::chain::Format;
use qcow::{CancelToken, Observer, Silent};

/// The far end, when this file runs as a child of its own tests. Standard output belongs to the test
/// harness, so that the stream is descriptor 3.
#[test]
#[ignore = "not a test"]
fn far_end() {
    let store = LocalStore::new(Path::new(&std::env::var("FAR_ROOT").unwrap())).unwrap();
    let out = fs::OpenOptions::new().write(true).open("/dev/fd/3").unwrap();
    let input = File::open("/dev/fd/0").unwrap();
    serve(input, out, &store).unwrap();
}

struct Far {
    dir: tempfile::TempDir,
}

impl Far {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        Self { dir }
    }

    fn real(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn local(&self) -> LocalStore {
        LocalStore::new(self.dir.path()).unwrap()
    }

    /// Over a pipe within this process. The stream there is cut after `cut` bytes.
    fn try_connect(&self, cut: u64) -> migrate::Result<(RemoteStore, Line)> {
        let (from_near, to_line) = pipe().unwrap();
        let (from_line, to_far) = pipe().unwrap();
        let (from_far, to_near) = pipe().unwrap();
        let store = self.local();
        let far = std::thread::spawn(move || serve(from_line, to_near, &store));
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        std::thread::spawn(move || forward(from_near, to_far, cut, &count));
        let store = RemoteStore::over(from_far.into(), to_line.into())?;
        Ok((store, Line { sent, far }))
    }

    fn connect(&self, cut: u64) -> (RemoteStore, Line) {
        self.try_connect(cut).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.real("/images")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

struct Line {
    sent: Arc<AtomicU64>,
    far: JoinHandle<migrate::Result<()>>,
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

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

/// Bytes that do not repeat.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 32) as u8;
    }
}

fn sparse(len: u64, data: &[(u64, Vec<u8>)]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn put(store: &dyn Store, path: &str, content: &File) -> migrate::Result<migrate::facts::Identity> {
    store.put(Path::new(path), content, Mode::ReadOnly, &Silent, &CancelToken::new())
}

const WHOLE: u64 = u64::MAX;

#[test]
fn the_far_end_does_what_the_near_end_would_do() {
    let far = Far::new();
    let (remote, line) = far.connect(WHOLE);
    let local = far.local();
    let data = [(0, noise(70_000, 1)), (30 << 20, noise(3 << 20, 2))];
    let content = sparse(64 << 20, &data);
    let made = put(&remote, "/images/disk", &content).unwrap();
    assert!(fs::read(far.real("/images/disk")).unwrap() == bytes_of(&content));
    let status = fs::metadata(far.real("/images/disk")).unwrap();
    assert_eq!(status.mode() & 0o7777, 0o444);
    assert!(status.blocks() * 512 < 8 << 20, "holes stay holes");
    assert!(line.sent.load(Ordering::SeqCst) < 8 << 20, "holes do not travel");
    assert_eq!(far.names(), ["disk"]);

    let path = Path::new("/images/disk");
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

fn tree_hash(raw: &Path) -> String {
    use qcow::chain::{Chain, OpenOptions};
    let options = OpenOptions { format: Some(Format::Raw), ..Default::default() };
    let chain = Chain::open(raw, &options).unwrap();
    qcow::ops::digest::tree_hash(&chain, 1, &Silent, &CancelToken::new()).unwrap().root.to_string()
}

#[test]
fn errors_of_the_far_end_arrive_and_the_connection_goes_on() {
    let far = Far::new();
    let (remote, _line) = far.connect(WHOLE);
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
fn a_far_end_that_cannot_write_says_why() {
    let content = sparse(32 << 20, &[(0, noise(32 << 20, 1))]);
    let said = [
        greeting(PROTOCOL),
        message(r#"{"say":"done","value":false}"#),
        message(r#"{"say":"stop"}"#),
        message(r#"{"say":"failed","kind":"environment","message":"no space","hint":"free some"}"#),
        message(r#"{"say":"done","value":7}"#),
    ];
    let remote = saying_and(&said.concat(), true).unwrap();
    let error = put(&remote, "/images/disk", &content).unwrap_err();
    assert_eq!((error.message(), error.what_next()), ("no space", Some("free some")));
    // Both still know what they speak of.
    assert_eq!(remote.available(Path::new("/images")).unwrap(), 7);
}

#[test]
fn files_of_all_lengths_arrive() {
    let far = Far::new();
    let (remote, _line) = far.connect(WHOLE);
    let piece = 1 << 20;
    for len in [0, 1, 511, 4096, piece - 1, piece, piece + 1, 3 * piece + 5] {
        let content = sparse(len, &[(0, noise(len as usize, len))]);
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
fn the_far_end_is_told_that_a_digest_is_not_wanted_any_more() {
    let (input, mut far) = pipe().unwrap();
    let (mut ear, output) = pipe().unwrap();
    let listener = std::thread::spawn(move || {
        far.write_all(&greeting(PROTOCOL)).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 1000];
        while !String::from_utf8_lossy(&heard).contains(r#"{"ask":"cancel"}"#) {
            let read = ear.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the near end went away without a word");
            heard.extend(&buffer[..read]);
            // Whoever hears this stops.
            let _ = far.write_all(&message(r#"{"say":"progress","done":1,"total":9}"#));
        }
        far.write_all(&message(r#"{"say":"failed","kind":"interrupted","message":"m"}"#)).unwrap();
    });
    let remote = RemoteStore::over(input.into(), output.into()).unwrap();
    let cancel = CancelToken::new();
    let stopper = Stopper(cancel.clone());
    let error = remote
        .same_content(Path::new("/a"), Format::Raw, &Wanted::new(""), &stopper, &cancel)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    listener.join().unwrap();
}

/// Stops after the first bytes.
struct Stopper(CancelToken);

impl Observer for Stopper {
    fn progress(&self, _done: u64, _total: u64) {
        self.0.cancel();
    }
}

#[test]
fn what_is_stopped_is_put_back_there_too() {
    let far = Far::new();
    let (remote, _line) = far.connect(WHOLE);
    let content = sparse(8 << 20, &[(0, noise(8 << 20, 1))]);
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
    let far = Far::new();
    let content = sparse(40 << 20, &[(0, noise(8 << 20, 1)), (20 << 20, noise(8 << 20, 2))]);
    let (remote, line) = far.connect(12 << 20);
    let error = put(&remote, "/images/disk", &content).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    line.far.join().unwrap().unwrap_err();
    let temporary = remote.temporary(Path::new("/images/disk"), &content).unwrap().unwrap();
    let temporary = far.real(temporary.to_str().unwrap());
    let inode = fs::metadata(&temporary).unwrap().ino();
    // The connection is gone, and says so.
    remote.look(Path::new("/images/disk")).unwrap_err();

    // Some of what is there is damaged.
    let damaged = fs::OpenOptions::new().write(true).open(&temporary).unwrap();
    damaged.write_all_at(&noise(100_000, 7), 1_500_000).unwrap();
    damaged.write_all_at(&noise(100_000, 8), 15 << 20).unwrap();
    drop(damaged);
    let (remote, line) = far.connect(WHOLE);
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
        let far = Far::new();
        let content = sparse(9 << 20, &[(1 << 20, noise(3 << 20, 1)), (5_000_000, noise(3 << 20, 2))]);
        for cut in cuts {
            let Ok((remote, _)) = far.try_connect(cut) else { continue };
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
        let (remote, _line) = far.connect(WHOLE);
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
            Err(error) if error.to_string().contains("somebody else is making it") => {
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
fn as_child(far: &Far) -> (Vec<String>, String) {
    let root = far.dir.path().to_str().unwrap();
    let script = format!(
        "echo $$ > {root}/pid; exec 3>&1 1>/dev/null 2>/dev/null; export FAR_ROOT={root}; \
         [ \"$1\" = agent ] && exec \"$0\" --exact far_end --ignored --nocapture"
    );
    let program = std::env::current_exe().unwrap();
    (words(&script), program.to_str().unwrap().to_owned())
}

/// Ends the far end's process in the middle.
struct Killer<'a>(&'a Far, AtomicU64);

impl Observer for Killer<'_> {
    fn progress(&self, done: u64, _total: u64) {
        if done > 4 << 20 && self.1.fetch_add(1, Ordering::SeqCst) == 0 {
            let id = fs::read_to_string(self.0.dir.path().join("pid")).unwrap();
            let kill = std::process::Command::new("kill").args(["-9", id.trim()]).status();
            assert!(kill.unwrap().success());
        }
    }
}

#[test]
fn a_process_that_is_killed_is_started_again_and_goes_on() {
    let far = Far::new();
    let (shell, program) = as_child(&far);
    let remote = RemoteStore::spawn(&shell, &program).unwrap();
    assert!(remote.describe().contains("bash -c"), "{}", remote.describe());
    let content = sparse(40 << 20, &[(0, noise(24 << 20, 1))]);
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
    assert!(spawn("exec sleep 100").to_string().contains("nothing was heard"));
    let error = RemoteStore::spawn(&[], "/no/such/program").unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    let noisy = spawn("head -c 100000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 3");
    assert!(noisy.to_string().ends_with("the end"), "{noisy}");
    assert!(noisy.to_string().len() < 4000);
}

/// A frame as the protocol has it.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn message(json: &str) -> Vec<u8> {
    frame(1, json.as_bytes())
}

fn piece(offset: u64, bytes: &[u8]) -> Vec<u8> {
    frame(2, &[&offset.to_be_bytes()[..], bytes].concat())
}

fn greeting(protocol: u32) -> Vec<u8> {
    let hello = format!(r#"{{"protocol":{protocol},"program":"9.9.9"}}"#);
    [b"\x00qcwagt\n".to_vec(), message(&hello)].concat()
}

/// A far end that says just this, and then goes away; it still takes what is sent.
fn saying(bytes: &[u8]) -> migrate::Result<RemoteStore> {
    saying_and(bytes, false)
}

/// A far end that says just this, and then stays if it shall.
fn saying_and(bytes: &[u8], stays: bool) -> migrate::Result<RemoteStore> {
    let (input, mut far) = pipe().unwrap();
    let (ear, output) = pipe().unwrap();
    let bytes = bytes.to_vec();
    std::thread::spawn(move || {
        let _ = far.write_all(&bytes);
        let far = stays.then_some(far);
        let _ = std::io::copy(&mut { ear }, &mut std::io::sink());
        drop(far);
    });
    RemoteStore::over(input.into(), output.into())
}

#[test]
fn another_version_is_refused_by_name() {
    let error = saying(&greeting(PROTOCOL + 1)).unwrap_err();
    assert!(error.to_string().contains("9.9.9"), "{error}");
    saying(&greeting(PROTOCOL)).unwrap();
    // And by the far end.
    let store = Far::new().local();
    let (mut heard, out) = pipe().unwrap();
    let error = serve(std::io::Cursor::new(greeting(PROTOCOL + 1)), out, &store).unwrap_err();
    assert!(error.to_string().contains("9.9.9"), "{error}");
    let mut said = Vec::new();
    heard.read_to_end(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said).contains("9.9.9"));
}

#[test]
fn a_far_end_that_lies_gains_nothing() {
    let answered =
        |frames: &[Vec<u8>]| saying(&[greeting(PROTOCOL), frames.concat()].concat()).unwrap();
    let done = |value: &str| message(&format!(r#"{{"say":"done","value":{value}}}"#));
    let images = Path::new("/images");
    let disk = Path::new("/images/disk");

    for names in [r#"["/etc/passwd"]"#, r#"["/images/../etc/passwd"]"#, r#"["a","b","c"]"#] {
        let error = answered(&[done(names)]).list(images, 2).unwrap_err();
        assert!(error.to_string().contains("another directory"), "{error}");
    }
    let beyond = [
        vec![done("2000")],
        vec![done("1000"), piece(900, &[1; 200])],
        vec![done("1000"), piece(u64::MAX - 5, &[1; 200])],
        vec![done("18446744073709551615")],
        vec![done("1000"), piece(0, &[1; 10])],
        vec![done("1000"), frame(2, &[0; 4])],
        vec![done("1000"), vec![2, 0xff, 0xff, 0xff, 0xff]],
        vec![vec![1, 0xff, 0xff, 0xff, 0xff]],
        vec![vec![9, 0, 0, 0, 0]],
        vec![piece(0, &[1; 10])],
        vec![message("{")],
        vec![message(r#"{"say":"shout"}"#)],
        vec![done(&"[".repeat(100_000))],
    ];
    for frames in beyond {
        let error = answered(&frames).fetch(disk, 1000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    }
    answered(&[done("[]")]).chain(disk, None).unwrap_err();
    // A digest is compared here, whatever the far end thinks of it.
    let found = answered(&[done(r#"{"is":"equal","digest":"abc"}"#)])
        .same_content(disk, Format::Raw, &Wanted::new("xyz"), &Silent, &CancelToken::new())
        .unwrap();
    assert_eq!(found, Content::Different);
    // Its words are cut, and do not move the cursor.
    let long = format!(
        r#"{{"say":"failed","kind":"odd","message":"\u001b[2J{}","hint":null}}"#,
        "x".repeat(100_000)
    );
    let error = answered(&[message(&long)]).look(disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.to_string().len() < 5000);
    assert!(!error.to_string().contains('\u{1b}'));
}

/// What a near end says that puts a file and asks for some more.
fn dialogue() -> Vec<u8> {
    [
        greeting(PROTOCOL),
        message(r#"{"ask":"put","path":"/images/new","key":"0123456789abcdef","len":5000,"mode":"private"}"#),
        piece(0, b"first"),
        message(r#"{"ask":"lacks","pieces":[{"offset":0,"len":5,"digest":""}]}"#),
        message(r#"{"ask":"zero","offset":100,"len":200}"#),
        piece(4990, b"last"),
        message(r#"{"ask":"publish"}"#),
        message(r#"{"ask":"look","path":"/images/new"}"#),
        message(r#"{"ask":"digest","path":"/images/new","format":"raw"}"#),
        message(r#"{"ask":"fetch","path":"/images/new","limit":10000}"#),
        message(r#"{"ask":"list","directory":"/images","limit":18446744073709551615}"#),
        message(r#"{"ask":"cancel"}"#),
    ]
    .concat()
}

/// Writes into the dark.
fn serve_bytes(far: &Far, bytes: Vec<u8>) -> migrate::Result<()> {
    serve(std::io::Cursor::new(bytes), std::io::sink(), &far.local())
}

#[test]
fn the_dialogue_is_one_that_the_far_end_understands() {
    let far = Far::new();
    serve_bytes(&far, dialogue()).unwrap();
    assert_eq!(far.names(), ["new"]);
    let bytes = fs::read(far.real("/images/new")).unwrap();
    assert_eq!((bytes.len(), &bytes[..5], &bytes[4990..4994]), (5000, &b"first"[..], &b"last"[..]));
}

#[test]
fn a_near_end_that_lies_gains_nothing() {
    let put = |len: u64| {
        message(&format!(
            r#"{{"ask":"put","path":"/images/new","key":"0123456789abcdef","len":{len},"mode":"private"}}"#
        ))
    };
    let bad = [
        vec![put(100), piece(90, &[1; 20]), message(r#"{"ask":"publish"}"#)],
        vec![put(100), piece(u64::MAX - 3, &[1; 20]), message(r#"{"ask":"publish"}"#)],
        vec![
            put(100),
            message(r#"{"ask":"zero","offset":18446744073709551615,"len":18446744073709551615}"#),
            message(r#"{"ask":"publish"}"#),
        ],
        vec![put(u64::MAX), message(r#"{"ask":"publish"}"#)],
        vec![message(
            r#"{"ask":"put","path":"/images/new","key":"../../../../etc/","len":1,"mode":"private"}"#,
        )],
        vec![message(
            r#"{"ask":"put","path":"/images/../../new","key":"0123456789abcdef","len":1,"mode":"private"}"#,
        )],
        vec![message(r#"{"ask":"publish"}"#)],
        vec![piece(0, b"x")],
    ];
    for frames in bad {
        let far = Far::new();
        let _ = serve_bytes(&far, [greeting(PROTOCOL), frames.concat()].concat());
        assert!(!far.real("/images/new").exists());
        let around = fs::read_dir(far.dir.path().parent().unwrap()).unwrap();
        assert!(
            around.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with("new"))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Both ends come to an end, whatever they hear.
    #[test]
    fn no_stream_hangs_or_kills_an_end(
        at in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let damaged = |mut stream: Vec<u8>| {
            let at = at.index(stream.len());
            let end = (at + bytes.len()).min(stream.len());
            stream.splice(at..end, bytes.iter().copied());
            if !whole {
                stream.truncate(cut.index(stream.len() + 1));
            }
            stream
        };
        let far = Far::new();
        let _ = serve_bytes(&far, damaged(dialogue()));
        let names = far.names();
        prop_assert!(names.iter().all(|name| name.len() < 200));

        let said = [
            greeting(PROTOCOL),
            message(r#"{"say":"alive"}"#),
            message(r#"{"say":"progress","done":1,"total":2}"#),
            message(r#"{"say":"done","value":1000}"#),
            piece(10, b"bytes"),
            message(r#"{"say":"done","value":null}"#),
        ]
        .concat();
        if let Ok(remote) = saying(&damaged(said)) {
            let _ = remote.fetch(Path::new("/images/disk"), 1000);
            let _ = remote.look(Path::new("/images/disk"));
        }
    }
}

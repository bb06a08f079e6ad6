//! The two ends of a connection, when the other one is of another version, mad or malicious.

use std::fs;
use std::io::{Read, Write, pipe};
use std::path::Path;

use crate::store_common::{Host, Stopper, noise, put, sparse};
use migrate::ErrorKind;
use migrate::agent::{PROTOCOL, serve};
use migrate::facts::Content;
use migrate::store::{RemoteStore, Store, Wanted};
use proptest::prelude::*;
use qcow::chain::Format;
use qcow::{CancelToken, Silent};

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
fn a_far_end_that_cannot_write_says_why() {
    let content = sparse(32 << 20, &[(0, noise(1, 32 << 20))]);
    let said = [
        greeting(PROTOCOL),
        message(r#"{"say":"done","value":false}"#),
        message(r#"{"say":"stop"}"#),
        message(r#"{"say":"failed","kind":"environment","message":"no space","hint":"free some"}"#),
        message(r#"{"say":"done","value":7}"#),
    ];
    let remote = saying_and(&said.concat(), true).unwrap();
    let error = put(&remote, "/images/disk", &content).unwrap_err();
    assert_eq!((error.message(), error.what_next()), ("no space", Some(&"free some".into())));
    // Both still know what they speak of.
    assert_eq!(remote.available(Path::new("/images")).unwrap(), 7);
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

#[test]
fn another_version_is_refused_by_name() {
    let own = this_host();
    let both = format!("9.9.9 (protocol {}), and {own} has", PROTOCOL + 1);
    let error = saying(&greeting(PROTOCOL + 1)).unwrap_err();
    assert!(error.to_string().contains(&both), "{error}");
    let advice = |error: &migrate::Error| error.what_next().unwrap().to_string();
    assert!(advice(&error).contains(&format!("{own} has the older one")), "{error}");
    // An older one says where it is since protocol 4.
    let older = br#"{"protocol":3,"program":"0.0.9","host":"host-b"}"#;
    let older = [b"\x00qcwagt\n".to_vec(), frame(1, older)].concat();
    let error = saying(&older).unwrap_err();
    assert!(error.to_string().contains("host-b has version 0.0.9 (protocol 3)"), "{error}");
    assert!(advice(&error).contains("host-b has the older one"), "{error}");
    saying(&greeting(PROTOCOL)).unwrap();
    // And by the far end.
    let store = Host::new().local();
    let (mut heard, out) = pipe().unwrap();
    let error = serve(std::io::Cursor::new(greeting(PROTOCOL + 1)), out, &store).unwrap_err();
    assert!(error.to_string().contains("9.9.9"), "{error}");
    let mut said = Vec::new();
    heard.read_to_end(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said).contains("9.9.9"));
}

/// A later end that has the same number asks for something that this one does not know.
#[test]
fn an_unknown_request_is_answered_with_the_version_that_does_not_know_it() {
    let store = Host::new().local();
    let (mut heard, out) = pipe().unwrap();
    let asked = [greeting(PROTOCOL), message(r#"{"ask":"paint","path":"/a"}"#)].concat();
    serve(std::io::Cursor::new(asked), out, &store).unwrap_err();
    let mut said = Vec::new();
    heard.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    let own = format!("version {} on {}", env!("CARGO_PKG_VERSION"), this_host());
    for words in [&*own, "paint", "unsupported", "the same version on both hosts"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// This host.
fn this_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
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
fn serve_bytes(far: &Host, bytes: Vec<u8>) -> migrate::Result<()> {
    serve(std::io::Cursor::new(bytes), std::io::sink(), &far.local())
}

#[test]
fn the_dialogue_is_one_that_the_far_end_understands() {
    let far = Host::new();
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
        let far = Host::new();
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
        let far = Host::new();
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

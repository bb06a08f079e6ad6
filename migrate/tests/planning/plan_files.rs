//! The planner's rows for files other than disks' images: NVRAM, TPM state, kernels, firmware.

use crate::plan_facts::*;
use migrate::facts::*;
use migrate::plan::*;
use qcow::chain::Format;

const LENGTH: u64 = 131_072;

/// A file of a guest that is not at the destination, whose directory is.
fn file(role: FileRole, path: &str) -> FileFacts {
    let mut found = layer(path, 50, Format::Raw);
    found.identity.size = LENGTH;
    FileFacts {
        role,
        path: path.into(),
        file: Some(found),
        unreadable: None,
        destination: FilePlace { available: Some(SIZE), ..FilePlace::default() },
    }
}

fn there(size: u64, content: Content) -> FilePlace {
    let object = ObjectFacts {
        identity: Identity { size, ..identity(60) },
        block_device: false,
        image: None,
        in_use: None,
    };
    FilePlace { object: Some(object), content: Some(content), ..FilePlace::default() }
}

fn equal() -> FilePlace {
    there(LENGTH, Content::Equal { digest: DIGEST.into() })
}

fn with(state: DomainState, file: FileFacts) -> Facts {
    let mut facts = guest(vec![alone("vda")]);
    facts.domain.state = state;
    facts.files.push(file);
    facts
}

type Case = (&'static str, DomainState, FileRole, &'static str, fn(&mut FileFacts), &'static str);

#[test]
fn each_row_of_the_table_of_files() {
    use DomainState::{Running, ShutOff};
    use FileRole::{Initrd, Kernel, Loader, Nvdimm, Nvram, NvramTemplate, TpmState};
    let cases: [Case; 27] = [
        ("a running guest's NVRAM", Running, Nvram, "/n/v.fd", |_| {}, "F01 skip"),
        ("whatever is there", Running, Nvram, "/n/v.fd", |f| f.destination = equal(), "F01 skip"),
        (
            "an NVDIMM arrives in a file",
            Running,
            Nvdimm,
            "/m/d",
            |f| f.destination = equal(),
            "F01 skip",
        ),
        ("which must be there", Running, Nvdimm, "/m/d", |_| {}, "F01 refused"),
        (
            "of that size",
            Running,
            Nvdimm,
            "/m/d",
            |f| f.destination = there(5, Content::Different),
            "F01 refused",
        ),
        (
            "nobody may read it",
            ShutOff,
            Nvram,
            "/n/v.fd",
            |f| {
                (f.file, f.unreadable) = (None, Some("permission denied".into()));
            },
            "F02 refused",
        ),
        (
            "a device",
            ShutOff,
            Nvram,
            "/dev/nv",
            |f| f.file.as_mut().unwrap().block_device = true,
            "F02 refused",
        ),
        ("never started", ShutOff, Nvram, "/n/v.fd", |f| f.file = None, "F03 skip"),
        (
            "gone here, there at the destination",
            Running,
            Kernel,
            "/boot/k",
            |f| {
                (f.file, f.destination) = (None, there(5, Content::Unknown { why: "x".into() }));
            },
            "F03 skip",
        ),
        ("gone on both", Running, Kernel, "/boot/k", |f| f.file = None, "F03 refused"),
        (
            "on shared storage, or a copy",
            ShutOff,
            Nvram,
            "/n/v.fd",
            |f| f.destination = equal(),
            "F04 skip",
        ),
        (
            "copied by the operator",
            ShutOff,
            TpmState,
            "/s/u/tpm2/x",
            |f| f.destination = equal(),
            "F04 skip",
        ),
        ("the same kernel", Running, Kernel, "/boot/k", |f| f.destination = equal(), "F04 skip"),
        ("no firmware", Running, Loader, "/usr/share/OVMF/C.fd", |_| {}, "F05 refused"),
        ("no firmware, offline", ShutOff, Loader, "/usr/share/OVMF/C.fd", |_| {}, "F05 refused"),
        (
            "another version",
            Running,
            Loader,
            "/usr/share/OVMF/C.fd",
            |f| f.destination = there(LENGTH, Content::Different),
            "F05 skip",
        ),
        (
            "of another size",
            Running,
            Loader,
            "/usr/share/OVMF/C.fd",
            |f| f.destination = there(5, Content::Different),
            "F05 refused",
        ),
        (
            "of another size, offline",
            ShutOff,
            Loader,
            "/usr/share/OVMF/C.fd",
            |f| f.destination = there(5, Content::Different),
            "F05 skip",
        ),
        (
            "a symbolic link",
            Running,
            Loader,
            "/usr/share/OVMF/C.fd",
            |f| {
                f.destination = FilePlace {
                    content: Some(Content::Unknown { why: "link".into() }),
                    ..FilePlace::default()
                };
            },
            "F05 skip",
        ),
        (
            "another template",
            Running,
            NvramTemplate,
            "/usr/share/OVMF/V.fd",
            |f| f.destination = there(5, Content::Different),
            "F05 skip",
        ),
        ("a TPM's state", ShutOff, TpmState, "/s/u/tpm2/x", |_| {}, "F06 refused"),
        (
            "another TPM's state",
            ShutOff,
            TpmState,
            "/s/u/tpm2/x",
            |f| f.destination = there(LENGTH, Content::Different),
            "F06 refused",
        ),
        (
            "another NVRAM",
            ShutOff,
            Nvram,
            "/n/v.fd",
            |f| f.destination = there(LENGTH, Content::Different),
            "F07 refused",
        ),
        (
            "another kernel",
            Running,
            Kernel,
            "/boot/k",
            |f| f.destination = there(5, Content::Different),
            "F07 refused",
        ),
        (
            "no directory",
            ShutOff,
            Nvram,
            "/n/v.fd",
            |f| f.destination.unusable = Some("no such directory".into()),
            "F08 refused",
        ),
        ("NVRAM is copied", ShutOff, Nvram, "/n/v.fd", |_| {}, "F09 copy"),
        ("an initial RAM disk too", Running, Initrd, "/boot/i", |_| {}, "F09 copy"),
    ];
    for (name, state, role, path, change, expected) in cases {
        let mut file = file(role, path);
        change(&mut file);
        let (row, outcome) = expected.split_once(' ').unwrap();
        match decide(&with(state, file), &Policy::default()) {
            Ok((plan, _)) => {
                let file = &plan.files[0];
                let copied = file.action == FileAction::Copy;
                let found = format!("{} {}", file.row, if copied { "copy" } else { "skip" });
                assert_eq!(found, expected, "{name}");
                assert_eq!(file.transfer_bytes, if copied { LENGTH } else { 0 }, "{name}");
            }
            Err(refusals) => {
                let codes: Vec<_> = refusals.iter().map(|refusal| &*refusal.code).collect();
                assert_eq!((codes, outcome), (vec![row], "refused"), "{name}");
            }
        }
    }
}

#[test]
fn a_template_is_not_missed_where_the_destination_has_the_nvram_from_an_earlier_stay() {
    let template = file(FileRole::NvramTemplate, "/usr/share/OVMF/V.fd");
    let mut facts = with(DomainState::Running, template);
    assert_eq!(refused(&facts, &Policy::default()), ["F05"]);
    let mut nvram = file(FileRole::Nvram, "/n/v.fd");
    nvram.destination = there(5, Content::Different);
    facts.files.push(nvram);
    assert_eq!(planned(&facts, &Policy::default()).files.len(), 1);
}

#[test]
fn firmware_of_another_version_is_told() {
    let mut loader = file(FileRole::Loader, "/usr/share/OVMF/C.fd");
    loader.destination = there(LENGTH, Content::Different);
    let plan = planned(&with(DomainState::ShutOff, loader), &Policy::default());
    assert_eq!(codes(&plan), ["firmware-differs"]);
}

#[test]
fn files_are_refused_together_with_disks_and_rules_and_need_their_space() {
    let mut facts = with(DomainState::ShutOff, file(FileRole::Nvram, "/n/v.fd"));
    facts.files[0].destination.available = Some(LENGTH - 1);
    assert_eq!(refused(&facts, &Policy::default()), ["space"]);
    facts.files[0].destination.unusable = Some("no such directory".into());
    facts.disks[0].shareable = true;
    facts.domain.saved = true;
    assert_eq!(refused(&facts, &Policy::default()), ["R10", "D06", "F08"]);
}

#[test]
fn facts_of_a_guest_without_such_files_have_the_form_that_they_had() {
    let facts = guest(vec![alone("vda")]);
    let text = serde_json::to_string(&facts).unwrap();
    assert!(!text.contains("files") && !text.contains("saved"), "{text}");
    let plan = planned(&facts, &Policy::default());
    assert!(!serde_json::to_string(&plan).unwrap().contains("files"));
}

#[test]
fn what_a_running_guest_writes_to_its_nvram_does_not_change_the_facts() {
    let digest = |state, change: fn(&mut FileFacts)| {
        let mut file = file(FileRole::Nvram, "/n/v.fd");
        change(&mut file);
        with(state, file).fingerprint()
    };
    let written: fn(&mut FileFacts) = |file| file.file.as_mut().unwrap().identity.mtime_ns = 99;
    assert_eq!(digest(DomainState::Running, |_| {}), digest(DomainState::Running, written));
    assert_ne!(digest(DomainState::ShutOff, |_| {}), digest(DomainState::ShutOff, written));
}

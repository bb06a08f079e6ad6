use super::*;
use crate::{ErrorKind, Remedy};

/// Code and part, the sentence as it was printed, and what a user must find in the error.
#[rustfmt::skip]
const SENTENCES: &[(i32, i32, &str, ErrorKind, &[&str])] = &[
    (49, 18, "Storage pool not found: no storage pool with matching target path '/var/lib/libvirt/images'",
        ErrorKind::Environment, &["missing in /var/lib/libvirt/images", "prepare"]),
    (84, 10, "Operation not supported: pre-creation of storage targets for incremental storage migration is not supported",
        ErrorKind::Environment, &["a disk is not at the destination,", "prepare"]),
    (84, 10, "Operation not supported: pre-creation of storage target for incremental storage migration of disk 'vda' is not supported",
        ErrorKind::Environment, &["disk vda is not at the destination,", "prepare"]),
    (84, 10, "Operation not supported: pre-creation of storage target '/var/lib/libvirt/images/x.qcow2' for incremental storage migration of disk 'vda' is not supported",
        ErrorKind::Environment, &["disk vda is not at the destination (/var/lib/libvirt/images/x.qcow2)"]),
    (38, 18, "Cannot access backing file '/var/lib/libvirt/images/tpl.qcow2' of storage file '/var/lib/libvirt/images/v.qcow2' (as uid:64055, gid:107): No such file or directory",
        ErrorKind::Environment, &["/v.qcow2 at the destination has the backing file /var/lib/libvirt/images/tpl.qcow2"]),
    (81, 10, "Unsafe migration: Migration without shared storage is unsafe",
        ErrorKind::Refused, &["writes to", "copy that disk too"]),
    (38, 18, "Cannot access storage file '/var/lib/libvirt/images/v.qcow2' (as uid:64055, gid:107): No such file or directory",
        ErrorKind::Environment, &["/var/lib/libvirt/images/v.qcow2 cannot be opened", "refresh the pool"]),
    (9, 10, "operation failed: migration of disk vda failed: Source and target image have different sizes",
        ErrorKind::Environment, &["the target of disk vda has another size", "virsh domblkinfo GUEST vda"]),
    (1, 10, "internal error: process exited while connecting to monitor: 2026-01-01T00:00:00.000000Z qemu-system-x86_64: -blockdev {\"driver\":\"qcow2\"}: Image is not in qcow2 format",
        ErrorKind::Environment, &["is not QCOW2"]),
    (1, 10, "internal error: unable to execute QEMU command 'block-export-add': Failed to get \"write\" lock",
        ErrorKind::Environment, &["in use by another process", "source's own file"]),
    (1, 10, "internal error: unable to execute QEMU command 'block-export-add': Block node is read-only",
        ErrorKind::Environment, &["in use by another process"]),
    (78, 10, "operation aborted: migration out: canceled by client",
        ErrorKind::Environment, &["aborted"]),
    (1, 7, "internal error: client socket is closed",
        ErrorKind::Environment, &["broke", "both hosts"]),
    (38, 7, "End of file while reading data: Input/output error",
        ErrorKind::Environment, &["far end of a connection exited", "both hosts"]),
    (38, 7, "unable to connect to server at 'host-b:16509': Connection refused",
        ErrorKind::Environment, &["no server answers at host-b:16509", "firewall"]),
    (38, 7, "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
        ErrorKind::Environment, &["does not run", "systemctl start"]),
    (1, 18, "internal error: inaccessible backing store volume /var/lib/libvirt/images/nope.qcow2: No such file or directory",
        ErrorKind::Environment, &["backing file"]),
    (9, 10, "operation failed: Cannot migrate empty or read-only disk sda",
        ErrorKind::Refused, &["disk sda is empty or read-only"]),
    (55, 10, "Requested operation is not valid: cannot migrate domain with 2 snapshots",
        ErrorKind::Refused, &["snapshots", "--metadata"]),
    (55, 18, "Requested operation is not valid: format of backing image '/v/tpl.qcow2' of image '/v/x.qcow2' was not specified in the image metadata (See https://libvirt.org/kbase/backing_chains.html for troubleshooting)",
        ErrorKind::Refused, &["backing file /v/tpl.qcow2", "record"]),
    (55, 10, "Requested operation is not valid: domain has active block job",
        ErrorKind::Refused, &["block job", "--abort"]),
    (1, 10, "internal error: Attempt to migrate guest to the same host 02000100-0300-0400-0005-000600070008",
        ErrorKind::Refused, &["host_uuid"]),
    (1, 0, "internal error: Unable to find an unused port in range 'migration' (49333-49334)",
        ErrorKind::Environment, &["no free port", "migration_port_min"]),
    (1, 10, "internal error: process exited while connecting to monitor: qemu-system-x86_64: -blockdev {}: The sum of offset (0) and size (67108864) has to be smaller or equal to the  actual size of the containing file (33554432)",
        ErrorKind::Environment, &["smaller than the disk"]),
    (1, 18, "internal error: pool 'default' has asynchronous jobs running.",
        ErrorKind::Environment, &["pool 'default'", "try again"]),
    (68, 10, "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainMigratePerform3Params)",
        ErrorKind::Environment, &["another job runs on the guest", "TCP gives up"]),
    // As an orchestrator reports what its own look at a file said.
    (0, 0, "Unable to stat /mnt/pool/3d9f: No such file or directory",
        ErrorKind::Environment, &["missing or not readable", "prepare"]),
    (0, 0, "Path '/mnt/pool/3d9f' is not accessible: No such file or directory",
        ErrorKind::Environment, &["/mnt/pool/3d9f is missing"]),
    (0, 0, "Could not open backing file: Could not open '/mnt/pool/tpl': No such file or directory",
        ErrorKind::Environment, &["has the backing file /mnt/pool/tpl"]),
];

#[test]
fn every_known_sentence_says_what_and_what_next_and_keeps_the_original() {
    for (code, from, sentence, kind, wanted) in SENTENCES {
        let error = translate(*code, *from, sentence);
        assert_eq!(error.kind(), *kind, "{sentence}");
        assert!(error.what_next().is_some(), "{sentence}");
        let told = error.to_string();
        assert!(told.contains(sentence), "{told} does not keep {sentence}");
        for wanted in *wanted {
            assert!(told.contains(wanted), "'{wanted}' is not in: {told}");
        }
        assert!(!told.contains('{') || sentence.contains('{'), "unfilled: {told}");
    }
}

#[test]
fn the_code_is_enough_where_the_words_are_of_another_language() {
    let error = translate(81, 10, "Unsichere Migration");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.message().contains("Unsichere Migration"));
    let error = translate(38, 7, "Verbindung verloren");
    assert!(
        error.what_next().is_some_and(|next| next.to_string().contains("both hosts")),
        "{error}"
    );
}

#[test]
fn missing_certificates_are_named() {
    let error = translate(
        1,
        10,
        "internal error: unable to execute QEMU command 'object-add': Unable to access credentials \
         /etc/pki/qemu/ca-cert.pem: No such file or directory",
    );
    assert!(
        error.message().contains("no certificates") && error.message().contains("ca-cert.pem"),
        "{error}"
    );
    assert!(!error.message().contains("of part"), "{error}");
    assert!(error.what_next().is_some_and(|next| *next == Remedy::SetUpTls), "{error}");
}

#[test]
fn an_unknown_sentence_is_kept_with_its_numbers() {
    let error = translate(1, 10, "internal error: the moon is full");
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert_eq!(error.message(), "libvirt: internal error: the moon is full (error 1 of part 10)");
}

#[test]
fn no_row_hides_another_of_the_same_words() {
    for (index, row) in TABLE.iter().enumerate() {
        for earlier in TABLE.iter().take(index) {
            let hides = earlier.codes.is_empty()
                && earlier.from.is_none()
                && earlier.words.iter().all(|word| row.words.iter().any(|own| own.contains(word)));
            assert!(!hides, "{:?} is never reached: {:?}", row.words, earlier.words);
        }
    }
}

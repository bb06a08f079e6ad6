//! What libvirt and QEMU say when something fails, as errors that say what happened, to which file or disk,
//! and what to do about it.
//!
//! A table, read from the top: first what is told apart by its code, then the sentences of all known
//! versions, of which only the lasting parts are matched. The sentence itself is always kept at the
//! end of the message, for the sake of those who search the web for it.
//!
//! The sentences are English whatever the locale of this process: it never sets one for the C library. Those of
//! a daemon that runs in another language end up with their code alone, or untranslated.

use crate::{Error, ErrorKind, Remedy};

/// The part of libvirt that an error came from (`virErrorDomain`).
mod from {
    pub(super) const RPC: i32 = 7;
}

/// `virErrorNumber`s.
pub(crate) mod code {
    pub(crate) const NO_SUPPORT: i32 = 3;
    pub(crate) const NO_CONNECT: i32 = 5;
    #[cfg(feature = "libvirt")]
    pub(crate) const INVALID_ARG: i32 = 8;
    pub(crate) const OPERATION_DENIED: i32 = 29;
    pub(crate) const NO_DOMAIN: i32 = 42;
    pub(crate) const AUTH_FAILED: i32 = 45;
    pub(crate) const NO_STORAGE_POOL: i32 = 49;
    pub(crate) const NO_STORAGE_VOL: i32 = 50;
    pub(crate) const OPERATION_INVALID: i32 = 55;
    pub(crate) const OPERATION_TIMEOUT: i32 = 68;
    pub(crate) const MIGRATE_PERSIST_FAILED: i32 = 69;
    pub(crate) const ARGUMENT_UNSUPPORTED: i32 = 74;
    pub(crate) const OPERATION_ABORTED: i32 = 78;
    pub(crate) const AUTH_CANCELLED: i32 = 79;
    pub(crate) const MIGRATE_UNSAFE: i32 = 81;
    pub(crate) const BLOCK_COPY_ACTIVE: i32 = 83;
    pub(crate) const SSH: i32 = 85;
    pub(crate) const ACCESS_DENIED: i32 = 88;
    pub(crate) const STORAGE_VOL_EXIST: i32 = 90;
    pub(crate) const CPU_INCOMPATIBLE: i32 = 91;
    pub(crate) const MIGRATE_FINISH_OK: i32 = 93;
    pub(crate) const AUTH_UNAVAILABLE: i32 = 94;
    pub(crate) const LIBSSH: i32 = 98;
}

/// One row: what fits, and what it means. In `means` and `next`, `{path}` and `{second}` are the first and
/// second path that the sentence quotes, and `{disk}` is the disk that it names.
struct Row {
    codes: &'static [i32],
    from: Option<i32>,
    /// All of them are in the sentence.
    words: &'static [&'static str],
    kind: ErrorKind,
    means: &'static str,
    next: &'static str,
    /// In place of `next`.
    remedy: Option<Remedy>,
}

/// For rows that are told by their words.
const WORDS: Row = Row {
    codes: &[],
    from: None,
    words: &[],
    kind: ErrorKind::Environment,
    means: "",
    next: "",
    remedy: None,
};

const TABLE: &[Row] = &[
    // QEMU's sentence, on either host; it has the code of everything that goes wrong there.
    Row {
        words: &["Unable to access credentials"],
        means: "a host has no certificates for encrypted migrations",
        remedy: Some(Remedy::SetUpTls),
        ..WORDS
    },
    // By code.
    Row {
        codes: &[code::OPERATION_ABORTED],
        means: "the job was aborted",
        next: "the guest should still run where it was; if this was not intended, find out which other program manages \
               this host",
        ..WORDS
    },
    Row {
        codes: &[code::MIGRATE_UNSAFE],
        kind: ErrorKind::Refused,
        means: "a disk that the guest writes to is on storage that the destination does not have, and \
                is not among the disks to copy",
        next: "copy that disk too, or move it to shared storage",
        ..WORDS
    },
    Row {
        codes: &[code::BLOCK_COPY_ACTIVE],
        kind: ErrorKind::Refused,
        means: "a block job runs on one of the guest's disks",
        next: "wait for it, or abort it (virsh blockjob GUEST DISK --abort)",
        ..WORDS
    },
    Row {
        codes: &[code::MIGRATE_PERSIST_FAILED],
        means: "the guest runs at the destination, but could not be defined there",
        next: "define it there before it is shut off, or its definition is lost",
        ..WORDS
    },
    Row {
        codes: &[code::MIGRATE_FINISH_OK],
        means: "the guest runs at the destination, but the source could not finish",
        next: "look at both hosts before anything is deleted",
        ..WORDS
    },
    Row {
        codes: &[code::CPU_INCOMPATIBLE],
        means: "the destination's processor cannot run this guest",
        next: "use a CPU model in the guest that both hosts have, or another destination",
        ..WORDS
    },
    Row {
        codes: &[code::STORAGE_VOL_EXIST],
        kind: ErrorKind::Refused,
        means: "a file of this name exists already",
        next: "nothing that exists is overwritten: move it away, or choose another name",
        ..WORDS
    },
    Row {
        codes: &[code::NO_DOMAIN],
        means: "there is no such guest",
        next: "virsh list --all lists them",
        ..WORDS
    },
    Row {
        codes: &[code::AUTH_FAILED, code::AUTH_CANCELLED, code::AUTH_UNAVAILABLE],
        means: "libvirt rejected the authentication",
        next: "use root, a member of the group libvirt, or credentials that the URI can carry",
        ..WORDS
    },
    Row {
        codes: &[code::OPERATION_DENIED, code::ACCESS_DENIED],
        means: "libvirt does not allow this to us",
        next: "use a connection that may write, and look at the access rules of the daemon",
        ..WORDS
    },
    Row {
        codes: &[code::SSH, code::LIBSSH],
        means: "the host could not be reached through ssh",
        next: "try: ssh HOST virsh list; a source daemon that connects to its peer does so as root",
        ..WORDS
    },
    // By words: storage at the destination.
    Row {
        words: &["pre-creation of storage target", "incremental storage migration"],
        means: "the image for {disk} is not at the destination ({path}), and libvirt does not make one \
                for an incremental copy",
        next: "prepare the destination first; a disk of type 'volume' must be named by its path",
        ..WORDS
    },
    Row {
        words: &["no storage pool with matching target path"],
        means: "an image is missing in {path} at the destination, and libvirt has no pool there in which to \
                make one",
        next: "prepare the destination first",
        ..WORDS
    },
    Row {
        words: &["cannot precreate storage for disk type"],
        means: "an image is missing at the destination, and libvirt cannot make one of this kind",
        next: "prepare the destination first",
        ..WORDS
    },
    Row {
        words: &["annot access backing file"],
        means: "{second} at the destination has the backing file {path}, which is missing or not readable",
        next: "copy that backing file to the destination, or flatten the disk there",
        ..WORDS
    },
    Row {
        words: &["inaccessible backing store volume"],
        means: "the backing file {path} is missing or not readable",
        next: "copy that backing file to this host first",
        ..WORDS
    },
    Row {
        words: &["Could not open backing file"],
        means: "an image at the destination has the backing file {path}, which is missing or not readable",
        next: "copy that backing file to the destination, or flatten the disk there",
        ..WORDS
    },
    Row {
        words: &["annot access storage file"],
        means: "{path} cannot be opened at the destination, though libvirt takes it for made: a stale list of \
                its pool, or its making failed",
        next: "refresh the pool there, and prepare the destination again",
        ..WORDS
    },
    Row {
        words: &["ath '", "is not accessible"],
        means: "{path} is missing or not readable",
        next: "prepare the destination again",
        ..WORDS
    },
    Row {
        words: &["Unable to stat"],
        means: "{path} is missing or not readable",
        next: "prepare the destination again",
        ..WORDS
    },
    Row {
        words: &["annot stat file"],
        means: "{path} is missing or not readable",
        next: "prepare the destination again",
        ..WORDS
    },
    Row {
        words: &["Source and target image have different sizes"],
        means: "the target of {disk} has another size than the disk",
        next: "the target must have the guest's disk size to the byte: compare virsh domblkinfo GUEST {disk} \
               with the target's virtual size",
        ..WORDS
    },
    Row {
        words: &["sum of offset", "actual size of the containing file"],
        means: "the target is smaller than the disk",
        next: "the target must have at least the guest's disk size: compare virsh domblkinfo with it",
        ..WORDS
    },
    Row {
        words: &["Image is not in qcow2 format"],
        means: "an image at the destination ({path}) is not QCOW2, which its guest says it is",
        next: "prepare the destination again, under a name that is free",
        ..WORDS
    },
    Row {
        words: &["Failed to get", "lock"],
        means: "a target image ({path}) is in use by another process",
        next: "it may be the source's own file on storage that both hosts have; then the disk must not be \
               copied. Otherwise find who has it open, with fuser or lsof",
        ..WORDS
    },
    Row {
        words: &["block-export-add", "Block node is read-only"],
        means: "a target image is in use by another process, or cannot be written to",
        next: "it may be the source's own file on storage that both hosts have; then the disk must not be \
               copied. Otherwise find who has it open, with fuser or lsof",
        ..WORDS
    },
    Row {
        words: &["Image size is not a multiple of request alignment"],
        means: "a raw image's size does not suit a cache mode that goes around the host's cache",
        next: "resize the disk to a multiple of 4096 bytes, set another cache mode, or make it QCOW2",
        ..WORDS
    },
    Row {
        words: &["No space left on device"],
        means: "there is no space left ({path})",
        next: "make room at the destination, or choose another directory",
        ..WORDS
    },
    Row {
        words: &["isk quota exceeded"],
        means: "the quota is used up ({path})",
        next: "make room at the destination, or choose another directory",
        ..WORDS
    },
    Row {
        words: &["asynchronous jobs running"],
        means: "something is being made in the pool '{quoted}', and libvirt does not look into it meanwhile",
        next: "try again when that is done",
        ..WORDS
    },
    // By words: the guest.
    Row {
        words: &["annot migrate empty or read-only disk"],
        kind: ErrorKind::Refused,
        means: "{disk} is empty or read-only, and cannot be copied by a migration",
        next: "leave it out of the disks to copy; its medium has to be copied separately",
        ..WORDS
    },
    Row {
        words: &["annot migrate domain with", "snapshots"],
        kind: ErrorKind::Refused,
        means: "libvirt knows snapshots of the guest, and does not migrate with them",
        next: "remove them, or only what libvirt knows of them (virsh snapshot-delete --metadata)",
        ..WORDS
    },
    Row {
        words: &["ormat of backing image", "was not specified"],
        kind: ErrorKind::Refused,
        means: "an image does not record the format of its backing file {path}, and libvirt does not guess",
        remedy: Some(Remedy::RecordFormat),
        ..WORDS
    },
    Row {
        words: &["omain has", "active block job"],
        kind: ErrorKind::Refused,
        means: "a block job runs on one of the guest's disks",
        next: "wait for it, or abort it (virsh blockjob GUEST DISK --abort)",
        ..WORDS
    },
    Row {
        words: &["igration without shared storage is unsafe"],
        kind: ErrorKind::Refused,
        means: "a disk that the guest writes to is on storage that the destination does not have, and \
                is not among the disks to copy",
        next: "copy that disk too, or move it to shared storage",
        ..WORDS
    },
    Row {
        words: &["ttempt to migrate guest to the same host"],
        kind: ErrorKind::Refused,
        means: "source and destination are one host, or two with the same UUID",
        next: "if they are two, give each its own host_uuid in its libvirtd.conf (or that of the modular daemon)",
        ..WORDS
    },
    Row {
        words: &["omain '", "already"],
        kind: ErrorKind::Refused,
        means: "the destination has a guest of this name or UUID",
        next: "find out which of the two is wanted before either is removed",
        ..WORDS
    },
    Row { words: &["omain is not running"], means: "the guest does not run", next: "", ..WORDS },
    Row {
        words: &["oes not match source"],
        kind: ErrorKind::Refused,
        means: "the guest's XML for the destination differs in what the guest can see",
        next: "only paths and formats of disks may differ",
        ..WORDS
    },
    Row {
        words: &["annot acquire state change lock"],
        means: "another job runs on the guest",
        next: "wait for it (virsh domjobinfo GUEST), or abort it; a migration over a network that broke \
               ends only when TCP gives up, which can take a quarter of an hour",
        ..WORDS
    },
    Row {
        words: &["uest CPU doesn't match"],
        means: "the destination's processor cannot run this guest",
        next: "use a CPU model in the guest that both hosts have, or another destination",
        ..WORDS
    },
    Row {
        words: &["nsupported machine type"],
        means: "the destination's QEMU does not know the guest's machine type",
        next: "upgrade its QEMU to the source's version or later",
        ..WORDS
    },
    // By words: the network.
    Row {
        words: &["nable to find an unused port"],
        means: "the destination has no free port for the migration",
        next: "look at migration_port_min and _max in its qemu.conf, and at what runs",
        ..WORDS
    },
    Row {
        words: &["migration out", "canceled"],
        means: "the job was aborted",
        next: "the guest should still run where it was",
        ..WORDS
    },
    Row {
        words: &["nable to resolve address"],
        means: "a host's name is not known",
        next: "each host must know the other's name: try getent hosts NAME on the source, or give an address",
        ..WORDS
    },
    Row {
        words: &["nable to connect to server at"],
        means: "no server answers at {quoted}",
        next: "is libvirt running there and listening, and does a firewall let it through? From the source, its \
               daemon and the ports 49152 to 49215 must be reachable",
        ..WORDS
    },
    Row {
        words: &["ailed to connect socket to"],
        means: "libvirt does not run on this host ({path})",
        next: "start it: systemctl start libvirtd, or virtqemud.socket with the modular daemons",
        ..WORDS
    },
    Row {
        words: &["onnection refused"],
        means: "a port that libvirt or QEMU needs does not answer",
        next: "a firewall? Migration and copies of disks use the ports 49152 to 49215 of the destination",
        ..WORDS
    },
    Row {
        words: &["o route to host"],
        means: "the other host cannot be reached",
        next: "a firewall, or the wrong address",
        ..WORDS
    },
    Row {
        words: &["eepalive timeout"],
        means: "the other end does not answer any more",
        next: "look at both hosts before anything is deleted",
        ..WORDS
    },
    Row {
        words: &["client socket is closed"],
        means: "a connection between the daemons, or to one of them, broke",
        next: "look at both hosts before anything is deleted",
        ..WORDS
    },
    Row {
        words: &["nd of file"],
        means: "the daemon at the far end of a connection exited",
        next: "look at both hosts before anything is deleted",
        ..WORDS
    },
    // By where it came from, once nothing better is known.
    Row {
        from: Some(from::RPC),
        means: "a connection to a libvirt daemon failed",
        next: "look at both hosts before anything is deleted",
        ..WORDS
    },
    Row {
        codes: &[code::NO_STORAGE_POOL],
        means: "there is no such storage pool",
        next: "virsh pool-list --all lists them",
        ..WORDS
    },
    Row {
        codes: &[code::NO_STORAGE_VOL],
        means: "there is no such volume in the pool",
        next: "refresh the pool (virsh pool-refresh)",
        ..WORDS
    },
    Row {
        codes: &[code::OPERATION_TIMEOUT],
        means: "libvirt waited too long for something",
        next: "virsh domjobinfo GUEST shows what runs",
        ..WORDS
    },
    Row {
        codes: &[code::NO_SUPPORT, code::NO_CONNECT, code::ARGUMENT_UNSUPPORTED],
        means: "this connection, or this version of libvirt, cannot do that",
        next: "a URI such as qemu:///system or qemu+ssh://HOST/system is needed",
        ..WORDS
    },
    Row {
        codes: &[code::OPERATION_INVALID],
        means: "that is not possible in the state that things are in",
        next: "virsh list --all, virsh domjobinfo GUEST and virsh pool-list --all show it",
        ..WORDS
    },
    Row {
        words: &["rocess exited while connecting to monitor"],
        means: "QEMU did not start at the destination",
        next: "its log is in /var/log/libvirt/qemu there",
        ..WORDS
    },
];

impl Row {
    fn fits(&self, code: i32, from: i32, sentence: &str) -> bool {
        (self.codes.is_empty() || self.codes.contains(&code))
            && self.from.is_none_or(|wanted| wanted == from)
            && self.words.iter().all(|words| sentence.contains(words))
    }
}

/// The error that libvirt's `code` (`virErrorNumber`), `from` (`virErrorDomain`) and `sentence` mean.
pub fn translate(code: i32, from: i32, sentence: &str) -> Error {
    let sentence = sentence.trim();
    match TABLE.iter().find(|row| row.fits(code, from, sentence)) {
        Some(row) => {
            let named = Named::in_sentence(sentence);
            let message = format!("{}; libvirt: {sentence}", named.fill(row.means));
            let error = Error::new(row.kind, message);
            match &row.remedy {
                Some(remedy) => error.hint(remedy.clone()),
                None if row.next.is_empty() => error,
                None => error.hint(named.fill(row.next)),
            }
        }
        None => Error::environment(format!("libvirt: {sentence} (error {code} of part {from})")),
    }
}

/// What a sentence names.
struct Named<'a> {
    quoted: Vec<&'a str>,
    disk: Option<&'a str>,
}

impl<'a> Named<'a> {
    fn in_sentence(sentence: &'a str) -> Self {
        let quoted = sentence.split('\'').skip(1).step_by(2).collect();
        let disk = sentence.match_indices("disk ").find_map(|(at, found)| {
            let rest = sentence.get(at.checked_add(found.len())?..)?;
            let word = rest.split([' ', '\'', ':', ',']).find(|word| !word.is_empty())?;
            let name = word.bytes().all(|byte| byte.is_ascii_alphanumeric());
            // vda, sdb, hdc, xvda, fda, nvme0n1
            (name
                && ["vd", "sd", "hd", "xvd", "fd", "ubd", "nvme"]
                    .iter()
                    .any(|kind| word.starts_with(kind)))
            .then_some(word)
        });
        Self { quoted, disk }
    }

    fn path(&self, n: usize) -> &str {
        let mut paths = self.quoted.iter().filter(|text| text.starts_with('/'));
        paths.nth(n).copied().unwrap_or("a file that it does not name")
    }

    fn fill(&self, text: &str) -> String {
        let disk = self.disk.map_or_else(|| "a disk".to_owned(), |disk| format!("disk {disk}"));
        let bare = self.disk.unwrap_or("DISK");
        text.replace("GUEST {disk}", &format!("GUEST {bare}"))
            .replace("{disk}", &disk)
            .replace(
                " ({path})",
                &self
                    .quoted
                    .iter()
                    .find(|text| text.starts_with('/'))
                    .map_or_else(String::new, |path| format!(" ({path})")),
            )
            .replace("{path}", self.path(0))
            .replace("{second}", self.path(1))
            .replace("{quoted}", self.quoted.first().copied().unwrap_or("that address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(
            error.message(),
            "libvirt: internal error: the moon is full (error 1 of part 10)"
        );
    }

    #[test]
    fn no_row_hides_another_of_the_same_words() {
        for (index, row) in TABLE.iter().enumerate() {
            for earlier in TABLE.iter().take(index) {
                let hides = earlier.codes.is_empty()
                    && earlier.from.is_none()
                    && earlier
                        .words
                        .iter()
                        .all(|word| row.words.iter().any(|own| own.contains(word)));
                assert!(!hides, "{:?} is never reached: {:?}", row.words, earlier.words);
            }
        }
    }
}

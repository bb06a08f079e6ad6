//! The table: what libvirt and QEMU say, and what it means. The first row that fits counts.

use super::code;
use crate::{ErrorKind, Remedy};

/// The part of libvirt that an error came from (`virErrorDomain`).
mod from {
    pub(super) const RPC: i32 = 7;
}

/// One row: what fits, and what it means. In `means` and `next`, `{path}` and `{second}` are the first and
/// second path that the sentence quotes, and `{disk}` is the disk that it names.
pub(super) struct Row {
    pub(super) codes: &'static [i32],
    pub(super) from: Option<i32>,
    /// All of them are in the sentence.
    pub(super) words: &'static [&'static str],
    pub(super) kind: ErrorKind,
    pub(super) means: &'static str,
    pub(super) next: &'static str,
    /// In place of `next`.
    pub(super) remedy: Option<Remedy>,
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

pub(super) const TABLE: &[Row] = &[
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

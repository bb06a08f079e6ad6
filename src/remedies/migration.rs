//! The remedies of the crate that moves guests, in words of this command line.

use migrate::{Remedy, Reword};

use super::{Options, words};

/// `value` with the words of `command` in place of all its remedies, to be shown or serialised.
pub(crate) fn reworded<T: Reword>(mut value: T, command: &str) -> T {
    value.reword(&|remedy| Some(migration_words(remedy, command)));
    value
}

/// What `remedy` is in the words of `command`: of the words that the table has, the first whose options all
/// exist; its own text if there are none.
pub(crate) fn migration_words(remedy: &Remedy, command: &str) -> String {
    if let Remedy::Engine(remedy) = remedy {
        return words(remedy, command);
    }
    let mut options = Options::new();
    match table(remedy).iter().find(|words| options.have_all(words, command)) {
        Some(words) => remedy.fill(words),
        None => remedy.to_string(),
    }
}

/// Words for `remedy`, the best first, with `{}` for each of its parameters. An option outside of backquotes is
/// one of the command that runs; within, of the one that is quoted.
fn table(remedy: &Remedy) -> &'static [&'static str] {
    match remedy {
        Remedy::Annotate => &[
            "run `qcowtool annotate GUEST` on the source host, let this host ask the source ('ask' in \
             /etc/qcowtool/hook.conf), or create the target",
        ],
        Remedy::AnnotateOrCopyAll => {
            &["run `qcowtool annotate GUEST` on the source host, or copy its disks completely \
             (`virsh migrate --copy-storage-all`)"]
        }
        Remedy::CopyAll => &[
            "copy the guest's disks completely (`virsh migrate --copy-storage-all`); if a disk was changed \
             since, run `qcowtool annotate GUEST` again on the source host",
        ],
        Remedy::StateStorage => &["state it with --shared DIRECTORY or --distinct DIRECTORY"],
        Remedy::StateShared => &["state it with --shared DIRECTORY if it is, or flatten the disk"],
        Remedy::MapPath => &["map one of the paths to another one with --map-path"],
        Remedy::MakeDirectory => &[
            "create the directory there, make it writable, or map the path to another one with --map-path",
        ],
        Remedy::AllowDirectory => &[
            "create the directory there, have it made as it is at the source with --mkdir, or map the path to \
             another one with --map-path",
        ],
        Remedy::Adopt => &["remove it if it is a left-over, or overwrite it with --adopt"],
        Remedy::MakeDevice(_) => &[
            "create a device of {} bytes there (lvcreate), and let it be overwritten with --adopt; or map the disk's \
             path to a file with --map-path",
        ],
        Remedy::OtherHost => &[
            "give another destination; if they are two hosts, set host_uuid in libvirtd.conf on one; to move disks \
             within a host, use `qcowtool relocate`",
        ],
        Remedy::Eject => &[
            "eject the medium, map its path to one that is free with --map-path, or allow --eject",
        ],
        Remedy::AllowDirectoryOfFile => {
            &["create its directory there, or have it made as it is at the source with --mkdir"]
        }
        Remedy::EjectOrAllowDirectory => &[
            "eject the medium, map its path to one that is free with --map-path, or allow --eject, or --mkdir, \
             which makes the directory as it is at the source",
        ],
        Remedy::AllowDepth => &["allow more with --max-depth, or flatten the disk"],
        Remedy::AllowDataFile => {
            &["allow it with --allow-data-file; the copy will be an ordinary image"]
        }
        Remedy::DropSnapshots => &[
            "leave them out with --drop-internal-snapshots, or shut the guest off and extract those that are \
             needed",
        ],
        Remedy::RecordFormat => &[
            "record it while no guest uses the image: `qemu-img rebase -u -F FORMAT -b BASE IMAGE`",
        ],
        Remedy::MakeFile => &[
            "create an empty file of that size at the destination (`truncate -s SIZE PATH`): QEMU fills it",
        ],
        Remedy::ReadAsRoot => {
            &["run qcowtool as root; a device must be detached, or removed from the definition"]
        }
        Remedy::CopyDirectory(_) => {
            &["copy '{}' to the same path at the destination, with owners, modes and labels \
             (`tar --numeric-owner --xattrs --selinux`, or `rsync -aAX`); then it is compared and used"]
        }
        Remedy::AnnotateAgain => &["`qcowtool annotate GUEST` writes it again"],
        Remedy::GiveRoots => &["give --root, for instance --root /var/lib/libvirt/images"],
        Remedy::EditRoots => &["edit its 'root' lines, and install without --root"],
        Remedy::CopyInFull => &["upgrade, or leave out --policy thin"],
        Remedy::NoSyncWrites => &["upgrade, or leave out --sync-writes"],
        Remedy::SetUpTls => &[
            "issue certificates for both hosts as libvirt's TLS pages describe, or leave out --tls",
        ],
        Remedy::RunOnGuestsHost(_) => &[
            "run qcowtool there, from here by `ssh -t {} qcowtool ...`, and leave out --connect",
            "run qcowtool there, from here by `ssh -t {} qcowtool ...`",
        ],
        Remedy::UseAgent => &["give -e 'ssh HOST', for a qcowtool at the destination"],
        Remedy::StartAgent => &["the command must start qcowtool on the other host"],
        Remedy::OnlyAgent => {
            &["the command must start qcowtool there, and nothing else may print anything"]
        }
        Remedy::MoreTime => {
            &["allow more with --timeout, or give --sync-writes if the guest writes a lot"]
        }
        Remedy::CopyFaster => &[
            "repeat it with --sync-writes, so that guest writes wait for the copy; or with more --bandwidth, or \
             a longer --stall",
        ],
        Remedy::DetachOrTry(_) => &[
            "{}; or leave it to libvirt and QEMU, which can migrate it on some hosts, with --try-devices",
        ],
        Remedy::Resume(_) => &["`qcowtool resume {}` does what is left to do"],
        Remedy::ResumeMoved(_) => {
            &["the guest has moved: `qcowtool resume {}` does what is left to do"]
        }
        Remedy::ResumePaused(_) => &[
            "the guest is at the destination, and may be paused there: `qcowtool resume {}` compares again \
             and resumes the guest",
        ],
        Remedy::StartThenEnd(_) => &[
            "if the destination's guest never ran, start it at the source; otherwise start it at the \
             destination; then run `qcowtool resume {}`, or `qcowtool rollback`",
        ],
        Remedy::StopOneThenEnd(_) => &[
            "look at both hosts with 'virsh domstate' and stop the guest that is not to continue; then run \
             `qcowtool resume {}`, or `qcowtool rollback`",
        ],
        Remedy::RollBackLater(_) => {
            &["once it can be reached, `qcowtool rollback {}` removes what was created there"]
        }
        Remedy::RollBackNothing => {
            &["nothing was done: end it with `qcowtool rollback`, then migrate again"]
        }
        Remedy::ResumeOrCopy => &["resume the guest first, or use --method copy"],
        Remedy::FlattenOffline => {
            &["no guest uses the image: `qcowtool flatten SRC DST` flattens it to a new one"]
        }
        Remedy::MigrateOrCompare => {
            &["migrate the guest with `qcowtool migrate`, or stop it and compare both chains"]
        }
        Remedy::ExtractSnapshots => &[
            "delete them, or flatten each to an image of its own with `qcowtool flatten --snapshot` first",
        ],
        Remedy::FlattenEncrypted => {
            &["decrypt it to a new image with `qemu-img convert` when no guest uses it"]
        }
        Remedy::Check => &["`qcowtool check` shows the corruption"],
        Remedy::OtherTarget => &["choose another name with --target"],
        Remedy::OtherDirectory => &["choose another directory with --method copy --target"],
        Remedy::RoomOrCopy => {
            &["make room, or copy the disk to another file system with --method copy --target"]
        }
        Remedy::KeepRunning(..) => &[
            "do not stop the guest if it still runs: migrate it, or copy the disk with --method copy. If it \
             has ended, and the backing file still exists or was rescued: \
             `qemu-img rebase -u -b '{}' -F {} '{}'` restores what the disk held",
        ],
        Remedy::StateDirectory => &["give a directory with --to"],
        Remedy::OtherCopies => &["choose another directory with --to"],
        Remedy::RoomForCopies => &["free some space, or choose another directory with --to"],
        Remedy::ChooseManifest => &["name the right one with --manifest FILE"],
        Remedy::SearchCopy => {
            &["look for another copy with `qcowtool rescue --candidates DIR --manifest FILE IMAGE`"]
        }
        Remedy::ChooseProcess => {
            &["name the right one with --pid; in a container, run qcowtool there"]
        }
        Remedy::NameGuest => &[
            "if a guest runs on it, its process has the deleted files open: give the guest's name, or --pid",
        ],
        Remedy::ShortenChain => {
            &["flatten a lower part of the chain with `qcowtool flatten`, or commit overlays"]
        }
        Remedy::AbsoluteName => {
            &["use one name only, or rebase it on an absolute name with `qemu-img rebase -u`"]
        }
        Remedy::CorrectFormat(..) => {
            &["if this is not intended: `qemu-img rebase -u -F {} -b '{}' IMAGE`"]
        }
        Remedy::CompareManifest => &[
            "compare the backing file with what the overlay was made on, such as a manifest or a backup; \
             --manifests DIR does it",
        ],
        Remedy::BreakLoop => {
            &["find out what they were made on, and rebase one of them with `qemu-img rebase -u`"]
        }
        Remedy::RestoreDeleted(_) => &[
            "do not stop the guest: restore the backing file with `qcowtool rescue --restore`, move the guest \
             with `qcowtool migrate`, or copy {} back to this name",
        ],
        Remedy::SaveDeleted(_) => &[
            "do not stop the guest before the content is saved: `qcowtool rescue` saves a backing file, \
             `qcowtool migrate` moves the guest; the content can be read as {}",
        ],
        Remedy::CheckHeader => &["check it with `qcowtool check` or `qemu-img check`"],
        Remedy::Repair => &["repair it with `qcowtool check -r all` while no guest uses it"],
        Remedy::RepairLeaks => &["if no guest uses it, `qcowtool check -r leaks` clears the mark"],
        Remedy::CheckTruncated => {
            &["`qcowtool check` shows whether data is missing; if so, copy the file again"]
        }
        Remedy::RebaseAsUsed => &[
            "rebase the images on what the guest uses with `qemu-img rebase -u` while it is off, or correct \
             the XML",
        ],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn commands() -> Vec<String> {
        Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
    }

    #[test]
    fn every_remedy_has_words_that_some_command_uses_and_that_name_all_parameters() {
        crate::remedies::install(Cli::command);
        for remedy in Remedy::all() {
            let table = table(&remedy);
            assert!(!table.is_empty(), "no words for {remedy:?}");
            for words in table {
                let used = |command: &String| Options::new().have_all(words, command);
                assert!(commands().iter().any(used), "{words}");
                assert_eq!(words.matches("{}").count(), remedy.parameters().len(), "{words}");
            }
        }
    }

    #[test]
    fn no_command_is_told_of_an_option_that_it_lacks() {
        crate::remedies::install(Cli::command);
        let mut options = Options::new();
        for command in commands() {
            for remedy in Remedy::all() {
                let words = migration_words(&remedy, &command);
                assert!(options.have_all(&words, &command), "{command}: {words}");
                let named = |parameter: &&str| words.contains(*parameter);
                assert!(remedy.parameters().iter().all(named), "{words}");
            }
        }
        assert!(migration_words(&Remedy::StateStorage, "plan").contains("--shared"));
        assert!(!migration_words(&Remedy::StateStorage, "resume").contains("--shared"));
        assert!(migration_words(&Remedy::OtherCopies, "rescue").contains("--to"));
        assert!(migration_words(&Remedy::Engine(qcow::Remedy::ShareRead), "info").contains("-U"));
        assert_eq!(reworded(Remedy::from("wait"), "plan"), Remedy::from("wait"));
    }
}

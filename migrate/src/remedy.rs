//! What to do about an error, a refusal or a finding, as values: a program that links this crate words them
//! for its own users, and names its own options. What is printed here names no option and no program of ours.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Defines the remedies: each with its neutral text, in which `{}` stands for the next parameter.
macro_rules! remedies {
    (@string $parameter:ident) => { String };
    ($($(#[$doc:meta])* $variant:ident $(($($parameter:ident),+))? $text:literal;)*) => {
        /// What to do about an [`Error`](crate::Error), a [`Refusal`](crate::plan::Refusal) or a finding. Its
        /// `Display` is a clause without a full stop that names no option and no program of ours. That is also
        /// its serialised form, from which the same value is read again.
        ///
        /// ```
        /// use migrate::Remedy;
        /// let error = migrate::Error::refused("the guest has moved").hint(Remedy::Resume("7f3a".into()));
        /// let words = match error.what_next() {
        ///     Some(Remedy::Resume(transaction)) => format!("my-manager resume {transaction}"),
        ///     Some(other) => other.to_string(),
        ///     None => String::new(),
        /// };
        /// assert_eq!(words, "my-manager resume 7f3a");
        /// let said = error.what_next().unwrap().to_string();
        /// assert_eq!(Remedy::parse(&said), Remedy::Resume("7f3a".into()));
        /// ```
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Remedy {
            $($(#[$doc])* $variant $(($(remedies!(@string $parameter)),+))?,)*
            /// What the engine advises about an image.
            Engine(qcow::Remedy),
            /// Other advice, in words that name no option and no program of ours.
            Advice(Cow<'static, str>),
        }

        impl Remedy {
            /// One of each except [`Engine`](Self::Engine) and [`Advice`](Self::Advice), its parameters in
            /// capitals: for tests of a program's own words.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$variant $(($(stringify!($parameter).to_uppercase()),+))?,)*]
            }

            /// The name of the variant.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => stringify!($variant),)*
                    Self::Engine(_) => "Engine",
                    Self::Advice(_) => "Advice",
                }
            }

            /// Its parameters, in the order of its text.
            pub fn parameters(&self) -> Vec<&str> {
                match self {
                    $(Self::$variant $(($($parameter),+))? => vec![$($($parameter),+)?],)*
                    Self::Engine(_) | Self::Advice(_) => Vec::new(),
                }
            }

            /// The remedy whose text this is; else [`Advice`](Self::Advice).
            pub fn parse(text: &str) -> Self {
                $(if let Some([$($($parameter),+)?]) = captured($text, text) {
                    return Self::$variant $(($($parameter),+))?;
                })*
                Self::Advice(text.to_owned().into())
            }

            fn template(&self) -> &str {
                match self {
                    $(Self::$variant { .. } => $text,)*
                    Self::Engine(_) | Self::Advice(_) => "",
                }
            }
        }
    };
}

remedies! {
    // Storage and paths, before a migration.
    /// State whether both hosts share a directory.
    StateStorage "state whether both hosts share the directory";
    /// State that a layer's directory is shared, or flatten the disk.
    StateShared "state that both hosts share the directory if they do, or flatten the disk";
    /// Map the path of one disk to another one.
    MapPath "map one of the paths to another one";
    /// Create the directory at the destination, or map the path.
    MakeDirectory "create the directory there, make it writable, or map the path to another one";
    /// Allow that a directory is made at the destination, make it, or map the path.
    AllowDirectory "create the directory there, allow that it is made as it is at the source, or map the path to \
                    another one";
    /// The same for a file that keeps its path.
    AllowDirectoryOfFile "create its directory there, or allow that it is made as it is at the source";
    /// Overwrite what is at the path, or remove it.
    Adopt "remove it if it is a left-over, or allow that it is overwritten";
    /// Create a block device of so many bytes, and overwrite what it holds.
    MakeDevice(size) "create a device of {} bytes there, and allow that it is overwritten; or map the disk's path to a \
                      file";
    /// Migrate to another host; or tell two hosts apart; or move disks within one.
    OtherHost "give another destination; if they are two hosts, set host_uuid in libvirtd.conf on one; disks can be \
               moved within a host";
    /// Eject a removable medium, or find another path for it.
    Eject "eject the medium, map its path to one that is free, or allow that the drive is emptied";
    /// The same, or allow that a directory is made for it at the destination.
    EjectOrAllowDirectory "eject the medium, map its path to one that is free, or allow that the drive is emptied, or \
                           that the directory is made as it is at the source";
    /// Allow a deeper backing chain.
    AllowDepth "allow a deeper chain, or flatten the disk";
    /// Allow that the copy of a disk with an external data file has none.
    AllowDataFile "allow that the data file becomes part of the copy, which is an ordinary image";
    /// Allow that internal snapshots are not copied.
    DropSnapshots "allow that they are left out, or shut the guest off and extract those that are needed";
    /// Record the backing file's format in the image.
    RecordFormat "record the backing file's format in the image's header while no guest uses the image";

    // Files of a guest besides its disks.
    /// Create a file for an NVDIMM to arrive in.
    MakeFile "create an empty file of that size at the destination: QEMU fills it";
    /// Read the file as root, or remove the device.
    ReadAsRoot "run this as root; a device must be detached, or removed from the definition";
    /// Copy the state of a TPM with all that belongs to it.
    CopyDirectory(directory) "copy '{}' to the same path at the destination, with owners, modes and labels; then it is \
                              compared and used";

    // The hook of the destination's libvirt.
    /// Write the metadata of a guest again.
    AnnotateAgain "write the metadata of the guest again";
    /// Name the directories for targets.
    GiveRoots "give a directory below which targets may be created";
    /// The configuration names the directories already.
    EditRoots "edit the directories in the configuration, and install without giving any";

    // Abilities of the hosts.
    /// Do without overlays at the destination.
    CopyInFull "upgrade, or let all disks be copied in full";
    /// Do without waiting for the copy of each write.
    NoSyncWrites "upgrade, or do without synchronous writes";
    /// Set up TLS, or do without it.
    SetUpTls "issue certificates for both hosts as libvirt's TLS pages describe, or do without TLS";
    /// Run the planner where the guest's images are.
    RunOnGuestsHost(host) "run this on {}, where the guest's images can be read";
    /// Have a process of ours started at the destination.
    UseAgent "reach the destination through a process there that serves its files";
    /// The command has to start that process.
    StartAgent "the command must start the process that serves the other host's files";
    /// The command must print nothing of its own.
    OnlyAgent "the command must start the process that serves the other host's files, and nothing else \
               may print anything";

    /// Detach a device that only some hosts can migrate, or try.
    DetachOrTry(detach) "{}; or leave it to libvirt and QEMU, which can migrate it on some hosts";

    // While a guest moves, and afterwards.
    /// Give the migration more time.
    MoreTime "allow more time, or synchronous writes if the guest writes a lot";
    /// Have guest writes wait for the copy, or copy faster.
    CopyFaster "repeat it with synchronous writes, which wait for the copy; or with more bandwidth, or allow that \
                the guest outruns the copy for longer";
    /// Do what is left to do of a transaction.
    Resume(transaction) "resume the transaction {}, which does what is left to do";
    /// The guest has moved: do what is left to do of a transaction.
    ResumeMoved(transaction) "the guest has moved: resume the transaction {}, which does what is left to do";
    /// The guest has moved and may be paused: compare again, and let it run.
    ResumePaused(transaction) "the guest is at the destination, and may be paused there: resume the transaction {}, \
                               which compares again and resumes the guest";
    /// Start the guest where it never ran, then end the transaction.
    StartThenEnd(transaction) "if the destination's guest never ran, start it at the source; otherwise start it at \
                               the destination; then resume or roll back the transaction {}";
    /// Stop one of two guests, then end the transaction.
    StopOneThenEnd(transaction) "look at both hosts with 'virsh domstate' and stop the guest that is not to \
                                 continue; then resume or roll back the transaction {}";
    /// Remove what was created at the destination, once it can be reached.
    RollBackLater(transaction) "once it can be reached, roll back the transaction {}, which removes what was \
                                created there";
    /// End a transaction that did nothing.
    RollBackNothing "nothing was done: roll the transaction back, then migrate again";

    // Flattening the disk of a running guest.
    /// Resume the guest, or copy the disk.
    ResumeOrCopy "resume the guest first, or copy the disk to a new image";
    /// The guest does not run: flatten the image.
    FlattenOffline "flatten the disk's image to a new one: no guest uses it";
    /// Move the disk, or compare the two chains.
    MigrateOrCompare "migrate the guest with this disk, or stop it and compare both chains";
    /// Extract the internal snapshots, or delete them.
    ExtractSnapshots "delete them, or flatten each to an image of its own first";
    /// Flatten an encrypted image without us.
    FlattenEncrypted "decrypt it to a new image when no guest uses it";
    /// Check the image.
    Check "check the image, which shows the corruption";
    /// Choose another name for the copy.
    OtherTarget "choose another name for the new image";
    /// Choose another directory for the copy.
    OtherDirectory "choose another directory for the new image";
    /// Make room, or copy elsewhere.
    RoomOrCopy "make room, or copy the disk to a new image on another file system";
    /// The result is wrong: copy it while the guest runs, or rebase it on what it had.
    KeepRunning(base, format, image) "do not stop the guest if it still runs: migrate it, or copy the disk to a new \
                                      image. If it has ended, and '{}' still exists or was rescued, rebase on it, \
                                      as {}, the image '{}'";

    // Deleted and lost backing files.
    /// Say where copies go.
    StateDirectory "give the directory for the copies";
    /// Choose another directory for copies.
    OtherCopies "choose another directory for the copies";
    /// Free space, or choose another directory for copies.
    RoomForCopies "free some space, or choose another directory for the copies";
    /// Say which of several manifests is meant.
    ChooseManifest "say which manifest is the right one";
    /// Look for another copy of the lost backing file.
    SearchCopy "look for another copy of the backing file, among candidates or by its manifest";
    /// Say which process is the guest's.
    ChooseProcess "say which process it is; in a container, run this there";
    /// Look into the process that uses the image.
    NameGuest "if a guest runs on it, its process has the deleted files open: name the guest or the process";

    // Findings of an audit.
    /// Flatten or commit a part of a long chain.
    ShortenChain "flatten a lower part of the chain, or commit overlays";
    /// Rebase on an absolute name.
    AbsoluteName "use one name only, or rebase it on an absolute name";
    /// Correct the recorded format of the backing file.
    CorrectFormat(format, base) "if this is not intended, record the format {} of '{}' in the image's header";
    /// Compare with a manifest.
    CompareManifest "compare the backing file with what the overlay was made on, such as a manifest or a backup";
    /// Break a loop of backing files.
    BreakLoop "find out what they were made on, and rebase one of them";
    /// Save a backing file that was deleted but is open, under its name.
    RestoreDeleted(descriptor) "do not stop the guest: restore the backing file, migrate the guest, or copy {} \
                                back to this name";
    /// Save a file that was deleted but is open.
    SaveDeleted(descriptor) "do not stop the guest before the content is saved: rescue a backing file, or migrate \
                             the guest; the content can be read as {}";
    /// Look at a header that is not understood.
    CheckHeader "check the image";
    /// Repair an image that is marked as corrupt.
    Repair "repair it while no guest uses it";
    /// Clear the dirty bit.
    RepairLeaks "if no guest uses it, repair its refcounts, which clears the mark";
    /// Find out whether a short file lacks data.
    CheckTruncated "check the image, which shows whether data is missing; if so, copy the file again";
    /// Make headers and XML agree.
    RebaseAsUsed "rebase the images on what the guest uses while it is off, or correct the XML";

    /// Tell the destination the sizes of a guest's disks.
    Annotate "write the exact sizes of the guest's disks into its metadata on the source host, let this host ask \
              the source, or create the target";
    /// Tell the destination what backing files hold, or do without them.
    AnnotateOrCopyAll "write what the backing files hold into the guest's metadata on the source host, or copy \
                       its disks completely";
    /// Do without the destination's backing file.
    CopyAll "copy the guest's disks completely; if a disk was changed since its metadata was written, write it again";
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(remedy) => remedy.fmt(f),
            Self::Advice(words) => f.write_str(words),
            _ => f.write_str(&self.fill(self.template())),
        }
    }
}

impl Remedy {
    /// `words` with its parameters in place of each `{}`.
    pub fn fill(&self, words: &str) -> String {
        let mut parameters = self.parameters().into_iter();
        let mut filled = String::new();
        for (at, piece) in words.split("{}").enumerate() {
            if at > 0 {
                filled.push_str(parameters.next().unwrap_or_default());
            }
            filled.push_str(piece);
        }
        filled
    }
}

/// What stands in `text` for each `{}` of `template`.
fn captured<const N: usize>(template: &str, text: &str) -> Option<[String; N]> {
    let mut pieces = template.split("{}").peekable();
    let mut rest = text.strip_prefix(pieces.next()?)?;
    let mut found = Vec::new();
    while let Some(piece) = pieces.next() {
        let (parameter, after) = match pieces.peek() {
            Some(_) => rest.split_once(piece)?,
            None => (rest.strip_suffix(piece)?, ""),
        };
        found.push(parameter.to_owned());
        rest = after;
    }
    rest.is_empty().then_some(())?;
    found.try_into().ok()
}

impl From<&'static str> for Remedy {
    fn from(words: &'static str) -> Self {
        Self::Advice(words.into())
    }
}

impl From<String> for Remedy {
    fn from(words: String) -> Self {
        Self::Advice(words.into())
    }
}

impl From<qcow::Remedy> for Remedy {
    fn from(remedy: qcow::Remedy) -> Self {
        Self::Engine(remedy)
    }
}

impl Serialize for Remedy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Remedy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::parse(&text))
    }
}

/// Values that carry remedies. A program puts its own words in their place before it shows or serialises them.
///
/// ```
/// use migrate::{Remedy, Reword};
/// let mut remedies = vec![Remedy::StateStorage, Remedy::from("wait")];
/// remedies.reword(&|remedy| matches!(remedy, Remedy::StateStorage).then(|| "give --shared".into()));
/// assert_eq!(remedies[0].to_string(), "give --shared");
/// assert_eq!(remedies[1].to_string(), "wait");
/// ```
pub trait Reword {
    /// Replaces each remedy for which `words` has some.
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>);
}

impl Reword for Remedy {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        if let Some(words) = words(self) {
            *self = Self::Advice(words.into());
        }
    }
}

impl<T: Reword> Reword for Option<T> {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        if let Some(value) = self {
            value.reword(words);
        }
    }
}

impl<T: Reword> Reword for Vec<T> {
    fn reword(&mut self, words: &dyn Fn(&Remedy) -> Option<String>) {
        for value in self {
            value.reword(words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_remedy_is_read_again_from_its_text() {
        for remedy in Remedy::all() {
            let text = remedy.to_string();
            assert!(!text.is_empty() && !text.contains("{}") && !text.ends_with('.'), "{text}");
            assert_eq!(Remedy::parse(&text), remedy);
            let json = serde_json::to_string(&remedy).unwrap();
            assert_eq!(serde_json::from_str::<Remedy>(&json).unwrap(), remedy);
        }
        let own = Remedy::Resume("{}' x".into());
        assert_eq!(Remedy::parse(&own.to_string()), own);
        assert_eq!(Remedy::parse("wait"), Remedy::from("wait"));
        assert_eq!(
            Remedy::from(qcow::Remedy::Repair).to_string(),
            qcow::Remedy::Repair.to_string()
        );
    }
}

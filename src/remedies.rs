//! What to do about an error, in words of this command line. The libraries know no option and no
//! program; here each remedy is worded once, and words are only used by a command that has every
//! option they name.

mod migration;

use std::sync::OnceLock;

use qcow::{Error, LimitName, Remedy};

pub(crate) use self::migration::{migration_words, reworded};

/// The definitions of all commands. They stand above this module, which all of them use.
static COMMANDS: OnceLock<fn() -> clap::Command> = OnceLock::new();

/// Hands in the definitions of all commands. Without them, the libraries' own words are used.
pub(crate) fn install(commands: fn() -> clap::Command) {
    let _ = COMMANDS.set(commands);
}

/// The error in one line, with what to do next in the words of `command`.
pub(crate) fn line(error: &Error, command: &str) -> String {
    match words_for(error, command) {
        Some(words) => format!("{}; {words}", error.reason()),
        None => error.to_string(),
    }
}

/// What to do about `error`, in the words of `command`.
pub(crate) fn words_for(error: &Error, command: &str) -> Option<String> {
    error.what_next().map(|remedy| words(remedy, command))
}

/// What `remedy` is in the words of `command`: of the words that the table has, the first whose options all
/// exist; the engine's own words if there are none.
fn words(remedy: &Remedy, command: &str) -> String {
    let mut options = Options::new();
    if let Some(words) = with_names(remedy)
        // Of `create`, that option is for the new image's own backing file.
        .filter(|words| command != "create" && options.have_all(words, command))
    {
        return words;
    }
    let chosen = table(remedy, command).iter().find(|words| options.have_all(words, command));
    let parameter = parameter(remedy);
    chosen.map_or_else(|| remedy.to_string(), |words| words.replace("PROGRAM", parameter))
}

/// What stands for `PROGRAM` in the words for `remedy`: a program's name, or what QEMU calls a format.
fn parameter(remedy: &Remedy) -> &'static str {
    match remedy {
        Remedy::ConvertFrom(name) | Remedy::Decompress(name) | Remedy::DecompressStream(name) => {
            name
        }
        _ => "",
    }
}

/// Words for what names files of the chain.
fn with_names(remedy: &Remedy) -> Option<String> {
    match remedy {
        Remedy::StateBackingFormat(names) => match names.as_slice() {
            [] => None,
            [name] => Some(format!(
                "state it with --backing-format '{name}=qcow2' or --backing-format '{name}=raw'"
            )),
            names => {
                let option = |name: &String| format!("--backing-format '{name}=FMT'");
                let options: Vec<_> = names.iter().map(option).collect();
                Some(format!("state it for each: {}", options.join(" ")))
            }
        },
        Remedy::InsistOnRaw(name) => Some(format!(
            "state its real format, such as --backing-format '{name}=qcow2'; if the disk itself begins \
             with these bytes: --backing-format '{name}=raw' --raw-despite-magic"
        )),
        _ => None,
    }
}

/// Words for `remedy`, the best first. An option outside of backquotes is one of the command that
/// runs; within, of the one that is quoted.
fn table(remedy: &Remedy, command: &str) -> &'static [&'static str] {
    match remedy {
        Remedy::Replace => &["choose another name, or give --force to replace it"],
        Remedy::ShareRead if command == "check" => {
            &["stop the guest that uses it, or give -U to check it all the same"]
        }
        Remedy::ShareRead => &["stop the guest that uses it, or give -U to read it all the same"],
        Remedy::ReplaceInUse => &[
            "stop what uses it, or give --force-in-use to overwrite it all the same",
            "stop what uses it, then try again",
        ],
        Remedy::ChangeShared => &["give --shared if nothing needs it as it was"],
        Remedy::KeepOverlay => &["give -d to leave the overlay as it is"],
        Remedy::ChangeSnapshots => {
            &["delete such snapshots first, or give --change-snapshots if nothing needs them"]
        }
        Remedy::WriteInto => &["`qcowtool flatten -n -O raw` writes into it"],
        Remedy::NewFile => &["leave out -n to make a new file"],
        Remedy::StateFormat => &["state the format of the image: -f qcow2 or -f raw"],
        Remedy::RestoreBacking if command == "check" => {
            &["restore the file under this name, or give --alone to check the image without it"]
        }
        Remedy::RestoreBacking => &[
            "restore the file under this name, or give --alone to read what is above it",
            "restore the file under this name",
        ],
        Remedy::AllowDirectory => &["allow the directory in which the file is with --allow-dir"],
        Remedy::RaiseLimit(LimitName::Depth) => &["allow more with --max-depth"],
        Remedy::RaiseLimit(LimitName::VirtualSize) => &["allow more with --max-virtual-size"],
        Remedy::RaiseLimit(LimitName::Metadata) => &["allow more with --max-metadata"],
        Remedy::Flatten => &["copy the image with `qcowtool flatten`"],
        Remedy::FlattenLower => {
            &["copy the lower images of the chain to one with `qcowtool flatten` first"]
        }
        Remedy::Salvage => &[
            "copy what can be read with `qcowtool flatten --salvage`; `qcowtool check` lists the damage",
            "`qcowtool check` lists the damage",
        ],
        Remedy::Repair => &["repair it with `qcowtool check -r all`"],
        Remedy::Check => &["`qcowtool check` tells more"],
        Remedy::DropSnapshots => {
            &["`qemu-img check -r all` removes the snapshots that cannot be read"]
        }
        Remedy::Shrink => {
            &["make the guest's partitions and file systems smaller first, then give --shrink"]
        }
        Remedy::DropBitmaps => &[
            "give --bitmaps drop to remove them",
            "remove the bitmaps with `qcowtool bitmap --remove FILE BITMAP`",
        ],
        Remedy::MarkBitmaps => &[
            "give --bitmaps mark to have what changes as dirty in them, or --bitmaps drop to remove them",
            "remove the bitmaps with `qcowtool bitmap --remove FILE BITMAP`",
        ],
        Remedy::SkipBrokenBitmaps => &[
            "give --skip-broken-bitmaps to leave it out",
            "remove it with `qcowtool bitmap --remove FILE BITMAP`",
        ],
        Remedy::ListSnapshots => &["`qcowtool info` lists the snapshots"],
        // Of its second image, the option is another one.
        Remedy::ConvertFrom(_) if command == "compare" => &[
            "convert it with `qemu-img convert -f PROGRAM -O qcow2 FILE NEW`, or give -f raw, or -F raw for the second image, if these are a disk's own bytes",
        ],
        Remedy::ConvertFrom(_) => &[
            "convert it with `qemu-img convert -f PROGRAM -O qcow2 FILE NEW`, or give -f raw if these are a disk's own bytes",
            "convert it with `qemu-img convert -f PROGRAM -O qcow2 FILE NEW`",
        ],
        Remedy::Decompress(_) => &[
            "decompress it first with `PROGRAM -dc FILE > NEW`, or give -f raw if these are a disk's own bytes",
            "decompress it first with `PROGRAM -dc FILE > NEW`",
        ],
        Remedy::Unpack("tar") => &[
            "take the disk out of it first with `tar -xf FILE`, or give -f raw if these are a disk's own bytes",
            "take the disk out of it first with `tar -xf FILE`",
        ],
        Remedy::Unpack("zip") => &[
            "take the disk out of it first with `unzip FILE`, or give -f raw if these are a disk's own bytes",
            "take the disk out of it first with `unzip FILE`",
        ],
        Remedy::Unpack(_) => &[
            "take the disk out of it first with `7z x FILE`, or give -f raw if these are a disk's own bytes",
            "take the disk out of it first with `7z x FILE`",
        ],
        Remedy::DecompressStream(_) => &[
            "decompress it on the way with `PROGRAM -dc FILE | qcowtool flatten - DST`, or give -f raw, without \
             --untrusted, if these are a disk's own bytes",
        ],
        Remedy::SaveStream => &[
            "save it to a file and name that instead of '-', or give -f raw, without --untrusted, if these are a \
             disk's own bytes",
        ],
        Remedy::Decrypt("luks") => &[
            "decrypt it with `qemu-img convert --object secret,id=key,file=PASSWORD --image-opts driver=luks,key-secret=key,file.filename=FILE -O qcow2 NEW`",
        ],
        Remedy::Decrypt(_) => &[
            "decrypt it with `qemu-img convert --object secret,id=key,file=PASSWORD --image-opts driver=qcow2,encrypt.key-secret=key,file.filename=FILE -O qcow2 NEW`",
        ],
        Remedy::CopyToLocalFile => &[
            "copy it to a local file first, for example with `qemu-img convert`; a local file of such a \
               name is written with its directory: ./NAME",
        ],
        Remedy::DestinationFormat("qcow2") => &["use -O qcow2", "use -f qcow2"],
        Remedy::DestinationFormat("raw") => &["use -O raw", "use -f raw"],
        Remedy::LargerClusters => &["use a larger cluster_size: -o cluster_size=2M"],
        Remedy::Compress => &["ask for compression, too: -c"],
        Remedy::OverwriteDevice => {
            &["give --device to overwrite it", "`qcowtool flatten --device` overwrites one"]
        }
        Remedy::NotDevice => &["leave out --device"],
        Remedy::BufferedIo => &["leave out --direct"],
        Remedy::CheckStream => &["nothing was written: check --size, and what sends the stream"],
        Remedy::NewManifest => &["make a new one with `qcowtool checksum --manifest`"],
        _ => &[],
    }
}

/// The options of all commands.
struct Options(clap::Command);

impl Options {
    fn new() -> Self {
        Self(COMMANDS.get().map_or_else(|| clap::Command::new(""), |commands| commands()))
    }

    /// Whether every option that `words` name exists.
    fn have_all(&mut self, words: &str, command: &str) -> bool {
        words.split('`').enumerate().all(|(index, part)| {
            let mut parts = part.split_whitespace();
            let command = match (index % 2 == 1, parts.next()) {
                (true, Some("qcowtool")) => parts.next().unwrap_or_default(),
                (true, _) => return true, // another program's command line
                (false, _) => command,
            };
            part.split_whitespace().filter_map(option).all(|option| self.has(command, option))
                && self.0.find_subcommand(command).is_some()
        })
    }

    fn has(&mut self, command: &str, option: &str) -> bool {
        let Some(command) = self.0.find_subcommand_mut(command) else { return false };
        // Its arguments are only defined when it is built.
        command.build();
        let parts = command.get_subcommands().flat_map(clap::Command::get_arguments);
        let named = |argument: &clap::Arg| match option.strip_prefix("--") {
            Some(long) => argument.get_long() == Some(long),
            None => argument.get_short().is_some_and(|short| option == format!("-{short}")),
        };
        command.get_arguments().chain(parts).any(named)
    }
}

/// The option that a word of a sentence is, if it is one.
fn option(word: &str) -> Option<&str> {
    let word = word.trim_matches([',', ';', ':', '.', '(', ')']);
    word.strip_prefix('-')
        .filter(|rest| rest.starts_with(|c: char| c == '-' || c.is_alphabetic()))?;
    Some(word)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// Each remedy once.
    const ALL: &[Remedy] = &[
        Remedy::Replace,
        Remedy::ShareRead,
        Remedy::ReplaceInUse,
        Remedy::ChangeShared,
        Remedy::ChangeSnapshots,
        Remedy::KeepOverlay,
        Remedy::WriteInto,
        Remedy::NewFile,
        Remedy::StopUser,
        Remedy::StopChanges,
        Remedy::StateFormat,
        Remedy::StateBackingFormat(Vec::new()),
        Remedy::InsistOnRaw(String::new()),
        Remedy::AllowDirectory,
        Remedy::RaiseLimit(LimitName::Depth),
        Remedy::RaiseLimit(LimitName::VirtualSize),
        Remedy::RaiseLimit(LimitName::Metadata),
        Remedy::RestoreBacking,
        Remedy::Flatten,
        Remedy::FlattenLower,
        Remedy::Salvage,
        Remedy::Repair,
        Remedy::Check,
        Remedy::DropSnapshots,
        Remedy::Shrink,
        Remedy::DropBitmaps,
        Remedy::MarkBitmaps,
        Remedy::SkipBrokenBitmaps,
        Remedy::ListSnapshots,
        Remedy::ConvertFrom("vmdk"),
        Remedy::Decompress("gzip"),
        Remedy::Unpack("tar"),
        Remedy::Unpack("zip"),
        Remedy::Unpack("7z"),
        Remedy::DecompressStream("gzip"),
        Remedy::SaveStream,
        Remedy::Decrypt("qcow2"),
        Remedy::Decrypt("luks"),
        Remedy::CopyToLocalFile,
        Remedy::GiveSize,
        Remedy::DestinationFormat("qcow2"),
        Remedy::DestinationFormat("raw"),
        Remedy::LargerClusters,
        Remedy::Compress,
        Remedy::NameFile,
        Remedy::OverwriteDevice,
        Remedy::NotDevice,
        Remedy::BufferedIo,
        Remedy::CheckStream,
        Remedy::FreeSpace,
        Remedy::NewManifest,
        Remedy::ReportBug,
    ];

    fn commands() -> Vec<String> {
        Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
    }

    #[test]
    fn no_command_is_told_of_an_option_that_it_lacks() {
        install(Cli::command);
        let mut options = Options::new();
        for command in commands() {
            for remedy in ALL {
                let words = words(remedy, &command);
                assert!(options.have_all(&words, &command), "{command}: {words}");
            }
        }
        assert!(words(&Remedy::ShareRead, "info").contains("-U"));
        let stated = Remedy::StateBackingFormat(vec!["base.raw".into()]);
        assert!(words(&stated, "info").contains("--backing-format 'base.raw=raw'"));
        assert!(!words(&Remedy::ShareRead, "audit").contains("-U"));
        assert!(words(&Remedy::Replace, "flatten").contains("--force"));
        assert!(!words(&stated, "create").contains("--backing-format"));
        assert!(words(&Remedy::DestinationFormat("qcow2"), "create").contains("-f qcow2"));
        assert!(words(&Remedy::DestinationFormat("qcow2"), "flatten").contains("-O qcow2"));
    }

    #[test]
    fn the_options_of_the_words_are_found() {
        install(Cli::command);
        let mut options = Options::new();
        assert!(options.have_all("give -U, or --backing-format raw", "info"));
        assert!(!options.have_all("give -U, or --no-such-option", "info"));
        assert!(!options.have_all("`qcowtool info --force`", "create"));
        assert!(!options.have_all("`qcowtool no-such-command`", "create"));
        assert!(options.have_all("`qcowtool check -r all`; `qemu-img x --odd`", "create"));
        assert!(options.have_all("well-known, half-open - and -5", "create"));
    }

    #[test]
    fn words_are_of_use_to_some_command() {
        install(Cli::command);
        for remedy in ALL {
            for words in commands().iter().flat_map(|command| table(remedy, command)) {
                // `flatten --salvage` may come later.
                let used = commands().iter().any(|command| Options::new().have_all(words, command));
                assert!(used || words.contains("--salvage"), "{words}");
            }
        }
    }

    #[test]
    fn the_line_has_the_reason_and_the_words() {
        install(Cli::command);
        let error =
            Error::new(qcow::ErrorKind::Exists, "it exists").file("x").hint(Remedy::Replace);
        assert_eq!(
            line(&error, "flatten"),
            "x: it exists; choose another name, or give --force to replace it"
        );
        assert_eq!(line(&Error::usage("no"), "flatten"), "no");
        assert_eq!(line(&Error::usage("no").hint("do"), "flatten"), "no; do");
    }
}

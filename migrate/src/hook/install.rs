//! Installing the hook: a script in libvirt's directory of hooks, and a configuration.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::config::{Config, LONGEST};
use super::run::text_of;
use crate::fs::{failed, make_directories, sync_path};
use crate::{Error, Remedy, Result};

/// libvirt's directory of hooks.
pub const HOOKS: &str = "/etc/libvirt/hooks";

/// Where scripts of QEMU guests are, below [`HOOKS`] (libvirt 6.5 and later).
const DIRECTORY: &str = "qemu.d";

/// The hook that other programs install, CloudStack among them.
const MAIN: &str = "qemu";

/// No script of ours is longer, in bytes.
const LONGEST_SCRIPT: u64 = 16 << 10;

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Installed {
    /// The script that libvirt calls.
    pub script: PathBuf,
    /// It is there, and is ours.
    pub present: bool,
    /// The program that the script calls, if the script is there.
    pub program: Option<PathBuf>,
    /// The configuration's file.
    pub config: PathBuf,
    /// What keeps the hook from working, in words.
    pub problems: Vec<String>,
    /// libvirt has to be restarted: it looks for hooks when it starts, and there was none.
    pub restart: bool,
}

/// Where everything goes, and how a script of this program is known.
#[derive(Debug, Clone)]
pub struct Places {
    /// libvirt's directory of hooks.
    pub hooks: PathBuf,
    /// The configuration's file.
    pub config: PathBuf,
    /// The script's name.
    pub name: &'static str,
    /// A line that every script of this program has.
    pub mark: &'static str,
    /// What is before the program's path in the line of the script that tells it; `'` ends the line.
    pub before_program: &'static str,
}

impl Places {
    fn script(&self) -> PathBuf {
        self.hooks.join(DIRECTORY).join(self.name)
    }

    fn foreign(&self) -> String {
        format!("'{}' is a script of another program", self.script().display())
    }
}

/// Installs a script of this text, and a configuration if one is given.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) if another script has the name, or there is a configuration and another one is
/// given; [`Usage`](crate::ErrorKind::Usage) if there is none at all; [`Environment`](crate::ErrorKind::Environment).
pub fn install(places: &Places, script_text: &str, config: Option<&str>) -> Result<Installed> {
    let script = places.script();
    if ours(places)? == Some(false) {
        return Err(Error::refused(places.foreign()).hint("move it away first"));
    }
    let had_hooks = has_hooks(&places.hooks);
    match (exists(&places.config)?, config) {
        (true, None) => {}
        (true, Some(_)) => {
            let path = places.config.display();
            return Err(Error::refused(format!("the configuration '{path}' is there already"))
                .hint(Remedy::EditRoots));
        }
        (false, None) => {
            let message = "there is no configuration, and no directory is given for new targets";
            return Err(Error::usage(message).hint(Remedy::GiveRoots));
        }
        (false, Some(text)) => publish(&places.config, text, 0o644)?,
    }
    publish(&script, script_text, 0o755)?;
    let mut installed = status(places)?;
    installed.restart = !had_hooks;
    Ok(installed)
}

/// What is installed. Whether libvirt was restarted since is not looked at.
///
/// # Errors
/// [`Environment`](crate::ErrorKind::Environment).
pub fn status(places: &Places) -> Result<Installed> {
    let script = places.script();
    let mut problems = Vec::new();
    let is_ours = ours(places)?;
    let program = match is_ours {
        Some(true) => program_of(places, &text_of(&script, LONGEST_SCRIPT)?),
        Some(false) => {
            problems.push(places.foreign());
            None
        }
        None => None,
    };
    let present = is_ours == Some(true);
    if present {
        match &program {
            Some(program) if is_executable(program) => {}
            Some(program) => problems.push(format!("'{}' is not there", program.display())),
            None => problems.push(format!("'{}' was changed", script.display())),
        }
        if !is_executable(&script) {
            problems.push(format!("'{}' is not executable", script.display()));
        }
        match load(&places.config) {
            Ok(config) if config.roots.is_empty() => {
                problems.push(format!(
                    "'{}' has no root: no target is created",
                    places.config.display()
                ));
            }
            Ok(_) => {}
            Err(error) => problems.push(error.message().to_owned()),
        }
    }
    let config = places.config.clone();
    Ok(Installed { script, present, program, config, problems, restart: false })
}

/// Removes the script; the configuration stays. `Ok(false)` if there is none.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) if it is not a script of ours; [`Environment`](crate::ErrorKind::Environment).
pub fn remove(places: &Places) -> Result<bool> {
    let script = places.script();
    match ours(places)? {
        None => Ok(false),
        Some(false) => {
            Err(Error::refused(places.foreign()).hint("remove it by hand if it is not needed"))
        }
        Some(true) => {
            fs::remove_file(&script).map_err(|error| failed("could not remove", &script, error))?;
            sync_path(script.parent().unwrap_or(Path::new("/")))?;
            Ok(true)
        }
    }
}

/// Reads the configuration.
///
/// # Errors
/// [`Usage`](crate::ErrorKind::Usage) if it is not understood; [`Environment`](crate::ErrorKind::Environment).
pub fn load(path: &Path) -> Result<Config> {
    let text = text_of(path, LONGEST)?;
    Config::parse(&text).map_err(|error| {
        let message = format!("the configuration '{}': {}", path.display(), error.message());
        Error::new(error.kind(), message)
    })
}

fn program_of(places: &Places, script: &str) -> Option<PathBuf> {
    let line = script.lines().find_map(|line| line.strip_prefix(places.before_program))?;
    line.strip_suffix('\'').map(PathBuf::from)
}

/// Whether the file is a script of ours; `None` if there is none.
fn ours(places: &Places) -> Result<Option<bool>> {
    let script = &places.script();
    match fs::symlink_metadata(script) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("could not look at", script, error)),
        Ok(status) if !status.is_file() || status.len() > LONGEST_SCRIPT => Ok(Some(false)),
        Ok(_) => {
            let mut text = Vec::new();
            File::open(script)
                .and_then(|file| file.take(LONGEST_SCRIPT).read_to_end(&mut text))
                .map_err(|error| failed("could not read", script, error))?;
            Ok(Some(text.split(|byte| *byte == b'\n').any(|line| line == places.mark.as_bytes())))
        }
    }
}

/// Whether libvirt found a hook for QEMU guests when it started, as far as the directory tells.
fn has_hooks(hooks: &Path) -> bool {
    let scripts = fs::read_dir(hooks.join(DIRECTORY)).into_iter().flatten().flatten();
    is_executable(&hooks.join(MAIN))
        || scripts.into_iter().any(|entry| is_executable(&entry.path()))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("could not look at", path, error)),
    }
}

/// Writes a file that has its name only when it is complete.
fn publish(path: &Path, text: &str, mode: u32) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    make_directories(directory, 0o755)?;
    let wrong = |error: std::io::Error| failed("could not write", path, error);
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(wrong)?;
    file.write_all(text.as_bytes()).map_err(wrong)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(wrong)?;
    file.as_file().sync_all().map_err(wrong)?;
    file.persist(path).map_err(|error| wrong(error.error))?;
    sync_path(directory)
}

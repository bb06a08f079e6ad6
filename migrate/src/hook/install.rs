//! Installing the hook: a script in libvirt's directory of hooks, and a configuration.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::config::{Config, FILE, LONGEST};
use super::run::text_of;
use crate::fs::{failed, make_directories, sync_path};
use crate::{Error, Result};

/// libvirt's directory of hooks.
pub const HOOKS: &str = "/etc/libvirt/hooks";

/// Where scripts of QEMU guests are, below [`HOOKS`] (libvirt 6.5 and later).
const DIRECTORY: &str = "qemu.d";

/// The name of the script.
const SCRIPT: &str = "50-qcowtool";

/// The hook that other programs install, CloudStack among them.
const MAIN: &str = "qemu";

/// By this line a script is known as ours.
const MARK: &str = "# Installed by 'qcowtool hook install'; 'qcowtool hook remove' removes it.";

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

/// Where everything goes.
#[derive(Debug, Clone)]
pub struct Places {
    /// libvirt's directory of hooks.
    pub hooks: PathBuf,
    /// The configuration's file.
    pub config: PathBuf,
}

impl Places {
    fn script(&self) -> PathBuf {
        self.hooks.join(DIRECTORY).join(SCRIPT)
    }
}

/// Installs the script, and a configuration with these roots if there is none.
///
/// # Errors
/// [`Refused`](crate::ErrorKind::Refused) if another script has the name, or there is a configuration and roots were
/// given; [`Environment`](crate::ErrorKind::Environment).
pub fn install(places: &Places, program: &Path, roots: &[PathBuf]) -> Result<Installed> {
    let script = places.script();
    let text = script_text(program, &places.config)?;
    if ours(&script)? == Some(false) {
        return Err(Error::refused(format!("'{}' is not a script of qcowtool", script.display()))
            .hint("move it away first"));
    }
    let had_hooks = has_hooks(&places.hooks);
    match (exists(&places.config)?, roots) {
        (true, []) => {}
        (true, _) => {
            let path = places.config.display();
            return Err(Error::refused(format!("the configuration '{path}' is there already"))
                .hint("edit its 'root' lines, and install without --root"));
        }
        (false, []) => {
            return Err(Error::usage("no directory is given below which targets may be created")
                .hint("give --root, for instance --root /var/lib/libvirt/images"));
        }
        (false, roots) => publish(&places.config, &Config::template(roots)?, 0o644)?,
    }
    publish(&script, &text, 0o755)?;
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
    let is_ours = ours(&script)?;
    let program = match is_ours {
        Some(true) => program_of(&text_of(&script, LONGEST_SCRIPT)?),
        Some(false) => {
            problems.push(format!("'{}' is not a script of qcowtool", script.display()));
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
    match ours(&script)? {
        None => Ok(false),
        Some(false) => {
            Err(Error::refused(format!("'{}' is not a script of qcowtool", script.display()))
                .hint("remove it by hand if it is not needed"))
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

/// The script: it starts the program only for calls that the program has something to do with.
fn script_text(program: &Path, config: &Path) -> Result<String> {
    let plain = |path: &Path| {
        let text = path.to_str().filter(|text| path.is_absolute() && !text.contains(['\'', '\n']));
        text.map(str::to_owned).ok_or_else(|| {
            Error::usage(format!("'{}' cannot be written into a script", path.display()))
                .hint("it must be an absolute path without quotes")
        })
    };
    let text = plain(program)?;
    let option = match config == Path::new(FILE) {
        true => String::new(),
        false => format!(" --config '{}'", plain(config)?),
    };
    Ok(format!(
        "#!/bin/sh\n\
         {MARK}\n\
         # GUEST OPERATION SUB-OPERATION EXTRA, the guest's XML on standard input.\n\
         qcowtool='{text}'\n\
         case \"$2 $3\" in\n\
         'migrate begin'|'started begin'|'stopped end'|'release end') ;;\n\
         *) exit 0 ;;\n\
         esac\n\
         if [ ! -x \"$qcowtool\" ]; then\n\
         \x20 [ \"$2\" != migrate ] && exit 0\n\
         \x20 echo \"$qcowtool is not there: install it again, or remove $0\" >&2\n\
         \x20 exit 1\n\
         fi\n\
         exec \"$qcowtool\" hook{option} run -- \"$@\"\n"
    ))
}

fn program_of(script: &str) -> Option<PathBuf> {
    let line = script.lines().find_map(|line| line.strip_prefix("qcowtool='"))?;
    line.strip_suffix('\'').map(PathBuf::from)
}

/// Whether the file is a script of ours; `None` if there is none.
fn ours(script: &Path) -> Result<Option<bool>> {
    match fs::symlink_metadata(script) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("could not look at", script, error)),
        Ok(status) if !status.is_file() || status.len() > LONGEST_SCRIPT => Ok(Some(false)),
        Ok(_) => {
            let mut text = Vec::new();
            File::open(script)
                .and_then(|file| file.take(LONGEST_SCRIPT).read_to_end(&mut text))
                .map_err(|error| failed("could not read", script, error))?;
            Ok(Some(text.split(|byte| *byte == b'\n').any(|line| line == MARK.as_bytes())))
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

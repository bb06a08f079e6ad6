//! Takes files from this thread, and from those that it starts from now on, by Landlock.

use std::error::Error;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::plan::Rights;

/// The newest kernel interface that is asked for; older ones give less, which the filter of system calls
/// makes up for where it matters (truncating by name, devices' requests).
const NEWEST: ABI = ABI::V6;

/// Leaves `rights` and takes all other files away, and what else Landlock knows: TCP, and signals and
/// abstract sockets of others.
///
/// # Errors
/// Why the kernel does not do it.
pub(super) fn restrict(rights: &Rights<'_>) -> Result<(), String> {
    match try_restrict(rights) {
        Ok(RulesetStatus::NotEnforced) => Err("the kernel does not offer Landlock".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn try_restrict(rights: &Rights<'_>) -> Result<RulesetStatus, Box<dyn Error>> {
    let all = AccessFs::from_all(NEWEST);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let handled = if rights.anything { all & !read } else { all };
    let change = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let rename = AccessFs::MakeReg | AccessFs::RemoveFile;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    rules = allow(rules, &rights.read, read & handled)?;
    rules = allow(rules, rights.change, change & handled)?;
    rules = allow(rules, &rights.make, (read | change | rename) & handled)?;
    rules = allow(rules, &rights.rename, rename)?;
    Ok(rules.restrict_self()?.ruleset)
}

/// Names that do not exist are left out: opening them reports the error. What is there and cannot be looked at now is
/// an error: a directory that is left out could not be written to later, nor cleaned up.
fn allow(
    mut rules: RulesetCreated,
    paths: &[impl AsRef<Path>],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Box<dyn Error>> {
    if access.is_empty() {
        return Ok(rules);
    }
    for path in paths {
        let opened = retry_on_intr(|| {
            rustix::fs::open(path.as_ref(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        });
        let file = match opened {
            Ok(file) => file,
            Err(
                Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP | Errno::NAMETOOLONG,
            ) => continue,
            Err(error) => return Err(error.into()),
        };
        let status = retry_on_intr(|| rustix::fs::fstat(&file))?;
        let directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        let access = if directory { access } else { access & AccessFs::from_file(NEWEST) };
        if !access.is_empty() {
            rules = rules.add_rule(PathBeneath::new(file, access))?;
        }
    }
    Ok(rules)
}

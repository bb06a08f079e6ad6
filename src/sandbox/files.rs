//! Takes files from this thread, and from those that it starts from now on, by Landlock.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

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

fn try_restrict(rights: &Rights<'_>) -> Result<RulesetStatus, RulesetError> {
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
    rules = allow(rules, rights.read, read & handled)?;
    rules = allow(rules, rights.change, change & handled)?;
    rules = allow(rules, &rights.make, (read | change | rename) & handled)?;
    rules = allow(rules, &rights.rename, rename)?;
    Ok(rules.restrict_self()?.ruleset)
}

/// Names that lead nowhere are left out: whoever opens them is told.
fn allow(
    rules: RulesetCreated,
    paths: &[impl AsRef<Path>],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    if access.is_empty() {
        return Ok(rules);
    }
    rules.add_rules(path_beneath_rules(paths, access))
}

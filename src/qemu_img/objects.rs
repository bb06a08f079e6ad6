//! `--object`: secrets. They are read and checked; as long as no cipher uses them, nothing keeps them.

use super::getopt::{Key, Parsed};
use super::list::{self, Item};
use super::say::{Stop, print};

/// Checks the objects that the command line makes.
///
/// # Errors
/// For what is no secret, or not whole; silently with 0 where it only asks for the types.
pub(super) fn check(given: &Parsed) -> Result<(), Stop> {
    let mut seen: Vec<String> = Vec::new();
    for text in given.all(Key::Object) {
        use std::os::unix::ffi::OsStrExt;
        let items = list::split(text.as_bytes());
        if let Some(Item { key, value: None }) = items.first()
            && matches!(key.as_str(), "help" | "?")
        {
            print("List of user creatable objects:\n  secret\n")?;
            return Err(Stop::silent(0));
        }
        let id = one(&items)?;
        if seen.contains(&id) {
            return Err(Stop::error(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        seen.push(id);
    }
    Ok(())
}

/// Checks one; returns its identifier.
fn one(items: &[Item]) -> Result<String, Stop> {
    let get = |key: &str| items.iter().rev().find(|item| item.key == key).map(Item::text);
    let kind = match items.first() {
        Some(Item { key, value: None }) => key.clone(),
        _ => get("qom-type").ok_or_else(|| Stop::error("Parameter 'qom-type' is missing"))?,
    };
    if kind != "secret" {
        return Err(Stop::error(format!("Parameter 'qom-type' does not accept value '{kind}'")));
    }
    let id = get("id").ok_or_else(|| Stop::error("Parameter 'id' is missing"))?;
    for item in items.iter().skip(1) {
        if !matches!(
            item.key.as_str(),
            "id" | "qom-type" | "data" | "file" | "format" | "keyid" | "iv"
        ) {
            return Err(Stop::error(format!("Parameter '{}' is unexpected", item.key)));
        }
    }
    match (get("data"), get("file")) {
        (None, None) => Err(Stop::error("Either 'file' or 'data' must be provided")),
        (Some(_), Some(_)) => Err(Stop::error("'file' and 'data' are mutually exclusive")),
        (None, Some(file)) => match std::fs::metadata(&file) {
            Ok(_) => Ok(id),
            Err(error) => Err(Stop::error(format!(
                "Unable to read {file}: Failed to open file “{file}”: {}",
                super::say::system(&error)
            ))),
        },
        (Some(_), None) => Ok(id),
    }
}

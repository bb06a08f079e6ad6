//! Options of the format drivers that change nothing about what is read, or how safely it is written: caches, checks and
//! discards of QEMU's. They are read, held against what QEMU takes, and otherwise left out.

use super::list::switch;
use super::number;
use super::say::Stop;

const KNOWN: [&str; 22] = [
    "read-only",
    "auto-read-only",
    "node-name",
    "force-share",
    "discard",
    "detect-zeroes",
    "cache.direct",
    "cache.no-flush",
    "cache.writeback",
    "file.locking",
    "file.aio",
    "file.pr-manager",
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "discard-no-unref",
    "cache-size",
    "l2-cache-size",
    "l2-cache-entry-size",
    "refcount-cache-size",
    "cache-clean-interval",
];
/// Those of them that are on or off.
const SWITCHES: [&str; 7] = [
    "read-only",
    "auto-read-only",
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "discard-no-unref",
];
const CHECKS: [&str; 4] = ["none", "constant", "cached", "all"];
const LEAST_ENTRY: u64 = 512;

/// Whether this key, without the `backing.` in front of it, is one of these.
pub(super) fn is_tuning(key: &str) -> bool {
    KNOWN.contains(&key) || key.starts_with("overlap-check") || key.starts_with("encrypt.")
}

/// Whether this key is one of those of the driver for files.
pub(super) fn is_for_files(key: &str) -> bool {
    KNOWN.contains(&format!("file.{key}").as_str())
        || matches!(key, "read-only" | "auto-read-only" | "node-name" | "force-share")
        || matches!(key, "discard" | "detect-zeroes")
        || key.starts_with("cache.") && KNOWN.contains(&key)
}

/// Checks the values of the options for one image, of clusters of this size if that is known.
///
/// # Errors
/// In `qemu-img`'s words.
pub(super) fn check(options: &[(String, String)], cluster_size: Option<u64>) -> Result<(), Stop> {
    let text = |name: &str| {
        options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    };
    for (key, value) in options {
        let area = key.strip_prefix("overlap-check.").is_some_and(|area| area != "template");
        if area || SWITCHES.contains(&key.as_str()) {
            switch(key, value)?;
        }
    }
    let size = |name: &str| text(name).map(|value| number::parameter(name, value)).transpose();
    caches(
        size("cache-size")?,
        size("l2-cache-size")?,
        size("refcount-cache-size")?,
        size("l2-cache-entry-size")?,
        cluster_size,
    )?;
    if let Some(interval) = text("cache-clean-interval")
        && interval.parse::<u32>().is_err()
    {
        return Err(Stop::error("Cache clean interval too big"));
    }
    let (check, template) = (text("overlap-check"), text("overlap-check.template"));
    if let (Some(check), Some(template)) = (check, template)
        && check != template
    {
        return Err(Stop::error(format!(
            "Conflicting values for qcow2 options 'overlap-check' ('{check}') and 'overlap-check.template' ('{template}')"
        )));
    }
    match check.or(template).filter(|check| !CHECKS.contains(check)) {
        None => Ok(()),
        Some(check) => Err(Stop::error(format!(
            "Unsupported value '{check}' for qcow2 option 'overlap-check'. Allowed are any of the following: {}",
            CHECKS.join(", ")
        ))),
    }
}

fn caches(
    all: Option<u64>,
    l2: Option<u64>,
    refcounts: Option<u64>,
    entry: Option<u64>,
    cluster_size: Option<u64>,
) -> Result<(), Stop> {
    let refuse = |text: String| Err(Stop::error(text));
    if let (Some(all), l2, refcounts) = (all, l2, refcounts) {
        if l2.is_some() && refcounts.is_some() {
            return refuse(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
                    .to_owned(),
            );
        }
        if l2.is_some_and(|size| size > all) {
            return refuse("l2-cache-size may not exceed cache-size".to_owned());
        }
        if refcounts.is_some_and(|size| size > all) {
            return refuse("refcount-cache-size may not exceed cache-size".to_owned());
        }
    }
    let most = cluster_size.unwrap_or(2 << 20);
    if entry.is_some_and(|size| !(LEAST_ENTRY..=most).contains(&size) || !size.is_power_of_two()) {
        let shown = cluster_size.map(|size| format!(" ({size})")).unwrap_or_default();
        return refuse(format!(
            "L2 cache entry size must be a power of two between {LEAST_ENTRY} and the cluster size{shown}"
        ));
    }
    let smallest = cluster_size.unwrap_or(LEAST_ENTRY);
    let clusters = refcounts.and_then(|size| size.checked_div(smallest)).unwrap_or_default();
    if i32::try_from(clusters).is_err() {
        return refuse("Refcount cache size too big".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(list: &[(&str, &str)]) -> String {
        let options: Vec<_> =
            list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        check(&options, Some(1 << 16))
            .map_or_else(|stop| stop.lines().join("\n"), |()| String::new())
    }

    #[test]
    fn values_that_qemu_refuses_are_refused() {
        assert_eq!(said(&[("cache-size", "2M"), ("l2-cache-size", "1M")]), "");
        assert_eq!(said(&[("overlap-check", "all"), ("cache-clean-interval", "0")]), "");
        assert_eq!(
            said(&[("cache-size", "1M"), ("l2-cache-size", "2M")]),
            "l2-cache-size may not exceed cache-size"
        );
        for size in ["256", "4242", "128k"] {
            let refused = said(&[("l2-cache-entry-size", size)]);
            assert!(refused.ends_with("the cluster size (65536)"), "{size}: {refused}");
        }
        assert_eq!(
            said(&[("lazy-refcounts", "42")]),
            "Parameter 'lazy-refcounts' expects 'on' or 'off'"
        );
        assert_eq!(said(&[("refcount-cache-size", "256T")]), "Refcount cache size too big");
        assert_eq!(said(&[("cache-clean-interval", "-1")]), "Cache clean interval too big");
        assert!(
            said(&[("overlap-check.template", "some")]).starts_with("Unsupported value 'some'")
        );
    }
}

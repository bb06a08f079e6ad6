//! Plans the migration of a guest between two directories that stand for hosts, and prints the plan as JSON. With the
//! feature `libvirt` and `Route::connect` the same goes for real hosts.
//!
//! `cargo run -p qcowtool-migrate --example plan -- web guest.xml /tmp/source /tmp/destination`

use std::path::Path;

use migrate::facts::Route;
use migrate::plan::{Policy, plan};
use migrate::probe::{Probing, probe};
use migrate::{CancelToken, Error, Result, Silent};

fn main() -> Result<()> {
    let domain = std::env::args().nth(1).unwrap_or_default();
    let [xml, from, to] = [2, 3, 4].map(|at| std::env::args_os().nth(at).unwrap_or_default());
    println!("{}", run(&domain, Path::new(&xml), Path::new(&from), Path::new(&to))?);
    Ok(())
}

/// Returns the plan as JSON.
pub(crate) fn run(domain: &str, xml: &Path, from: &Path, to: &Path) -> Result<String> {
    let route = Route {
        domain: domain.to_owned(),
        from: String::new(),
        to: format!("dir:{}", to.display()),
        rsh: None,
        rsh_program: String::new(),
        domain_xml: Some(xml.to_path_buf()),
        source_root: from.to_path_buf(),
        running: false,
    };
    let hosts = route.connect_by(|uri| Err(Error::usage(format!("no way to {uri}"))))?;
    let (policy, cancel) = (Policy::default(), CancelToken::new());
    let probing = Probing::new(&policy, &Silent, &cancel);
    let probed = probe(&hosts.hosts(), &route.domain, &probing)?;
    // A plan is a value: it can be kept, compared, shown, and carried out later.
    let plan = plan(&probed.facts, &policy).map_err(|refusals| {
        let why: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        Error::refused(why.join("; "))
    })?;
    serde_json::to_string_pretty(&plan).map_err(|error| Error::usage(error.to_string()))
}

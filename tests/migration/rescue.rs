//! `qcowtool rescue` of a real guest whose template was deleted: it comes back while the guest runs, and the
//! guest starts again on it.

use std::fs;

use crate::trial::{REFUSED, Trial, Way, needs_migration};
use rig::{Disk, Ran, Rig};
use serde_json::Value;

/// `qcowtool rescue` on host A.
fn rescue(trial: &Trial<'_>, words: &[&str]) -> Ran {
    let mut command = trial.rig.a.command(crate::trial::binary());
    let output = command.arg("rescue").args(words).output().expect("qcowtool starts");
    Ran::of(format!("qcowtool rescue {words:?}"), output)
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout()).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

/// The template is put back under the running guest, which is then stopped, started, and moved.
#[test]
fn a_guest_whose_template_was_deleted_starts_again() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "rescued", Way::Agent);
    let template = trial.path("template.qcow2");
    let outside = trial.rig.a.outside(&template);
    let before = fs::read(&outside).unwrap();
    trial.delete_template();

    let name = trial.guest.name.clone();
    let plan = json(&rescue(&trial, &[&name, "--dry-run", "--output", "json"]));
    assert_eq!(plan["items"].as_array().unwrap().len(), 1, "{plan:#}");
    assert_eq!(plan["items"][0]["name"], template);
    trial.stayed();

    let ran = rescue(&trial, &[&name, "--restore", "--output", "json"]);
    ran.ok();
    let outcome = json(&ran);
    assert_eq!(outcome["items"][0]["restored"], template, "{outcome:#}");
    assert!(fs::read(&outside).unwrap() == before, "another template came back");
    let (guest, a) = (&trial.guest, &trial.rig.a);
    guest.goes_on(a);
    // The guest itself holds the deleted file, and that is the same by now.
    let again = json(&rescue(&trial, &[&name, "--output", "json"]));
    assert_eq!(again["items"][0]["result"], "nothing", "{again:#}");

    a.virsh(["suspend", &name]).ok();
    let writes = guest.check_disk(a, &trial.disk(), rig::Kind::Boot);
    a.virsh(["destroy", &name]).ok();
    guest.start(a);
    guest.goes_on(a);
    assert!(guest.check_disk(a, &trial.disk(), rig::Kind::Boot) >= writes);
    assert!(json(&rescue(&trial, &[&name, "--output", "json"]))["items"] == serde_json::json!([]));
}

/// A guest that was started on a template that is back can be moved as any other.
#[test]
fn a_guest_on_a_rescued_template_is_moved() {
    needs_migration!();
    let mut trial = Trial::on_template(Rig::shared(), "moved-after", Way::Agent);
    let content = fs::read(trial.rig.a.outside(trial.path("template.qcow2"))).unwrap();
    trial.delete_template();
    let safe = trial.path("safe");
    fs::create_dir(trial.rig.a.outside(&safe)).unwrap();
    let name = trial.guest.name.clone();
    let ran = rescue(&trial, &[&name, "--to", &safe, "--restore", "--output", "json"]);
    ran.ok();
    let copy = json(&ran)["items"][0]["path"].as_str().unwrap().to_owned();
    assert!(copy.starts_with(&safe), "{copy}");
    assert!(fs::read(trial.rig.a.outside(&copy)).unwrap() == content);
    fs::remove_dir_all(trial.rig.a.outside(&safe)).unwrap();
    let (guest, a) = (&trial.guest, &trial.rig.a);
    a.virsh(["suspend", &name]).ok();
    a.virsh(["destroy", &name]).ok();
    guest.start(a);
    trial.watch();
    let thin = trial.migrate(&["--policy", "thin"]);
    trial.arrived(thin, &["disk.qcow2", "template.qcow2"]);
}

/// The chain that runs is in the XML, and the header knows nothing of it.
#[test]
fn a_template_that_only_the_xml_names_is_saved() {
    needs_migration!();
    let rig = Rig::shared();
    let mut trial = Trial::new(rig, "xml-rescue", Way::Agent);
    let (disk, template) = (trial.disk(), trial.path("template.qcow2"));
    rig.a.make_template(&template, &trial.guest.template);
    rig.a.qemu_img(["create", "-q", "-f", "qcow2", &disk, "64M"]).ok();
    trial.run(&[Disk::qcow2(&*disk).over(&[(&template, "qcow2")])]);
    let content = fs::read(rig.a.outside(&template)).unwrap();
    fs::remove_file(rig.a.outside(&template)).unwrap();
    let name = trial.guest.name.clone();
    let ran = rescue(&trial, &[&name, "--restore", "--output", "json"]);
    ran.ok();
    assert_eq!(json(&ran)["items"][0]["needed-by"], serde_json::json!([disk]), "{ran}");
    assert!(fs::read(rig.a.outside(&template)).unwrap() == content);
    trial.guest.goes_on(&rig.a);
}

/// Nobody holds anything for a guest that does not run.
#[test]
fn a_guest_that_does_not_run_is_refused_with_the_way_out() {
    needs_migration!();
    let trial = Trial::on_template(Rig::shared(), "stopped", Way::Agent);
    let name = trial.guest.name.clone();
    trial.rig.a.virsh(["destroy", &name]).ok();
    let ran = rescue(&trial, &[&name]);
    assert_eq!(ran.code(), Some(REFUSED), "{ran}");
    crate::trial::says(&ran, "--candidates");
    let ran = rescue(&trial, &["no-such-guest"]);
    assert_eq!(ran.code(), Some(1), "{ran}");
}

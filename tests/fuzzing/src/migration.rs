//! Targets for domain XML and plans.

use arbitrary::{Result, Unstructured};
use migrate::domain::{Change, DiskEdit, Form, check_edit, destination_xml, parse, persistent_xml};
use migrate::plan::Plan;
use qcow::chain::Format;

/// Domains as libvirt and its users write them.
const DOMAINS: [&str; 4] = [
    include_str!("../../../migrate/src/domain/tests/live.xml"),
    include_str!("../../../migrate/src/domain/tests/snapshot.xml"),
    include_str!("../../../migrate/src/domain/tests/media.xml"),
    include_str!("../../../migrate/src/domain/tests/sources.xml"),
];

/// Pieces that mean something in a domain's XML.
const PIECES: [&str; 24] = [
    "<disk type='file' device='disk'>",
    "</disk>",
    "<backingStore/>",
    "<backingStore type='file'>",
    "</backingStore>",
    "<format type='qcow2'/>",
    "<source file='/x'/>",
    "<source dev='/dev/x'>",
    "</source>",
    "<target dev='vda' bus='virtio'/>",
    "<target dev='vdb'/>",
    "<driver name='qemu' type='raw'/>",
    "<slices><slice type='storage' offset='0' size='1'/></slices>",
    "<mirror type='file' job='copy'/>",
    "<devices>",
    "</devices>",
    "<!-- -->",
    "<![CDATA[x]]>",
    "&amp;",
    "&#x10ffff;",
    "'",
    ">",
    "<readonly/>",
    "xmlns:q='http://q'",
];

/// A text, with pieces of it taken out, doubled, and put in from `pieces`.
fn mangled(choices: &mut Unstructured<'_>, text: &str, pieces: &[&str]) -> Result<String> {
    let mut text = text.to_owned();
    for _ in 0..choices.int_in_range(0..=6)? {
        let boundary = |at: usize| (0..=at).rev().find(|&at| text.is_char_boundary(at));
        let from = boundary(choices.int_in_range(0..=text.len())?).unwrap_or(0);
        let to = boundary((from + choices.int_in_range(0..=80)?).min(text.len())).unwrap_or(from);
        let to = to.max(from);
        match choices.int_in_range(0..=3)? {
            0 => text.replace_range(from..to, ""),
            1 => text = [&text[..to], &text[from..]].concat(),
            2 => text.replace_range(from..to, choices.choose(pieces)?),
            _ => text.insert_str(from, choices.choose(pieces)?),
        }
    }
    Ok(text)
}

/// Domain XML: reading ends orderly, and an edit changes the disk that it means and no other.
pub fn domain(data: &[u8]) {
    let mut choices = Unstructured::new(data);
    let index = choices.int_in_range(0..=DOMAINS.len()).unwrap_or(0);
    let xml = match DOMAINS.get(index) {
        Some(domain) => mangled(&mut choices, domain, &PIECES).unwrap_or_default(),
        None => String::from_utf8_lossy(choices.take_rest()).into_owned(),
    };
    let Ok(domain) = parse(&xml) else { return };
    for disk in &domain.disks {
        let moved = Change::Move {
            path: "/new/<&'\"> disk".into(),
            block: false,
            format: Format::Qcow2,
            below: vec![],
            slice: None,
        };
        let medium = Change::Medium { path: "/new/medium.iso".into() };
        for change in [moved, medium, Change::Chain { below: vec![] }, Change::Eject] {
            let edits = [DiskEdit { target: disk.target.clone(), change }];
            for form in [Form::Running, Form::NextStart] {
                let edited = match form {
                    Form::Running => destination_xml(&xml, &edits),
                    Form::NextStart => persistent_xml(&xml, &edits),
                };
                let Ok(edited) = edited else { continue };
                check_edit(&xml, &edited, &edits, form).expect("an edit passes its own check");
                let after = parse(&edited).expect("an edited domain is a domain");
                assert_eq!((&after.name, &after.uuid), (&domain.name, &domain.uuid));
                assert_eq!(after.disks.len(), domain.disks.len());
                for (before, after) in domain.disks.iter().zip(&after.disks) {
                    assert!(before == after || before.target == disk.target);
                    assert_eq!((&before.target, before.device), (&after.target, after.device));
                }
            }
        }
    }
}

/// A plan as the program writes one.
const PLAN: &str = include_str!("plan.json");
/// Values that mean something in a plan.
const VALUES: [&str; 12] = [
    "null",
    "true",
    "-1",
    "18446744073709551616",
    "1e400",
    "\"\"",
    "\"full\"",
    "\"incremental\"",
    "[]",
    "{}",
    "\"\\u0000\"",
    "\"/../x\"",
];

/// Plans as JSON: reading ends orderly; what was changed is refused unless it is sealed anew; and what is
/// accepted is written as it was read.
pub fn plan(data: &[u8]) {
    let mut choices = Unstructured::new(data);
    let text = match choices.ratio(7, 8) {
        Ok(true) => mangled(&mut choices, PLAN, &VALUES).unwrap_or_default(),
        _ => String::from_utf8_lossy(choices.take_rest()).into_owned(),
    };
    if let Ok(plan) = Plan::from_json(&text) {
        // Only white space may be another.
        let tree = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(plan, Plan::from_json(PLAN).expect("a plan"));
        assert_eq!(tree(&plan.to_json().expect("a plan has a form")), tree(PLAN));
    }
    let Ok(plan) = serde_json::from_str::<Plan>(&text) else { return };
    let sealed = plan.sealed().expect("a plan from text has a form");
    let json = sealed.to_json().expect("a plan from text has a form");
    // A plan of another form is for another program.
    let ours = sealed.schema == Plan::from_json(PLAN).expect("a plan").schema;
    match Plan::from_json(&json) {
        Ok(read) => assert_eq!(read, sealed),
        Err(error) => assert!(!ours, "{error}"),
    }
}

//! An incremental copy needs every proof. Each is broken here in every way that facts can show, and what
//! comes out must never be incremental.

use crate::plan_facts::*;
use migrate::facts::*;
use migrate::plan::*;
use qcow::chain::Format;

/// The proof, how it is broken, and the breaking.
type Broken = (Proof, &'static str, fn(&mut Facts));

fn base_there(facts: &mut Facts) -> &mut BaseFacts {
    &mut destination(&mut facts.disks[0]).bases[0]
}

fn object(inode: u64) -> ObjectFacts {
    ObjectFacts {
        identity: identity(inode),
        block_device: false,
        image: Some(ImageFacts { format: Format::Qcow2, virtual_size: SIZE }),
        in_use: None,
    }
}

const BROKEN: [Broken; 25] = [
    (Proof::SizesEqual, "size not told", |facts| facts.disks[0].live_capacity = None),
    (Proof::SizesEqual, "size differs", |facts| facts.disks[0].live_capacity = Some(SIZE + 512)),
    (Proof::TargetEmpty, "target is there", |facts| {
        destination(&mut facts.disks[0]).object = Some(object(40))
    }),
    (Proof::ContentBelowEqual, "different", |facts| base_there(facts).content = Content::Different),
    (Proof::ContentBelowEqual, "not compared", |facts| {
        base_there(facts).content = Content::Unknown { why: "?".into() };
    }),
    (Proof::ContentBelowEqual, "equal to something else", |facts| {
        base_there(facts).content = Content::Equal { digest: "f".repeat(64) };
    }),
    (Proof::ContentBelowEqual, "source not digested", |facts| {
        chain(&mut facts.disks[0]).below = None
    }),
    (Proof::ContentBelowEqual, "base of another size", |facts| {
        base_there(facts).virtual_size -= 512
    }),
    (Proof::ContentBelowEqual, "source's base of another size", |facts| {
        chain(&mut facts.disks[0]).layers[1].virtual_size -= 512;
    }),
    (Proof::ContentBelowEqual, "only its name fits", |facts| {
        base_there(facts).content = Content::Different;
        chain(&mut facts.disks[0]).layers[1].path = "/new/base.qcow2".into();
    }),
    (Proof::ContentBelowEqual, "incomplete chain", |facts| {
        chain(&mut facts.disks[0]).missing =
            Some(Missing { path: "/old/lowest".into(), why: "gone".into() });
    }),
    (Proof::ReadsAsZeros, "an unbacked disk beside it goes to a device", |facts| {
        let mut device = disk("vdb", vec![layer("/dev/old", 20, Format::Raw)]);
        chain(&mut device).layers[0].block_device = true;
        facts.disks.push(device);
    }),
    (Proof::ReadsAsZeros, "an unbacked disk beside it goes to what is there", |facts| {
        let mut stale = alone("vdb");
        destination(&mut stale).object = Some(object(41));
        facts.disks.push(stale);
    }),
    (Proof::BaseFixed, "base written to", |facts| {
        base_there(facts).in_use = Some("a guest".into())
    }),
    (Proof::SourceLayersFixed, "job on the disk", |facts| {
        facts.disks[0].block_job = Some("commit".into())
    }),
    (Proof::SourceLayersFixed, "source's base not closed properly", |facts| {
        header(&mut facts.disks[0], 1).dirty = true;
    }),
    (Proof::ChainsAgree, "base of unrecorded format", |facts| {
        base_there(facts).chain[0].format = None
    }),
    (Proof::ChainsAgree, "base under another name", |facts| {
        base_there(facts).chain[0].path = "/new/other".into();
    }),
    (Proof::ChainsAgree, "base without a chain", |facts| base_there(facts).chain.clear()),
    (Proof::ChainsAgree, "chain in the XML differs", |facts| {
        facts.disks[0].live_chain.layers[1].path = "/old/other".into();
    }),
    (Proof::ChainsAgree, "chain in the XML not known", |facts| {
        facts.disks[0].live_chain = XmlChain::default();
    }),
    (Proof::ChainsAgree, "source's base of unrecorded format", |facts| {
        chain(&mut facts.disks[0]).layers[1].format_from = FormatFrom::Nowhere;
    }),
    (Proof::NotASourceFile, "target is the source", |facts| {
        destination(&mut facts.disks[0]).object = Some(object(10))
    }),
    (Proof::NotASourceFile, "two disks to one place", |facts| {
        let mut twin = alone("vdb");
        destination(&mut twin).path = "/new/vda.qcow2".into();
        facts.disks.push(twin);
    }),
    (Proof::MadeByThisRun, "a disk beside it is adopted", |facts| {
        let mut adopted = alone("vdb");
        destination(&mut adopted).object = Some(object(42));
        facts.disks.push(adopted);
    }),
];

/// All that an operator can allow.
fn careless() -> Policy {
    Policy::default()
        .style(Style::Auto)
        .adopt(true)
        .drop_internal_snapshots(true)
        .allow_data_file(true)
        .eject(true)
}

#[test]
fn without_any_one_proof_no_copy_is_incremental() {
    assert_eq!(planned(&guest_with_base(), &careless()).copy, CopyMode::Incremental);
    for (proof, how, break_it) in BROKEN {
        let mut facts = guest_with_base();
        break_it(&mut facts);
        if let Ok((plan, edits)) = decide(&facts, &careless()) {
            assert_eq!(plan.copy, CopyMode::Full, "{proof:?}: {how}");
            assert!(!plan.flags.contains(&Flag::NonSharedInc), "{proof:?}: {how}");
            assert_eq!(base_or_none(&plan), None, "{proof:?}: {how}");
            for edit in edits {
                let migrate::domain::Change::Move { below, .. } = edit.change else { panic!() };
                assert!(below.is_empty(), "{proof:?}: {how}");
            }
        }
    }
}

#[test]
fn a_broken_proof_of_any_disk_makes_the_copy_of_all_disks_full() {
    // One flag holds for all of them.
    for (proof, how, break_it) in BROKEN {
        let mut facts = guest_with_base();
        let mut other = overlay();
        other.target = "vdc".into();
        destination(&mut other).path = "/new/vdc.qcow2".into();
        destination(&mut other).bases.push(base("/new/base.qcow2"));
        break_it(&mut facts);
        facts.disks.push(other);
        if let Ok((plan, _)) = decide(&facts, &careless()) {
            assert_eq!(plan.copy, CopyMode::Full, "{proof:?}: {how}");
        }
    }
}

fn base_or_none(plan: &Plan) -> Option<&BasePlan> {
    match &plan.disks[0].action {
        Action::Create { base, .. } => base.as_ref(),
        _ => None,
    }
}

#[test]
fn what_facts_cannot_prove_is_left_to_preparation_and_named() {
    use Proof::*;
    let proofs = |facts: &Facts, policy: &Policy| -> Vec<Vec<Proof>> {
        planned(facts, policy).disks.into_iter().map(|disk| disk.proofs).collect()
    };
    let mut facts = guest_with_base();
    facts.disks.push(alone("vdb"));
    let existing = vec![
        SizesEqual,
        TargetEmpty,
        BaseFixed,
        SourceLayersFixed,
        ChainsAgree,
        NotASourceFile,
        MadeByThisRun,
    ];
    let unbacked =
        vec![SizesEqual, TargetEmpty, ReadsAsZeros, ChainsAgree, NotASourceFile, MadeByThisRun];
    assert_eq!(proofs(&facts, &Policy::default()), [existing, unbacked]);

    let seeded = vec![
        SizesEqual,
        TargetEmpty,
        ContentBelowEqual,
        BaseFixed,
        SourceLayersFixed,
        ChainsAgree,
        NotASourceFile,
        MadeByThisRun,
    ];
    assert_eq!(proofs(&guest(vec![overlay()]), &thin()), [seeded]);

    assert_eq!(
        proofs(&guest(vec![overlay()]), &full()),
        [vec![SizesEqual, ChainsAgree, NotASourceFile, MadeByThisRun]]
    );

    let mut facts = guest(vec![overlay()]);
    destination(&mut facts.disks[0]).object = Some(object(40));
    assert_eq!(proofs(&facts, &careless()), [vec![SizesEqual, ChainsAgree, NotASourceFile]]);
}

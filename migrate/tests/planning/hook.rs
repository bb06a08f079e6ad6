//! The hook's decisions as values: what is created, edited, refused.

use std::net::IpAddr;
use std::path::PathBuf;

use migrate::domain::{Change, parse};
use migrate::facts::{BaseFacts, Content, Identity, NamedLayer};
use migrate::hook::annotation::{Annotation, Below, KnownDisk, NAMESPACE};
use migrate::hook::begin::{Arriving, Decision, Place, decide};
use migrate::hook::config::{Config, InDoubt};
use migrate::hook::gate::{Judgement, Target, TargetImage, judge};
use migrate::hook::peers::connected;
use migrate::hook::status::{self, Copying, Status};

const SIZE: u64 = 10_000_384;
const DISK: &str = "/images/vm.qcow2";
const BASE: &str = "/images/base.qcow2";

fn digest(digit: &str) -> String {
    digit.repeat(64)
}

fn known(below: Below) -> Option<KnownDisk> {
    let (target, cluster_size) = ("vda".to_owned(), Some(65536));
    Some(KnownDisk { target, virtual_size: SIZE, cluster_size, extended_l2: false, below })
}

fn over(digit: &str) -> Option<KnownDisk> {
    known(Below::Disk { digest: digest(digit), virtual_size: SIZE })
}

fn layer(path: &str) -> NamedLayer {
    NamedLayer { path: path.into(), format: Some("qcow2".into()) }
}

fn base(digit: &str) -> BaseFacts {
    BaseFacts {
        path: BASE.into(),
        identity: Identity::default(),
        chain: vec![layer(BASE)],
        virtual_size: SIZE,
        in_use: None,
        content: match digit {
            "" => Content::Different,
            digit => Content::Equal { digest: digest(digit) },
        },
    }
}

fn config() -> Config {
    Config::parse("root = /images").unwrap()
}

/// A disk with these attributes and elements, whose XML names these layers below it.
fn disk(device: &str, more: &str, below: &[&str]) -> migrate::domain::XmlDisk {
    let mut chain = String::new();
    for path in below {
        chain.push_str(&format!(
            "<backingStore type='file'><format type='qcow2'/><source file='{path}'/>"
        ));
    }
    if !below.is_empty() {
        chain.push_str("<backingStore/>");
        chain.push_str(&"</backingStore>".repeat(below.len()));
    }
    let xml = format!(
        "<domain><name>vm</name><devices><disk type='file' device='{device}'><driver name='qemu' type='qcow2'/>\
         <source file='{DISK}'/>{chain}<target dev='vda'/>{more}</disk></devices></domain>"
    );
    parse(&xml).unwrap().disks.remove(0)
}

fn arriving(
    below: &[&str],
    known: Option<KnownDisk>,
    place: Place,
    bases: Vec<BaseFacts>,
) -> Arriving {
    Arriving { disk: disk("disk", "", below), known, place, bases }
}

fn image(layers: &[&str]) -> Place {
    Place::Image { chain: layers.iter().map(|path| layer(path)).collect(), in_use: None }
}

/// The backing file of the one target that is created, and the new chain below the disk, if it gets one.
fn created(decision: &Decision) -> (Option<&str>, Option<Vec<&str>>) {
    assert_eq!(decision.refusals, Vec::<String>::new());
    let [target] = decision.targets.as_slice() else { panic!("{decision:?}") };
    assert_eq!((target.image.virtual_size, target.image.path.to_str()), (SIZE, Some(DISK)));
    (target.base.as_ref().map(|base| base.path.to_str().unwrap()), chain(decision))
}

fn chain(decision: &Decision) -> Option<Vec<&str>> {
    let [edit] = decision.edits.as_slice() else { return None };
    let Change::Chain { below } = &edit.change else { panic!("{edit:?}") };
    Some(below.iter().map(|layer| layer.path.to_str().unwrap()).collect())
}

#[test]
fn an_overlay_is_created_only_over_what_is_proven() {
    let free = |below: &[&str], known, bases| {
        decide(&[arriving(below, known, Place::Free, bases)], &config())
    };
    assert_eq!(created(&free(&[], known(Below::Nothing), vec![])), (None, None));
    assert_eq!(created(&free(&[BASE], over("a"), vec![base("a")])), (Some(BASE), None));
    let alone = (None, Some(vec![]));
    for unproven in [
        vec![],
        vec![base("")],
        vec![base("b")],
        vec![BaseFacts { virtual_size: SIZE + 512, ..base("a") }],
        vec![BaseFacts { in_use: Some("a guest".into()), ..base("a") }],
        vec![BaseFacts { chain: vec![NamedLayer { format: None, ..layer(BASE) }], ..base("a") }],
    ] {
        assert_eq!(created(&free(&[BASE], over("a"), unproven)), alone);
    }
    for below in [known(Below::Unknown), known(Below::Nothing)] {
        assert_eq!(created(&free(&[BASE], below, vec![base("a")])), alone);
    }
    // The chain continues below the base, and the XML does not say so.
    let long = BaseFacts { chain: vec![layer(BASE), layer("/images/deep.qcow2")], ..base("a") };
    let chain = Some(vec![BASE, "/images/deep.qcow2"]);
    assert_eq!(created(&free(&[BASE], over("a"), vec![long])), (Some(BASE), chain));
}

#[test]
fn the_xml_names_the_chain_of_the_targets_header_or_stays_as_it_is() {
    let there = |below: &[&str], place| decide(&[arriving(below, None, place, vec![])], &config());
    for (below, header, new) in [
        (&[][..], &[DISK][..], None),
        (&[], &[DISK, BASE], None),
        (&[BASE], &[DISK, BASE], None),
        (&[BASE], &[DISK], Some(vec![])),
        (&["/images/old"], &[DISK, BASE], Some(vec![BASE])),
        (&[BASE, "/images/deep"], &[DISK, BASE], Some(vec![BASE])),
    ] {
        let decision = there(below, image(header));
        assert_eq!((chain(&decision), decision.targets.len()), (new, 0), "{below:?} {header:?}");
    }
    let used = Place::Image { chain: vec![layer(DISK)], in_use: Some("a guest".into()) };
    for place in [used, Place::Unreadable("torn".into()), Place::Barred("full".into())] {
        assert_eq!(chain(&there(&[BASE], place)), None);
    }
}

#[test]
fn without_a_size_it_is_refused_unless_the_operator_allows_it() {
    let disks = [arriving(&[], None, Place::Free, vec![])];
    let decision = decide(&disks, &config());
    assert!(decision.refusals[0].contains("exact size is not known"), "{decision:?}");
    let allowing = Config::parse("root = /images\nunknown-size = allow").unwrap();
    assert_eq!(decide(&disks, &allowing).refusals, Vec::<String>::new());
    let elsewhere = Config::parse("root = /srv").unwrap();
    let decision = decide(&disks, &elsewhere);
    assert!(decision.refusals.is_empty() && decision.targets.is_empty());
}

#[test]
fn disks_that_libvirt_does_not_copy_are_left_alone() {
    for (device, more) in [
        ("cdrom", ""),
        ("floppy", ""),
        ("disk", "<readonly/>"),
        ("disk", "<shareable/>"),
        ("disk", "<transient/>"),
        ("disk", "<encryption format='luks'/>"),
    ] {
        let disk = disk(device, more, &[BASE]);
        let target = Target { disk: disk.clone(), known: over("a"), image: Err("not read".into()) };
        let arriving = Arriving { disk, known: over("a"), place: Place::Free, bases: vec![] };
        let decision = decide(&[arriving], &config());
        assert_eq!((decision.targets.len(), decision.edits.len()), (0, 0), "{device} {more}");
        assert!(decision.notes[0].contains("left alone"), "{decision:?}");
        assert_eq!(judge(&[target], InDoubt::Refuse).refusals, Vec::<String>::new());
    }
}

fn judged(
    below: &[&str],
    known: Option<KnownDisk>,
    image: TargetImage,
    doubt: InDoubt,
) -> Judgement {
    judge(&[Target { disk: disk("disk", "", below), known, image: Ok(image) }], doubt)
}

fn empty(layers: &[&str], base: Option<BaseFacts>) -> TargetImage {
    let chain = layers.iter().map(|path| layer(path)).collect();
    TargetImage { chain, empty: true, network: None, base }
}

#[test]
fn an_incremental_copy_needs_an_empty_target_over_a_proven_backing_file() {
    let overlay = |digit| empty(&[DISK, BASE], Some(base(digit)));
    let refused = |below: &[&str], known, image| {
        let judgement = judged(below, known, image, InDoubt::Refuse);
        judgement.refusals.into_iter().next()
    };
    assert_eq!(refused(&[], over("a"), overlay("a")), None);
    assert_eq!(refused(&[BASE], over("a"), overlay("a")), None);
    assert_eq!(refused(&[], known(Below::Nothing), empty(&[DISK], None)), None);
    for (below, known, image, words) in [
        (&[][..], over("a"), overlay(""), "does not hold"),
        (&[], over("a"), overlay("b"), "cannot be relied on"),
        (&["/images/other"], over("a"), overlay("a"), "its header names"),
        (&[], known(Below::Nothing), overlay("a"), "would show through"),
        (&[], known(Below::Unknown), overlay("a"), "it is not known what"),
        (&[], None, overlay("a"), "it is not known what"),
        (&[], over("a"), empty(&[DISK], None), "would lose everything"),
        (&[], None, empty(&[DISK], None), "not known whether the source"),
        (&[], over("a"), TargetImage { empty: false, ..overlay("a") }, "already holds data"),
    ] {
        let why = refused(below, known, image).unwrap_or_default();
        assert!(why.contains(words), "no '{words}': {why}");
    }
}

#[test]
fn what_is_allowed_in_doubt_is_never_what_is_known_to_be_wrong() {
    let allowed = |known, image| judged(&[], known, image, InDoubt::Allow).refusals.is_empty();
    let overlay = |digit| empty(&[DISK, BASE], Some(base(digit)));
    assert!(allowed(None, overlay("a")));
    assert!(allowed(over("a"), TargetImage { empty: false, ..overlay("a") }));
    assert!(!allowed(over("a"), overlay("")));
    assert!(!allowed(None, empty(&[DISK], None)));
    assert!(!allowed(over("a"), empty(&[DISK], None)));
    // Of a disk on storage that hosts may share nothing is known to be wrong.
    let shared = TargetImage { empty: false, network: Some("NFS".into()), ..overlay("a") };
    assert_eq!(judged(&[], over("a"), shared, InDoubt::Refuse).refusals, Vec::<String>::new());
}

#[test]
fn an_annotation_is_read_as_it_was_written() {
    let disks = vec![
        known(Below::Nothing).unwrap(),
        KnownDisk { target: "vdb".into(), extended_l2: true, ..over("a").unwrap() },
        KnownDisk { target: "v'<".into(), cluster_size: None, ..known(Below::Unknown).unwrap() },
    ];
    let annotation = Annotation { disks };
    let xml = annotation.to_xml().unwrap();
    let element = xml.replace("<disks>", &format!("<disks xmlns='{NAMESPACE}'>"));
    let domain = |inner: &str| format!("<domain><metadata><x/>{inner}</metadata></domain>");
    assert_eq!(Annotation::in_domain(&domain(&element)).unwrap(), Some(annotation));
    assert_eq!(Annotation::in_domain(&domain("<disks><disk/></disks>")).unwrap(), None);
    assert_eq!(Annotation::in_domain("<domain/>").unwrap(), None);
    Annotation::in_domain(&domain(&element.repeat(2))).unwrap_err();
}

#[test]
fn the_status_xml_tells_an_arriving_guest_and_nothing_else() {
    let of = |state: &str, job: &str| {
        let domain = "<domain><name>vm</name></domain>";
        status::read(&format!("<domstatus state='{state}'>{job}{domain}</domstatus>"), "vm")
    };
    let job = |flags: &str| format!("<job type='none' async='migration in' flags='{flags}'/>");
    let arriving = |copying| Status::Arriving { copying, ran: false };
    assert_eq!(of("paused", &job("0x99")), arriving(Copying::Incremental));
    assert_eq!(of("paused", &job("0x59")), arriving(Copying::Full));
    assert_eq!(of("shutdown", &job("0xd9")), arriving(Copying::Incremental));
    assert_eq!(of("paused", &job("0x1")), arriving(Copying::Nothing));
    let ran = Status::Arriving { copying: Copying::Full, ran: true };
    assert_eq!(of("running", &job("0x59")), ran);
    assert_eq!(of("paused", &job("0x8059")), ran, "after post-copy the only state may be here");
    assert_eq!(of("running", ""), Status::Other);
    assert_eq!(of("running", "<job async='start' flags='0x80'/>"), Status::Other);
    for unknown in [of("paused", &job("99")), of("paused", &job("")), status::read("x", "vm")] {
        assert!(matches!(unknown, Status::Unknown(_)), "{unknown:?}");
    }
    assert!(matches!(status::read("<domstatus/>", "vm"), Status::Unknown(_)));
}

#[test]
fn a_configuration_says_which_line_is_wrong() {
    let all = "# all\n root = /a/b \nroot=/c\nunknown-size = allow\nunproven-base = allow\n\
               ask = qemu+tls://{peer}/system\npeer = 192.0.2.0/24\npeer = 2001:db8::1\ndeadline = 5\nlog = /l\n";
    let config = Config::parse(all).unwrap();
    assert_eq!(config.roots, [PathBuf::from("/a/b"), PathBuf::from("/c")]);
    let ask = config.ask.as_ref().unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for (text, allowed) in
        [("192.0.2.77", true), ("192.0.3.1", false), ("2001:db8::1", true), ("2001:db8::2", false)]
    {
        assert_eq!(ask.allows(address(text)), allowed, "{text}");
    }
    assert_eq!(ask.uri_of(address("2001:db8::1")), "qemu+tls://[2001:db8::1]/system");
    for (path, root) in [
        ("/a/b/vm", Some("/a/b")),
        ("/a/b", None),
        ("/a/bc", None),
        ("/a/b/../x", None),
        ("a/b/x", None),
    ] {
        assert_eq!(config.root_of(path.as_ref()), root.map(str::as_ref), "{path}");
    }
    let lines = Config::root_lines(&config.roots).unwrap();
    assert_eq!(Config::parse(&lines).unwrap().roots, config.roots);
    Config::root_lines(&["relative".into()]).unwrap_err();
    for (line, wrong) in [
        ("root", "line 1: is not 'key = value'"),
        ("\nroot = relative", "line 2: root"),
        ("root = /", "line 1: root"),
        ("root = /a/../b", "line 1: root"),
        ("colour = red", "there is no setting 'colour'"),
        ("unknown-size = maybe", "unknown-size is"),
        ("deadline = 0", "deadline is"),
        ("peer = 192.0.2.0/33", "peer is"),
        ("ask = qemu+tcp://host/system", "ask is"),
        ("ask = qemu+tcp://{peer}/system", "no peer may be asked"),
        ("log = here", "log is"),
    ] {
        let error = Config::parse(line).unwrap_err();
        assert!(error.message().contains(wrong), "{line}: {error}");
    }
}

#[test]
fn connections_to_libvirt_are_told_from_others() {
    let line =
        |local: &str, remote: &str, state: &str| format!("   0: {local} {remote} {state} 0:0\n");
    // As a machine of this byte order prints 192.0.2.2 and 192.0.2.1.
    let hex = |text: &str| {
        let std::net::IpAddr::V4(address) = text.parse().unwrap() else { panic!() };
        format!("{:08X}", u32::from_ne_bytes(address.octets()))
    };
    let (own, other) = (hex("192.0.2.2"), hex("192.0.2.1"));
    let table = |lines: &[String]| format!("  sl  local remote st\n{}", lines.concat());
    let (libvirt, tls, ssh) = ("407D", "4082", "0016");
    let end = |address: &str, port: &str| format!("{address}:{port}");
    let found = connected(&table(&[
        line(&end(&own, libvirt), &end(&other, "D431"), "01"),
        line(&end(&own, tls), &end(&other, "D432"), "01"),
    ]));
    assert_eq!(found, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    for none in [
        line(&end(&own, ssh), &end(&other, "D431"), "01"),
        line(&end(&own, libvirt), &end(&other, "D431"), "0A"),
        line(&end(&own, libvirt), &end(&own, "D431"), "01"),
        line(&end(&hex("127.0.0.1"), libvirt), &end(&hex("127.0.0.1"), "D431"), "01"),
        "junk\n".to_owned(),
    ] {
        assert_eq!(connected(&table(&[none])), Vec::<IpAddr>::new());
    }
}

//! Random domains, of which random disks are edited.

use proptest::prelude::*;

use super::*;

/// One disk: its text for a target, and whether it is a medium.
fn disk_text() -> impl Strategy<Value = (String, bool)> {
    let place = prop_oneof![
        Just(("file", "<source file='/old/PATH' index='3'/>")),
        Just((
            "file",
            "<source file='/old/PATH' startupPolicy='optional'>\n <seclabel relabel='no'/> </source>"
        )),
        Just((
            "block",
            "<source dev=\"/dev/PATH\"><slices><slice type='storage' offset='0' size='9'/></slices></source>"
        )),
        Just(("volume", "<source volume='PATH' pool='p'></source>")),
    ];
    let around = prop::collection::vec(
        prop_oneof![
            Just("<serial>S-1</serial>"),
            Just("<iotune><total_iops_sec>5</total_iops_sec></iotune>"),
            Just("<!-- comment <disk> -->"),
            Just("\n      "),
            Just("<x:any xmlns:x='urn:x' x:a='1' a='2'> t&amp;t </x:any>"),
            Just("<address type='drive' unit='0'/>"),
            Just("<![CDATA[ <disk> ]]>"),
        ],
        0..5,
    );
    let driver = prop_oneof![
        Just(""),
        Just("<driver name='qemu' type='qcow2' cache='none'/>"),
        Just("<driver type='raw' name='qemu'><metadata_cache/></driver>"),
    ];
    let chain = prop_oneof![
        Just(""),
        Just("<backingStore/>"),
        Just(
            "<backingStore type='file' index='7'>\n<format type='raw'/><source file='/old/b'/><backingStore/></backingStore>"
        ),
    ];
    (place, around, driver, chain, any::<bool>(), any::<usize>()).prop_map(
        |((kind, source), mut parts, driver, chain, cdrom, order)| {
            let cdrom = cdrom && chain.len() < 20;
            for (n, part) in
                [source, driver, chain, "<target dev='TARGET'/>"].into_iter().enumerate()
            {
                parts.insert((order >> (8 * n)) % (parts.len() + 1), part);
            }
            let device = if cdrom { "cdrom" } else { "disk" };
            (format!("<disk type='{kind}' device='{device}'>{}</disk>", parts.concat()), cdrom)
        },
    )
}

/// What becomes of a disk; `None` leaves it alone.
fn edit(cdrom: bool, choice: u8, target: &str) -> Option<DiskEdit> {
    let below = [layer("/new/1", "qcow2"), layer("/dev/2", "raw")];
    match (choice % 4, cdrom) {
        (0, _) => None,
        (1, true) => Some(eject(target)),
        (_, true) => Some(medium(target, "/new/m")),
        (1, _) => Some(alone(target, "/new/a")),
        (2, _) => Some(on(target, "/new/o", &below)),
        _ => Some(raw(target, "/dev/r", true, (choice > 100).then_some(512))),
    }
}

proptest! {
    // A failing domain is printed whole; there is no file to keep.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn edited_disks_are_as_asked_and_the_rest_is_as_it_was(
        disks in prop::collection::vec((disk_text(), any::<u8>()), 1..7),
        next_start: bool,
    ) {
        let targets: Vec<_> = (0..disks.len()).map(|n| format!("vd{n}")).collect();
        let texts: Vec<_> = disks.iter().zip(&targets)
            .map(|(((text, _), _), target)| text.replace("TARGET", target).replace("PATH", target))
            .collect();
        let edits: Vec<_> = disks.iter().zip(&targets)
            .filter_map(|(((_, cdrom), choice), target)| edit(*cdrom, *choice, target))
            .collect();
        let join = |texts: &[String]| format!(
            "<domain>\n  <name>r</name>\n  <devices>\n    {}\n  </devices>\n</domain>\n",
            texts.join("\n    ")
        );
        let before = join(&texts);
        let after = match next_start {
            true => persistent_xml(&before, &edits),
            false => destination_xml(&before, &edits),
        }.unwrap();

        // Everything but the edited disks, put together by the test itself, is what came out.
        let new: Vec<_> = targets.iter().zip(&texts).map(|(target, old)| {
            let document = roxmltree::Document::parse(&after).unwrap();
            let node = document.descendants().find(|node| {
                node.has_tag_name("disk") && node.children().any(|child| {
                    child.attribute("dev") == Some(target)
                })
            }).unwrap();
            let edited = edits.iter().any(|edit| edit.target == *target);
            if edited { after[node.range()].to_owned() } else { old.clone() }
        }).collect();
        prop_assert_eq!(&join(&new), &after);

        for edit in &edits {
            let (was, is) = (disk(&before, &edit.target), disk(&after, &edit.target));
            match &edit.change {
                Change::Move { path, block, format, below, .. } => {
                    let place = match block {
                        true => Source::Block { path: path.clone() },
                        false => Source::File { path: path.clone() },
                    };
                    prop_assert_eq!(is.source, place);
                    prop_assert_eq!(is.format.as_deref(), Some(format.as_str()));
                    if is.chain.terminated {
                        prop_assert_eq!(&is.chain.layers[1..], &below[..]);
                    } else {
                        prop_assert!(next_start && !was.chain.terminated);
                        prop_assert_eq!(is.chain.layers.len(), 1);
                    }
                }
                Change::Medium { path } => {
                    prop_assert_eq!(is.source, Source::File { path: path.clone() });
                    prop_assert_eq!(is.format, was.format);
                }
                Change::Chain { below } => {
                    prop_assert_eq!(is.source, was.source);
                    prop_assert_eq!(&is.chain.layers[1..], &below[..]);
                }
                Change::Eject => prop_assert_eq!(is.source, Source::None),
            }
            prop_assert_eq!(was.cache, is.cache);
        }
    }
}

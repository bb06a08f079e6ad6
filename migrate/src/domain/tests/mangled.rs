//! XML that was cut, garbled or made to do harm.

use super::*;
use crate::ErrorKind;

/// Reads it and edits one of its disks; whatever comes out must be a domain.
fn survive(xml: &str) {
    let Ok(domain) = parse(xml) else { return };
    let Some(disk) = domain.disks.get(xml.len() % domain.disks.len().max(1)) else { return };
    let name = &disk.target;
    for edit in [alone(name, "/n/new"), medium(name, "/n/new"), eject(name)] {
        for form in [Form::Running, Form::NextStart] {
            if let Ok(edited) = edit::edit(xml, std::slice::from_ref(&edit), form) {
                assert_eq!(parse(&edited).unwrap().disks.len(), domain.disks.len());
            }
        }
    }
}

#[test]
fn cut_anywhere() {
    for xml in ALL {
        let domain_ends = xml.rfind("</domain>").unwrap() + "</domain>".len();
        for end in (0..xml.len()).rev().step_by(3).filter(|end| xml.is_char_boundary(*end)) {
            let rest = xml[end..].trim_start();
            let whole = end >= domain_ends && (rest.is_empty() || rest.starts_with("<!--"));
            assert_eq!(parse(&xml[..end]).is_ok(), whole, "{}", &xml[..end]);
        }
    }
}

#[test]
fn pieces_removed_doubled_and_exchanged() {
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    for xml in ALL {
        let characters: Vec<char> = xml.chars().collect();
        for _ in 0..40 {
            let mut mangled = characters.clone();
            let at = next(mangled.len());
            match next(4) {
                0 => drop(mangled.remove(at)),
                1 => mangled[at] = ['<', '>', '\'', '/', '&', '\0', ' ', 'x'][next(8)],
                2 => {
                    let end = (at + next(200)).min(mangled.len());
                    let piece: Vec<char> = mangled[at..end].to_vec();
                    let to = next(mangled.len());
                    mangled.splice(to..to, piece);
                }
                _ => {
                    let end = (at + next(200)).min(mangled.len());
                    mangled.drain(at..end);
                }
            }
            survive(&mangled.into_iter().collect::<String>());
        }
    }
}

#[test]
fn elements_removed_and_doubled() {
    for xml in ALL {
        let document = roxmltree::Document::parse(xml).unwrap();
        let elements = document.descendants().filter(roxmltree::Node::is_element);
        for (n, node) in elements.enumerate() {
            let range = node.range();
            let (until, from) =
                if n % 2 == 0 { (range.start, range.end) } else { (range.end, range.start) };
            survive(&format!("{}{}", &xml[..until], &xml[from..]));
        }
    }
}

#[test]
fn hostile_sizes_are_errors() {
    let inside = |inner: &str| format!("<domain><name>x</name>{inner}</domain>");
    let deep = |tag: &str, n: usize| {
        format!("{}{}", format!("<{tag}>").repeat(n), format!("</{tag}>").repeat(n))
    };
    let attributes: String = (0..100_000).map(|n| format!(" a{n}=''")).collect();
    let spaces: String = (0..1000).map(|n| format!("<e xmlns:a{n}='u'>")).collect();
    let hostile = [
        inside(&deep("e", 100_000)),
        inside(&deep("e", 600)),
        inside(&format!("<e{attributes}/>")),
        inside(&format!("{spaces}{}", "</e>".repeat(1000))),
        inside(&"<e/>".repeat(300_000)),
        inside(&" ".repeat(5 << 20)),
        format!("<!DOCTYPE d [<!ENTITY a 'aaaa'>]>{}", inside("<e>&a;</e>")),
        format!("<!DOCTYPE d SYSTEM 'file:///etc/passwd'>{}", inside("")),
        format!("<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>{}", inside("<e>&a;</e>")),
    ];
    for xml in hostile {
        assert_eq!(parse(&xml).unwrap_err().kind(), ErrorKind::Usage);
    }
    parse(&inside(&deep("e", 500))).unwrap();
}

#[test]
fn a_chain_of_200_layers_is_read_and_written() {
    let below: Vec<_> = (0..200).map(|n| layer(&format!("/b/{n}"), "qcow2")).collect();
    let edited = destination_xml(LIVE, &[on("vda", "/n/top", &below)]).unwrap();
    let chain = disk(&edited, "vda").chain;
    assert_eq!(chain.layers.len(), 201);
    assert!(chain.terminated);
    destination_xml(&edited, &[alone("vda", "/n/top")]).unwrap();
}

//! What is known of another host, of which only names are known: a directory stands for it.

use std::fs;
use std::path::Path;

use migrate::audit::{Options, Scan, Survey, Verdict, dependents, report};
use migrate::driver::Directory;
use qcow::CancelToken;

/// A host with domains, each with one disk: its own path, and that of its base as the XML names it.
fn host(root: &Path, domains: &[(&str, &str, Option<&str>)]) -> Directory {
    let definitions = root.join("etc/libvirt/qemu");
    fs::create_dir_all(&definitions).unwrap();
    for (name, path, base) in domains {
        let below = base.map_or(String::new(), |base| {
            format!(
                "<backingStore type='file'><format type='raw'/><source file='{base}'/>\
                 <backingStore/></backingStore>"
            )
        });
        let xml = format!(
            "<domain type='kvm'><name>{name}</name><uuid>{name}</uuid><devices><disk type='file'>\
             <driver type='qcow2'/><source file='{path}'/>{below}<target dev='vda'/></disk>\
             </devices></domain>"
        );
        fs::write(definitions.join(format!("{name}.xml")), xml).unwrap();
    }
    Directory::new(root)
}

fn survey(hosts: &[Directory], template: &Path) -> Survey {
    let cancel = CancelToken::new();
    let scan = Scan::new(&cancel);
    hosts.iter().for_each(|host| scan.host(host).unwrap());
    scan.image(template);
    scan.finish().unwrap()
}

#[test]
fn a_domain_of_another_host_that_names_the_template_depends_on_it() {
    let (here, a, b) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let template = here.path().canonicalize().unwrap().join("template");
    fs::write(&template, "raw").unwrap();
    let name = template.to_str().unwrap();
    let hosts = [
        host(a.path(), &[("one", "/a/one", Some(name))]),
        host(b.path(), &[("two", "/b/two", Some("/elsewhere"))]),
    ];
    let found = dependents(&survey(&hosts, &template), &template);
    assert_eq!(found.verdict, Verdict::InUse);
    let images: Vec<_> = found.images.iter().map(|image| image.path.to_str().unwrap()).collect();
    assert_eq!(images, ["/a/one"]);
    assert_eq!(found.domains.len(), 1);
    assert_eq!((found.domains[0].name.as_str(), found.domains[0].disk.as_str()), ("one", "vda"));
    // By a symbolic link of this machine, it is the same template.
    let link = here.path().join("link");
    std::os::unix::fs::symlink(&template, &link).unwrap();
    assert_eq!(dependents(&survey(&hosts, &link), &link).images.len(), 1);
    // All chains of the other host are told to their ends, and none leads here.
    let free = dependents(&survey(&hosts[1..], &template), &template);
    assert_eq!(free.verdict, Verdict::Free, "{free:?}");
}

#[test]
fn a_header_of_another_host_that_nobody_told_of_is_not_taken_for_none() {
    let (here, a) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let template = here.path().join("template");
    fs::write(&template, "raw").unwrap();
    let hosts = [host(a.path(), &[("one", "/a/one", None)])];
    let found = dependents(&survey(&hosts, &template), &template);
    assert_eq!(found.verdict, Verdict::Undetermined);
    assert_eq!(found.undetermined[0].path, Path::new("/a/one"));
}

#[test]
fn the_same_path_on_two_hosts_is_two_images_and_one_domain_on_both_is_one_writer() {
    let (here, a, b) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let template = here.path().join("template");
    fs::write(&template, "raw").unwrap();
    let hosts = [
        host(a.path(), &[("vm", "/v/disk", None), ("other", "/v/other", None)]),
        host(b.path(), &[("vm", "/v/disk", None)]),
    ];
    let survey = survey(&hosts, &template);
    let report = report(&survey, &Options::default().deep(16));
    let codes: Vec<_> = report.findings.iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!(codes, ["unreadable"; 3], "{:?}", report.findings);
    assert_eq!(report.summary.domains, 3);
    assert_eq!(report.images.iter().filter(|image| image.host.is_some()).count(), 3);
}

/// A host of the model that has one guest, which runs and whose chain its libvirt names.
#[test]
fn a_named_chain_whose_base_another_host_has_not_is_told() {
    let here = tempfile::tempdir().unwrap();
    let directory = here.path().canonicalize().unwrap();
    let (base, disk) = (directory.join("base.raw"), directory.join("disk.qcow2"));
    fs::write(&base, vec![7; 1 << 20]).unwrap();
    let backing = qcow::ops::create::Backing::new(&base, migrate::Format::Raw);
    let options = qcow::ops::create::CreateOptions::default().backing(backing);
    qcow::ops::create::create(&disk, &options).unwrap();
    let [source, _] = migrate::memory::pair(&directory);
    let xml = format!(
        "<domain type='kvm'><name>web</name><uuid>6f1a9b52-6f2b-4a6e-9a53-0d8a6d0a7c11</uuid><devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><backingStore \
         type='file'><format type='raw'/><source file='{}'/><backingStore/></backingStore><target dev='vda'/>\
         </disk></devices></domain>",
        disk.display(),
        base.display()
    );
    source.run(&xml).unwrap();
    let named = |others: &[Directory]| {
        let cancel = CancelToken::new();
        let scan = Scan::new(&cancel);
        scan.host(&source).unwrap();
        others.iter().for_each(|host| scan.host(host).unwrap());
        let survey = scan.finish().unwrap();
        let findings = report(&survey, &Options::default()).findings;
        let named = findings.into_iter().find(|it| it.code == migrate::audit::Code::ChainNamed);
        named.map(|finding| finding.what)
    };
    assert_eq!(named(&[]), None, "it exists, and no destination is known");
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let without = host(a.path(), &[("other", "/x", None)]);
    let said = named(&[without]).unwrap();
    assert!(said.contains("'web', disk vda") && said.contains("is not in the pools of"), "{said}");
    let with = host(b.path(), &[("other", "/x", Some(base.to_str().unwrap()))]);
    assert_eq!(named(&[with]), None, "a guest there uses a file of that name");
}

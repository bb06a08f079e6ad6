//! Facts for tests of the planner: a guest with one overlay on one template, and two modern hosts.

use migrate::facts::*;
use migrate::plan::*;
use qcow::chain::Format;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SIZE: u64 = 1024 * MIB;
/// What the template holds.
pub(crate) const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(crate) fn host(name: &str) -> HostFacts {
    HostFacts {
        uri: format!("qemu+ssh://{name}/system"),
        hostname: name.into(),
        uuid: Some(format!("uuid-of-{name}")),
        libvirt: Some(Version::new(11, 3, 0)),
        qemu: Some(Version::new(10, 0, 2)),
    }
}

pub(crate) fn identity(inode: u64) -> Identity {
    Identity {
        device: Some(1),
        inode: Some(inode),
        links: Some(1),
        size: 100 * MIB,
        mtime_ns: 1,
        ctime_ns: 2,
    }
}

pub(crate) fn qcow2() -> Qcow2Facts {
    Qcow2Facts {
        version: 3,
        cluster_size: 65536,
        extended_l2: false,
        dirty: false,
        corrupt: false,
        encryption: None,
        data_file: None,
        snapshots: vec![],
        bitmaps: vec![],
    }
}

pub(crate) fn layer(path: &str, inode: u64, format: Format) -> LayerFacts {
    LayerFacts {
        path: path.into(),
        read_from: path.into(),
        deleted: false,
        block_device: false,
        identity: identity(inode),
        format,
        format_from: FormatFrom::Xml,
        virtual_size: SIZE,
        qcow2: (format == Format::Qcow2).then(qcow2),
        backing: None,
        backing_format: None,
    }
}

pub(crate) fn named(layers: &[LayerFacts]) -> Vec<NamedLayer> {
    let named = |layer: &LayerFacts| NamedLayer {
        path: layer.path.clone(),
        format: Some(layer.format.as_str().into()),
    };
    layers.iter().map(named).collect()
}

/// A disk with these layers, the XML agreeing with the headers, and a free place at the destination.
pub(crate) fn disk(target: &str, layers: Vec<LayerFacts>) -> DiskFacts {
    let chain = XmlChain { layers: named(&layers), terminated: true };
    let place = TargetFacts {
        path: format!("/new/{target}.qcow2").into(),
        storage: Storage::Distinct,
        object: None,
        unusable: None,
        available: Some(100 * SIZE),
        base_path: layers
            .get(1)
            .map(|base| std::path::Path::new("/new").join(base.path.file_name().unwrap())),
        bases: vec![],
    };
    DiskFacts {
        target: target.into(),
        device: Device::Disk,
        source: Source::File { path: layers[0].path.clone() },
        format: Some(layers[0].format.as_str().into()),
        readonly: false,
        shareable: false,
        transient: false,
        cache: None,
        block_job: None,
        live_capacity: Some(SIZE),
        live_chain: chain.clone(),
        migratable_chain: chain,
        chain: Some(ChainFacts {
            missing: None,
            top_bytes: 16 * MIB,
            guest_bytes: Some(100 * MIB),
            below: (layers.len() > 1).then(|| DIGEST.into()),
            layers,
        }),
        destination: Some(place),
    }
}

/// `vda`, an overlay on a template.
pub(crate) fn overlay() -> DiskFacts {
    disk(
        "vda",
        vec![
            layer("/old/vda.qcow2", 10, Format::Qcow2),
            layer("/old/base.qcow2", 11, Format::Qcow2),
        ],
    )
}

/// A disk that stands alone.
pub(crate) fn alone(target: &str) -> DiskFacts {
    disk(target, vec![layer(&format!("/old/{target}.qcow2"), 20, Format::Qcow2)])
}

/// A base at the destination that is what the overlay's template is.
pub(crate) fn base(path: &str) -> BaseFacts {
    BaseFacts {
        path: path.into(),
        identity: identity(30),
        chain: vec![NamedLayer { path: path.into(), format: Some("qcow2".into()) }],
        virtual_size: SIZE,
        in_use: None,
        content: Content::Equal { digest: DIGEST.into() },
    }
}

/// A running guest with `disks`.
pub(crate) fn guest(disks: Vec<DiskFacts>) -> Facts {
    Facts {
        missing: vec![],
        source: host("here"),
        destination: host("there"),
        domain: DomainFacts {
            name: "guest".into(),
            uuid: "guest-uuid".into(),
            state: DomainState::Running,
            persistent: true,
            live_xml: String::new(),
            migratable_xml: String::new(),
            inactive_xml: Some(String::new()),
            job: None,
            snapshots: vec![],
            checkpoints: vec![],
            saved: false,
        },
        clash: None,
        disks,
        files: vec![],
    }
}

/// The overlay, whose template is at the destination too.
pub(crate) fn guest_with_base() -> Facts {
    let mut disk = overlay();
    destination(&mut disk).bases.push(base("/new/base.qcow2"));
    guest(vec![disk])
}

pub(crate) fn destination(disk: &mut DiskFacts) -> &mut TargetFacts {
    disk.destination.as_mut().unwrap()
}

pub(crate) fn chain(disk: &mut DiskFacts) -> &mut ChainFacts {
    disk.chain.as_mut().unwrap()
}

pub(crate) fn header(disk: &mut DiskFacts, depth: usize) -> &mut Qcow2Facts {
    chain(disk).layers[depth].qcow2.as_mut().unwrap()
}

pub(crate) fn thin() -> Policy {
    Policy::default().style(Style::Thin)
}

pub(crate) fn full() -> Policy {
    Policy::default().style(Style::Full)
}

pub(crate) fn planned(facts: &Facts, policy: &Policy) -> Plan {
    decide(facts, policy).unwrap_or_else(|refusals| panic!("{refusals:#?}")).0
}

pub(crate) fn refused(facts: &Facts, policy: &Policy) -> Vec<String> {
    match decide(facts, policy) {
        Ok((plan, _)) => panic!("not refused: {plan:#?}"),
        Err(refusals) => refusals.into_iter().map(|refusal| refusal.code).collect(),
    }
}

pub(crate) fn codes(plan: &Plan) -> Vec<&str> {
    plan.warnings.iter().map(|warning| warning.code.as_str()).collect()
}

/// The base of the first disk's new image.
pub(crate) fn base_of(plan: &Plan) -> Option<&BasePlan> {
    match &plan.disks[0].action {
        Action::Create { base, .. } => base.as_ref(),
        other => panic!("{other:?}"),
    }
}

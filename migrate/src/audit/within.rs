//! A survey for a client that may see what was asked about, and nothing else of the host. Pure.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::value::{Image, Key, Need, Survey};

/// What stands for a directory that is not shown; a number tells such directories apart.
const OUTSIDE: &str = "outside-";

/// The survey with the directories outside of what was asked about left out of all names: of a base that an
/// image in there names and that lies elsewhere, only the file's name is left, behind a word that stands for
/// its directory. What lies below the paths and pools that were scanned keeps its names, and so does what a
/// domain names, and everything that another host told of itself.
///
/// The findings of what comes out are those of what went in, in other words.
pub fn within(mut survey: Survey) -> Survey {
    let inside = Inside::new(&survey);
    for image in &mut survey.images {
        if image.key.host().is_none() {
            inside.hide(image);
        }
    }
    for domain in survey.domains.iter_mut().filter(|domain| domain.host.is_none()) {
        for layer in domain.disks.iter_mut().flat_map(|disk| &mut disk.layers) {
            layer.name = inside.name(&layer.name);
        }
    }
    for unseen in survey.unseen.iter_mut().filter(|unseen| unseen.host.is_none()) {
        // Hosts are not paths, processes lie in no directory that anybody could want to hide, and what the
        // command line names is known to the client.
        if !unseen.asked && unseen.path.is_absolute() && !unseen.path.starts_with("/proc") {
            unseen.path = inside.name(&unseen.path);
        }
    }
    survey
}

struct Inside {
    places: Vec<PathBuf>,
    /// Files that domains name.
    named: HashSet<PathBuf>,
}

impl Inside {
    fn new(survey: &Survey) -> Self {
        let of_domains: HashSet<&Key> = survey
            .domains
            .iter()
            .filter(|domain| domain.host.is_none())
            .flat_map(|domain| &domain.disks)
            .flat_map(|disk| &disk.layers)
            .map(|layer| &layer.key)
            .collect();
        let images = survey.images.iter().filter(|image| of_domains.contains(&image.key));
        let named = images.flat_map(|image| &image.names).map(|name| name.path.clone()).collect();
        Self { places: survey.places.clone(), named }
    }

    fn has(&self, path: &Path) -> bool {
        self.places.iter().any(|place| path.starts_with(place))
    }

    /// The name as it is shown.
    fn name(&self, path: &Path) -> PathBuf {
        if !path.is_absolute() || self.has(path) || self.named.contains(path) {
            return path.to_path_buf();
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        match path.file_name() {
            Some(file) => stand_in(directory).join(file),
            None => stand_in(directory),
        }
    }

    /// A directory as names in it are shown.
    fn directory(&self, path: &Path) -> PathBuf {
        let known = self.has(path) || self.named.iter().any(|name| name.parent() == Some(path));
        if known { path.to_path_buf() } else { stand_in(path) }
    }

    fn hide(&self, image: &mut Image) {
        for name in &mut image.names {
            name.path = self.name(&name.path);
        }
        let mut shown = [None, None];
        for link in &mut image.links {
            link.name = self.name(&link.name);
            link.through = self.directory(&link.through);
            let [backing, data] = &mut shown;
            let of_need = match link.need {
                Need::Backing => backing,
                Need::Data => data,
                Need::Extent | Need::LoopDevice => continue,
            };
            of_need.get_or_insert_with(|| link.name.clone());
        }
        if let Some(header) = &mut image.header {
            // What is written in the header may be any text; where it leads says as much.
            let [backing, data] = shown;
            let unfollowed = |name: &PathBuf| foreign(name);
            header.backing = header.backing.take().map(|name| backing.unwrap_or(unfollowed(&name)));
            // Links say where they are.
            header.extents.clear();
            header.data_file =
                header.data_file.take().map(|name| data.unwrap_or(unfollowed(&name)));
        }
        for (name, _) in &mut image.not_followed {
            *name = foreign(name);
        }
    }
}

/// A name that is no path of this machine, without whatever it says of files.
fn foreign(name: &Path) -> PathBuf {
    let text = name.to_string_lossy();
    let shown = match text.split_once(':') {
        Some(("json", _)) => "json:",
        Some((protocol, rest)) if rest.starts_with("//") && protocol != "file" => &text,
        Some((protocol, _)) => return format!("{protocol}:").into(),
        None => "",
    };
    shown.into()
}

/// The same for the same directory, today and tomorrow, so that series of metrics stay what they are.
fn stand_in(directory: &Path) -> PathBuf {
    let hash = blake3::hash(OsStr::as_encoded_bytes(directory.as_os_str()));
    let digits: String = hash.to_hex().chars().take(8).collect();
    format!("{OUTSIDE}{digits}").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::value::{Header, Link, Name, Presence};
    use crate::audit::{Options, report};

    fn image(inode: u64, path: &str) -> Image {
        let name = Name { symlink: false, path: path.into() };
        Image::new(Key::File { device: 1, inode }, name, Presence::Here)
    }

    fn on(mut image: Image, base: &Image) -> Image {
        image.header = Some(Header {
            backing: Some("../secret/base".into()),
            backing_format: Some("qcow2".into()),
            ..Header::default()
        });
        image.links.push(Link {
            need: Need::Backing,
            through: image.path().parent().unwrap().into(),
            name: base.path().into(),
            to: base.key.clone(),
        });
        image
    }

    fn json(survey: &Survey) -> String {
        serde_json::to_string(&report(survey, &Options::default().deep(16))).unwrap()
    }

    #[test]
    fn directories_outside_the_roots_are_not_named_and_files_stay_apart() {
        let base = image(1, "/secret/base");
        let other = image(2, "/hidden/base");
        let mut gone = image(3, "/secret/gone");
        gone.key = Key::Name { host: None, path: "/secret/gone".into() };
        gone.presence = Presence::Missing;
        let images = vec![
            on(image(4, "/vm/a"), &base),
            on(image(5, "/vm/b"), &other),
            on(image(6, "/vm/c"), &gone),
            base,
            other,
            gone,
        ];
        let survey = Survey { images, places: vec!["/vm".into()], ..Survey::default() };
        let before = json(&survey);
        assert!(before.contains("/secret/gone' does not exist"), "{before}");
        let findings = report(&survey, &Options::default().deep(16)).findings.len();
        let survey = within(survey);
        let after = json(&survey);
        assert!(!after.contains("secret") && !after.contains("hidden"), "{after}");
        assert!(after.contains("/gone' does not exist") && after.contains("/vm/a"), "{after}");
        assert_eq!(report(&survey, &Options::default().deep(16)).findings.len(), findings);
        let names: HashSet<_> = survey.images.iter().map(|image| image.path()).collect();
        assert_eq!(names.len(), 6, "{names:?}");
    }

    #[test]
    fn what_is_no_file_keeps_what_says_nothing_of_files() {
        for (name, shown) in [
            ("nbd://host:10809/disk", "nbd://host:10809/disk"),
            ("json:{\"file\":{\"filename\":\"/secret/x\"}}", "json:"),
            ("file:///secret/x", "file:"),
            ("fat:/secret", "fat:"),
            ("/secret", ""),
        ] {
            assert_eq!(foreign(Path::new(name)), Path::new(shown), "{name}");
        }
    }
}

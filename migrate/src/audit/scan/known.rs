//! What an earlier scan read, for a scan that follows soon: files that are as they were are not read again.

use std::collections::HashMap;

use crate::audit::value::{Content, Header, Image, Key, Presence, Status, Survey};

/// What was changed so shortly before a scan may have been changed again at what its file system takes for the
/// same time, in nanoseconds.
const SAME_TIME_NS: i64 = 2_000_000_000;

/// The headers of an earlier scan. Who uses an image, and where names lead, is always looked up anew.
#[derive(Debug, Default)]
pub struct Known {
    files: HashMap<Key, Seen>,
}

#[derive(Debug)]
struct Seen {
    status: Status,
    content: Content,
    header: Option<Header>,
}

impl Known {
    /// What can be relied on of a survey whose scan began at `began_ns`, in nanoseconds since 1970: sound
    /// headers of files that had not changed for a while.
    pub fn of(survey: &Survey, began_ns: i64) -> Self {
        let settled = |image: &&Image| {
            let changed = image.status.changed_ns;
            image.presence == Presence::Here
                && image.problem.is_none()
                && (image.header.is_some() || image.content == Content::Raw)
                && changed.is_some_and(|at| at < began_ns.saturating_sub(SAME_TIME_NS))
        };
        let seen = |image: &Image| {
            let (content, header) = (image.content.clone(), image.header.clone());
            (image.key.clone(), Seen { status: image.status, content, header })
        };
        Self { files: survey.images.iter().filter(settled).map(seen).collect() }
    }

    /// What is known of a file with this status.
    pub(super) fn get(&self, key: &Key, status: &Status) -> Option<(Content, Option<Header>)> {
        let seen = self.files.get(key).filter(|seen| seen.status == *status)?;
        Some((seen.content.clone(), seen.header.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use qcow::CancelToken;

    use super::super::Scan;
    use super::*;

    fn scan(directory: &Path, known: Option<&Known>) -> Survey {
        let cancel = CancelToken::new();
        let scan = Scan::new(&cancel);
        let scan = if let Some(known) = known { scan.knowing(known) } else { scan };
        scan.path(directory).unwrap();
        scan.finish().unwrap()
    }

    fn size(survey: &Survey) -> u64 {
        survey.images[0].header.as_ref().unwrap().virtual_size
    }

    #[test]
    fn a_file_is_read_again_only_if_it_changed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image.qcow2");
        let make = |size| {
            let options = qcow::ops::create::CreateOptions::default().size(size);
            let _ = fs::remove_file(&file);
            qcow::ops::create::create(&file, &options).unwrap();
        };
        make(1 << 20);
        let mut first = scan(directory.path(), None);
        // As if another size had been read, so that it can be seen who reads.
        first.images[0].header.as_mut().unwrap().virtual_size = 7;
        let known = Known::of(&first, i64::MAX);
        assert_eq!(size(&scan(directory.path(), Some(&known))), 7);
        assert_eq!(size(&scan(directory.path(), None)), 1 << 20);
        let changed = fs::File::options().write(true).open(&file).unwrap();
        changed.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(size(&scan(directory.path(), Some(&known))), 1 << 20);
        make(2 << 20);
        assert_eq!(size(&scan(directory.path(), Some(&known))), 2 << 20);
        // What changed just before it was read may have changed just after, too.
        let second = scan(directory.path(), None);
        let changed = second.images[0].status.changed_ns.unwrap();
        assert!(Known::of(&second, changed).files.is_empty());
        assert_eq!(Known::of(&second, changed.saturating_add(SAME_TIME_NS + 1)).files.len(), 1);
    }
}

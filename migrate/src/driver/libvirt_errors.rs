//! What libvirt and QEMU say when something fails, as errors that say what happened, to which file or disk,
//! and what to do about it.
//!
//! A table, read from the top: first what is told apart by its code, then the sentences of all known
//! versions, of which only the lasting parts are matched. The sentence itself is always kept at the
//! end of the message, for the sake of those who search the web for it.
//!
//! The sentences are English whatever the locale of this process: it never sets one for the C library. Those of
//! a daemon that runs in another language end up with their code alone, or untranslated.

use crate::Error;

use self::table::{Row, TABLE};

mod table;

/// `virErrorNumber`s.
pub(crate) mod code {
    pub(crate) const NO_SUPPORT: i32 = 3;
    pub(crate) const NO_CONNECT: i32 = 5;
    #[cfg(feature = "libvirt")]
    pub(crate) const INVALID_ARG: i32 = 8;
    pub(crate) const OPERATION_DENIED: i32 = 29;
    pub(crate) const NO_DOMAIN: i32 = 42;
    pub(crate) const AUTH_FAILED: i32 = 45;
    pub(crate) const NO_STORAGE_POOL: i32 = 49;
    pub(crate) const NO_STORAGE_VOL: i32 = 50;
    pub(crate) const OPERATION_INVALID: i32 = 55;
    pub(crate) const OPERATION_TIMEOUT: i32 = 68;
    pub(crate) const MIGRATE_PERSIST_FAILED: i32 = 69;
    pub(crate) const ARGUMENT_UNSUPPORTED: i32 = 74;
    pub(crate) const OPERATION_ABORTED: i32 = 78;
    pub(crate) const AUTH_CANCELLED: i32 = 79;
    pub(crate) const MIGRATE_UNSAFE: i32 = 81;
    pub(crate) const BLOCK_COPY_ACTIVE: i32 = 83;
    pub(crate) const SSH: i32 = 85;
    pub(crate) const ACCESS_DENIED: i32 = 88;
    pub(crate) const STORAGE_VOL_EXIST: i32 = 90;
    pub(crate) const CPU_INCOMPATIBLE: i32 = 91;
    pub(crate) const MIGRATE_FINISH_OK: i32 = 93;
    pub(crate) const AUTH_UNAVAILABLE: i32 = 94;
    pub(crate) const LIBSSH: i32 = 98;
}

impl Row {
    fn fits(&self, code: i32, from: i32, sentence: &str) -> bool {
        (self.codes.is_empty() || self.codes.contains(&code))
            && self.from.is_none_or(|wanted| wanted == from)
            && self.words.iter().all(|words| sentence.contains(words))
    }
}

/// The error that libvirt's `code` (`virErrorNumber`), `from` (`virErrorDomain`) and `sentence` mean.
pub fn translate(code: i32, from: i32, sentence: &str) -> Error {
    let sentence = sentence.trim();
    match TABLE.iter().find(|row| row.fits(code, from, sentence)) {
        Some(row) => {
            let named = Named::in_sentence(sentence);
            let message = format!("{}; libvirt: {sentence}", named.fill(row.means));
            let error = Error::new(row.kind, message);
            match &row.remedy {
                Some(remedy) => error.hint(remedy.clone()),
                None if row.next.is_empty() => error,
                None => error.hint(named.fill(row.next)),
            }
        }
        None => Error::environment(format!("libvirt: {sentence} (error {code} of part {from})")),
    }
}

/// What a sentence names.
struct Named<'a> {
    quoted: Vec<&'a str>,
    disk: Option<&'a str>,
}

impl<'a> Named<'a> {
    fn in_sentence(sentence: &'a str) -> Self {
        let quoted = sentence.split('\'').skip(1).step_by(2).collect();
        let disk = sentence.match_indices("disk ").find_map(|(at, found)| {
            let rest = sentence.get(at.checked_add(found.len())?..)?;
            let word = rest.split([' ', '\'', ':', ',']).find(|word| !word.is_empty())?;
            let name = word.bytes().all(|byte| byte.is_ascii_alphanumeric());
            // vda, sdb, hdc, xvda, fda, nvme0n1
            (name
                && ["vd", "sd", "hd", "xvd", "fd", "ubd", "nvme"]
                    .iter()
                    .any(|kind| word.starts_with(kind)))
            .then_some(word)
        });
        Self { quoted, disk }
    }

    fn path(&self, n: usize) -> &str {
        let mut paths = self.quoted.iter().filter(|text| text.starts_with('/'));
        paths.nth(n).copied().unwrap_or("a file that it does not name")
    }

    fn fill(&self, text: &str) -> String {
        let disk = self.disk.map_or_else(|| "a disk".to_owned(), |disk| format!("disk {disk}"));
        let bare = self.disk.unwrap_or("DISK");
        text.replace("GUEST {disk}", &format!("GUEST {bare}"))
            .replace("{disk}", &disk)
            .replace(
                " ({path})",
                &self
                    .quoted
                    .iter()
                    .find(|text| text.starts_with('/'))
                    .map_or_else(String::new, |path| format!(" ({path})")),
            )
            .replace("{path}", self.path(0))
            .replace("{second}", self.path(1))
            .replace("{quoted}", self.quoted.first().copied().unwrap_or("that address"))
    }
}

#[cfg(test)]
mod tests;

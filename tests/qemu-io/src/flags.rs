//! Options of one letter, in bundles, and anywhere among the operands.

/// The letters that are known.
pub(crate) struct Flags {
    /// Those that stand alone.
    pub(crate) alone: &'static str,
    /// Those that a value follows, attached or apart.
    pub(crate) with_value: &'static str,
}

/// What was given.
#[derive(Debug, Default, Clone)]
pub(crate) struct Parsed {
    letters: Vec<(char, Option<String>)>,
    /// All that is no option.
    pub(crate) operands: Vec<String>,
}

impl Parsed {
    pub(crate) fn has(&self, letter: char) -> bool {
        self.letters.iter().any(|(given, _)| *given == letter)
    }

    /// The last value of a letter.
    pub(crate) fn value(&self, letter: char) -> Option<&str> {
        self.all(letter).last()
    }

    /// All values of a letter.
    pub(crate) fn all(&self, letter: char) -> impl Iterator<Item = &str> {
        let of_it = self.letters.iter().filter(move |(given, _)| *given == letter);
        of_it.filter_map(|(_, value)| value.as_deref())
    }
}

/// Takes words apart.
///
/// # Errors
/// For letters that are not known, and values that are missing.
pub(crate) fn parse(flags: &Flags, words: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            parsed.operands.extend(words.cloned());
            break;
        }
        let Some(bundle) = word.strip_prefix('-').filter(|bundle| !bundle.is_empty()) else {
            parsed.operands.push(word.clone());
            continue;
        };
        let mut letters = bundle.chars();
        while let Some(letter) = letters.next() {
            if flags.alone.contains(letter) {
                parsed.letters.push((letter, None));
            } else if flags.with_value.contains(letter) {
                let attached = letters.as_str();
                let value = match attached {
                    "" => words.next().cloned(),
                    attached => Some(attached.to_owned()),
                };
                let missing = || format!("option requires an argument -- '{letter}'");
                parsed.letters.push((letter, Some(value.ok_or_else(missing)?)));
                break;
            } else {
                return Err(format!("invalid option -- '{letter}'"));
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_bundled_and_values_attached_or_apart() {
        let flags = Flags { alone: "pq", with_value: "P" };
        let parse = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            parse(&flags, &words)
        };
        for text in ["-pP 0xa 0 4k", "-pP0xa 0 4k", "0 -p 4k -P 0xa"] {
            let given = parse(text).unwrap();
            assert!(given.has('p') && !given.has('q'));
            assert_eq!(given.value('P'), Some("0xa"));
            assert_eq!(given.operands, ["0", "4k"]);
        }
        assert_eq!(parse("-x 0").unwrap_err(), "invalid option -- 'x'");
        assert_eq!(parse("0 -P").unwrap_err(), "option requires an argument -- 'P'");
        assert_eq!(parse("-- -p").unwrap().operands, ["-p"]);
    }
}

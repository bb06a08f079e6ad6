//! Commands of `qemu-img` that this program does not have: what to call instead.

/// Each with what does it, or the part of it that there is.
const ABSENT: &[(&str, &str)] = &[("resize", "`qemu-img resize` does it")];

/// What to call instead of `command`, if that is one of `qemu-img`'s.
pub(crate) fn instead_of(command: &str) -> Option<&'static str> {
    ABSENT.iter().find(|(name, _)| *name == command).map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn what_is_absent_is_absent_and_what_is_advised_is_there() {
        let mut cli = Cli::command();
        cli.build();
        for (name, instead) in ABSENT {
            assert!(cli.find_subcommand(name).is_none(), "{name} is there");
            for advice in instead.split('`').filter_map(|part| part.strip_prefix("qcowtool ")) {
                let mut words = advice.split(' ');
                let command = words.next().and_then(|command| cli.find_subcommand(command));
                let command = command.unwrap_or_else(|| panic!("no command: {advice}"));
                for flag in words.filter(|word| word.starts_with('-')) {
                    let named = |arg: &clap::Arg| {
                        arg.get_long().is_some_and(|long| format!("--{long}") == flag)
                            || arg.get_short().is_some_and(|short| format!("-{short}") == flag)
                    };
                    assert!(command.get_arguments().any(named), "{advice}: no {flag}");
                }
            }
        }
    }
}

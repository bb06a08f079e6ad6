//! Takes system calls from this thread, and from those that it starts from now on, by a seccomp filter.
//!
//! Three answers. What the commands need is allowed. What no command that reads images ever does, and
//! whoever has taken one over wants next (programs, sockets, other processes, mounts, the kernel), ends the
//! process. All else does not exist (`ENOSYS`): a newer C library that tries a newer call takes the
//! older one, as it does on an older kernel. A few are looked at more closely (`EPERM`).
//!
//! The program is a binary search over ranges of numbers, and is written here because each command
//! loads it: the kernel translates each instruction, and then runs the program for each number. The
//! chains of comparisons that `seccompiler` makes of such lists take it five times as long.

mod lists;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS,
};
use seccompiler::{BpfProgram, apply_filter, sock_filter};

use lists::{ALLOWED, ARCHITECTURE, Check, FATAL, SERVING, checked};

/// Leaves the calls that commands need, and those of a server if it is one.
///
/// # Errors
/// Why the kernel does not do it.
pub(super) fn restrict(serving: bool) -> Result<(), String> {
    let more = if serving { SERVING } else { &[] };
    let program = program(more).ok_or("there is no filter for this architecture")?;
    apply_filter(&program).map_err(|error| error.to_string())
}

const ALLOW: u32 = SECCOMP_RET_ALLOW;
const KILL: u32 = SECCOMP_RET_KILL_PROCESS;
const UNKNOWN: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const REFUSED: u32 = SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// Where the number, the architecture and the arguments of a call are in `struct seccomp_data`.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Unknown,
    Allowed,
    Fatal,
    /// Block number so-and-so decides.
    Block(u8),
}

/// Numbers from `first` on have this answer.
type Range = (u32, Answer);

/// One question of the search: which way for numbers from `at` on, and for those before.
#[derive(Debug, Clone, Copy)]
struct Question {
    at: u32,
    from: Way,
    before: Way,
}

/// Where the search goes on.
#[derive(Debug, Clone, Copy)]
enum Way {
    Question(u8),
    Answer(Answer),
}

/// The program, `None` if there is no list for the architecture; `more` are allowed besides.
fn program(more: &[libc::c_long]) -> Option<BpfProgram> {
    let checks = checked();
    let blocks: Vec<_> = checks.iter().map(|(_, check)| block(check)).collect::<Option<_>>()?;
    let ranges = ranges(&checks, more)?;
    let mut questions = Vec::with_capacity(ranges.len());
    search(&ranges, &mut questions)?;

    let mut program =
        vec![load(MACHINE), jump(BPF_JEQ, ARCHITECTURE?, 1, 0), answer(KILL), load(NUMBER)];
    let first = program.len();
    // Behind the questions come the blocks, and then the plain answers.
    let mut end = first.checked_add(questions.len())?;
    let mut starts = Vec::with_capacity(blocks.len());
    for block in &blocks {
        starts.push(end);
        end = end.checked_add(block.len())?;
    }
    let place = |way: Way| match way {
        Way::Question(index) => first.checked_add(index.into()),
        Way::Answer(Answer::Block(index)) => starts.get(usize::from(index)).copied(),
        Way::Answer(Answer::Allowed) => Some(end),
        Way::Answer(Answer::Fatal) => end.checked_add(1),
        Way::Answer(Answer::Unknown) => end.checked_add(2),
    };
    for question in &questions {
        let next = program.len().checked_add(1)?;
        let skip = |way| u8::try_from(place(way)?.checked_sub(next)?).ok();
        program.push(jump(BPF_JGE, question.at, skip(question.from)?, skip(question.before)?));
    }
    program.extend(blocks.into_iter().flatten());
    program.extend([answer(ALLOW), answer(KILL), answer(UNKNOWN)]);
    Some(program)
}

/// All numbers, in order, neighbours with the same answer joined.
fn ranges(checks: &[(libc::c_long, Check)], more: &[libc::c_long]) -> Option<Vec<Range>> {
    let allowed = ALLOWED.iter().chain(more).map(|call| (*call, Answer::Allowed));
    let fatal = FATAL.iter().filter(|call| !more.contains(call));
    let fatal = fatal.map(|call| (*call, Answer::Fatal));
    let blocks = (0..).zip(checks).map(|(index, (call, _))| (*call, Answer::Block(index)));
    let mut calls = Vec::with_capacity(256);
    for (call, answer) in allowed.chain(fatal).chain(blocks) {
        calls.push((u32::try_from(call).ok()?, answer));
    }
    calls.sort_unstable_by_key(|(call, _)| *call);
    let mut ranges = Vec::with_capacity(256);
    ranges.push((0, Answer::Unknown));
    for (call, answer) in calls {
        if ranges.last().is_some_and(|(first, _)| *first == call) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != answer) {
            ranges.push((call, answer));
        }
        ranges.push((call.checked_add(1)?, Answer::Unknown));
    }
    Some(ranges)
}

/// Writes the questions that lead to the right one of `ranges`, the first one first; `None` if there are
/// too many.
fn search(ranges: &[Range], questions: &mut Vec<Question>) -> Option<Way> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let (Some((at, _)), false) = (above.first(), below.is_empty()) else {
        return Some(Way::Answer(ranges.first()?.1));
    };
    let index = questions.len();
    let open = Way::Answer(Answer::Unknown);
    questions.push(Question { at: *at, from: open, before: open });
    let before = search(below, questions)?;
    let from = search(above, questions)?;
    *questions.get_mut(index)? = Question { at: *at, from, before };
    u8::try_from(index).ok().map(Way::Question)
}

/// What decides about a call whose argument matters: the lower half of it, which is all that the kernel
/// looks at in these.
fn block(check: &Check) -> Option<BpfProgram> {
    let argument = |index: u32| ARGUMENTS.checked_add(index.checked_mul(8)?);
    Some(match check {
        Check::OneOf { argument: index, values } => {
            let mut block = vec![load(argument(*index)?)];
            for (done, value) in values.iter().enumerate() {
                let rest = values.len().checked_sub(done)?;
                block.push(jump(BPF_JEQ, *value, u8::try_from(rest).ok()?, 0));
            }
            block.extend([answer(REFUSED), answer(ALLOW)]);
            block
        }
        Check::Lacks { argument: index, bits } => {
            vec![
                load(argument(*index)?),
                jump(BPF_JSET, *bits, 0, 1),
                answer(REFUSED),
                answer(ALLOW),
            ]
        }
        Check::Thread { thread, others } => vec![
            load(argument(0)?),
            jump(BPF_JSET, *thread, 0, 1),
            jump(BPF_JSET, *others, 0, 1),
            answer(KILL),
            answer(ALLOW),
        ],
    })
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

/// Skips `yes` instructions, or `no`.
fn jump(question: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(BPF_JMP | question | BPF_K, yes, no, value)
}

fn answer(value: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, 0, 0, value)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do: runs the program for a call.
    fn run(number: libc::c_long, arguments: [u32; 3]) -> u32 {
        run_in(&program(&[]).unwrap(), number, arguments)
    }

    #[expect(clippy::arithmetic_side_effects, reason = "a panic fails the test")]
    fn run_in(program: &BpfProgram, number: libc::c_long, arguments: [u32; 3]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            let yes = match u32::from(code) {
                c if c == BPF_LD | BPF_W | BPF_ABS => {
                    value = match k {
                        NUMBER => number.try_into().unwrap(),
                        MACHINE => ARCHITECTURE.unwrap(),
                        offset => arguments[((offset - ARGUMENTS) / 8) as usize],
                    };
                    at += 1;
                    continue;
                }
                c if c == BPF_JMP | BPF_JEQ | BPF_K => value == k,
                c if c == BPF_JMP | BPF_JGE | BPF_K => value >= k,
                c if c == BPF_JMP | BPF_JSET | BPF_K => value & k != 0,
                c if c == BPF_RET | BPF_K => return k,
                other => panic!("instruction {other:#x}"),
            };
            at += 1 + usize::from(if yes { jt } else { jf });
        }
    }

    #[test]
    fn every_number_has_the_answer_of_its_list() {
        let checks = checked();
        for number in 0..1000 {
            let found = run(number, [0; 3]);
            if ALLOWED.contains(&number) {
                assert_eq!(found, ALLOW, "{number}");
            } else if FATAL.contains(&number) {
                assert_eq!(found, KILL, "{number}");
            } else if !checks.iter().any(|(call, _)| *call == number) {
                assert_eq!(found, UNKNOWN, "{number}");
            }
        }
    }

    #[test]
    fn a_server_may_talk_to_its_clients_and_call_nobody() {
        let program = program(SERVING).unwrap();
        for call in SERVING {
            assert_eq!(run_in(&program, *call, [0; 3]), ALLOW, "{call}");
        }
        for call in [libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_execve] {
            assert_eq!(run_in(&program, call, [0; 3]), KILL, "{call}");
        }
    }

    #[test]
    fn no_call_is_on_two_lists() {
        let mut all = [ALLOWED, FATAL].concat();
        all.extend(checked().iter().map(|(call, _)| *call));
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn arguments_decide_where_they_matter() {
        let executable = libc::PROT_EXEC.cast_unsigned();
        assert_eq!(run(libc::SYS_mmap, [0, 0, 3]), ALLOW);
        assert_eq!(run(libc::SYS_mmap, [0, 0, 3 | executable]), REFUSED);
        assert_eq!(run(libc::SYS_mprotect, [0, 0, executable]), REFUSED);
        let thread = libc::CLONE_THREAD.cast_unsigned();
        assert_eq!(run(libc::SYS_clone, [thread, 0, 0]), ALLOW);
        assert_eq!(run(libc::SYS_clone, [17, 0, 0]), KILL);
        let user = libc::CLONE_NEWUSER.cast_unsigned();
        assert_eq!(run(libc::SYS_clone, [thread | user, 0, 0]), KILL);
        assert_eq!(run(libc::SYS_tgkill, [std::process::id(), 1, 6]), ALLOW);
        assert_eq!(run(libc::SYS_tgkill, [1, 1, 6]), REFUSED);
        assert_eq!(run(libc::SYS_ioctl, [2, 0x5413, 0]), ALLOW);
        let inject = 0x5412;
        assert_eq!(run(libc::SYS_ioctl, [0, inject, 0]), REFUSED);
        assert_eq!(run(libc::SYS_prctl, [15, 0, 0]), ALLOW);
        assert_eq!(run(libc::SYS_prctl, [4, 1, 0]), REFUSED);
    }

    #[test]
    fn the_program_is_short_enough_to_start_quickly_with() {
        let len = program(&[]).unwrap().len();
        assert!(len < 190, "{len} instructions");
    }
}

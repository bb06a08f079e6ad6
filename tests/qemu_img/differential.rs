//! Random sequences of commands, beside QEMU's own program: the same exit codes, the same JSON, the same content, and
//! both images clean.

use fixtures::{needs_qemu, pattern, search::sample};

use crate::beside::Beside;

/// How many sequences there are; CI tries some of them.
const SEQUENCES: u64 = 64;
const STEPS: u64 = 8;

#[test]
fn random_sequences_of_commands_do_the_same() {
    needs_qemu!();
    let all: Vec<u64> = (0..SEQUENCES).collect();
    for number in sample("sequences of commands of qemu-img", &all) {
        sequence(*number);
    }
}

fn sequence(number: u64) {
    let beside = Beside::new();
    let mut random = Random(pattern::Random::new(number ^ 0x9e37_79b9));
    let cluster = ["512", "4k", "64k", "2M"];
    let options =
        ["", ",extended_l2=on", ",compat=0.10", ",refcount_bits=64", ",lazy_refcounts=on"];
    let (mut size, mut extra) = (*random.of(&cluster), *random.of(&options));
    if extra == ",extended_l2=on" {
        size = "64k";
    }
    if random.below(4) == 0 {
        extra = "";
    }
    beside.same(&format!("create -q -f qcow2 -o cluster_size={size}{extra} disk {}", 3 << 20));
    beside.same("create -q -f qcow2 disk2 4M");
    for (name, value) in [("below1", 11), ("below2", 12)] {
        beside.same(&format!("create -q -f qcow2 {name} 3M"));
        beside.set_up(&format!("qemu-io -f qcow2 -c 'write -P {value} 256k 2M' {name} >/dev/null"));
    }
    beside.same(&format!("create -q -f qcow2 -o cluster_size={size} -b below1 -F qcow2 over"));
    for step in 0..STEPS {
        let line = random.command();
        println!("{number}.{step}: {line}");
        if let Some(script) = line.strip_prefix("io ") {
            beside.set_up(&format!("qemu-io -f qcow2 {script} >/dev/null"));
        } else if may_fail(&line) {
            // A name that is there already or is not, a version that does not go with it: both say so.
            beside.both(&line.split_whitespace().collect::<Vec<_>>());
        } else {
            let words: Vec<&str> = line.split_whitespace().collect();
            let reads = ["map", "measure", "compare", "check"].contains(&words[0]);
            let said = if reads { beside.both_read_ours(&words) } else { beside.both(&words) };
            assert_eq!(said.code, Some(0), "{line}: {said:?}");
        }
    }
    beside.same_content("disk", "qcow2");
    beside.same("info --output json disk");
    beside.same("check -q disk");
    for name in ["disk2", "over", "below1", "below2"] {
        beside.same_content(name, "qcow2");
        beside.same(&format!("check -q {name}"));
    }
    beside.same("info --output json over");
    for name in beside.same("snapshot -l disk2").lines().skip(2) {
        let id = name.split_whitespace().next().unwrap();
        let copy = format!("convert -O qcow2 -l snapshot.id={id} disk2 was");
        beside.same(&copy);
        beside.same_content("was", "qcow2");
    }
}

fn may_fail(line: &str) -> bool {
    let words = ["bitmap", "snapshot", "amend", "resize", "commit -q -d"];
    words.iter().any(|word| line.starts_with(word))
}

struct Random(pattern::Random);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0.below(most)
    }

    fn of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    /// A range of the disk in whole sectors.
    fn range(&mut self) -> (u64, u64) {
        let at = self.below(3 << 11) * 512;
        (at, 512 * (1 + self.below(((3 << 20) - at) / 512).min(2000)))
    }

    fn command(&mut self) -> String {
        let (at, len) = self.range();
        match self.below(27) {
            0 => format!("io -c 'write -P {} {at} {len}' disk", 1 + self.below(255)),
            1 => format!("io -c 'write -z {at} {len}' disk"),
            2 => format!("io -c 'write -zu {at} {len}' disk"),
            3 => format!("io -c 'discard {at} {len}' disk"),
            4 => "convert -O qcow2 disk copy".to_owned(),
            5 => format!(
                "convert -O qcow2 {} disk copy",
                self.of(&["-c", "-S 0", "-o cluster_size=4k"])
            ),
            6 => "convert -O raw disk copy.raw".to_owned(),
            7 => format!("map --output json --start-offset={at} --max-length={len} disk"),
            8 => format!("measure --output json -O {} disk", self.of(&["qcow2", "raw"])),
            9 => "compare disk disk".to_owned(),
            10 => "convert -n -O qcow2 disk disk2".to_owned(),
            11 | 16 => format!("snapshot -c point{} disk2", self.below(2)),
            17 => format!("snapshot -a point{} disk2", self.below(2)),
            18 => format!("snapshot -d point{} disk2", self.below(2)),
            19 => format!("io -c 'write -P {} {at} {len}' over", 1 + self.below(255)),
            20 => format!("io -c 'write -z {at} {len}' over"),
            21 => "commit -q over".to_owned(),
            22 => format!("rebase -f qcow2 -F qcow2 -b below{} over", 1 + self.below(2)),
            23 => format!("rebase -u -f qcow2 -F qcow2 -b below{} over", 1 + self.below(2)),
            24 => format!(
                "bitmap --{} over b{}",
                self.of(&["add", "remove", "clear", "enable", "disable", "merge b0"]),
                self.below(2)
            ),
            25 => format!(
                "amend -o {} disk2",
                self.of(&[
                    "compat=1.1",
                    "refcount_bits=64",
                    "refcount_bits=16",
                    "lazy_refcounts=on"
                ])
            ),
            26 => format!("commit -q -d -b below{} over", 1 + self.below(2)),
            12 => "amend -o lazy_refcounts=off disk2".to_owned(),
            14 => format!("resize --shrink disk2 {}", 4 << 20 | at),
            13 => format!("dd -f qcow2 -O qcow2 bs=512 skip={} if=disk of=part", at / 512),
            _ => "check disk".to_owned(),
        }
    }
}

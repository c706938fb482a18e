//! Random profiles: the compiled filter against a plain reading of the rules, call by call.

use super::interpreter::{Call, run};
use super::numbers::{ARM_PRIVATE, X32_BIT, calls};
use super::{Action, Arch, Architectures, Condition, Filter, Operator, Profile, Rule, arguments};
use std::borrow::Cow;
use std::collections::HashMap;

const ARCHES: [Arch; 5] = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm];
const NAMES: [&str; 14] = [
    "read",
    "write",
    "clone",
    "socket",
    "kill",
    "listen",
    "socketcall",
    "ioctl",
    "semget",
    "statx",
    "rseq",
    "clone3",
    "set_tls",
    "no_such",
];
const VALUES: [u64; 12] = [0, 1, 2, 38, 40, 0x7e02_0000, 0xffff_fff0, 0xffff_ffff, 1 << 32, (1 << 32) + 38, u64::MAX - 1, u64::MAX];

/// Marsaglia's xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn action(&mut self) -> Action {
        let actions = [Action::Allow, Action::Allow, Action::Errno(1), Action::Errno(13), Action::KillProcess, Action::Log, Action::Trap];
        self.of(&actions)
    }

    fn condition(&mut self) -> Condition {
        let mask = self.of(&VALUES);
        let operators = [
            Operator::Equal,
            Operator::NotEqual,
            Operator::Less,
            Operator::LessOrEqual,
            Operator::Greater,
            Operator::GreaterOrEqual,
            Operator::MaskedEqual { mask },
        ];
        let index = self.of(&[0, 0, 1, 2]);
        Condition { index, operator: self.of(&operators), value: self.of(&VALUES) }
    }

    fn profile(&mut self) -> Profile {
        let rules = (0..self.below(8))
            .map(|_| Rule {
                names: Cow::Owned((0..=self.below(3)).map(|_| self.of(&NAMES)).collect::<Vec<_>>().join(" ")),
                action: self.action(),
                conditions: (0..self.of(&[0, 0, 1, 2, 3])).map(|_| self.condition()).collect(),
                includes: Filter::default(),
                excludes: Filter::default(),
            })
            .collect();
        let others = self.of(&[&ARCHES[..], &[Arch::X86], &[Arch::X32], &[]]);
        Profile { identity: [0; 32], default_action: self.action(), architectures: Architectures::List(others.to_vec()), rules, flags: 0 }
    }
}

/// `argument` as the kernel uses it, against the value as the profile means it.
fn holds(condition: &Condition, name: &str, arch: Arch, args: &[u64; 6]) -> bool {
    let argument = args[usize::from(condition.index)];
    let low_only = arch.is_32_bit() || arguments::is_int(name, condition.index);
    // A negative int may be written with its sign extended.
    let negative_int = low_only && condition.value >> 31 == u64::MAX >> 31;
    let (argument, value) = if low_only {
        (argument & 0xffff_ffff, if negative_int { condition.value & 0xffff_ffff } else { condition.value })
    } else {
        (argument, condition.value)
    };
    match condition.operator {
        Operator::Equal => argument == value,
        Operator::NotEqual => argument != value,
        Operator::Less => argument < value,
        Operator::LessOrEqual => argument <= value,
        Operator::Greater => argument > value,
        Operator::GreaterOrEqual => argument >= value,
        Operator::MaskedEqual { mask } => argument & mask == value,
    }
}

fn judge(profile: &Profile, native: Arch, arch: Arch, numbers: &HashMap<&str, u32>, number: u32, args: &[u64; 6]) -> u32 {
    let served = arch == native || matches!(&profile.architectures, Architectures::List(list) if list.contains(&arch));
    let possible = arch == native || matches!((native, arch), (Arch::X86_64, Arch::X86 | Arch::X32) | (Arch::Aarch64, Arch::Arm));
    if !(served && possible) {
        return Action::KillProcess.value();
    }
    let names_it = |name: &str| numbers.get(name) == Some(&number);
    let (mut conditional, mut otherwise, mut newest) = (Vec::new(), None, None);
    for rule in &profile.rules {
        for name in rule.names.split_ascii_whitespace() {
            let Some(&at) = numbers.get(name) else { continue };
            if at & !X32_BIT < ARM_PRIVATE {
                newest = newest.max(Some(at));
            }
            if rule.action == profile.default_action {
                continue;
            }
            let count = |index: u8| rule.conditions.iter().filter(|c| c.index == index).count();
            let held = |c: &Condition| holds(c, name, arch, args);
            if names_it(name) {
                if rule.conditions.is_empty() {
                    otherwise = otherwise.or(Some(rule.action));
                } else if if (0..6).any(|index| count(index) > 1) {
                    rule.conditions.iter().any(held)
                } else {
                    rule.conditions.iter().all(held)
                } {
                    conditional.push(rule.action);
                }
            }
            // The second door of i386.
            let visible = rule.conditions.is_empty() || rule.action.strictness() < profile.default_action.strictness();
            if arch == Arch::X86
                && visible
                && let Some((door, condition)) = arguments::multiplexed(name)
                && names_it(door)
                && holds(&condition, door, arch, args)
            {
                conditional.push(rule.action);
            }
        }
    }
    let strictest = conditional.into_iter().min_by_key(|action| action.strictness());
    match (strictest, otherwise) {
        (Some(action), Some(otherwise)) if action.strictness() < otherwise.strictness() => action.value(),
        (_, Some(otherwise)) => otherwise.value(),
        (Some(action), None) => action.value(),
        (None, None) if newest.is_some_and(|newest| number > newest) && !profile.default_action.is_permissive() => {
            Action::Errno(38).value()
        }
        (None, None) => profile.default_action.value(),
    }
}

#[test]
fn random_profiles_mean_what_they_say() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let tables = ARCHES.map(|arch| (arch, calls(arch).collect::<HashMap<&str, u32>>()));
    for round in 0..400 {
        let profile = random.profile();
        let native = random.of(&ARCHES[..2]);
        let native = if round % 3 == 0 { Arch::Aarch64 } else { native };
        let program = profile.compile(native, 0, (6, 1)).unwrap();
        for &(arch, ref table) in &tables {
            let numbers: Vec<u32> = NAMES.iter().filter_map(|name| table.get(name).copied()).collect();
            for _ in 0..60 {
                let bit = if arch == Arch::X32 { X32_BIT } else { 0 };
                let number = if random.below(4) == 0 { bit | u32::try_from(random.below(500)).unwrap() } else { random.of(&numbers) };
                let args = [(); 6].map(|()| random.of(&VALUES));
                let call = Call::new(arch, number, &args);
                // x32 is told by its number; on a machine without it that is a number like others.
                if arch == Arch::X32 && native != Arch::X86_64 {
                    continue;
                }
                let (got, want) = (run(&program, &call), judge(&profile, native, arch, table, number, &args));
                assert_eq!(got, Some(want), "round {round}: {native:?} {arch:?} {number:#x} {args:x?} under {profile:#?}");
            }
        }
    }
}

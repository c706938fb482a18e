//! From a profile to a filter: which rules count here, what they mean for each call, and the code for it.
//!
//! Meaning, where a profile leaves it open, is that of runc with libseccomp, except where that is laxer than what the
//! profile says: then the stricter reading is taken, and the place says so.

use super::arguments;
use super::numbers::{ARM_PRIVATE, X32_BIT, calls};
use super::program::{
    ALU_AND_K, ARCH_OFFSET, JMP_JEQ_K, JMP_JGE_K, JMP_JGT_K, LD_W_ABS, MAX_INSTRUCTIONS, NUMBER_OFFSET, RET_K, Step, To, argument_offset,
    guarded, if_equal, plain, search, too_long,
};
use super::{Action, Arch, Architectures, Condition, Filter, Operator, Profile, Rule};
use crate::error::Result;
use crate::sys::security::BpfInstruction;
use std::collections::{BTreeMap, HashMap};

const ENOSYS: u16 = 38;

pub(super) fn compile(profile: &Profile, native: Arch, capabilities: u64, kernel: (u32, u32)) -> Result<Vec<BpfInstruction>> {
    let rules: Vec<&Rule> = profile.rules.iter().filter(|rule| counts(rule, native, capabilities, kernel)).collect();
    let arches = arches(&profile.architectures, native);

    // The architecture comes first: the same number means another call on each.
    let mut program = vec![plain(LD_W_ABS, ARCH_OFFSET)];
    for &arch in arches.iter().filter(|&&arch| arch != Arch::X32) {
        let mut leaves = leaves(&rules, profile.default_action, arch)?;
        if arch == Arch::X86_64 {
            // x32 lies above the native numbers, so that one search serves both.
            leaves.extend(if arches.contains(&Arch::X32) { x32_leaves(&rules, profile.default_action)? } else { no_x32() });
        }
        let leaves: Vec<(u32, &[BpfInstruction])> = leaves.iter().map(|(first, code)| (*first, &code[..])).collect();
        let mut section = vec![plain(LD_W_ABS, NUMBER_OFFSET)];
        section.extend(search(&leaves)?);
        if_equal(arch.audit(), &section, &mut program)?;
    }
    // A calling convention that the profile does not serve.
    program.push(plain(RET_K, Action::KillProcess.value()));
    if program.len() > MAX_INSTRUCTIONS { Err(too_long()) } else { Ok(program) }
}

fn x32_leaves(rules: &[&Rule], default: Action) -> Result<Leaves> {
    Ok(leaves(rules, default, Arch::X32)?.into_iter().map(|(first, code)| (first | X32_BIT, code)).collect())
}

fn no_x32() -> Leaves {
    vec![
        (X32_BIT, vec![plain(RET_K, Action::KillProcess.value())]),
        // A tracer's "skip this call".
        (u32::MAX, vec![plain(RET_K, Action::Errno(ENOSYS).value())]),
    ]
}

/// Whether the rule is for this machine, container and kernel.
fn counts(rule: &Rule, native: Arch, capabilities: u64, kernel: (u32, u32)) -> bool {
    let Filter { capabilities: caps, unknown_capability, arches, min_kernel } = &rule.includes;
    let named = |arches: &[std::borrow::Cow<'static, str>]| arches.iter().any(|arch| *arch == native.profile_name());
    let included = (arches.is_empty() || named(arches))
        && !unknown_capability
        && capabilities & caps == *caps
        && min_kernel.is_none_or(|least| kernel >= least);
    let Filter { capabilities: caps, arches, min_kernel, .. } = &rule.excludes;
    let excluded = named(arches) || capabilities & caps != 0 || min_kernel.is_some_and(|least| kernel >= least);
    included && !excluded
}

/// The calling conventions that the filter serves, the native one first.
fn arches(architectures: &Architectures, native: Arch) -> Vec<Arch> {
    let others: &[Arch] = match architectures {
        Architectures::Map(map) => map.iter().find(|(machine, _)| *machine == Some(native)).map_or(&[], |(_, others)| others),
        Architectures::List(list) => list,
    };
    let possible: &[Arch] = match native {
        Arch::X86_64 | Arch::X32 => &[Arch::X86, Arch::X32],
        Arch::Aarch64 => &[Arch::Arm],
        Arch::X86 | Arch::Arm => &[],
    };
    std::iter::once(native).chain(possible.iter().copied().filter(|arch| others.contains(arch))).collect()
}

/// What a profile says about one call.
#[derive(Debug, Default)]
struct Verdict {
    /// Tried in this order; the strictest comes first.
    conditional: Vec<(Action, Vec<Comparison>)>,
    otherwise: Option<Action>,
}

/// A condition, and how much of the argument the kernel looks at.
#[derive(Clone, Copy, Debug)]
struct Comparison {
    condition: Condition,
    low_half_only: bool,
}

/// Where the code changes: (first number, code), ascending.
type Leaves = Vec<(u32, Vec<BpfInstruction>)>;

/// The code for every number, from 0 and without the x32 bit.
fn leaves(rules: &[&Rule], default: Action, arch: Arch) -> Result<Leaves> {
    let (verdicts, newest) = verdicts(rules, default, arch);
    // Programs probe for calls newer than their kernel's, and libc for newer than the profile's: EPERM would make
    // them fail, where ENOSYS makes them fall back. (runc does the same.)
    let unnamed = |number: u32| match newest {
        Some(newest) if number > newest && !default.is_permissive() => Action::Errno(ENOSYS),
        _ => default,
    };
    let mut changes: BTreeMap<u32, Vec<BpfInstruction>> = BTreeMap::new();
    for first in [0, newest.map_or(0, |newest| newest + 1)].into_iter().chain(verdicts.keys().map(|number| number + 1)) {
        changes.insert(first, vec![plain(RET_K, unnamed(first).value())]);
    }
    for (&number, verdict) in &verdicts {
        changes.insert(number, code(verdict, default)?);
    }
    let mut leaves: Leaves = changes.into_iter().collect();
    leaves.dedup_by(|next, kept| next.1 == kept.1);
    Ok(leaves)
}

/// The verdict of every number that a rule names, and the newest ordinary number among them.
fn verdicts(rules: &[&Rule], default: Action, arch: Arch) -> (BTreeMap<u32, Verdict>, Option<u32>) {
    let numbers: HashMap<&str, u32> = calls(arch).map(|(name, number)| (name, number & !X32_BIT)).collect();
    let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
    let mut newest = None;
    for rule in rules {
        for name in rule.names.split_ascii_whitespace() {
            let Some(&number) = numbers.get(name) else { continue };
            if number < ARM_PRIVATE {
                newest = newest.max(Some(number));
            }
            if rule.action == default {
                // Nothing to add; and a later rule for the call is not in conflict with it.
                continue;
            }
            let comparisons = rule
                .conditions
                .iter()
                .map(|&condition| Comparison { condition, low_half_only: arch.is_32_bit() || arguments::is_int(name, condition.index) });
            add_rule(verdicts.entry(number).or_default(), rule.action, comparisons.collect());
            if arch == Arch::X86
                && (rule.conditions.is_empty() || rule.action.strictness() < default.strictness())
                && let Some((carrier, condition)) = arguments::multiplexed(name)
                && let Some(&number) = numbers.get(carrier)
            {
                add_rule(verdicts.entry(number).or_default(), rule.action, vec![Comparison { condition, low_half_only: true }]);
            }
        }
    }
    for verdict in verdicts.values_mut() {
        // Unconditional permission does not undo a stricter rule whose conditions hold. (libseccomp drops the
        // conditional rule.) A laxer one would never be reached.
        if let Some(otherwise) = verdict.otherwise {
            verdict.conditional.retain(|(action, _)| action.strictness() < otherwise.strictness());
        }
        verdict.conditional.sort_by_key(|(action, _)| action.strictness());
    }
    (verdicts, newest)
}

fn add_rule(verdict: &mut Verdict, action: Action, conditions: Vec<Comparison>) {
    if conditions.is_empty() {
        // Of two unconditional rules the first counts, as with libseccomp.
        verdict.otherwise.get_or_insert(action);
        return;
    }
    // Several conditions on one argument mean "or", each on its own: what runc makes of them, and profiles rely on it.
    let repeated =
        conditions.iter().enumerate().any(|(at, c)| conditions[..at].iter().any(|before| before.condition.index == c.condition.index));
    let alternatives = if repeated { conditions.into_iter().map(|c| vec![c]).collect() } else { vec![conditions] };
    verdict.conditional.extend(alternatives.into_iter().map(|conditions| (action, conditions)));
}

fn code(verdict: &Verdict, default: Action) -> Result<Vec<BpfInstruction>> {
    let mut program = Vec::new();
    for (action, comparisons) in &verdict.conditional {
        let tests: Vec<Test> = comparisons.iter().map(test).collect();
        if tests.iter().any(|test| matches!(test, Test::Never)) {
            continue;
        }
        let steps: Vec<Vec<Step>> =
            tests.into_iter().filter_map(|test| if let Test::Steps(steps) = test { Some(steps) } else { None }).collect();
        program.extend(guarded(&steps, action.value())?);
        if steps.is_empty() {
            // Always true: what follows is never reached.
            return Ok(program);
        }
        if program.len() > MAX_INSTRUCTIONS {
            return Err(too_long());
        }
    }
    program.push(plain(RET_K, verdict.otherwise.unwrap_or(default).value()));
    Ok(program)
}

enum Test {
    Always,
    Never,
    Steps(Vec<Step>),
}

fn test(comparison: &Comparison) -> Test {
    if comparison.low_half_only { test_low(&comparison.condition) } else { test_whole(&comparison.condition) }
}

const fn load(index: u8, high: bool) -> Step {
    Step { code: LD_W_ABS, k: argument_offset(index, high), yes: To::Next, no: To::Next }
}

const fn jump(code: u16, k: u32, yes: To, no: To) -> Step {
    Step { code, k, yes, no }
}

/// Compares the low half alone, where the kernel drops the high one but the filter sees it: of an `int` argument, and
/// of any argument of a 64-bit process that comes through `int 0x80`. Else garbage there would pass a filter.
fn test_low(condition: &Condition) -> Test {
    let Condition { index, operator, value } = *condition;
    let Some(low) = narrow(value) else {
        // No 32-bit number reaches the value.
        return match operator {
            Operator::Equal | Operator::MaskedEqual { .. } | Operator::Greater | Operator::GreaterOrEqual => Test::Never,
            Operator::NotEqual | Operator::Less | Operator::LessOrEqual => Test::Always,
        };
    };
    let mut steps = vec![load(index, false)];
    if let Operator::MaskedEqual { mask } = operator {
        steps.push(jump(ALU_AND_K, halves(mask).1, To::Next, To::Next));
    }
    steps.push(last_step(operator, low));
    Test::Steps(steps)
}

/// The value as a 32-bit register has it; a negative number may be written with its sign extended. `None` beyond.
fn narrow(value: u64) -> Option<u32> {
    let (high, low) = halves(value);
    (high == 0 || (high == u32::MAX && low & 0x8000_0000 != 0)).then_some(low)
}

/// High, low.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// The step that decides once the high halves are equal, or do not count.
fn last_step(operator: Operator, low: u32) -> Step {
    match operator {
        Operator::Equal | Operator::MaskedEqual { .. } => jump(JMP_JEQ_K, low, To::Pass, To::Fail),
        Operator::NotEqual => jump(JMP_JEQ_K, low, To::Fail, To::Pass),
        Operator::Greater => jump(JMP_JGT_K, low, To::Pass, To::Fail),
        Operator::GreaterOrEqual => jump(JMP_JGE_K, low, To::Pass, To::Fail),
        Operator::Less => jump(JMP_JGE_K, low, To::Fail, To::Pass),
        Operator::LessOrEqual => jump(JMP_JGT_K, low, To::Fail, To::Pass),
    }
}

/// Compares all 64 bits, the high half first: the accumulator has 32.
fn test_whole(condition: &Condition) -> Test {
    let Condition { index, operator, value } = *condition;
    let (high, low) = halves(value);
    let mut steps = vec![load(index, true)];
    match operator {
        Operator::Equal => steps.push(jump(JMP_JEQ_K, high, To::Next, To::Fail)),
        Operator::NotEqual => steps.push(jump(JMP_JEQ_K, high, To::Next, To::Pass)),
        Operator::Greater | Operator::GreaterOrEqual => {
            steps.push(jump(JMP_JGT_K, high, To::Pass, To::Next));
            steps.push(jump(JMP_JEQ_K, high, To::Next, To::Fail));
        }
        Operator::Less | Operator::LessOrEqual => {
            steps.push(jump(JMP_JGT_K, high, To::Fail, To::Next));
            steps.push(jump(JMP_JEQ_K, high, To::Next, To::Pass));
        }
        Operator::MaskedEqual { mask } => {
            let (mask_high, mask_low) = halves(mask);
            if mask_high == 0 {
                steps.clear();
                if high != 0 {
                    return Test::Never;
                }
            } else {
                steps.push(jump(ALU_AND_K, mask_high, To::Next, To::Next));
                steps.push(jump(JMP_JEQ_K, high, To::Next, To::Fail));
            }
            steps.push(load(index, false));
            steps.push(jump(ALU_AND_K, mask_low, To::Next, To::Next));
            steps.push(last_step(operator, low));
            return Test::Steps(steps);
        }
    }
    steps.push(load(index, false));
    steps.push(last_step(operator, low));
    Test::Steps(steps)
}

#[cfg(test)]
mod tests {
    use super::super::interpreter::{Call, run};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    const EPERM: u32 = 0x0005_0001;
    const NOSYS: u32 = 0x0005_0026;

    fn compiled(json: &str, native: Arch) -> Vec<BpfInstruction> {
        Profile::from_json(json.as_bytes()).unwrap().compile(native, 0, (6, 1)).unwrap()
    }

    fn number(arch: Arch, name: &str) -> u32 {
        calls(arch).find(|(n, _)| *n == name).unwrap().1
    }

    /// What the filter says about one call by name.
    fn judged(program: &[BpfInstruction], arch: Arch, name: &str, args: &[u64]) -> u32 {
        run(program, &Call::new(arch, number(arch, name), args)).unwrap()
    }

    fn rules(rules: &str) -> String {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}}],"syscalls":[{rules}]}}"#
        )
    }

    #[test]
    fn each_operator_compares_all_64_bits() {
        let edges = [0, 1, 5, 6, 7, 0xffff_ffff, 1 << 32, 5 << 32, (5 << 32) + 5, (5 << 32) + 6, (5 << 32) + 7, (6 << 32) + 1, u64::MAX];
        for value in edges {
            type Holds = fn(u64, u64) -> bool;
            let operators: [(&str, Holds); 6] = [
                ("EQ", |a, v| a == v),
                ("NE", |a, v| a != v),
                ("LT", |a, v| a < v),
                ("LE", |a, v| a <= v),
                ("GT", |a, v| a > v),
                ("GE", |a, v| a >= v),
            ];
            for (operator, holds) in operators {
                let rule = format!(
                    r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{{"index":2,"value":{value},"op":"SCMP_CMP_{operator}"}}]}}"#
                );
                let program = compiled(&rules(&rule), Arch::X86_64);
                for argument in edges {
                    let want = if holds(argument, value) { ALLOW } else { EPERM };
                    assert_eq!(judged(&program, Arch::X86_64, "read", &[9, 9, argument]), want, "{argument:#x} {operator} {value:#x}");
                    // Of i386 the kernel takes the low half, whatever a 64-bit process left above it.
                    if value <= 0xffff_ffff {
                        let want = if holds(argument & 0xffff_ffff, value) { ALLOW } else { EPERM };
                        assert_eq!(
                            judged(&program, Arch::X86, "read", &[9, 9, argument]),
                            want,
                            "{argument:#x} {operator} {value:#x} i386"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn masked_equal() {
        let edges = [0, 1, 0x7e02_0000, 0x0002_0011, 0x1_0000_0001, 0xf0_0000_0000, u64::MAX];
        for (mask, value) in
            [(0x7e02_0000, 0), (0xff, 0x11), (0xff_0000_0001, 0xf0_0000_0000), (u64::MAX, 1), (0xff, 0x1ff), (0xff, 1 << 32)]
        {
            let rule = format!(
                r#"{{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":{mask},"valueTwo":{value},"op":"SCMP_CMP_MASKED_EQ"}}]}}"#
            );
            let program = compiled(&rules(&rule), Arch::X86_64);
            for argument in edges {
                let want = if argument & mask == value { ALLOW } else { EPERM };
                assert_eq!(judged(&program, Arch::X86_64, "clone", &[argument]), want, "{argument:#x} & {mask:#x} == {value:#x}");
            }
        }
    }

    #[test]
    fn high_halves_do_not_pass_an_int() {
        let program = compiled(
            &rules(r#"{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]}"#),
            Arch::X86_64,
        );
        for arch in [Arch::X86_64, Arch::X86, Arch::X32] {
            assert_eq!(judged(&program, arch, "socket", &[40]), EPERM);
            assert_eq!(judged(&program, arch, "socket", &[40 | 1 << 32]), EPERM, "{arch:?}");
            assert_eq!(judged(&program, arch, "socket", &[41]), ALLOW);
        }
    }

    #[test]
    fn conditions_on_different_arguments_mean_and() {
        let program = compiled(
            &rules(
                r#"{"names":["kill"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":5,"op":"SCMP_CMP_GT"},{"index":1,"value":9,"op":"SCMP_CMP_NE"}]}"#,
            ),
            Arch::X86_64,
        );
        let cases = [([6, 1], ALLOW), ([6, 9], EPERM), ([5, 1], EPERM), ([5, 9], EPERM)];
        for (args, want) in cases {
            assert_eq!(judged(&program, Arch::X86_64, "kill", &args), want, "{args:?}");
        }
    }

    #[test]
    fn conditions_on_one_argument_mean_or() {
        let program = compiled(
            &rules(
                r#"{"names":["kill"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]}"#,
            ),
            Arch::X86_64,
        );
        for (signal, want) in [(0, EPERM), (1, ALLOW), (2, ALLOW), (3, EPERM)] {
            assert_eq!(judged(&program, Arch::X86_64, "kill", &[1, signal]), want);
        }
    }

    #[test]
    fn of_conflicting_rules_the_stricter_counts() {
        let program = compiled(
            &rules(
                r#"{"names":["kill","tkill"],"action":"SCMP_ACT_ALLOW"},
                   {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]},
                   {"names":["kill"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":1,"op":"SCMP_CMP_GE"}]},
                   {"names":["tkill"],"action":"SCMP_ACT_TRAP"}"#,
            ),
            Arch::X86_64,
        );
        assert_eq!(judged(&program, Arch::X86_64, "kill", &[1, 9]), KILL);
        assert_eq!(judged(&program, Arch::X86_64, "kill", &[0, 1]), ALLOW);
        assert_eq!(judged(&program, Arch::X86_64, "kill", &[1, 1]), 0x7ffc_0000);
        // Two without conditions: the first.
        assert_eq!(judged(&program, Arch::X86_64, "tkill", &[1, 9]), ALLOW);
    }

    #[test]
    fn a_rule_for_a_socket_call_holds_at_socketcall_too() {
        let allow_listen = compiled(&rules(r#"{"names":["listen","semget"],"action":"SCMP_ACT_ALLOW"}"#), Arch::X86_64);
        assert_eq!(judged(&allow_listen, Arch::X86, "socketcall", &[4]), ALLOW);
        assert_eq!(judged(&allow_listen, Arch::X86, "socketcall", &[5]), EPERM);
        assert_eq!(judged(&allow_listen, Arch::X86, "ipc", &[2 | 1 << 16]), ALLOW);
        // Allowed for one domain only: through the door the domain can't be seen.
        let unix_only = r#"{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}"#;
        let program = compiled(&rules(unix_only), Arch::X86_64);
        assert_eq!(judged(&program, Arch::X86, "socket", &[1]), ALLOW);
        assert_eq!(judged(&program, Arch::X86, "socketcall", &[1]), EPERM);
        // Refused for one domain: through the door for all.
        let json = rules(r#"{"names":["socket"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":40,"op":"SCMP_CMP_EQ"}]}"#);
        let program = compiled(&json.replacen("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", 1), Arch::X86_64);
        assert_eq!(judged(&program, Arch::X86, "socketcall", &[1]), 0);
        assert_eq!(judged(&program, Arch::X86, "socketcall", &[2]), ALLOW);
    }

    #[test]
    fn newer_calls_than_the_profile_knows_are_enosys() {
        let json = rules(r#"{"names":["read","statx","no_such_call"],"action":"SCMP_ACT_ALLOW"}"#);
        let program = compiled(&json, Arch::X86_64);
        let at = |arch: Arch, number: u32| run(&program, &Call::new(arch, number, &[])).unwrap();
        assert_eq!((at(Arch::X86_64, 331), at(Arch::X86_64, 332), at(Arch::X86_64, 333)), (EPERM, ALLOW, NOSYS));
        assert_eq!((at(Arch::X86, 382), at(Arch::X86, 383), at(Arch::X86, 384)), (EPERM, ALLOW, NOSYS));
        assert_eq!((at(Arch::X32, X32_BIT | 332), at(Arch::X32, X32_BIT | 333), at(Arch::X32, u32::MAX)), (ALLOW, NOSYS, NOSYS));
        let permissive = compiled(&json.replacen("SCMP_ACT_ERRNO", "SCMP_ACT_LOG", 1), Arch::X86_64);
        assert_eq!(run(&permissive, &Call::new(Arch::X86_64, 1000, &[])), Some(0x7ffc_0000));
    }

    #[test]
    fn unlisted_architectures_are_killed() {
        let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}"#;
        let program = compiled(json, Arch::X86_64);
        let at = |arch: Arch, number: u32| run(&program, &Call::new(arch, number, &[])).unwrap();
        assert_eq!((at(Arch::X86_64, 0), at(Arch::X86, 0), at(Arch::Arm, 0)), (ALLOW, KILL, KILL));
        assert_eq!((at(Arch::X32, X32_BIT), at(Arch::X32, u32::MAX)), (KILL, NOSYS));
        let listed = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86","SCMP_ARCH_MIPS"],"syscalls":[]}"#;
        let program = compiled(listed, Arch::X86_64);
        assert_eq!(run(&program, &Call::new(Arch::X86, 0, &[])), Some(ALLOW));
        // A map without this machine: its native calls only.
        let map =
            r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]}"#;
        let program = compiled(map, Arch::Aarch64);
        assert_eq!(run(&program, &Call::new(Arch::Aarch64, 0, &[])), Some(ALLOW));
        assert_eq!(run(&program, &Call::new(Arch::Arm, 0, &[])), Some(KILL));
    }

    #[test]
    fn includes_and_excludes() {
        let with = |filter: &str| rules(&format!(r#"{{"names":["reboot"],"action":"SCMP_ACT_ALLOW",{filter}}}"#));
        let boot = 1 << 22;
        let cases = [
            (r#""includes":{"caps":["CAP_SYS_BOOT"]}"#, 0, false),
            (r#""includes":{"caps":["CAP_SYS_BOOT"]}"#, boot, true),
            (r#""includes":{"caps":["CAP_SYS_BOOT","CAP_CHOWN"]}"#, boot, false),
            (r#""includes":{"caps":["CAP_NOT_YET"]}"#, u64::MAX, false),
            (r#""excludes":{"caps":["CAP_SYS_BOOT","CAP_CHOWN"]}"#, boot, false),
            (r#""excludes":{"caps":["CAP_NOT_YET"]}"#, u64::MAX, true),
            (r#""includes":{"arches":["amd64","arm64"]}"#, 0, true),
            (r#""includes":{"arches":["arm64"]}"#, 0, false),
            (r#""excludes":{"arches":["amd64"]}"#, 0, false),
            (r#""includes":{"minKernel":"6.1"}"#, 0, true),
            (r#""includes":{"minKernel":"6.2"}"#, 0, false),
            (r#""includes":{"minKernel":"4.19"}"#, 0, true),
            (r#""excludes":{"minKernel":"4.8"}"#, 0, false),
            (r#""includes":null,"excludes":{}"#, 0, true),
        ];
        for (filter, capabilities, applies) in cases {
            let profile = Profile::from_json(with(filter).as_bytes()).unwrap();
            let program = profile.compile(Arch::X86_64, capabilities, (6, 1)).unwrap();
            let want = if applies { ALLOW } else { EPERM };
            assert_eq!(judged(&program, Arch::X86_64, "reboot", &[]), want, "{filter}");
        }
    }

    #[test]
    fn a_hostile_profile_is_refused_not_loaded() {
        let rule =
            |n: usize| format!(r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":{n},"op":"SCMP_CMP_EQ"}}]}}"#);
        let many: Vec<String> = (0..2000).map(rule).collect();
        let profile = Profile::from_json(rules(&many.join(",")).as_bytes()).unwrap();
        let error = profile.compile(Arch::X86_64, 0, (6, 1)).unwrap_err();
        assert!(error.message.contains("too large"), "{error}");
    }
}

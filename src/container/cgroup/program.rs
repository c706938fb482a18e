//! The v2 device list as an extended BPF program, built by hand (linux/bpf.h, struct bpf_cgroup_dev_ctx).
//!
//! The kernel runs it for every open and mknod: it answers 1 (allowed) when one exception covers all that is asked, else 0.

use super::devices::{Kind, MKNOD, READ, Rule, WRITE};
use crate::sys::bpf::Instruction;

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_NUMBER: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND_NUMBER: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_UNEQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// Registers: the answer, scratch (at first the context), and what the context says.
const ANSWER: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_DEV_BLOCK` and `_CHAR`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// Compiles the exceptions of [`Devices::Only`](super::devices::Devices::Only).
pub fn compile(exceptions: &[Rule]) -> Vec<Instruction> {
    let step = Instruction::new;
    let mut program = vec![
        // access_type: the kind in the low half, the access in the high half.
        step(LOAD_WORD, KIND, SCRATCH, 0, 0),
        step(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        step(AND_NUMBER, KIND, 0, 0, 0xffff),
        step(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        step(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        step(LOAD_WORD, MINOR, SCRATCH, 8, 0),
    ];
    for rule in exceptions {
        program.extend(exception(rule));
    }
    program.extend(answer(0));
    program
}

fn answer(value: i32) -> [Instruction; 2] {
    [Instruction::new(MOVE_NUMBER, ANSWER, 0, 0, value), Instruction::new(EXIT, 0, 0, 0, 0)]
}

/// The tests of one exception, each leaving for the next exception, then "allowed".
fn exception(rule: &Rule) -> Vec<Instruction> {
    // (register, the number it must hold) for each test; scratch holds the bits asked beyond what the rule gives.
    let mut tests: Vec<(u8, i32)> = Vec::with_capacity(4);
    match rule.kind {
        Kind::All => {}
        Kind::Char => tests.push((KIND, CHAR)),
        Kind::Block => tests.push((KIND, BLOCK)),
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        match number.map(i32::try_from) {
            Some(Ok(number)) => tests.push((register, number)),
            // Beyond what dev_t can say: no device has it.
            Some(Err(_)) => return Vec::new(),
            None => {}
        }
    }
    let beyond = i32::from((MKNOD | READ | WRITE) & !rule.access);
    let masks = beyond != 0;
    // Jumps count from the next instruction to the one behind this exception's two last ones.
    let length = tests.len() + if masks { 3 } else { 0 } + 2;
    let mut code = Vec::with_capacity(length);
    let past = |at: usize| i16::try_from(length - at - 1).unwrap_or(i16::MAX);
    for (register, number) in tests {
        code.push(Instruction::new(JUMP_UNEQUAL, register, 0, past(code.len()), number));
    }
    if masks {
        code.push(Instruction::new(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        code.push(Instruction::new(AND_NUMBER, SCRATCH, 0, 0, beyond));
        code.push(Instruction::new(JUMP_UNEQUAL, SCRATCH, 0, past(code.len()), 0));
    }
    code.extend(answer(1));
    code
}

#[cfg(test)]
mod tests {
    use super::super::devices::{Devices, parse_rule};
    use super::*;

    /// Runs a program as the kernel would; anything but the seven instructions above is a failed test.
    fn run(program: &[Instruction], kind: i32, major: u32, minor: u32, access: u8) -> bool {
        let context = [u32::from(access) << 16 | kind.cast_unsigned(), major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        for _ in 0..10_000 {
            let step = program[at];
            at += 1;
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let number = i64::from(step.immediate).cast_unsigned();
            match step.code {
                LOAD_WORD => registers[to] = u64::from(context[usize::from(step.offset.cast_unsigned()) / 4]),
                MOVE_REGISTER => registers[to] = registers[from] & 0xffff_ffff,
                MOVE_NUMBER => registers[to] = number,
                AND_NUMBER => registers[to] = registers[to] & number & 0xffff_ffff,
                SHIFT_RIGHT => registers[to] = (registers[to] & 0xffff_ffff) >> number,
                JUMP_UNEQUAL if registers[to] != number => at += usize::from(step.offset.cast_unsigned()),
                JUMP_UNEQUAL => {}
                EXIT => return registers[0] == 1,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
        panic!("the program does not end");
    }

    #[test]
    fn default_list_answers_as_the_v1_tree_does() {
        let Devices::Only(list) = Devices::with(&[]) else { panic!("the default list is no allow-all") };
        let program = compile(&list);
        let asks = |kind, major, minor, access| run(&program, kind, major, minor, access);
        assert!(asks(CHAR, 1, 3, READ | WRITE), "null");
        assert!(asks(CHAR, 136, 12, READ | WRITE), "any pts");
        assert!(asks(BLOCK, 8, 0, MKNOD) && asks(CHAR, 10, 229, MKNOD), "mknod of anything");
        assert!(!asks(BLOCK, 8, 0, READ) && !asks(BLOCK, 8, 0, MKNOD | READ), "a disk");
        assert!(!asks(CHAR, 1, 1, READ), "mem");
        assert!(!asks(CHAR, 10, 229, READ | WRITE), "fuse");
        assert!(!asks(BLOCK, 1, 3, READ), "the block device of null's number");
    }

    #[test]
    fn added_rules_open_what_they_name_and_no_more() {
        let rules = ["b 8:16 r", "c 10:* rw"].map(|text| parse_rule(text).unwrap());
        let Devices::Only(list) = Devices::with(&rules) else { panic!("two rules are no allow-all") };
        let program = compile(&list);
        assert!(run(&program, BLOCK, 8, 16, READ));
        assert!(!run(&program, BLOCK, 8, 16, READ | WRITE) && !run(&program, BLOCK, 8, 17, READ));
        assert!(run(&program, CHAR, 10, 200, READ | WRITE) && !run(&program, CHAR, 11, 200, READ));
    }

    #[test]
    fn a_number_no_device_has_matches_nothing() {
        let rule = parse_rule("c 4294967295:1 rwm").unwrap();
        assert!(exception(&rule).is_empty());
        assert!(!run(&compile(&[rule]), CHAR, u32::MAX, 1, READ));
    }
}

//! Classic BPF as `seccomp(2)` takes it: instructions, jumps with room for 8 bits only, decision trees.

use crate::error::{Error, Result};
use crate::sys::security::BpfInstruction;
use std::collections::BTreeMap;

/// The most that the kernel takes (`BPF_MAXINSNS`).
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
pub(super) const NUMBER_OFFSET: u32 = 0;
pub(super) const ARCH_OFFSET: u32 = 4;
const ARGS_OFFSET: u32 = 16;

// The few instructions that are used (linux/bpf_common.h). The kernel proves a call "always allowed", and then
// skips the filter for it, only when its path is made of these (kernel/seccomp.c, seccomp_is_const_allow).
pub(super) const LD_W_ABS: u16 = 0x20;
pub(super) const ALU_AND_K: u16 = 0x54;
pub(super) const JMP_JA: u16 = 0x05;
pub(super) const JMP_JEQ_K: u16 = 0x15;
pub(super) const JMP_JGT_K: u16 = 0x25;
pub(super) const JMP_JGE_K: u16 = 0x35;
pub(super) const RET_K: u16 = 0x06;

pub(super) const fn plain(code: u16, k: u32) -> BpfInstruction {
    BpfInstruction { code, jt: 0, jf: 0, k }
}

/// Offset of an argument's low or high half.
pub(super) const fn argument_offset(index: u8, high: bool) -> u32 {
    let high_word = if cfg!(target_endian = "big") { !high } else { high };
    ARGS_OFFSET + 8 * index as u32 + if high_word { 4 } else { 0 }
}

/// A jump over up to the whole program: the conditional ones reach 255 instructions only.
fn jump_over(length: usize) -> Result<BpfInstruction> {
    u32::try_from(length).map(|k| plain(JMP_JA, k)).map_err(|_| too_long())
}

pub(super) fn too_long() -> Error {
    Error::invalid(format!("seccomp profile is too large: its filter needs more than {MAX_INSTRUCTIONS} instructions"))
}

/// `if accumulator == value { then } ` and on to what follows.
pub(super) fn if_equal(value: u32, then: &[BpfInstruction], program: &mut Vec<BpfInstruction>) -> Result<()> {
    program.push(BpfInstruction { code: JMP_JEQ_K, jt: 1, jf: 0, k: value });
    program.push(jump_over(then.len())?);
    program.extend_from_slice(then);
    Ok(())
}

/// A balanced search in the accumulator: `leaves` are (first value, code), ascending from 0; each reaches up to the
/// next. A leaf's code must end in a return on every path.
pub(super) fn search(leaves: &[(u32, &[BpfInstruction])]) -> Result<Vec<BpfInstruction>> {
    let mut program = Backwards::default();
    let entry = program.tree(leaves)?;
    // The entry is what was added last, but for a search with one leaf, or none.
    if program.near(entry)? + 1 != program.code.len() {
        return Err(Error::system("seccomp: a search begins in its middle"));
    }
    program.code.reverse();
    Ok(program.code)
}

/// A program written from its end, as jumps lead forward only: so every target is there before its jump, and returns
/// of the same value can be one.
#[derive(Default)]
struct Backwards {
    /// The last instruction first.
    code: Vec<BpfInstruction>,
    /// Where in `code` a return of this value was added last.
    returns: BTreeMap<u32, usize>,
}

/// Where a part of the program begins.
#[derive(Clone, Copy)]
enum Entry {
    /// It only returns this.
    Return(u32),
    /// An index of [`Backwards::code`].
    At(usize),
}

impl Backwards {
    fn tree(&mut self, leaves: &[(u32, &[BpfInstruction])]) -> Result<Entry> {
        match leaves {
            [] => Ok(Entry::Return(0)),
            [(_, [BpfInstruction { code: RET_K, k, .. }])] => Ok(Entry::Return(*k)),
            [(_, code)] => {
                for instruction in code.iter().rev() {
                    self.push(*instruction)?;
                }
                Ok(Entry::At(self.code.len() - 1))
            }
            _ => {
                let (low, high) = leaves.split_at(leaves.len() / 2);
                let above = self.tree(high)?;
                let below = self.tree(low)?;
                let (above, below) = (self.near(above)?, self.near(below)?);
                let (jt, jf) = (self.short_offset(above)?, self.short_offset(below)?);
                self.push(BpfInstruction { code: JMP_JGE_K, jt, jf, k: high[0].0 })?;
                Ok(Entry::At(self.code.len() - 1))
            }
        }
    }

    /// The entry, or a way to it, so near that a conditional jump reaches it even after one more instruction.
    fn near(&mut self, entry: Entry) -> Result<usize> {
        let known = match entry {
            Entry::Return(value) => self.returns.get(&value).copied(),
            Entry::At(at) => Some(at),
        };
        match (known, entry) {
            (Some(at), _) if self.offset(at) < 255 => Ok(at),
            (_, Entry::Return(value)) => {
                self.push(plain(RET_K, value))?;
                self.returns.insert(value, self.code.len() - 1);
                Ok(self.code.len() - 1)
            }
            (_, Entry::At(at)) => {
                self.push(jump_over(self.offset(at))?)?;
                Ok(self.code.len() - 1)
            }
        }
    }

    /// How far the next instruction would have to jump.
    fn offset(&self, target: usize) -> usize {
        self.code.len() - target - 1
    }

    fn short_offset(&self, target: usize) -> Result<u8> {
        u8::try_from(self.offset(target)).map_err(|_| too_long())
    }

    fn push(&mut self, instruction: BpfInstruction) -> Result<()> {
        self.code.push(instruction);
        // Stop before a hostile profile makes it large.
        if self.code.len() > MAX_INSTRUCTIONS { Err(too_long()) } else { Ok(()) }
    }
}

/// Where a step of a test goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Next,
    /// This test holds: the next test, or the action.
    Pass,
    /// The rule does not apply: behind its action.
    Fail,
}

/// One instruction of a test. `yes` and `no` count for jumps only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub code: u16,
    pub k: u32,
    pub yes: To,
    pub no: To,
}

/// `if every test holds { return action }` and on to what follows.
pub(super) fn guarded(tests: &[Vec<Step>], action: u32) -> Result<Vec<BpfInstruction>> {
    let length: usize = tests.iter().map(Vec::len).sum();
    let mut program = Vec::with_capacity(length + 1);
    for test in tests {
        let end = program.len() + test.len();
        for step in test {
            let next = program.len() + 1;
            let offset = |to: To| match to {
                To::Next => Ok(0),
                To::Pass => u8::try_from(end - next),
                To::Fail => u8::try_from(length + 1 - next),
            };
            // Six tests of at most six steps stay far below 255.
            let (jt, jf) = (offset(step.yes).map_err(|_| too_long())?, offset(step.no).map_err(|_| too_long())?);
            program.push(BpfInstruction { code: step.code, jt, jf, k: step.k });
        }
    }
    program.push(plain(RET_K, action));
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::super::interpreter::{Call, run};
    use super::*;

    #[test]
    fn search_finds_every_leaf_also_beyond_255_instructions() {
        // Leaves of 3 instructions, so that the jumps become long ones.
        let code: Vec<[BpfInstruction; 3]> = (0..500).map(|i| [plain(ALU_AND_K, 0), plain(ALU_AND_K, 0), plain(RET_K, i)]).collect();
        let leaves: Vec<(u32, &[BpfInstruction])> = (0..).step_by(10).zip(&code).map(|(first, code)| (first, &code[..])).collect();
        let mut program = vec![plain(LD_W_ABS, NUMBER_OFFSET)];
        program.extend(search(&leaves).unwrap());
        for number in (0..5000).chain([u32::MAX]) {
            assert_eq!(run(&program, &Call { number, ..Call::default() }), Some((number / 10).min(499)));
        }
    }

    #[test]
    fn equal_returns_are_shared() {
        let (allow, deny) = ([plain(RET_K, 1)], [plain(RET_K, 2)]);
        for count in [1, 2, 3, 200, 255, 256, 257, 1000] {
            let leaves: Vec<(u32, &[BpfInstruction])> = (0..count).map(|n| (n, if n % 3 == 0 { &allow[..] } else { &deny[..] })).collect();
            let mut program = vec![plain(LD_W_ABS, NUMBER_OFFSET)];
            program.extend(search(&leaves).unwrap());
            assert!(program.len() < leaves.len() + leaves.len() / 50 + 5, "{count}: {}", program.len());
            for number in 0..count {
                let want = if number % 3 == 0 { 1 } else { 2 };
                assert_eq!(run(&program, &Call { number, ..Call::default() }), Some(want), "{number} of {count}");
            }
        }
    }

    #[test]
    fn search_refuses_more_than_the_kernel_takes() {
        let ret = [plain(RET_K, 0)];
        let leaves: Vec<(u32, &[BpfInstruction])> = (0..4200).map(|first| (first, &ret[..])).collect();
        assert!(search(&leaves).is_err());
    }
}

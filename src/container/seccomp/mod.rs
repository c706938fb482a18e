//! Seccomp: Docker's profiles, compiled to classic BPF by our own compiler.
//!
//! A [`Profile`] is data: the builtin one ([`builtin`]) or a client's JSON ([`json`]). [`compile`] turns it into a
//! program for one machine, capability set and kernel; [`numbers`] knows the calls of every architecture. Nothing
//! here touches a process: loading the program is the container child's step.

mod arguments;
mod builtin;
mod compile;
#[cfg(test)]
mod interpreter;
mod json;
#[cfg(test)]
mod kernel_tests;
mod numbers;
#[cfg(test)]
mod oracle_tests;
mod program;

use crate::error::Result;
use crate::sys::security::BpfInstruction;
use std::borrow::Cow;
use std::rc::Rc;

/// A calling convention of the kernel, as libseccomp's `SCMP_ARCH_*` names tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    /// i386, also reached from 64-bit code by `int 0x80`.
    X86,
    /// 32-bit pointers on x86_64; shares its audit value, told apart by a bit in the call's number.
    X32,
    Aarch64,
    /// EABI.
    Arm,
}

impl Arch {
    /// The architecture this program was built for.
    pub const fn native() -> Arch {
        #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
        return Arch::X86_64;
        #[cfg(target_arch = "x86")]
        return Arch::X86;
        #[cfg(target_arch = "aarch64")]
        return Arch::Aarch64;
        #[cfg(target_arch = "arm")]
        return Arch::Arm;
        #[cfg(not(any(
            all(target_arch = "x86_64", target_pointer_width = "64"),
            target_arch = "x86",
            target_arch = "aarch64",
            target_arch = "arm"
        )))]
        compile_error!("this architecture's system call numbers are missing in container/seccomp/numbers.rs");
    }

    /// What the kernel puts into `seccomp_data.arch` (linux/audit.h, `AUDIT_ARCH_*`).
    pub const fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// The name in a profile's `includes.arches` and `excludes.arches`.
    const fn profile_name(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::X86 => "x86",
            Arch::X32 => "x32",
            Arch::Aarch64 => "arm64",
            Arch::Arm => "arm",
        }
    }

    /// Whether the kernel sees only the low half of each argument register. x32 is not among them: its handlers get
    /// the whole register.
    const fn is_32_bit(self) -> bool {
        matches!(self, Arch::X86 | Arch::Arm)
    }
}

/// What happens to a call (seccomp(2), `SECCOMP_RET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    KillProcess,
    KillThread,
    Trap,
    Errno(u16),
    Trace(u16),
    Log,
    Allow,
}

impl Action {
    /// The filter's return value.
    const fn value(self) -> u32 {
        match self {
            Action::KillProcess => 0x8000_0000,
            Action::KillThread => 0,
            Action::Trap => 0x0003_0000,
            Action::Errno(errno) => 0x0005_0000 | errno as u32,
            Action::Trace(data) => 0x7ff0_0000 | data as u32,
            Action::Log => 0x7ffc_0000,
            Action::Allow => 0x7fff_0000,
        }
    }

    /// The kernel's own order among several filters: the smaller, as a signed number, is the stricter.
    const fn strictness(self) -> i32 {
        (self.value() & 0xffff_0000).cast_signed()
    }

    /// Whether calls of the future shall pass too, so that no ENOSYS is put before them (a tracer can say it itself).
    const fn is_permissive(self) -> bool {
        matches!(self, Action::Allow | Action::Log | Action::Trace(_))
    }
}

/// How an argument is compared; unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// `argument & mask == value`.
    MaskedEqual {
        mask: u64,
    },
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    /// 0 to 5.
    index: u8,
    operator: Operator,
    value: u64,
}

/// Where a rule counts: all that is given must hold (for `includes`), any of it excludes (for `excludes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    /// Bit mask of capabilities.
    capabilities: u64,
    /// A capability was named that does not exist, so no container has it.
    unknown_capability: bool,
    /// Names as [`Arch::profile_name`], of the machine, not of the calling convention.
    arches: Vec<Cow<'static, str>>,
    /// Linux version, (major, minor).
    min_kernel: Option<(u32, u32)>,
}

/// One rule: what happens to these calls when the conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Names, separated by blanks; unknown ones are ignored, as older kernels' profiles name newer calls.
    names: Cow<'static, str>,
    action: Action,
    conditions: Vec<Condition>,
    includes: Filter,
    excludes: Filter,
}

/// Which calling conventions the filter serves beside the native one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Architectures {
    /// By the machine: (native, its others).
    Map(Vec<(Option<Arch>, Vec<Arch>)>),
    /// The same on every machine.
    List(Vec<Arch>),
}

/// A seccomp profile: never "none". Running unconfined is the caller's explicit choice.
#[derive(Clone, Debug)]
pub struct Profile {
    /// SHA-256 of the JSON; zeros for the builtin one.
    identity: [u8; 32],
    default_action: Action,
    architectures: Architectures,
    rules: Vec<Rule>,
    flags: u32,
}

impl Profile {
    /// The profile of containers for which nothing else was asked.
    pub fn builtin() -> Profile {
        builtin::profile()
    }

    /// A client's or administrator's profile in Docker's JSON format.
    ///
    /// # Errors
    /// InvalidParameter, with what is wrong: more than 1 MiB, malformed, an unknown action, operator, architecture
    /// or flag, a value out of range, or a feature that needs a listener.
    pub fn from_json(json: &[u8]) -> Result<Profile> {
        json::parse(json)
    }

    /// The filter for a process with these capabilities in its bounding set, on this kernel (major, minor).
    ///
    /// # Errors
    /// InvalidParameter when the profile needs more than the kernel's 4096 instructions.
    pub fn compile(&self, arch: Arch, capabilities: u64, kernel: (u32, u32)) -> Result<Vec<BpfInstruction>> {
        compile::compile(self, arch, capabilities, kernel)
    }

    /// Flags for `seccomp(2)` when the filter is loaded (`SECCOMP_FILTER_FLAG_*`).
    pub fn flags(&self) -> libc::c_ulong {
        self.flags.into()
    }

    /// The capabilities on which the result of [`Profile::compile`] can depend.
    fn relevant_capabilities(&self) -> u64 {
        self.rules.iter().fold(0, |mask, rule| mask | rule.includes.capabilities | rule.excludes.capabilities)
    }
}

/// (major, minor) of a release as uname(2) has it: "6.1.0-13-amd64" is (6, 1). What does not parse is 0, so that
/// rules for newer kernels do not apply.
pub fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// How many compiled filters are kept.
const CACHED_FILTERS: usize = 32;

/// Compiled filters, so that a container's start pays for a look-up only.
#[derive(Debug)]
pub struct FilterCache {
    kernel: (u32, u32),
    /// Most recently used last.
    entries: Vec<CachedFilter>,
}

#[derive(Debug)]
struct CachedFilter {
    identity: [u8; 32],
    /// Reduced to what the profile asks about.
    capabilities: u64,
    filter: Rc<[BpfInstruction]>,
}

impl FilterCache {
    /// `kernel` as [`kernel_version`] gives it.
    pub fn new(kernel: (u32, u32)) -> FilterCache {
        FilterCache { kernel, entries: Vec::new() }
    }

    /// The filter of `profile` for the native architecture.
    ///
    /// # Errors
    /// As [`Profile::compile`].
    pub fn get(&mut self, profile: &Profile, capabilities: u64) -> Result<Rc<[BpfInstruction]>> {
        let capabilities = capabilities & profile.relevant_capabilities();
        if let Some(at) = self.entries.iter().position(|e| e.identity == profile.identity && e.capabilities == capabilities) {
            self.entries[at..].rotate_left(1);
        } else {
            let filter = profile.compile(Arch::native(), capabilities, self.kernel)?.into();
            if self.entries.len() == CACHED_FILTERS {
                self.entries.remove(0);
            }
            self.entries.push(CachedFilter { identity: profile.identity, capabilities, filter });
        }
        Ok(Rc::clone(&self.entries[self.entries.len() - 1].filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_version_reads_uname() {
        let cases = [("6.1.0-13-amd64", (6, 1)), ("5.15", (5, 15)), ("6.18.44-fc-v669", (6, 18)), ("4.9+", (4, 9)), ("garbage", (0, 0))];
        for (release, version) in cases {
            assert_eq!(kernel_version(release), version, "{release}");
        }
    }

    #[test]
    fn cache_compiles_once_and_looks_only_at_relevant_capabilities() {
        let mut cache = FilterCache::new((6, 1));
        let builtin = Profile::builtin();
        let chown_and_kill = 0x21;
        let first = cache.get(&builtin, chown_and_kill).unwrap();
        assert!(Rc::ptr_eq(&first, &cache.get(&builtin, 0).unwrap()));
        let sys_admin = 1 << 21;
        assert!(!Rc::ptr_eq(&first, &cache.get(&builtin, sys_admin).unwrap()));
        assert!(Rc::ptr_eq(&first, &cache.get(&builtin, 0).unwrap()));
    }

    #[test]
    fn cache_is_bounded() {
        let mut cache = FilterCache::new((6, 1));
        for errno in 1..100 {
            let json = format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":{errno},"syscalls":[]}}"#);
            cache.get(&Profile::from_json(json.as_bytes()).unwrap(), 0).unwrap();
        }
        assert_eq!(cache.entries.len(), CACHED_FILTERS);
    }
}

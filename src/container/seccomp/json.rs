//! Docker's seccomp profile format (docs.docker.com, "Seccomp security profiles for Docker"): an extension of the OCI
//! runtime specification's `linux.seccomp` with `archMap`, `includes` and `excludes`.
//!
//! Everything is checked here, when a container is created, so that its start has nothing left to refuse.

use super::builtin::SPEC_ALLOW;
use super::{Action, Arch, Architectures, Condition, Filter, Operator, Profile, Rule};
use crate::container::capabilities;
use crate::error::{Error, Result};
use crate::json;
use ring::digest;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

/// The largest profile, bytes.
const MAX_BYTES: usize = 1 << 20;

/// The kernel's largest errno (`MAX_ERRNO`).
const MAX_ERRNO: u64 = 4095;

const EPERM: u16 = 1;

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct Document {
    default_action: String,
    default_errno_ret: Option<u64>,
    architectures: Vec<String>,
    arch_map: Vec<ArchMap>,
    flags: Option<Vec<String>>,
    listener_path: String,
    syscalls: Vec<Syscall>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Syscall {
    /// The older spelling of one name.
    name: String,
    names: Vec<String>,
    action: String,
    errno_ret: Option<u64>,
    args: Vec<Argument>,
    includes: Conditions,
    excludes: Conditions,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Argument {
    index: u64,
    value: u64,
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Conditions {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: String,
}

pub(super) fn parse(text: &[u8]) -> Result<Profile> {
    if text.len() > MAX_BYTES {
        return Err(invalid(format!("the profile is larger than {MAX_BYTES} bytes")));
    }
    let value = json::without_nulls(json::parse(text).map_err(|e| invalid(e.message))?);
    require_objects(&value)?;
    let document: Document = json::from_value(value).map_err(|e| invalid(e.message))?;
    if !document.listener_path.is_empty() {
        return Err(invalid("'listenerPath' is not supported"));
    }
    let mut identity = [0; 32];
    identity.copy_from_slice(digest::digest(&digest::SHA256, text).as_ref());
    Ok(Profile {
        identity,
        default_action: action(&document.default_action, document.default_errno_ret)?,
        architectures: architectures(&document)?,
        rules: document.syscalls.into_iter().map(rule).collect::<Result<_>>()?,
        flags: flags(document.flags)?,
    })
}

/// The derived decoder would also take a list for an object, by position: what Go's refuses.
fn require_objects(document: &Value) -> Result<()> {
    fn members<'a>(value: &'a Value, key: &str) -> &'a [Value] {
        value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
    let within = |call| members(call, "args").iter().chain(["includes", "excludes"].iter().filter_map(|key| call.get(key)));
    let (maps, calls) = (members(document, "archMap"), members(document, "syscalls"));
    let mut all = std::iter::once(document).chain(maps).chain(calls).chain(calls.iter().flat_map(within));
    if all.all(Value::is_object) { Ok(()) } else { Err(invalid("invalid JSON: expected an object")) }
}

/// The reference's words for a profile that it cannot read.
fn invalid(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("Decoding seccomp profile failed: {what}"))
}

fn action(name: &str, errno: Option<u64>) -> Result<Action> {
    let data = |most: u64| match errno {
        None => Ok(EPERM),
        Some(errno) => {
            u16::try_from(errno).ok().filter(|_| errno <= most).ok_or_else(|| invalid(format!("errnoRet {errno} is out of range")))
        }
    };
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(data(MAX_ERRNO)?),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(data(u64::from(u16::MAX))?),
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_NOTIFY" => return Err(invalid("action \"SCMP_ACT_NOTIFY\" is not supported: there is no listener")),
        _ => return Err(invalid(format!("invalid action {name:?}"))),
    })
}

fn architectures(document: &Document) -> Result<Architectures> {
    if document.arch_map.is_empty() {
        let arches: Vec<Option<Arch>> = document.architectures.iter().map(|name| arch(name)).collect::<Result<_>>()?;
        return Ok(Architectures::List(arches.into_iter().flatten().collect()));
    }
    if !document.architectures.is_empty() {
        return Err(invalid(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'",
        ));
    }
    let entry = |entry: &ArchMap| {
        let others: Vec<Option<Arch>> = entry.sub_architectures.iter().map(|name| arch(name)).collect::<Result<_>>()?;
        Ok((arch(&entry.architecture)?, others.into_iter().flatten().collect()))
    };
    document.arch_map.iter().map(entry).collect::<Result<_>>().map(Architectures::Map)
}

/// `None` for a known name of a machine that we do not run on: it changes nothing here.
fn arch(name: &str) -> Result<Option<Arch>> {
    const ELSEWHERE: [&str; 20] = [
        "LOONGARCH64",
        "M68K",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PARISC",
        "PARISC64",
        "PPC",
        "PPC64",
        "PPC64LE",
        "RISCV64",
        "S390",
        "S390X",
        "SH",
        "SHEB",
        "SHEL",
        "SHELEB",
    ];
    match name.strip_prefix("SCMP_ARCH_") {
        Some("X86_64") => Ok(Some(Arch::X86_64)),
        Some("X86") => Ok(Some(Arch::X86)),
        Some("X32") => Ok(Some(Arch::X32)),
        Some("AARCH64") => Ok(Some(Arch::Aarch64)),
        Some("ARM") => Ok(Some(Arch::Arm)),
        Some(other) if ELSEWHERE.contains(&other) => Ok(None),
        _ => Err(invalid(format!("invalid architecture {name:?}"))),
    }
}

/// `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
fn flags(names: Option<Vec<String>>) -> Result<u32> {
    let Some(names) = names else { return Ok(SPEC_ALLOW) };
    names.iter().try_fold(0, |flags, name| match name.as_str() {
        // The process that loads the filter has one thread.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | 1 << 1),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | SPEC_ALLOW),
        _ => Err(invalid(format!("invalid flag {name:?}"))),
    })
}

fn rule(call: Syscall) -> Result<Rule> {
    let names = match (call.name.is_empty(), call.names.is_empty()) {
        (false, false) => {
            return Err(invalid("both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"));
        }
        (false, true) => vec![call.name],
        _ => call.names,
    };
    if names.iter().any(String::is_empty) {
        return Err(invalid("empty string is not a valid syscall"));
    }
    // No call's name has a blank in it: what has one is unknown and counts for nothing, like other unknown names.
    let known: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.contains(|c: char| c.is_ascii_whitespace())).collect();
    Ok(Rule {
        names: Cow::Owned(known.join(" ")),
        action: action(&call.action, call.errno_ret)?,
        conditions: call.args.iter().map(condition).collect::<Result<_>>()?,
        includes: filter(call.includes)?,
        excludes: filter(call.excludes)?,
    })
}

fn condition(argument: &Argument) -> Result<Condition> {
    let index = u8::try_from(argument.index).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| invalid(format!("argument index {} is out of range", argument.index)))?;
    let (operator, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Operator::Equal, argument.value),
        "SCMP_CMP_NE" => (Operator::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Operator::Less, argument.value),
        "SCMP_CMP_LE" => (Operator::LessOrEqual, argument.value),
        "SCMP_CMP_GT" => (Operator::Greater, argument.value),
        "SCMP_CMP_GE" => (Operator::GreaterOrEqual, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Operator::MaskedEqual { mask: argument.value }, argument.value_two),
        op => return Err(invalid(format!("invalid operator {op:?}"))),
    };
    Ok(Condition { index, operator, value })
}

fn filter(conditions: Conditions) -> Result<Filter> {
    let bits: Vec<u64> = conditions.caps.iter().map(|name| capabilities::bit(name)).collect();
    Ok(Filter {
        capabilities: bits.iter().fold(0, |mask, bit| mask | bit),
        unknown_capability: bits.contains(&0),
        arches: conditions.arches.into_iter().map(Cow::Owned).collect(),
        min_kernel: min_kernel(&conditions.min_kernel)?,
    })
}

fn min_kernel(text: &str) -> Result<Option<(u32, u32)>> {
    if text.is_empty() {
        return Ok(None);
    }
    let part = |digits: &str| digits.parse::<u8>().ok().filter(|_| !digits.starts_with('+')).map(u32::from);
    match text.split_once('.').map(|(kernel, major)| (part(kernel), part(major))) {
        Some((Some(kernel), Some(major))) if (kernel, major) != (0, 0) => Ok(Some((kernel, major))),
        _ => Err(invalid(format!("invalid kernel version: {text:?}, expected \"<kernel>.<major>\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn refusal(json: &str) -> String {
        let error = parse(json.as_bytes()).map(drop).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidParameter, "{json}");
        error.message
    }

    #[test]
    fn reads_the_documented_format() {
        let profile = parse(
            br#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
                "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                           {"architecture":"SCMP_ARCH_MIPS64","subArchitectures":["SCMP_ARCH_MIPS"]}],
                "flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls":[{"names":["clone","a b"],"action":"SCMP_ACT_ALLOW","comment":"threads",
                    "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}],
                    "includes":{"minKernel":"4.8","arches":["amd64"]},
                    "excludes":{"caps":["CAP_SYS_ADMIN"]}},
                  {"name":"read","action":"SCMP_ACT_TRACE","errnoRet":7,"args":null}]}"#,
        )
        .unwrap();
        assert_eq!(profile.default_action, Action::Errno(38));
        assert_eq!(profile.architectures, Architectures::Map(vec![(Some(Arch::X86_64), vec![Arch::X86]), (None, vec![])]));
        assert_eq!(profile.flags(), 2);
        let [clone, read] = &profile.rules[..] else { panic!() };
        assert_eq!(clone.names, "clone");
        assert_eq!(clone.conditions, [Condition { index: 0, operator: Operator::MaskedEqual { mask: 0x7e02_0000 }, value: 0 }]);
        assert_eq!((clone.includes.min_kernel, clone.excludes.capabilities), (Some((4, 8)), 1 << 21));
        assert_eq!((&*read.names, read.action), ("read", Action::Trace(7)));
    }

    #[test]
    fn refuses_what_it_cannot_understand() {
        let rule = |rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rule}]}}"#);
        let cases = [
            (String::new(), "invalid JSON"),
            ("{".into(), "invalid JSON"),
            ("{}".into(), "invalid action \"\""),
            ("[]".into(), "invalid JSON"),
            ("{} {}".into(), "invalid JSON"),
            (rule(r#"["read"]"#), "invalid JSON"),
            (r#"{"defaultAction":"ALLOW"}"#.into(), "invalid action \"ALLOW\""),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.into(), "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#.into(), "errnoRet 4096 is out of range"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":-1}"#.into(), "invalid JSON"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","listenerPath":"/x"}"#.into(), "listenerPath"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","flags":["X"]}"#.into(), "invalid flag \"X\""),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["x86_64"]}"#.into(), "invalid architecture \"x86_64\""),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]}"#
                    .into(),
                "use either",
            ),
            (rule(r#"{"names":["read"]}"#), "invalid action \"\""),
            (rule(r#"{"name":"read","names":["write"],"action":"SCMP_ACT_ALLOW"}"#), "use either"),
            (rule(r#"{"names":["read",""],"action":"SCMP_ACT_ALLOW"}"#), "empty string"),
            (rule(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}"#), "argument index 6"),
            (
                rule(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"op":"SCMP_CMP_XX"}]}"#),
                "invalid operator \"SCMP_CMP_XX\"",
            ),
            (rule(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":-1,"op":"SCMP_CMP_EQ"}]}"#), "invalid JSON"),
            (rule(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4"}}"#), "invalid kernel version"),
            (rule(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8.1"}}"#), "invalid kernel version"),
            (rule(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","excludes":{"minKernel":"0.0"}}"#), "invalid kernel version"),
        ];
        for (json, words) in cases {
            let message = refusal(&json);
            assert!(message.starts_with("Decoding seccomp profile failed: ") && message.contains(words), "{json}: {message}");
        }
        assert!(refusal(&" ".repeat(MAX_BYTES + 1)).contains("larger than 1048576 bytes"));
        assert!(refusal(&"[".repeat(100_000)).contains("invalid JSON"));
    }
}

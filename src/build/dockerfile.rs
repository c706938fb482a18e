//! The Dockerfile language: from instruction lines to build stages with typed steps, refused in Docker's words.
//!
//! Nothing is expanded and nothing runs here; `steps` does the first, the build worker the second.

use super::golang::{parse_duration, quote};
use super::lex::{self, Heredoc, Line, Source};
use super::mounts::{self, Mount};
use crate::container::config::Healthcheck;
use crate::error::{self, Error};

/// A parsed Dockerfile.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    pub escape: char,
    pub warnings: Vec<String>,
    /// ARG steps before the first FROM.
    pub global_args: Vec<Step>,
    pub stages: Vec<Stage>,
}

/// FROM, and what follows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Lower case; empty when the stage has no name.
    pub name: String,
    pub base: String,
    /// As written in `--platform=`; empty when not given.
    pub platform: String,
    pub code: String,
    pub line: usize,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The joined source text, as the "Step 1/3 : " line shows it.
    pub code: String,
    pub line: usize,
    pub instruction: Instruction,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Instruction {
    Add(Copy),
    Arg(Vec<(String, Option<String>)>),
    Cmd(CommandLine),
    Copy(Copy),
    Entrypoint(CommandLine),
    Env(Vec<(String, String)>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    /// `literal`: from the request's labels, which are not expanded.
    Label {
        pairs: Vec<(String, String)>,
        literal: bool,
    },
    Maintainer(String),
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// A command in shell form (one word, for the shell) or exec form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    pub words: Vec<String>,
    pub shell: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    pub command: CommandLine,
    pub heredocs: Vec<Heredoc>,
    pub mounts: Vec<Mount>,
    /// "", "default", "none", "host".
    pub network: String,
    /// "", "sandbox", "insecure".
    pub security: String,
}

/// COPY and ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    pub sources: Vec<String>,
    pub heredocs: Vec<Heredoc>,
    pub dest: String,
    /// COPY only: a stage, its number, an image; empty = the context.
    pub from: String,
    pub chown: String,
    pub chmod: String,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    /// ADD only.
    pub checksum: String,
    pub keep_git_dir: bool,
    /// ADD only: `--unpack`; `None` decides by the source.
    pub unpack: Option<bool>,
}

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What COMMIT's `changes` may hold.
const CHANGE_KEYWORDS: [&str; 10] = ["CMD", "ENTRYPOINT", "HEALTHCHECK", "ENV", "EXPOSE", "LABEL", "ONBUILD", "USER", "VOLUME", "WORKDIR"];

/// Parses a Dockerfile; `name` is its path in the context, for the errors.
pub fn parse(bytes: &[u8], name: &str) -> error::Result<Dockerfile> {
    if bytes.is_empty() {
        return Err(Error::invalid(format!("the Dockerfile ({name}) cannot be empty")));
    }
    let source = lex::read(bytes).map_err(|fault| match fault.line {
        0 => Error::invalid(format!("failed to parse {name}: {}", fault.message)),
        line => Error::invalid(format!("failed to parse {name}: dockerfile parse error on line {line}: {}", fault.message)),
    })?;
    stages(source)
}

/// Parses the `changes` of commit and import: a few instructions without FROM.
pub fn parse_changes(changes: &[String]) -> error::Result<Vec<Step>> {
    let text = changes.join("\n");
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let source = lex::read(text.as_bytes()).map_err(|fault| Error::invalid(fault.message))?;
    for line in &source.lines {
        if !CHANGE_KEYWORDS.iter().any(|k| line.is(k)) {
            return Err(Error::invalid(format!("{} is not a valid change command", line.keyword)));
        }
    }
    source.lines.iter().map(|line| step(line).map_err(Error::invalid)).collect()
}

/// Parses an image's ONBUILD trigger.
pub fn parse_trigger(text: &str) -> error::Result<Step> {
    let source = lex::read(text.as_bytes()).map_err(|fault| Error::invalid(fault.message))?;
    let [line] = source.lines.as_slice() else {
        return Err(Error::invalid("onbuild trigger should be a single expression"));
    };
    if line.is("FROM") {
        return Err(Error::invalid("FROM isn't allowed as an ONBUILD trigger"));
    }
    step(line).map_err(Error::invalid)
}

fn stages(source: Source) -> error::Result<Dockerfile> {
    let mut file = Dockerfile { escape: source.escape, warnings: source.warnings, global_args: Vec::new(), stages: Vec::new() };
    for line in &source.lines {
        let refuse = |message: String| Error::invalid(format!("dockerfile parse error on line {}: {message}", line.first));
        if line.is("FROM") {
            file.stages.push(from(line).map_err(refuse)?);
            continue;
        }
        let step = step(line).map_err(refuse)?;
        match (file.stages.last_mut(), &step.instruction) {
            (Some(stage), _) => stage.steps.push(step),
            (None, Instruction::Arg(_)) => file.global_args.push(step),
            (None, _) => return Err(Error::invalid("no build stage in current context")),
        }
    }
    if file.stages.is_empty() {
        return Err(Error::invalid("dockerfile contains no stages to build"));
    }
    Ok(file)
}

fn from(line: &Line) -> Result<Stage, String> {
    let words = &line.args.words;
    let (base, name) = match words.as_slice() {
        [base] => (base, ""),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (base, name.as_str()),
        _ => return Err("FROM requires either one or three arguments".into()),
    };
    if !name.is_empty() && !is_stage_name(&name.to_lowercase()) {
        return Err(format!("invalid name for build stage: {}, name can't start with a number or contain symbols", quote(name)));
    }
    let mut flags = Flags::read(&line.flags, &["platform"], &[], &[])?;
    Ok(Stage {
        name: name.to_lowercase(),
        base: base.clone(),
        platform: flags.text("platform"),
        code: line.original.trim().into(),
        line: line.first,
        steps: Vec::new(),
    })
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
}

/// One line that is not FROM.
fn step(line: &Line) -> Result<Step, String> {
    let keyword = line.keyword.to_ascii_uppercase();
    let words = &line.args.words;
    let no_flags = || Flags::read(&line.flags, &[], &[], &[]).map(drop);
    let one = || match words.as_slice() {
        [word] => no_flags().map(|()| word.clone()),
        _ => Err(format!("{keyword} requires exactly one argument")),
    };
    let some = || if words.is_empty() { Err(format!("{keyword} requires at least one argument")) } else { Ok(()) };
    let instruction = match keyword.as_str() {
        "ADD" => Instruction::Add(copy(line, "ADD")?),
        "COPY" => Instruction::Copy(copy(line, "COPY")?),
        "ARG" => {
            some()?;
            Instruction::Arg(words.iter().map(|word| argument(word)).collect::<Result<_, _>>()?)
        }
        "CMD" => no_flags().map(|()| Instruction::Cmd(command_line(line)))?,
        "ENTRYPOINT" => no_flags().map(|()| Instruction::Entrypoint(command_line(line)))?,
        "ENV" => {
            no_flags()?;
            some()?;
            Instruction::Env(pairs(words, "ENV")?)
        }
        "LABEL" => {
            no_flags()?;
            some()?;
            Instruction::Label { pairs: pairs(words, "LABEL")?, literal: false }
        }
        "EXPOSE" => {
            some()?;
            no_flags()?;
            let mut ports = words.clone();
            ports.sort();
            Instruction::Expose(ports)
        }
        "HEALTHCHECK" => {
            some()?;
            Instruction::Healthcheck(healthcheck(line)?)
        }
        "MAINTAINER" => Instruction::Maintainer(one()?),
        "ONBUILD" => {
            some()?;
            no_flags()?;
            Instruction::Onbuild(onbuild(line)?)
        }
        "RUN" => Instruction::Run(run(line)?),
        "SHELL" => {
            no_flags()?;
            some()?;
            if !line.args.json {
                return Err(format!("SHELL requires the arguments to be in JSON form, not: {}", line.original));
            }
            Instruction::Shell(words.clone())
        }
        "STOPSIGNAL" => Instruction::StopSignal(one()?),
        "USER" => Instruction::User(one()?),
        "VOLUME" => {
            some()?;
            no_flags()?;
            let volumes: Vec<String> = words.iter().map(|v| v.trim().to_owned()).collect();
            if volumes.iter().any(String::is_empty) {
                return Err("VOLUME specified can not be an empty string".into());
            }
            Instruction::Volume(volumes)
        }
        "WORKDIR" => Instruction::Workdir(one()?),
        _ => return Err(format!("unknown instruction: {}{}", line.keyword, suggestion(&line.keyword, &KEYWORDS))),
    };
    Ok(Step { code: line.original.trim().into(), line: line.first, instruction })
}

fn argument(word: &str) -> Result<(String, Option<String>), String> {
    match word.split_once('=') {
        Some(("", _)) => Err("ARG names can not be blank".into()),
        Some((name, value)) => Ok((name.into(), Some(value.into()))),
        None => Ok((word.into(), None)),
    }
}

fn pairs(words: &[String], keyword: &str) -> Result<Vec<(String, String)>, String> {
    let pairs: Vec<_> = words.as_chunks::<2>().0.iter().map(|[name, value]| (name.clone(), value.clone())).collect();
    if pairs.iter().any(|(name, _)| name.is_empty()) {
        return Err(format!("{keyword} names can not be blank"));
    }
    Ok(pairs)
}

fn command_line(line: &Line) -> CommandLine {
    CommandLine { words: line.args.words.clone(), shell: !line.args.json }
}

fn run(line: &Line) -> Result<Run, String> {
    let mut flags = Flags::read(&line.flags, &["network", "security"], &[], &["mount", "device"])?;
    let (network, security) = (flags.text("network"), flags.text("security"));
    if !["", "default", "none", "host"].contains(&network.as_str()) {
        return Err(format!("invalid network mode: {}", quote(&network)));
    }
    if !["", "sandbox", "insecure"].contains(&security.as_str()) {
        return Err(format!("security {} is not valid", quote(&security)));
    }
    let mounts = flags.list("mount").iter().map(|text| mounts::check(text)).collect::<Result<Vec<Mount>, _>>()?;
    Ok(Run { command: command_line(line), heredocs: line.heredocs.clone(), mounts, network, security })
}

fn copy(line: &Line, keyword: &str) -> Result<Copy, String> {
    let Some((dest, sources)) = line.args.words.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(format!("{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"));
    };
    let texts: &[&str] = if keyword == "ADD" { &["chown", "chmod", "checksum"] } else { &["chown", "chmod", "from"] };
    let bools: &[&str] = if keyword == "ADD" { &["link", "keep-git-dir", "unpack"] } else { &["link", "parents"] };
    let mut flags = Flags::read(&line.flags, texts, bools, &["exclude"])?;
    if lex::heredoc(dest).is_some() && !line.args.json {
        return Err(format!("{keyword} cannot accept a heredoc as a destination"));
    }
    let is_heredoc = |word: &String| !line.args.json && lex::heredoc(word).is_some();
    Ok(Copy {
        sources: sources.iter().filter(|word| !is_heredoc(word)).cloned().collect(),
        heredocs: line.heredocs.clone(),
        dest: dest.clone(),
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        checksum: flags.text("checksum"),
        link: flags.truth("link") == Some(true),
        parents: flags.truth("parents") == Some(true),
        keep_git_dir: flags.truth("keep-git-dir") == Some(true),
        unpack: flags.truth("unpack"),
        exclude: flags.list("exclude"),
    })
}

fn onbuild(line: &Line) -> Result<String, String> {
    let trigger = line.args.words.first().map(|w| w.trim().to_uppercase()).unwrap_or_default();
    match trigger.as_str() {
        "ONBUILD" => return Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into()),
        "MAINTAINER" | "FROM" => return Err(format!("{trigger} isn't allowed as an ONBUILD trigger")),
        _ => {}
    }
    let text = line.original.trim_start();
    let mut expression = text.get(line.keyword.len()..).unwrap_or_default().trim_start().to_owned();
    for heredoc in &line.heredocs {
        expression = format!("{expression}\n{}{}", heredoc.content, heredoc.name);
    }
    Ok(expression)
}

fn healthcheck(line: &Line) -> Result<Healthcheck, String> {
    let (kind, command) = line.args.words.split_first().map(|(k, c)| (k.to_uppercase(), c)).unwrap_or_default();
    if kind == "NONE" {
        if !command.is_empty() {
            return Err("HEALTHCHECK NONE takes no arguments".into());
        }
        return Ok(Healthcheck { test: Some(vec![kind]), ..Healthcheck::default() });
    }
    let mut flags = Flags::read(&line.flags, &["interval", "timeout", "start-period", "start-interval", "retries"], &[], &[])?;
    if kind != "CMD" {
        return Err(format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&kind)));
    }
    if command.is_empty() {
        return Err("Missing command after HEALTHCHECK CMD".into());
    }
    let mut test = vec![if line.args.json { "CMD".to_owned() } else { "CMD-SHELL".to_owned() }];
    test.extend_from_slice(command);
    let mut interval = |name: &str| -> Result<i64, String> {
        let text = flags.text(name);
        match if text.is_empty() { 0 } else { parse_duration(&text)? } {
            0 => Ok(0),
            short if short < 1_000_000 => Err(format!("Interval {} cannot be less than 1ms", quote(name))),
            ns => Ok(ns),
        }
    };
    let (interval, timeout, start_period, start_interval) =
        (interval("interval")?, interval("timeout")?, interval("start-period")?, interval("start-interval")?);
    let retries = match flags.text("retries").as_str() {
        "" => 0,
        text => i64::from(text.parse::<i32>().map_err(|_| format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text)))?),
    };
    if retries < 0 {
        return Err(format!("--retries cannot be negative ({retries})"));
    }
    Ok(Healthcheck { test: Some(test), interval, timeout, start_period, start_interval, retries })
}

/// An instruction's flags, checked against the ones that it knows.
struct Flags(Vec<(String, String)>);

impl Flags {
    fn read(flags: &[String], texts: &[&str], bools: &[&str], lists: &[&str]) -> Result<Flags, String> {
        let mut out: Vec<(String, String)> = Vec::new();
        for flag in flags {
            let body = flag.strip_prefix("--").unwrap_or(flag);
            let (name, value) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v)));
            let known: Vec<&str> = texts.iter().chain(bools).chain(lists).copied().collect();
            if !known.contains(&name) {
                return Err(format!("unknown flag: --{name}{}", suggestion(name, &known)));
            }
            if !lists.contains(&name) && out.iter().any(|(n, _)| n == name) {
                return Err(format!("duplicate flag specified: --{name}"));
            }
            let value = match value {
                Some(value) if !bools.contains(&name) => value.to_owned(),
                None if bools.contains(&name) => "true".into(),
                None | Some("") => return Err(format!("missing a value on flag: --{name}")),
                Some(value) => match value.to_lowercase().as_str() {
                    known @ ("true" | "false") => known.to_owned(),
                    _ => return Err(format!("expecting boolean value for flag --{name}, not: {value}")),
                },
            };
            out.push((name.into(), value));
        }
        Ok(Flags(out))
    }

    fn text(&mut self, name: &str) -> String {
        self.list(name).pop().unwrap_or_default()
    }

    fn truth(&mut self, name: &str) -> Option<bool> {
        self.list(name).pop().map(|value| value == "true")
    }

    fn list(&mut self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }
}

/// " (did you mean FROM?)" when one of the known words is one or two letters away.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    let lower = word.to_lowercase();
    let nearest = known.iter().map(|k| (distance(&lower, &k.to_lowercase()), *k)).min();
    match nearest {
        Some((1 | 2, near)) => {
            let near = if word == lower { near.to_lowercase() } else { near.to_owned() };
            format!(" (did you mean {near}?)")
        }
        _ => String::new(),
    }
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
#[path = "dockerfile_tests.rs"]
mod tests;

//! What each instruction does to an image's configuration, and what work it leaves: the classic builder's dispatcher
//! as a pure function. The same code serves `commit --change`.

use super::args::BuildArgs;
use super::dockerfile::{CommandLine, Copy, Instruction, Run, Step};
use super::expand::Expander;
use super::golang::{duration, quote, quote_list};
use super::ignore::clean;
use super::mounts::Mount;
use super::ports::exposed;
use crate::container::config::{Config, Empty, Healthcheck};
use crate::error::{Error, Result};

const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A stage between two steps.
#[derive(Clone, Debug)]
pub struct State {
    pub config: Config,
    pub args: BuildArgs,
    /// MAINTAINER's text, the image's author.
    pub author: String,
    pub(super) escape: char,
    /// CMD was set in this stage, so ENTRYPOINT leaves it.
    pub(super) cmd_set: bool,
}

/// What is left to do for a step whose configuration has been applied.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A new configuration on the same layers.
    Configure,
    /// Makes a directory.
    Workdir(String),
    Run(RunWork),
    /// COPY, or ADD when `add`; words expanded. The comment follows once the sources are hashed.
    Copy {
        copy: Copy,
        add: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct RunWork {
    /// The command with its shell.
    pub argv: Vec<String>,
    /// The image's environment and the build arguments.
    pub env: Vec<String>,
    pub mounts: Vec<Mount>,
    pub network: String,
    pub security: String,
    /// A here-document that begins with `#!`: its text, to be run as a program.
    pub script: Option<String>,
}

/// A step, decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub work: Work,
    /// The command that cache and history know the step by; empty for [`Work::Copy`].
    pub command: Vec<String>,
    /// A line for the client before the work.
    pub note: Option<String>,
}

impl State {
    /// The start of a stage on an image's configuration (`None`: from nothing).
    pub fn begin(base: Option<&Config>, args: BuildArgs, escape: char) -> State {
        let mut config = base.cloned().unwrap_or_default();
        let env = config.env.get_or_insert_default();
        if !env.iter().any(|e| e.starts_with("PATH=")) {
            env.push(DEFAULT_PATH.into());
        }
        config.open_stdin = false;
        config.stdin_once = false;
        State { config, args, author: String::new(), escape, cmd_set: false }
    }

    /// Applies one step.
    pub fn plan(&mut self, step: &Step) -> Result<Plan> {
        let mut note = None;
        let comment = match &step.instruction {
            Instruction::Env(pairs) => self.env(pairs)?,
            Instruction::Label { pairs, literal } => self.label(pairs, *literal)?,
            Instruction::Maintainer(author) => {
                self.author.clone_from(author);
                format!("MAINTAINER {author}")
            }
            Instruction::Arg(pairs) => self.arg(pairs)?,
            Instruction::Expose(ports) => self.expose(ports)?,
            Instruction::User(user) => {
                self.config.user = self.expand(user)?;
                format!("USER {}", self.config.user)
            }
            Instruction::Volume(volumes) => self.volume(volumes)?,
            Instruction::StopSignal(signal) => {
                let signal = self.expand(signal)?;
                if !super::ports::is_signal(&signal) {
                    return Err(Error::invalid(format!("invalid signal: {signal}")));
                }
                self.config.stop_signal.clone_from(&signal);
                format!("STOPSIGNAL {signal}")
            }
            Instruction::Shell(shell) => {
                self.config.shell = Some(shell.clone());
                format!("SHELL [{}]", shell.join(" "))
            }
            Instruction::Cmd(line) => {
                let command = self.with_shell(line);
                let comment = format!("CMD {}", quote_list(&command));
                self.config.cmd = Some(command);
                self.cmd_set = self.cmd_set || !line.words.is_empty();
                comment
            }
            Instruction::Entrypoint(line) => {
                let command = (!line.words.is_empty()).then(|| self.with_shell(line));
                let comment = format!("ENTRYPOINT {}", quote_list(command.as_deref().unwrap_or_default()));
                self.config.entrypoint = command;
                if !self.cmd_set {
                    self.config.cmd = None;
                }
                comment
            }
            Instruction::Healthcheck(check) => {
                note = self.config.healthcheck.as_ref().and_then(overridden);
                self.config.healthcheck = Some(check.clone());
                format!("HEALTHCHECK {}", health_comment(check))
            }
            Instruction::Onbuild(trigger) => {
                self.config.on_build.get_or_insert_default().push(trigger.clone());
                format!("ONBUILD {trigger}")
            }
            Instruction::Workdir(path) => return self.workdir(path),
            Instruction::Run(run) => return self.run(run),
            Instruction::Copy(copy) => return Ok(Plan { work: self.copy(copy, false)?, command: Vec::new(), note }),
            Instruction::Add(copy) => return Ok(Plan { work: self.copy(copy, true)?, command: Vec::new(), note }),
        };
        let command = self.nop(&["#(nop) ".into(), comment]);
        Ok(Plan { work: Work::Configure, command, note })
    }

    /// The command that stands for a step that runs nothing.
    pub fn nop(&self, words: &[String]) -> Vec<String> {
        let mut command = self.shell();
        command.extend_from_slice(words);
        command
    }

    /// Expands variables by the image's environment, then the build arguments.
    pub fn expand(&self, text: &str) -> Result<String> {
        Expander::new(self.escape, &|name| self.variable(name)).word(text).map_err(Error::invalid)
    }

    fn variable(&self, name: &str) -> Option<String> {
        let env = self.config.env.as_deref().unwrap_or_default();
        let set = env.iter().find_map(|e| e.split_once('=').filter(|(n, _)| *n == name).map(|(_, value)| value.to_owned()));
        set.or_else(|| self.args.allowed(name))
    }

    fn shell(&self) -> Vec<String> {
        match self.config.shell.as_deref() {
            Some(shell) if !shell.is_empty() => shell.to_vec(),
            _ => DEFAULT_SHELL.map(String::from).to_vec(),
        }
    }

    fn with_shell(&self, line: &CommandLine) -> Vec<String> {
        let mut command = if line.shell { self.shell() } else { Vec::new() };
        command.extend_from_slice(&line.words);
        command
    }

    fn env(&mut self, pairs: &[(String, String)]) -> Result<String> {
        let expanded = self.expand_pairs(pairs)?;
        let env = self.config.env.get_or_insert_default();
        let mut comment = String::from("ENV");
        for (name, value) in expanded {
            let variable = format!("{name}={value}");
            comment = format!("{comment} {variable}");
            match env.iter_mut().find(|e| e.split_once('=').map_or(e.as_str(), |(n, _)| n) == name) {
                Some(old) => *old = variable,
                None => env.push(variable),
            }
        }
        Ok(comment)
    }

    fn label(&mut self, pairs: &[(String, String)], literal: bool) -> Result<String> {
        let pairs = if literal { pairs.to_vec() } else { self.expand_pairs(pairs)? };
        let mut comment = String::from("LABEL");
        for (name, value) in pairs {
            comment = format!("{comment} {name}={value}");
            self.config.labels.get_or_insert_default().insert(name, value);
        }
        Ok(comment)
    }

    fn expand_pairs(&self, pairs: &[(String, String)]) -> Result<Vec<(String, String)>> {
        pairs.iter().map(|(name, value)| Ok((self.expand(name)?, self.expand(value)?))).collect()
    }

    fn arg(&mut self, pairs: &[(String, Option<String>)]) -> Result<String> {
        let mut shown = Vec::new();
        for (name, default) in pairs {
            let name = self.expand(name)?;
            let default = default.as_ref().map(|value| self.expand(value)).transpose()?;
            shown.push(default.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")));
            self.args.add(&name, default);
        }
        Ok(format!("ARG {}", shown.join(" ")))
    }

    fn expose(&mut self, ports: &[String]) -> Result<String> {
        let mut words = Vec::new();
        for port in ports {
            words.extend(Expander::new(self.escape, &|name| self.variable(name)).words(port).map_err(Error::invalid)?);
        }
        for word in &words {
            for port in exposed(word)? {
                self.config.exposed_ports.insert(port, Empty {});
            }
        }
        Ok(format!("EXPOSE {}", words.join(" ")))
    }

    fn volume(&mut self, volumes: &[String]) -> Result<String> {
        let volumes: Vec<String> = volumes.iter().map(|v| self.expand(v)).collect::<Result<_>>()?;
        if volumes.iter().any(String::is_empty) {
            return Err(Error::invalid("VOLUME specified can not be an empty string"));
        }
        let set = self.config.volumes.get_or_insert_default();
        set.extend(volumes.iter().map(|v| (v.clone(), Empty {})));
        Ok(format!("VOLUME [{}]", volumes.join(" ")))
    }

    fn workdir(&mut self, path: &str) -> Result<Plan> {
        let path = self.expand(path)?;
        if path.is_empty() {
            return Err(Error::invalid("cannot normalize nothing"));
        }
        self.config.working_dir = if path.starts_with('/') { path } else { clean(&format!("/{}/{path}", self.config.working_dir)) };
        let command = self.nop(&[format!("#(nop) WORKDIR {}", self.config.working_dir)]);
        Ok(Plan { work: Work::Workdir(self.config.working_dir.clone()), command, note: None })
    }

    fn run(&mut self, run: &Run) -> Result<Plan> {
        let (line, script) = with_heredocs(run)?;
        let argv = self.with_shell(&line);
        let mut env = self.config.env.clone().unwrap_or_default();
        let arguments = self.args.for_run(&env);
        let command = self.args.on_command(&arguments, &argv);
        env.extend(arguments);
        let expand = |text: &str| self.expand(text).map_err(|e| e.message);
        let mounts = run.mounts.iter().map(|m| m.expanded(&expand)).collect::<std::result::Result<_, _>>().map_err(Error::invalid)?;
        let work = RunWork { argv, env, mounts, network: run.network.clone(), security: run.security.clone(), script };
        Ok(Plan { work: Work::Run(work), command, note: None })
    }

    fn copy(&self, copy: &Copy, add: bool) -> Result<Work> {
        let all = |list: &[String]| list.iter().map(|word| self.expand(word)).collect::<Result<Vec<_>>>();
        let mut copy = Copy {
            sources: all(&copy.sources)?,
            exclude: all(&copy.exclude)?,
            dest: self.expand(&copy.dest)?,
            chown: self.expand(&copy.chown)?,
            chmod: self.expand(&copy.chmod)?,
            checksum: self.expand(&copy.checksum)?,
            ..copy.clone()
        };
        for heredoc in copy.heredocs.iter_mut().filter(|h| h.expand) {
            let lookup = |name: &str| self.variable(name);
            // Quotes and backslashes of a here-document's text are its own.
            let text = Expander { raw_quotes: true, raw_escapes: true, ..Expander::new('\\', &lookup) };
            heredoc.content = text.word(&heredoc.content).map_err(Error::invalid)?;
        }
        Ok(Work::Copy { copy, add })
    }
}

/// Applies the `changes` of commit and import to a configuration.
pub fn apply_changes(config: &Config, changes: &[String]) -> Result<Config> {
    let mut state = State { config: config.clone(), args: BuildArgs::default(), author: String::new(), escape: '\\', cmd_set: false };
    for step in super::dockerfile::parse_changes(changes)? {
        state.plan(&step)?;
    }
    Ok(state.config)
}

/// A RUN step's command once its here-documents are part of it; and the program, when the document is one.
fn with_heredocs(run: &Run) -> Result<(CommandLine, Option<String>)> {
    let Some(first) = run.heredocs.first() else { return Ok((run.command.clone(), None)) };
    let [word] = run.command.words.as_slice() else {
        return Err(Error::invalid(format!("parsing produced an invalid run command: {:?}", run.command.words)));
    };
    if super::lex::heredoc(word.trim()).is_none() {
        // A command around its documents: the shell reads them as they were written.
        let mut text = word.clone();
        for heredoc in &run.heredocs {
            text = format!("{text}\n{}{}", heredoc.content, heredoc.name);
        }
        return Ok((CommandLine { words: vec![text], shell: run.command.shell }, None));
    }
    let text = first.text();
    let script = text.starts_with("#!").then(|| text.clone());
    Ok((CommandLine { words: vec![text], shell: run.command.shell }, script))
}

/// The note about a health check that another one replaces.
fn overridden(old: &Healthcheck) -> Option<String> {
    let test = old.test.as_deref().filter(|test| test.first().is_some_and(|kind| kind != "NONE"))?;
    Some(format!("Note: overriding previous HEALTHCHECK: [{}]\n", test.join(" ")))
}

/// A health check as Go prints the struct with `%q`.
fn health_comment(check: &Healthcheck) -> String {
    let test = quote_list(check.test.as_deref().unwrap_or_default());
    let times = [check.interval, check.timeout, check.start_period, check.start_interval].map(|ns| quote(&duration(ns))).join(" ");
    let retries = u32::try_from(check.retries).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
    let retries = quote(&retries.to_string());
    let retries = match retries.trim_matches('"') {
        "'" => "\\'",
        "" | "\\" => "\"",
        inner => inner,
    };
    format!("&{{{test} {times} '{retries}'}}")
}

#[cfg(test)]
mod tests {
    use super::super::dockerfile::parse;
    use super::*;
    use std::collections::BTreeMap;

    fn build(lines: &str) -> (State, Vec<Plan>) {
        let file = parse(format!("FROM a\n{lines}\n").as_bytes(), "Dockerfile").unwrap();
        let mut state = State::begin(None, BuildArgs::new(BTreeMap::from([("given".into(), Some("g".into()))]), &[]), file.escape);
        let plans = file.stages[0].steps.iter().map(|step| state.plan(step).unwrap_or_else(|e| panic!("{}: {e}", step.code))).collect();
        (state, plans)
    }

    fn created_by(line: &str) -> String {
        build(line).1.last().unwrap().command.join(" ")
    }

    #[test]
    fn history_says_what_the_reference_says() {
        for (line, expected) in [
            ("ENV a=b c=\"d e\"", "/bin/sh -c #(nop)  ENV a=b c=d e"),
            ("LABEL a=b \"c d\"=e", "/bin/sh -c #(nop)  LABEL a=b c d=e"),
            ("MAINTAINER me", "/bin/sh -c #(nop)  MAINTAINER me"),
            ("CMD echo hi", "/bin/sh -c #(nop)  CMD [\"/bin/sh\" \"-c\" \"echo hi\"]"),
            ("CMD [\"a\"]", "/bin/sh -c #(nop)  CMD [\"a\"]"),
            ("ENTRYPOINT []", "/bin/sh -c #(nop)  ENTRYPOINT []"),
            ("EXPOSE 81 80/udp", "/bin/sh -c #(nop)  EXPOSE 80/udp 81"),
            ("VOLUME /b /a", "/bin/sh -c #(nop)  VOLUME [/b /a]"),
            ("USER u", "/bin/sh -c #(nop)  USER u"),
            ("WORKDIR /w", "/bin/sh -c #(nop) WORKDIR /w"),
            ("STOPSIGNAL SIGINT", "/bin/sh -c #(nop)  STOPSIGNAL SIGINT"),
            ("ARG a=1 b", "/bin/sh -c #(nop)  ARG a=1 b"),
            ("SHELL [\"/bin/bash\", \"-c\"]", "/bin/bash -c #(nop)  SHELL [/bin/bash -c]"),
            ("ONBUILD RUN x", "/bin/sh -c #(nop)  ONBUILD RUN x"),
            (
                "HEALTHCHECK --interval=5m --retries=3 CMD curl x",
                "/bin/sh -c #(nop)  HEALTHCHECK &{[\"CMD-SHELL\" \"curl x\"] \"5m0s\" \"0s\" \"0s\" \"0s\" '\\x03'}",
            ),
            ("HEALTHCHECK NONE", "/bin/sh -c #(nop)  HEALTHCHECK &{[\"NONE\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\x00'}"),
            ("RUN echo", "/bin/sh -c echo"),
            ("RUN [\"a\", \"b\"]", "a b"),
            ("ARG given\nRUN x", "|1 given=g /bin/sh -c x"),
        ] {
            assert_eq!(created_by(line), expected);
        }
    }

    #[test]
    fn the_environment_expands_into_what_follows() {
        let (state, _) =
            build("ENV a=1\nENV b=$a-$given PATH=/x:$PATH\nARG given\nENV c=${given}\nENV a=2\nWORKDIR $a\nWORKDIR x/../y\nUSER $c");
        let env = state.config.env.unwrap();
        assert_eq!(env[1..], ["a=2", "b=1-", "c=g"]);
        assert!(env[0].starts_with("PATH=/x:/usr/local/sbin"));
        assert_eq!((state.config.working_dir.as_str(), state.config.user.as_str()), ("/2/y", "g"));
    }

    #[test]
    fn entrypoint_resets_an_inherited_cmd() {
        let base = Config { cmd: Some(vec!["sh".into()]), ..Config::default() };
        let apply = |line: &str| {
            let file = parse(format!("FROM a\n{line}").as_bytes(), "Dockerfile").unwrap();
            let mut state = State::begin(Some(&base), BuildArgs::default(), '\\');
            file.stages[0].steps.iter().for_each(|s| drop(state.plan(s).unwrap()));
            state.config.cmd
        };
        assert_eq!(apply("ENTRYPOINT [\"x\"]"), None);
        assert_eq!(apply("CMD [\"y\"]\nENTRYPOINT [\"x\"]"), Some(vec!["y".into()]));
        assert_eq!(apply("CMD []\nENTRYPOINT [\"x\"]"), None);
        assert_eq!(apply("ENTRYPOINT [\"x\"]\nCMD [\"y\"]"), Some(vec!["y".into()]));
    }

    #[test]
    fn run_takes_arguments_and_heredocs() {
        let (_, plans) = build("ARG given\nRUN <<E\necho $given\nE");
        let Work::Run(run) = &plans[1].work else { panic!() };
        assert_eq!(run.argv, ["/bin/sh", "-c", "echo $given\n"]);
        assert!(run.env.contains(&"given=g".to_owned()));
        let (_, plans) = build("RUN cat <<A > /x && cat <<-B\na\nA\n\tb\nB");
        let Work::Run(run) = &plans[0].work else { panic!() };
        assert_eq!(run.argv[2], "cat <<A > /x && cat <<-B\na\nA\n\tb\nB");
        let (_, plans) = build("RUN <<E\n#!/usr/bin/env python\nprint(1)\nE");
        let Work::Run(run) = &plans[0].work else { panic!() };
        assert_eq!(run.script.as_deref(), Some("#!/usr/bin/env python\nprint(1)\n"));
    }

    #[test]
    fn copy_expands_words_and_documents() {
        let (_, plans) = build("ENV d=/x\nCOPY --chown=$d <<E \"$d\"/\n'$d' \\$d\nE");
        let Work::Copy { copy, add: false } = &plans[1].work else { panic!() };
        assert_eq!((copy.dest.as_str(), copy.chown.as_str()), ("/x/", "/x"));
        assert_eq!(copy.heredocs[0].content, "'$d' \\$d\n");
    }

    #[test]
    fn exposed_words_split_and_ranges_open() {
        let (state, _) = build("ENV p=\"80 81/udp\"\nEXPOSE $p 7000-7002");
        let ports: Vec<_> = state.config.exposed_ports.keys().map(String::as_str).collect();
        assert_eq!(ports, ["7000/tcp", "7001/tcp", "7002/tcp", "80/tcp", "81/udp"]);
    }

    #[test]
    fn changes_apply_to_a_configuration() {
        let list = |c: &[&str]| c.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let config = apply_changes(&Config::default(), &list(&["ENV a=b", "CMD [\"x\"]", "WORKDIR /w", "EXPOSE 80"])).unwrap();
        assert_eq!(config.env, Some(list(&["a=b"])));
        assert_eq!((config.cmd, config.working_dir.as_str()), (Some(list(&["x"])), "/w"));
        let refuse = |c| apply_changes(&Config::default(), &list(&[c])).unwrap_err().message;
        assert_eq!(refuse("STOPSIGNAL X"), "STOPSIGNAL is not a valid change command");
        assert_eq!(refuse("EXPOSE x"), "Invalid containerPort: x");
        assert_eq!(refuse("COPY a b"), "COPY is not a valid change command");
    }

    #[test]
    fn a_second_healthcheck_is_noted() {
        let (_, plans) = build("HEALTHCHECK CMD a\nHEALTHCHECK CMD b");
        assert_eq!(plans[1].note.as_deref(), Some("Note: overriding previous HEALTHCHECK: [CMD-SHELL a]\n"));
    }
}

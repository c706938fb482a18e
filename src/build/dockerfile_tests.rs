//! Tables for the Dockerfile parser: every instruction's forms, and every refusal with its words.

use super::*;

fn file(text: &str) -> Dockerfile {
    parse(text.as_bytes(), "Dockerfile").unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

/// The one step after `FROM a`.
fn only(line: &str) -> Instruction {
    let mut file = file(&format!("FROM a\n{line}\n"));
    assert_eq!(file.stages[0].steps.len(), 1, "{line}");
    file.stages[0].steps.remove(0).instruction
}

fn refusal(text: &str) -> String {
    parse(text.as_bytes(), "Dockerfile").map(|_| format!("accepted {text:?}")).unwrap_or_else(|e| e.message)
}

#[test]
fn stages_and_global_arguments() {
    let file = file("ARG V=1\nARG W\nFROM --platform=$P a:${V} AS Base\nRUN x\nfrom base as two\nCOPY --from=base /a /b\nFROM scratch");
    assert_eq!(file.global_args.len(), 2);
    let names: Vec<_> = file.stages.iter().map(|s| (s.name.as_str(), s.base.as_str(), s.platform.as_str())).collect();
    assert_eq!(names, [("base", "a:${V}", "$P"), ("two", "base", ""), ("", "scratch", "")]);
    assert_eq!(file.stages[1].steps[0].code, "COPY --from=base /a /b");
}

#[test]
fn every_instruction_is_typed() {
    let line = |words: &[&str], shell| CommandLine { words: words.iter().map(|w| (*w).to_owned()).collect(), shell };
    let strings = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    for (text, expected) in [
        ("CMD echo hi", Instruction::Cmd(line(&["echo hi"], true))),
        ("CMD [\"echo\", \"hi\"]", Instruction::Cmd(line(&["echo", "hi"], false))),
        ("CMD []", Instruction::Cmd(line(&[], false))),
        ("cmd", Instruction::Cmd(line(&[], true))),
        ("ENTRYPOINT [\"a\"]", Instruction::Entrypoint(line(&["a"], false))),
        ("ENV a=b c=d", Instruction::Env(vec![("a".into(), "b".into()), ("c".into(), "d".into())])),
        ("ENV a b c", Instruction::Env(vec![("a".into(), "b c".into())])),
        ("LABEL a=b", Instruction::Label { pairs: vec![("a".into(), "b".into())], literal: false }),
        ("LABEL a b", Instruction::Label { pairs: vec![("a".into(), "b".into())], literal: false }),
        ("EXPOSE 90 80/tcp", Instruction::Expose(strings(&["80/tcp", "90"]))),
        ("ARG a=b c d=", Instruction::Arg(vec![("a".into(), Some("b".into())), ("c".into(), None), ("d".into(), Some(String::new()))])),
        ("MAINTAINER me <me@x>", Instruction::Maintainer("me <me@x>".into())),
        ("USER a:b", Instruction::User("a:b".into())),
        ("WORKDIR /a b", Instruction::Workdir("/a b".into())),
        ("STOPSIGNAL SIGINT", Instruction::StopSignal("SIGINT".into())),
        ("VOLUME /a /b", Instruction::Volume(strings(&["/a", "/b"]))),
        ("VOLUME [\"/a b\"]", Instruction::Volume(strings(&["/a b"]))),
        ("SHELL [\"/bin/bash\", \"-c\"]", Instruction::Shell(strings(&["/bin/bash", "-c"]))),
        ("ONBUILD RUN  echo  a", Instruction::Onbuild("RUN  echo  a".into())),
        ("onbuild copy a b", Instruction::Onbuild("copy a b".into())),
        ("ONBUILD RUN <<E\nx\nE", Instruction::Onbuild("RUN <<E\nx\nE".into())),
    ] {
        assert_eq!(only(text), expected, "{text}");
    }
}

#[test]
fn copy_and_add_take_their_flags() {
    let Instruction::Copy(copy) = only("COPY --from=x --chown=1:2 --chmod=644 --link --parents --exclude=a --exclude=b /a /b/") else {
        panic!()
    };
    assert!(copy.link && copy.parents);
    assert_eq!((copy.from.as_str(), copy.chown.as_str(), copy.chmod.as_str()), ("x", "1:2", "644"));
    assert_eq!(copy.exclude, ["a", "b"]);
    let Instruction::Add(add) = only("ADD --checksum=sha256:ab --keep-git-dir=true --unpack=false http://x/y .") else { panic!() };
    assert_eq!((add.checksum.as_str(), add.keep_git_dir, add.unpack, add.dest.as_str()), ("sha256:ab", true, Some(false), "."));
    let Instruction::Copy(copy) = only("COPY <<a b <<-c /d/\nA\na\n\tC\nc") else { panic!() };
    assert_eq!(copy.sources, ["b"]);
    assert_eq!(copy.heredocs.iter().map(Heredoc::text).collect::<Vec<_>>(), ["A\n", "C\n"]);
}

#[test]
fn run_takes_mounts_network_and_security() {
    let Instruction::Run(run) = only("RUN --mount=type=cache,target=/c --mount=target=/x --network=none --security=sandbox make") else {
        panic!()
    };
    assert_eq!((run.mounts.len(), run.network.as_str(), run.security.as_str()), (2, "none", "sandbox"));
    assert_eq!(run.command.words, ["make"]);
    let Instruction::Run(run) = only("RUN <<EOF\na\nEOF") else { panic!() };
    assert_eq!((run.command.words.as_slice(), run.heredocs.len()), (&["<<EOF".to_owned()][..], 1));
}

#[test]
fn healthchecks() {
    let Instruction::Healthcheck(check) =
        only("HEALTHCHECK --interval=5m --timeout=3s --start-period=1s --start-interval=2s --retries=4 CMD curl -f x")
    else {
        panic!()
    };
    assert_eq!(check.test, Some(vec!["CMD-SHELL".into(), "curl -f x".into()]));
    assert_eq!((check.interval, check.timeout, check.retries), (300_000_000_000, 3_000_000_000, 4));
    let Instruction::Healthcheck(check) = only("healthcheck cmd [\"a\", \"b\"]") else { panic!() };
    assert_eq!(check.test, Some(vec!["CMD".into(), "a".into(), "b".into()]));
    let Instruction::Healthcheck(check) = only("HEALTHCHECK none") else { panic!() };
    assert_eq!(check.test, Some(vec!["NONE".into()]));
}

#[test]
fn refusals_name_the_line() {
    for (line, message) in [
        ("FOOBAR x", "unknown instruction: FOOBAR"),
        ("FOO bar", "unknown instruction: FOO (did you mean FROM?)"),
        ("FORM bar", "unknown instruction: FORM (did you mean FROM?)"),
        ("copi a b", "unknown instruction: copi (did you mean copy?)"),
        ("ENV", "ENV requires at least one argument"),
        ("LABEL", "LABEL requires at least one argument"),
        ("ENV =b", "ENV names can not be blank"),
        ("LABEL =b", "LABEL names can not be blank"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =b", "ARG names can not be blank"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("USER", "USER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME [\" \"]", "VOLUME specified can not be an empty string"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("SHELL /bin/sh -c", "SHELL requires the arguments to be in JSON form, not: SHELL /bin/sh -c"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("ADD", "ADD requires at least two arguments, but only one was provided. Destination could not be determined"),
        ("COPY --frm=x a b", "unknown flag: --frm (did you mean from?)"),
        ("COPY --from a b", "missing a value on flag: --from"),
        ("COPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --from=a --from=b a b", "duplicate flag specified: --from"),
        ("COPY a <<E\nE", "COPY cannot accept a heredoc as a destination"),
        ("CMD --x a", "unknown flag: --x"),
        ("ENV --x a=b", "unknown flag: --x"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a b c", "FROM requires either one or three arguments"),
        ("FROM a AS 1x", "invalid name for build stage: \"1x\", name can't start with a number or contain symbols"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK FOO x", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --interval=5 CMD x", "time: missing unit in duration \"5\""),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=x CMD x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("RUN --mount=type=foo,target=/x a", "unsupported mount type \"foo\""),
        ("RUN --network=bridge a", "invalid network mode: \"bridge\""),
    ] {
        assert_eq!(refusal(&format!("FROM a\nRUN \\\n x\n{line}\n")), format!("dockerfile parse error on line 4: {message}"), "{line}");
    }
}

#[test]
fn refusals_of_the_whole_file() {
    for (text, message) in [
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        ("# nothing", "failed to parse Dockerfile: file with no instructions"),
        ("RUN x", "no build stage in current context"),
        ("ARG a", "dockerfile contains no stages to build"),
        ("FROM a\nENV a", "failed to parse Dockerfile: dockerfile parse error on line 2: ENV must have two arguments"),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn changes_take_a_few_instructions() {
    let changes = |list: &[&str]| parse_changes(&list.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>());
    assert_eq!(changes(&["ENV a=b", "CMD x"]).unwrap().len(), 2);
    assert!(changes(&[]).unwrap().is_empty());
    assert_eq!(changes(&["RUN x"]).unwrap_err().message, "RUN is not a valid change command");
    assert_eq!(changes(&["ENV"]).unwrap_err().message, "ENV requires at least one argument");
}

#[test]
fn triggers_are_one_instruction() {
    assert!(parse_trigger("RUN a").is_ok());
    assert_eq!(parse_trigger("RUN a\nRUN b").unwrap_err().message, "onbuild trigger should be a single expression");
    assert!(parse_trigger("FROM a").is_err());
}

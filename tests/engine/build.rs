//! `POST /build`: the classic builder from outside.

use crate::common::image::Tar;
use crate::common::{Answer, Daemon, encode};
use serde_json::{Value, json};

/// A build of a context with this Dockerfile and two files.
fn build(daemon: &Daemon, query: &str, dockerfile: &str) -> Answer {
    let context = Tar::new()
        .file("Dockerfile", 0o644, dockerfile.as_bytes())
        .file("one.txt", 0o644, b"one\n")
        .dir("sub", 0o755)
        .file("sub/two.txt", 0o640, b"two\n")
        .finish();
    daemon.request("POST", &format!("/build?networkmode=none&{query}"), &[("Content-Type", "application/x-tar")], &context)
}

/// The text of a build's stream.
fn text(answer: &Answer) -> String {
    answer.json_lines().iter().filter_map(|line| line["stream"].as_str().map(str::to_owned)).collect()
}

fn error(answer: &Answer) -> Value {
    answer.json_lines().into_iter().find(|line| line.get("errorDetail").is_some()).unwrap_or_default()
}

#[test]
fn steps_are_told_and_the_image_is_named() {
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox\nENV A=b\nRUN echo $A > /made; echo said; echo wrong >&2\nWORKDIR /w\nCOPY one.txt .\n\
                      COPY --chown=alice --chmod=600 sub /s/\nCMD [\"cat\", \"/made\"]\n";
    let answer = build(&daemon, "t=built:1", dockerfile).expect(200);
    let said = text(&answer);
    for part in ["Step 1/7 : FROM busybox\n ---> ", "Step 3/7 : RUN echo", " ---> Running in ", "said\n", "\u{1b}[91mwrong\n\u{1b}[0m"] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    assert!(said.ends_with("Successfully tagged built:1\n"), "{said}");
    let image = daemon.get("/images/built:1/json").expect(200).json();
    assert_eq!(image["Config"]["Cmd"], json!(["cat", "/made"]));
    assert_eq!(image["Config"]["WorkingDir"], "/w");
    let shown = daemon.docker(&["run", "--rm", "--network", "none", "built:1", "stat", "-c", "%n %u:%g %a", "/w/one.txt", "/s/two.txt"]);
    assert_eq!(shown.expect(0).out, "/w/one.txt 0:0 644\n/s/two.txt 1000:1000 600\n");
    assert_eq!(daemon.get("/containers/json?all=1").json(), json!([]), "a step's container is left");
}

#[test]
fn the_second_build_uses_the_cache() {
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox\nRUN echo x > /x\nCOPY one.txt /\nLABEL a=b\n";
    let id = |said: &str| said.rsplit("Successfully built ").next().unwrap_or_default().to_owned();
    let first = text(&build(&daemon, "", dockerfile).expect(200));
    let second = text(&build(&daemon, "", dockerfile).expect(200));
    assert_eq!(second.matches(" ---> Using cache\n").count(), 3, "{second}");
    assert_eq!(id(&first), id(&second));
    let third = text(&build(&daemon, "nocache=1", dockerfile).expect(200));
    assert_eq!(third.matches("Using cache").count(), 0, "{third}");
}

#[test]
fn stages_that_nothing_needs_are_not_built() {
    let daemon = Daemon::with_busybox();
    let dockerfile =
        "FROM busybox AS one\nRUN echo 1 > /made\nFROM busybox AS never\nRUN false\nFROM scratch\nCOPY --from=one /made /made\n";
    let said = text(&build(&daemon, "t=small", dockerfile).expect(200));
    assert!(said.contains("Step 1/4 : FROM busybox AS one"), "{said}");
    let image = daemon.get("/images/small/json").expect(200).json();
    assert_eq!(image["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_failing_step_ends_the_stream_with_its_code() {
    let daemon = Daemon::with_busybox();
    let answer = build(&daemon, "forcerm=1", "FROM busybox\nRUN exit 3\nRUN never\n").expect(200);
    let error = error(&answer);
    assert_eq!(error["error"], "The command '/bin/sh -c exit 3' returned a non-zero code: 3");
    assert_eq!(error["errorDetail"]["code"], 3);
    assert!(!text(&answer).contains("Step 3/3"));
}

#[test]
fn what_cannot_be_read_is_refused_before_the_stream() {
    let daemon = Daemon::with_busybox();
    for (dockerfile, message) in [
        ("FROM busybox\nFOOBAR x", "dockerfile parse error on line 2: unknown instruction: FOOBAR"),
        ("FROM busybox\n\nENV a", "failed to parse Dockerfile: dockerfile parse error on line 3: ENV must have two arguments"),
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        ("RUN x", "no build stage in current context"),
        (
            "FROM busybox AS 1",
            "dockerfile parse error on line 1: invalid name for build stage: \"1\", name can't start with a number or contain symbols",
        ),
    ] {
        build(&daemon, "", dockerfile).refuses(400, message);
    }
    build(&daemon, "dockerfile=nope", "FROM busybox").refuses(400, "Cannot locate specified Dockerfile: nope");
    build(&daemon, "target=x", "FROM busybox").refuses(400, "target stage \"x\" could not be found");
    assert_eq!(build(&daemon, "version=2", "FROM busybox").status, 501);
}

#[test]
fn sources_that_are_not_there_are_named() {
    let daemon = Daemon::with_busybox();
    for (line, message) in [
        ("COPY nope /", "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist"),
        ("COPY *.none /", "COPY failed: no source files were specified"),
        ("COPY one.txt sub /x", "When using COPY with more than one source file, the destination must be a directory and end with a /"),
        ("COPY --from=9 a /", "invalid from flag value 9: index out of bounds"),
    ] {
        let answer = build(&daemon, "", &format!("FROM busybox\n{line}\n"));
        let said = if answer.status == 200 { error(&answer)["error"].as_str().unwrap_or_default().to_owned() } else { answer.message() };
        assert_eq!(said, message, "{line}");
    }
}

#[test]
fn arguments_labels_and_documents_expand() {
    let daemon = Daemon::with_busybox();
    let dockerfile = "ARG TAG=latest\nFROM busybox:$TAG\nARG WHO\nLABEL who=${WHO:-nobody}\nCOPY <<EOF /doc\nhello $WHO\nEOF\nRUN <<EOF\nset -e\ncat /doc\nEOF\n";
    let args = encode("{\"WHO\":\"me\"}");
    let labels = encode("{\"given\":\"$WHO\"}");
    let said = text(&build(&daemon, &format!("t=args&buildargs={args}&labels={labels}"), dockerfile).expect(200));
    assert!(said.contains("hello me\n"), "{said}");
    let image = daemon.get("/images/args/json").expect(200).json();
    assert_eq!(image["Config"]["Labels"], json!({"who": "me", "given": "$WHO"}));
}

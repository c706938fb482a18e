//! The client against a registry that lies: each answer is scripted, each lie must end in a clear refusal.

use super::super::manifest::{Document, OCI_MANIFEST};
use super::*;
use crate::image::digest::Digest;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

/// Serves scripted answers, one per connection, and tells what was asked.
fn registry(answers: Vec<String>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let own = host.clone();
    let (tell, asked) = channel();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((stream, _)) = listener.accept() else { return };
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = tell.send(head);
            let _ = reader.get_mut().write_all(answer.replace("{host}", &own).as_bytes());
        }
    });
    (host, asked)
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn endpoint(host: &str) -> Endpoint {
    Endpoint { https: false, host: host.into(), prefix: String::new(), mirror: false, insecure: true }
}

fn client(mut answers: Vec<String>, login: &Login) -> (Client, Receiver<String>) {
    answers.insert(0, ok("", "{}"));
    connect(answers, login)
}

fn connect(answers: Vec<String>, login: &Login) -> (Client, Receiver<String>) {
    let (host, asked) = registry(answers);
    let settings = Settings { attempts: 1, ..Settings::default() };
    (Client::connect(&settings, &endpoint(&host), "a/b", "pull", login).unwrap(), asked)
}

fn user() -> Login {
    Login { credentials: Credentials { username: "u".into(), password: "p".into(), ..Credentials::default() }, meta: Vec::new() }
}

#[test]
fn lies_about_manifests_are_refused() {
    let real = r#"{"schemaVersion":2}"#;
    let other = Digest::of(b"other");
    let typed = |body: &str| ok(&format!("Content-Type: {OCI_MANIFEST}\r\n"), body);
    let by = other.to_string();
    let cases: Vec<(&str, String, &str)> = vec![
        (&by, typed(real), "manifest verification failed"),
        ("1", ok(&format!("Docker-Content-Digest: {other}\r\n"), real), "manifest verification failed"),
        ("1", typed(&"x".repeat(5 << 20)), "larger than"),
        ("1", answer("500 Oops", "", ""), "received unexpected HTTP status: 500"),
        ("1", answer("404 Not Found", "", "<html>"), "invalid character '<'"),
        ("1", answer("302 Found", "Location: ftp://x/y\r\n", ""), "unsupported protocol scheme"),
        ("1", answer("302 Found", "Location: http://u:p@127.0.0.1:1/\r\n", ""), "credentials in a URL"),
        ("1", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nshort".into(), "read manifest"),
        ("1", "garbage\r\n\r\n".into(), "broken"),
        ("1", format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(100_000)), "headers exceeded"),
    ];
    for (by, answer, message) in cases {
        let (mut client, _asked) = client(vec![answer.clone()], &Login::default());
        let fault = client.manifest(by).err().map(|f| f.message).unwrap_or_default();
        assert!(fault.contains(message), "{message}: {fault}");
    }
    for body in [r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, "[]", "{", r#"{"schemaVersion":1,"fsLayers":[]}"#] {
        let (mut client, _asked) = client(vec![typed(body)], &Login::default());
        assert!(Document::parse(&client.manifest("1").unwrap()).is_err(), "{body}");
    }
}

#[test]
fn lies_about_blobs_are_refused() {
    let content = "0123456789";
    let digest = Digest::of(content.as_bytes());
    for (answer, size, message) in [
        (ok("", "0123456780"), 10, "verification failed"),
        (ok("", content), 9, "another size"),
        (ok("", content), 11, "another size"),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n0123456789extra".to_owned(), 10, "longer than"),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n01234".to_owned(), 10, "unexpected EOF"),
        (answer("206 Partial", "Content-Range: bytes 5-9/10\r\n", "56789"), 10, "unexpected Content-Range"),
        (answer("206 Partial", "", content), 10, "unexpected Content-Range"),
        (answer("404 Not Found", "", r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"x"}]}"#), 10, "blob unknown"),
    ] {
        let (mut client, _asked) = client(vec![answer], &Login::default());
        let fault = client.blob_bytes(digest, size, 1000).unwrap_err();
        assert!(fault.message.contains(message), "{message}: {fault}");
    }
    let (mut honest, _asked) = client(vec![ok("", content)], &Login::default());
    assert_eq!(honest.blob_bytes(digest, 10, 1000).unwrap(), content.as_bytes());
    assert!(honest.blob_bytes(digest, 2000, 1000).unwrap_err().message.contains("larger"));
}

#[test]
fn a_broken_blob_resumes_where_it_broke() {
    let content = "0123456789";
    let broken = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n01234".to_owned();
    for second in [answer("206 Partial", "Content-Range: bytes 5-9/10\r\n", "56789"), ok("", content)] {
        let (mut client, asked) = client(vec![broken.clone(), second], &Login::default());
        let sibling = client.transport.settings().clone();
        client.transport = Transport::new(Settings { attempts: 2, ..sibling });
        let mut waits = 0;
        let mut bytes = Vec::new();
        client.blob(Digest::of(content.as_bytes()), 10).on_retry(|_| waits += 1).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, content.as_bytes());
        assert!(waits > 0);
        let heads: Vec<String> = asked.try_iter().collect();
        assert!(heads[2].contains("bytes=5-"), "{}", heads[2]);
    }
}

#[test]
fn redirects_elsewhere_lose_the_credentials() {
    let (elsewhere, seen) = registry(vec![ok("", "0123456789")]);
    let challenge = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", "");
    let away = answer("307 Temporary Redirect", &format!("Location: http://{elsewhere}/blob\r\n"), "");
    let (mut client, asked) = connect(vec![challenge, away], &user());
    client.blob_bytes(Digest::of(b"0123456789"), 10, 100).unwrap();
    let heads: Vec<String> = asked.try_iter().collect();
    assert!(heads[1].to_lowercase().contains("authorization: basic dtpw"), "{}", heads[1]);
    assert!(!seen.recv().unwrap().to_lowercase().contains("authorization"));
}

#[test]
fn redirect_loops_end() {
    let again = answer("302 Found", "Location: /v2/a/b/blobs/x\r\n", "");
    let (mut client, _asked) = client(vec![again; 12], &Login::default());
    let fault = client.blob_bytes(Digest::of(b"x"), 1, 10).unwrap_err();
    assert!(fault.message.contains("stopped after 10 redirects"), "{fault}");
}

#[test]
fn tokens_are_fetched_and_used() {
    let bearer = "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"reg\"\r\n";
    let (mut client, asked) = connect(
        vec![answer("401 Unauthorized", bearer, ""), ok("", r#"{"token":"tok","expires_in":300}"#), ok("", r#"{"schemaVersion":2}"#)],
        &user(),
    );
    client.manifest("1").unwrap();
    let heads: Vec<String> = asked.try_iter().collect();
    assert!(heads[1].starts_with("GET /token?account=u&scope=repository%3Aa%2Fb%3Apull&service=reg "), "{}", heads[1]);
    assert!(heads[1].to_lowercase().contains("authorization: basic"));
    assert!(heads[2].contains("Bearer tok"), "{}", heads[2]);
}

#[test]
fn lies_about_tokens_are_refused() {
    let bearer = "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"reg\"\r\n";
    let challenge = || answer("401 Unauthorized", bearer, "");
    for (first, second, message) in [
        (challenge(), ok("", "{}"), "did not include a token"),
        (challenge(), ok("", "{\"token\":\"a\\r\\nX: y\"}"), "did not include a token"),
        (challenge(), ok("", "nonsense"), "unable to decode token response"),
        (challenge(), ok("", &"x".repeat(2 << 20)), "larger than"),
        (
            challenge(),
            answer("401 Unauthorized", "", r#"{"details":"incorrect username or password"}"#),
            "unauthorized: incorrect username",
        ),
        (answer("401 Unauthorized", "WWW-Authenticate: Bearer service=\"x\"\r\n", ""), String::new(), "no realm"),
        (answer("401 Unauthorized", "WWW-Authenticate: Bearer realm=\"ftp://x\"\r\n", ""), String::new(), "unsupported protocol scheme"),
    ] {
        let (mut client, _asked) = connect(vec![first, second], &user());
        let fault = client.manifest("1").err().map(|f| f.message).unwrap_or_default();
        assert!(fault.contains(message), "{message}: {fault}");
    }
    let basic = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", "");
    let (mut client, _asked) = connect(vec![basic], &Login::default());
    assert!(client.manifest("1").err().is_some_and(|f| f.message.ends_with("no basic auth credentials")));
}

#[test]
fn a_ping_that_fails_says_how() {
    for (answers, message) in [
        (vec![answer("500 Oops", "", "")], "received unexpected HTTP status: 500"),
        (vec![answer("404 Not Found", "", "{}")], "no error details found"),
        (Vec::new(), ""),
    ] {
        let (host, _asked) = registry(answers);
        let fault = Client::connect(&Settings::default(), &endpoint(&host), "a", "pull", &Login::default()).err();
        assert!(fault.is_some_and(|f| f.message.contains(message)), "{message}");
    }
}

#[test]
fn tag_lists_have_pages_and_an_end() {
    let page = ok("Link: </v2/a/b/tags/list?last=1>; rel=\"next\"\r\n", r#"{"tags":["1"]}"#);
    let (mut client, asked) = client(vec![page, ok("", r#"{"tags":["2"]}"#)], &Login::default());
    assert_eq!(client.tags().unwrap(), ["1", "2"]);
    let heads: Vec<String> = asked.try_iter().collect();
    assert!(heads[2].starts_with("GET /v2/a/b/tags/list?last=1 "));
}

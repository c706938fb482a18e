//! The API's edge, byte by byte: heads, framings, bounds, keep-alive, versions, and what every answer carries.

use crate::common::{Connection, Daemon};
use std::time::{Duration, Instant};

/// Sends raw bytes on a connection of their own and reads one answer.
#[track_caller]
fn raw(daemon: &Daemon, bytes: impl AsRef<[u8]>) -> crate::common::Answer {
    let mut connection = daemon.connect();
    connection.send(bytes);
    connection.read_answer()
}

/// The bytes are answered with this status, and the connection is closed, so that nothing after them is executed.
#[track_caller]
fn refused(daemon: &Daemon, status: u16, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let mut connection = daemon.connect();
    connection.try_send(bytes);
    let answer = connection.read_answer();
    assert_eq!(answer.status, status, "{shown:?} was answered {answer:?}");
    assert!(!answer.message().is_empty());
    assert!(connection.is_closed(), "the connection stays open after {shown:?}");
}

#[test]
fn every_answer_carries_dockers_headers() {
    let daemon = Daemon::new();
    for (method, target) in [
        ("GET", "/_ping"),
        ("HEAD", "/_ping"),
        ("GET", "/version"),
        ("GET", "/nowhere"),
        ("POST", "/containers/x/start"),
        ("GET", "/v1.999/info"),
    ] {
        let answer = daemon.request(method, target, &[], b"");
        assert_eq!(answer.header("Api-Version"), Some("1.51"), "{method} {target}: {answer:?}");
        assert_eq!(answer.header("Docker-Experimental"), Some("false"), "{method} {target}");
        assert_eq!(answer.header("Ostype"), Some("linux"), "{method} {target}");
        let server = answer.header("Server").expect("Server").to_owned();
        assert!(server.starts_with("Docker/") && server.ends_with(" (linux)"), "{server:?}");
        assert!(answer.header("Date").is_some(), "{method} {target}: no Date");
    }
}

#[test]
fn an_unknown_route_is_page_not_found() {
    let daemon = Daemon::new();
    for target in ["/", "/nowhere", "/v1.41/nowhere", "/containers", "/images/a/b/c/nothing", "/v1.41", "/../etc/passwd"] {
        daemon.get(target).refuses(404, "page not found");
    }
}

#[test]
fn a_newer_version_is_refused_in_dockers_words() {
    let daemon = Daemon::new();
    daemon.get("/v1.99/version").refuses(400, "client version 1.99 is too new. Maximum supported API version is 1.51");
    for minor in [24, 30, 41, 51] {
        daemon.get(&format!("/v1.{minor}/_ping")).expect(200);
    }
}

#[test]
fn connections_are_kept_alive() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    for _ in 0..50 {
        connection.request("GET", "/_ping", &[], b"");
        let answer = connection.read_answer().expect(200);
        assert_eq!(answer.text(), "OK");
        connection.request("HEAD", "/_ping", &[], b"");
        let answer = connection.read_answer_to("HEAD").expect(200);
        assert!(answer.body.is_empty());
        connection.request("GET", "/nowhere", &[], b"");
        connection.read_answer().expect(404);
    }
}

#[test]
fn connection_close_is_obeyed() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    connection.request("GET", "/_ping", &[("Connection", "close")], b"");
    let answer = connection.read_answer().expect(200);
    assert_eq!(answer.header("Connection"), Some("close"));
    assert!(connection.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    let one = "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: d\r\n\r\n";
    let three = "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    connection.send(format!("{one}{three}{one}"));
    for status in [200, 404, 400, 200, 404] {
        connection.read_answer().expect(status);
    }
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    for byte in b"POST /containers/nosuch/wait HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" {
        connection.send([*byte]);
    }
    connection.read_answer().refuses(404, "No such container: nosuch");
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    connection.send("GET /_ping HTTP/1.0\r\n\r\n");
    let answer = connection.read_answer().expect(200);
    assert_eq!(answer.text(), "OK");
    assert_eq!(answer.header("Transfer-Encoding"), None);
    assert!(connection.is_closed());
}

#[test]
fn http_1_0_gets_streams_without_chunks() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    connection.send("GET /events?since=1&until=2 HTTP/1.0\r\n\r\n");
    let head = connection.read_head().expect(200);
    assert_eq!(head.header("Transfer-Encoding"), None);
    assert_eq!(connection.read_to_end(), b"");
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    connection.send(
        "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 19\r\n\r\n",
    );
    assert_eq!(connection.read_head().status, 100);
    connection.send(r#"{"Image": "nosuch"}"#);
    connection.read_answer().refuses(404, "No such image: nosuch:latest");
}

#[test]
fn expect_continue_reaches_a_worker() {
    let daemon = Daemon::new();
    let tar = crate::common::image::Tar::new().file("a", 0o644, b"a").finish();
    let mut connection = daemon.connect();
    connection.send(format!(
        "POST /images/create?fromSrc=-&repo=expected HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        tar.len()
    ));
    assert_eq!(connection.read_head().status, 100);
    connection.send(tar);
    connection.read_answer().expect(200);
    daemon.get("/images/expected/json").expect(200);
}

#[test]
fn chunked_bodies_are_read_however_they_are_cut() {
    let daemon = Daemon::new();
    let head = "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "13\r\n{\"Image\": \"nosuch\"}\r\n0\r\n\r\n",
        "9\r\n{\"Image\":\r\nA\r\n \"nosuch\"}\r\n0\r\n\r\n",
        "13;name=value\r\n{\"Image\": \"nosuch\"}\r\n0\r\nTrailer: x\r\n\r\n",
        "000013\r\n{\"Image\": \"nosuch\"}\r\n000\r\n\r\n",
    ] {
        let mut connection = daemon.connect();
        connection.send(format!("{head}{body}GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"));
        connection.read_answer().refuses(404, "No such image: nosuch:latest");
        assert_eq!(connection.read_answer().text(), "OK", "after {body:?}");
    }
}

#[test]
fn bad_chunk_sizes_are_refused() {
    let daemon = Daemon::new();
    let head = "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "-2\r\n{}\r\n0\r\n\r\n",
        "+2\r\n{}\r\n0\r\n\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        "\r\n{}\r\n0\r\n\r\n",
        "g\r\n{}\r\n",
        "2\r\n{}x\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{}",
        "8000000000000000\r\n{}",
    ] {
        refused(&daemon, 400, format!("{head}{body}"));
    }
    refused(&daemon, 400, format!("{head}{}", "1".repeat(70_000)));
}

#[test]
fn a_body_that_ends_early_is_not_executed() {
    let daemon = Daemon::with_busybox();
    for head in ["Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n14\r\n"] {
        let mut connection = daemon.connect();
        connection.send(format!("POST /containers/create?name=cut HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n{head}"));
        connection.send(r#"{"Image": "busybox"}"#);
        connection.shut_write();
        connection.read_to_end();
        daemon.get("/containers/cut/json").refuses(404, "No such container: cut");
    }
}

#[test]
fn two_framings_of_one_body_are_refused() {
    let daemon = Daemon::new();
    let post = "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n";
    refused(&daemon, 400, format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
    refused(&daemon, 400, format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n"));
    refused(&daemon, 400, format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"));
    refused(&daemon, 400, format!("{post}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"));
    refused(&daemon, 400, format!("{post}Content-Length: 2, 2\r\n\r\n{{}}"));
    // RFC 9112 section 6.1: an encoding that is not understood is 501.
    refused(&daemon, 501, format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"));
    refused(&daemon, 501, format!("{post}Transfer-Encoding: identity\r\n\r\n"));
    refused(&daemon, 400, format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
}

#[test]
fn lengths_are_digits() {
    let daemon = Daemon::new();
    for length in ["-1", "+2", "0x2", "2 ", "", "2a", "18446744073709551616", "99999999999999999999999"] {
        if length != "2 " {
            refused(&daemon, 400, format!("POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: {length}\r\n\r\n{{}}"));
        }
    }
}

#[test]
fn malformed_heads_are_refused() {
    let daemon = Daemon::new();
    let ping = "GET /_ping HTTP/1.1\r\nHost: d\r\n";
    for head in [
        format!("{ping}Content-Length : 5\r\n\r\n"),
        format!("{ping}X: a\r\n folded\r\n\r\n"),
        format!("{ping}: empty\r\n\r\n"),
        format!("{ping}X: a\0b\r\n\r\n"),
        format!("{ping}X: a\rb\r\n\r\n"),
        format!("{ping}X: a\x01b\r\n\r\n"),
        format!("{ping}no colon\r\n\r\n"),
        format!("{ping}Host: again\r\n\r\n"),
        "GET /_ping HTTP/1.1\r\n\r\n".to_owned(),
        "GET /_ping\x01 HTTP/1.1\r\nHost: d\r\n\r\n".to_owned(),
        "GET _ping HTTP/1.1\r\nHost: d\r\n\r\n".to_owned(),
        "GET  /_ping HTTP/1.1\r\nHost: d\r\n\r\n".to_owned(),
        "G=T /_ping HTTP/1.1 x\r\nHost: d\r\n\r\n".to_owned(),
        "CONNECT host:80 HTTP/1.1\r\nHost: d\r\n\r\n".to_owned(),
        "GET ftp://d/_ping HTTP/1.1\r\nHost: d\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(),
    ] {
        refused(&daemon, 400, head);
    }
}

#[test]
fn heads_are_bounded() {
    let daemon = Daemon::new();
    refused(&daemon, 431, format!("GET /_ping HTTP/1.1\r\nHost: d\r\nX: {}\r\n\r\n", "x".repeat(70_000)));
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    refused(&daemon, 431, format!("GET /_ping HTTP/1.1\r\nHost: d\r\n{many}\r\n"));
    refused(&daemon, 414, format!("GET /{} HTTP/1.1\r\nHost: d\r\n\r\n", "x".repeat(20_000)));
    let fits: String = (0..100).map(|n| format!("X-{n}: {}\r\n", "y".repeat(400))).collect();
    raw(&daemon, format!("GET /_ping HTTP/1.1\r\nHost: d\r\n{fits}\r\n")).expect(200);
}

#[test]
fn json_bodies_are_bounded_and_strict() {
    let daemon = Daemon::new();
    let json = [("Content-Type", "application/json")];
    refused(
        &daemon,
        413,
        "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 20000000\r\n\r\n",
    );
    for body in ["{", "{} {}", "{}x", "[", "nul", "{\"Image\": 5}", "{\"Cmd\": {\"a\": 1}}", "\u{feff}{}"] {
        let answer = daemon.request("POST", "/containers/create", &json, body.as_bytes()).expect(400);
        assert!(!answer.message().is_empty(), "{body:?}");
    }
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    daemon.request("POST", "/containers/create", &json, deep.as_bytes()).expect(400);
    let answer = daemon.request("POST", "/containers/create", &[("Content-Type", "text/plain")], b"{}").expect(400);
    assert_eq!(answer.message(), "unsupported Content-Type header (text/plain): must be 'application/json'");
}

#[test]
fn a_slow_head_meets_its_deadline_whatever_trickles() {
    let daemon = Daemon::new();
    let mut connection = daemon.connect();
    let start = Instant::now();
    connection.send("GET /_ping HTTP/1.1\r\nHost: d\r\nX: ");
    while connection.try_send("x") {
        assert!(start.elapsed() < Duration::from_secs(20), "a head may trickle for ever");
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(start.elapsed() > Duration::from_secs(5), "closed after {:?}", start.elapsed());
}

#[test]
fn many_idle_connections_do_not_keep_others_out() {
    let daemon = Daemon::new();
    let held: Vec<Connection> = (0..1000).map(|_| daemon.connect()).collect();
    daemon.get("/_ping").expect(200);
    daemon.get("/info").expect(200);
    drop(held);
}

#[test]
fn options_is_answered() {
    let daemon = Daemon::new();
    daemon.request("OPTIONS", "/containers/json", &[], b"").expect(200);
    daemon.request("OPTIONS", "/v1.41/_ping", &[], b"").expect(200);
}

#[test]
fn percent_encoding_is_undone_once() {
    let daemon = Daemon::with_busybox();
    daemon.get("/containers/a%20b/json").refuses(404, "No such container: a b");
    daemon.get("/images/busybox%3Alatest/json").expect(200);
    daemon.get("/images/busybox%253Alatest/json").expect(400);
    for bad in ["/containers/%zz/json", "/containers/%/json", "/containers/a%00b/json", "/containers/a%0ab/json"] {
        let status = daemon.get(bad).status;
        assert!(status == 400 || status == 404, "{bad}: {status}");
    }
}

#[test]
fn head_has_the_length_and_no_body() {
    let daemon = Daemon::new();
    let get = daemon.get("/_ping").expect(200);
    let head = daemon.request("HEAD", "/_ping", &[], b"").expect(200);
    assert!(head.body.is_empty());
    assert_eq!(head.header("Content-Type"), get.header("Content-Type"));
}

#[test]
fn a_client_that_goes_in_mid_request_harms_nobody() {
    let daemon = Daemon::new();
    let before = daemon.descriptors();
    for bytes in
        ["", "G", "GET /_ping HTTP/1.1\r\nHo", "POST /images/create?fromSrc=- HTTP/1.1\r\nHost: d\r\nContent-Length: 1000\r\n\r\nabc"]
    {
        for _ in 0..20 {
            let mut connection = daemon.connect();
            connection.send(bytes);
        }
    }
    crate::common::eventually("descriptors closed", Duration::from_secs(10), || (daemon.descriptors() <= before).then_some(()));
    daemon.get("/_ping").expect(200);
}

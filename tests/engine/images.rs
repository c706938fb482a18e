//! Images that come without a registry: import, load, save, and what is done with their names.

use crate::common::image::{self, Tar};
use crate::common::{Daemon, encode};
use serde_json::{Value, json};

/// The repository tags of every image, sorted.
fn tags(daemon: &Daemon) -> Vec<String> {
    let list = daemon.get("/images/json").expect(200).json();
    let mut tags: Vec<String> = list
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|i| i["RepoTags"].as_array().cloned().unwrap_or_default())
        .map(|t| t.as_str().unwrap_or("").to_owned())
        .collect();
    tags.sort();
    tags
}

#[test]
fn import_makes_an_image_of_one_layer() {
    let daemon = Daemon::new();
    let id = image::import_with(
        &daemon,
        "imported:v1",
        &[
            "ENV A=b",
            "CMD [\"sh\", \"-c\", \"x\"]",
            "WORKDIR /tmp",
            "USER alice",
            "EXPOSE 80/tcp",
            "LABEL l=m",
            "VOLUME /v",
            "ENTRYPOINT [\"e\"]",
        ],
        &Tar::new().dir("etc", 0o755).file("etc/a", 0o644, b"a").finish(),
    );
    let image = daemon.get("/images/imported:v1/json").expect(200).json();
    assert_eq!(image["Id"], id.as_str());
    assert_eq!(image["RepoTags"], json!(["imported:v1"]));
    assert_eq!(image["Config"]["Env"], json!(["A=b"]));
    assert_eq!(image["Config"]["Cmd"], json!(["sh", "-c", "x"]));
    assert_eq!(image["Config"]["Entrypoint"], json!(["e"]));
    assert_eq!((&image["Config"]["WorkingDir"], &image["Config"]["User"]), (&json!("/tmp"), &json!("alice")));
    assert_eq!(image["Config"]["ExposedPorts"], json!({"80/tcp": {}}));
    assert_eq!(image["Config"]["Labels"], json!({"l": "m"}));
    assert_eq!(image["Config"]["Volumes"], json!({"/v": {}}));
    assert_eq!(image["Os"], "linux");
    assert!(image["Architecture"].as_str().is_some_and(|a| !a.is_empty()));
    assert_eq!(image["RootFS"]["Type"], "layers");
    assert_eq!(image["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
    assert!(image["Size"].as_i64().is_some_and(|size| size >= 1));
    assert!(image["Created"].as_str().is_some_and(|at| at.starts_with("20")));
    let history = daemon.get("/images/imported:v1/history").expect(200).json();
    assert_eq!(history.as_array().map(Vec::len), Some(1));
    assert_eq!(history[0]["Tags"], json!(["imported:v1"]));
    daemon.docker(&["history", "imported:v1"]).expect(0);
}

#[test]
fn the_cli_imports_a_file_and_standard_input() {
    let daemon = Daemon::new();
    let tar = Tar::new().file("hello", 0o644, b"hello\n").finish();
    let path = daemon.world.path("root.tar");
    std::fs::write(&path, &tar).expect("the world can be written");
    let said = daemon.docker(&["import", "-c", "CMD /hello", path.to_str().expect("UTF-8"), "file:1"]).expect(0);
    assert!(said.trimmed().starts_with("sha256:") && said.trimmed().len() == 71, "{said:?}");
    daemon.docker_with_input(&["import", "-m", "a message", "-", "stdin"], &tar).expect(0);
    assert_eq!(tags(&daemon), ["file:1", "stdin:latest"]);
    let said = daemon.docker(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "file"]).expect(0);
    assert!(said.out.starts_with("file:1 "), "{said:?}");
    let said = daemon.docker(&["history", "--format", "{{.Comment}}", "stdin"]).expect(0);
    assert_eq!(said.trimmed(), "a message");
}

#[test]
fn import_takes_every_compression() {
    let daemon = Daemon::new();
    let tar = Tar::new().file("x", 0o644, &vec![b'x'; 100_000]).finish();
    let path = daemon.world.path("plain.tar");
    std::fs::write(&path, &tar).expect("the world can be written");
    let mut ids = vec![image::import(&daemon, "plain", &tar)];
    for (program, args) in [("gzip", ["-c"]), ("bzip2", ["-c"]), ("xz", ["-c"]), ("zstd", ["-c"])] {
        let Some(found) = crate::common::find_program(program) else { continue };
        let output = std::process::Command::new(found).args(args).arg(&path).output().expect("it runs");
        ids.push(image::import(&daemon, program, &output.stdout));
    }
    let layers: Vec<Value> =
        ids.iter().map(|id| daemon.get(&format!("/images/{id}/json")).expect(200).json()["RootFS"]["Layers"].clone()).collect();
    assert!(layers.len() >= 3, "no compressor is installed");
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]), "the diff id is of the uncompressed tar: {layers:?}");
}

#[test]
fn import_refuses_what_is_no_archive() {
    let daemon = Daemon::new();
    let before = tags(&daemon);
    let tar = Tar::new().file("a", 0o644, &[b'a'; 5000]).finish();
    for bytes in [&b"not a tar archive, but long enough to be looked at"[..], &tar[..3000], &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3]]
    {
        let answer = daemon.request("POST", "/images/create?fromSrc=-&repo=bad", &[], bytes);
        let refused = answer.status >= 400 || answer.text().contains("errorDetail");
        assert!(refused, "{} {}", answer.status, answer.text());
    }
    assert_eq!(tags(&daemon), before);
    daemon.post("/images/create?fromSrc=-&repo=Bad").expect(400);
    daemon.post("/images/create?fromSrc=-&repo=bad&changes=RUN%20x").expect(400);
}

#[test]
fn tag_moves_names_and_rmi_removes_them() {
    let daemon = Daemon::with_busybox();
    daemon.docker(&["tag", "busybox", "other:1"]).expect(0);
    daemon.docker(&["tag", "busybox", "registry.example:5000/a/b:c"]).expect(0);
    assert_eq!(tags(&daemon), ["busybox:latest", "other:1", "registry.example:5000/a/b:c"]);
    let said = daemon.docker(&["rmi", "other:1"]).expect(0);
    assert_eq!(said.trimmed(), "Untagged: other:1");
    daemon.get("/images/registry.example:5000/a/b:c/json").expect(200);
    daemon.get("/images/registry.example:5000%2Fa%2Fb:c/json").expect(200);
    let id = daemon.get("/images/busybox/json").expect(200).json()["Id"].as_str().expect("an id").to_owned();
    let short = &id[7..19];
    daemon.get(&format!("/images/{short}/json")).expect(200);
    daemon.get(&format!("/images/{id}/json")).expect(200);
    let answer = daemon.delete(&format!("/images/{short}")).expect(409);
    assert!(answer.message().contains("image is referenced in multiple repositories"), "{}", answer.message());
    let said = daemon.docker(&["rmi", "-f", short]).expect(0);
    assert!(said.out.contains("Untagged: busybox:latest") && said.out.contains(&format!("Deleted: {id}")), "{said:?}");
    assert_eq!(tags(&daemon), Vec::<String>::new());
    daemon.get("/images/busybox/json").refuses(404, "No such image: busybox:latest");
    daemon.delete("/images/busybox").refuses(404, "No such image: busybox:latest");
    let left: Vec<_> = std::fs::read_dir(daemon.world.data_root.join("layers")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "layers of no image: {left:?}");
}

#[test]
fn bad_names_are_refused() {
    let daemon = Daemon::with_busybox();
    for (repo, tag) in
        [("Upper", "a"), ("a//b", "x"), ("-a", "x"), ("a", "b c"), ("a", "-b"), ("a/../b", "x"), ("", "x"), (&"a".repeat(300), "x")]
    {
        daemon.post(&format!("/images/busybox/tag?repo={}&tag={}", encode(repo), encode(tag))).expect(400);
    }
    daemon.post("/images/nosuch/tag?repo=a&tag=b").refuses(404, "No such image: nosuch:latest");
    assert_eq!(tags(&daemon), ["busybox:latest"]);
}

#[test]
fn an_image_in_use_is_not_deleted() {
    let daemon = Daemon::with_busybox();
    let id = daemon.run("user", &["sleep", "60"]);
    let answer = daemon.delete("/images/busybox").expect(409);
    assert!(answer.message().contains("container") && answer.message().contains(&id[..12]), "{}", answer.message());
    daemon.remove(&id);
    daemon.delete("/images/busybox").expect(200);
}

#[test]
fn saved_images_load_again_with_the_same_id() {
    let daemon = Daemon::with_busybox();
    daemon.docker(&["tag", "busybox", "second:tag"]).expect(0);
    let id = daemon.get("/images/busybox/json").expect(200).json()["Id"].clone();
    let saved = daemon.get("/images/get?names=busybox&names=second:tag").expect(200);
    assert_eq!(saved.header("Content-Type"), Some("application/x-tar"));
    daemon.docker(&["rmi", "busybox", "second:tag"]).expect(0);
    assert_eq!(tags(&daemon), Vec::<String>::new());
    let said = daemon.docker_with_input(&["load"], &saved.body).expect(0);
    let mut lines: Vec<&str> = said.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Loaded image: busybox:latest", "Loaded image: second:tag"]);
    assert_eq!(daemon.get("/images/second:tag/json").expect(200).json()["Id"], id);
    assert_eq!(daemon.docker(&["run", "--rm", "--net", "none", "busybox", "echo", "alive"]).expect(0).trimmed(), "alive");
}

/// A config and a manifest.json around one layer, as `docker save` makes them.
fn archive(config: &[u8], layer: &[u8], manifest: Option<Value>) -> Vec<u8> {
    let manifest = manifest.unwrap_or_else(|| json!([{"Config": "config.json", "RepoTags": ["made:1"], "Layers": ["layer.tar"]}]));
    Tar::new()
        .file("config.json", 0o644, config)
        .file("layer.tar", 0o644, layer)
        .file("manifest.json", 0o644, manifest.to_string().as_bytes())
        .finish()
}

fn sha256(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn load_takes_a_hand_made_archive_and_checks_it() {
    let daemon = Daemon::new();
    let layer = Tar::new().file("x", 0o644, b"x").finish();
    let config = |diff: &str| {
        json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]}})
            .to_string()
    };
    let good = config(&sha256(&layer));
    let load = |bytes: &[u8]| daemon.request("POST", "/images/load", &[("Content-Type", "application/x-tar")], bytes);
    let answer = load(&archive(good.as_bytes(), &layer, None)).expect(200);
    assert!(answer.text().contains("Loaded image: made:1"), "{}", answer.text());
    assert_eq!(daemon.get("/images/made:1/json").expect(200).json()["Id"], format!("sha256:{}", sha256(good.as_bytes())));
    daemon.delete("/images/made:1").expect(200);
    let missing = json!([{"Config": "config.json", "RepoTags": ["bad:1"], "Layers": ["nosuch.tar"]}]);
    let outside = json!([{"Config": "../../../../etc/passwd", "RepoTags": ["bad:1"], "Layers": ["layer.tar"]}]);
    for (what, bytes) in [
        (
            "a wrong diff id",
            archive(
                config(&"0".repeat(64)).as_bytes(),
                &layer,
                Some(json!([{"Config": "config.json", "RepoTags": ["bad:1"], "Layers": ["layer.tar"]}])),
            ),
        ),
        ("a missing layer", archive(good.as_bytes(), &layer, Some(missing))),
        ("a config outside", archive(good.as_bytes(), &layer, Some(outside))),
        ("no config", archive(b"{}", &layer, Some(json!([{"Config": "config.json", "RepoTags": ["bad:1"], "Layers": ["layer.tar"]}])))),
        ("garbage", b"garbage".repeat(200)),
        ("an empty archive", Tar::new().finish()),
    ] {
        let answer = load(&bytes);
        assert!(answer.status >= 400 || answer.text().contains("errorDetail"), "{what}: {} {}", answer.status, answer.text());
        daemon.get("/images/bad:1/json").expect(404);
    }
    assert_eq!(daemon.get("/images/json?all=1").expect(200).json(), json!([]));
}

#[test]
fn load_reads_regular_files_only() {
    let daemon = Daemon::new();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["bad:1"], "Layers": []}]).to_string();
    for kind in [tar::EntryType::Fifo, tar::EntryType::Char] {
        let bytes = Tar::new().node("config.json", kind, 1, 5).file("manifest.json", 0o644, manifest.as_bytes()).finish();
        let answer = daemon.request("POST", "/images/load", &[], &bytes);
        assert!(answer.status >= 400 || answer.text().contains("errorDetail"), "{} {}", answer.status, answer.text());
    }
    let bytes = Tar::new().symlink("config.json", "/etc/passwd").file("manifest.json", 0o644, manifest.as_bytes()).finish();
    let answer = daemon.request("POST", "/images/load", &[], &bytes);
    assert!(answer.status >= 400 || answer.text().contains("errorDetail"));
    daemon.get("/_ping").expect(200);
}

#[test]
fn hostile_layers_touch_nothing_outside() {
    let daemon = Daemon::new();
    let canary = daemon.world.path("canary");
    std::fs::create_dir(&canary).expect("the world can be written");
    let outside = canary.to_str().expect("UTF-8");
    let escapes: Vec<Vec<u8>> = vec![
        Tar::new().symlink("link", outside).file("link/written", 0o644, b"x").finish(),
        Tar::new().symlink("a", "..").symlink("b", "a/../../../../../../..").file(&format!("b{outside}/written"), 0o644, b"x").finish(),
        Tar::new().symlink("d", outside).dir("d/made", 0o755).finish(),
        Tar::new().symlink("d", outside).symlink("d/linked", "/etc").finish(),
        Tar::new().symlink("d", outside).node("d/fifo", tar::EntryType::Fifo, 0, 0).finish(),
        Tar::new().hard_link("hard", &format!("../../../../../../../..{outside}/../docker.sock")).finish(),
        raw_path(b"../../../../../../../../../../tmp/coracle-escaped"),
        raw_path(format!("{outside}/written").as_bytes()),
        raw_path(b"x/../../../../../../../../../../tmp/coracle-escaped"),
    ];
    for bytes in escapes {
        daemon.request("POST", "/images/create?fromSrc=-&repo=hostile", &[], &bytes);
        let found: Vec<_> = std::fs::read_dir(&canary).expect("the canary").flatten().map(|e| e.path()).collect();
        assert!(found.is_empty(), "written outside: {found:?}");
        assert!(!std::path::Path::new("/tmp/coracle-escaped").exists());
    }
}

/// One file whose name the tar crate would refuse to write.
fn raw_path(path: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
    header.set_size(1);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([b'x']);
    bytes.resize(512 * 4, 0);
    bytes
}

#[test]
fn image_filters_and_prune() {
    let daemon = Daemon::with_busybox();
    image::import_with(&daemon, "labelled", &["LABEL a=b"], &Tar::new().file("l", 0o644, b"l").finish());
    let dangling = {
        let first = image::import(&daemon, "moved", &Tar::new().file("1", 0o644, b"1").finish());
        image::import(&daemon, "moved", &Tar::new().file("2", 0o644, b"2").finish());
        first
    };
    let ids = |filters: &str| -> Vec<String> {
        let list = daemon.get(&format!("/images/json?filters={}", encode(filters))).expect(200).json();
        list.as_array().expect("a list").iter().map(|i| i["Id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(r#"{"dangling":["true"]}"#), [dangling]);
    assert_eq!(ids(r#"{"label":["a=b"]}"#).len(), 1);
    assert_eq!(ids(r#"{"reference":["busy*"]}"#).len(), 1);
    assert_eq!(ids("{}").len(), 4);
    daemon.get(&format!("/images/json?filters={}", encode(r#"{"nosuch":["x"]}"#))).refuses(400, "invalid filter 'nosuch'");
}

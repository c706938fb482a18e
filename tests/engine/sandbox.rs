//! The default sandbox seen from inside, and the rules of the security notes, each named.

use crate::common::image::{self, Tar, busybox_root, with_probe};
use crate::common::{Daemon, eventually};
use serde_json::{Value, json};
use std::time::Duration;
use tar::EntryType;

/// What the probe says of itself in a container of this configuration.
#[track_caller]
fn probe(daemon: &Daemon, mut config: Value) -> Value {
    config["Image"] = json!("probe");
    config["Cmd"] = json!(["/probe", "json"]);
    let (code, out, err) = daemon.run_to_end(config);
    assert_eq!(code, 0, "{out} {err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

fn mount<'a>(report: &'a Value, target: &str) -> &'a Value {
    let mounts = report["mounts"].as_array().expect("mounts");
    mounts.iter().find(|m| m["target"] == target).unwrap_or_else(|| panic!("no mount at {target}: {mounts:#?}"))
}

fn has(options: &Value, wanted: &[&str]) {
    let options: Vec<&str> = options.as_str().expect("options").split(',').collect();
    for option in wanted {
        assert!(options.contains(option), "{option} is not in {options:?}");
    }
}

/// One shell command in a default container: (status, output).
#[track_caller]
fn shell(daemon: &Daemon, script: &str) -> (i64, String) {
    let (code, out, err) = daemon.run_to_end(json!({"Image": "busybox", "Cmd": ["sh", "-c", script]}));
    (code, out + &err)
}

#[test]
fn capabilities_are_dockers_default_set() {
    let daemon = Daemon::with_probe();
    let status = probe(&daemon, json!({}))["status"].clone();
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(status[set], "00000000a80425fb", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    let status = probe(&daemon, json!({"User": "alice"}))["status"].clone();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set} of a user");
    }
    assert_eq!(status["CapBnd"], "00000000a80425fb");
    let dropped = probe(&daemon, json!({"HostConfig": {"CapDrop": ["ALL"]}}))["status"].clone();
    assert_eq!((&dropped["CapBnd"], &dropped["CapEff"]), (&json!("0000000000000000"), &json!("0000000000000000")));
    let added = probe(&daemon, json!({"HostConfig": {"CapDrop": ["ALL"], "CapAdd": ["NET_ADMIN", "CAP_CHOWN"]}}))["status"].clone();
    assert_eq!(added["CapEff"], "0000000000001001");
}

#[test]
fn seccomp_is_on_and_no_new_privileges_only_when_asked() {
    let daemon = Daemon::with_probe();
    let status = probe(&daemon, json!({}))["status"].clone();
    assert_eq!((&status["Seccomp"], &status["NoNewPrivs"]), (&json!("2"), &json!("0")));
    let status = probe(&daemon, json!({"HostConfig": {"SecurityOpt": ["no-new-privileges"]}}))["status"].clone();
    assert_eq!((&status["Seccomp"], &status["NoNewPrivs"]), (&json!("2"), &json!("1")));
    let status = probe(&daemon, json!({"HostConfig": {"SecurityOpt": ["seccomp=unconfined"]}}))["status"].clone();
    assert_eq!(status["Seccomp"], "0");
}

#[test]
fn exec_has_the_same_sandbox_as_run() {
    let daemon = Daemon::with_probe();
    let run = probe(&daemon, json!({}));
    let id = daemon.create("same", json!({"Image": "probe", "Cmd": ["sleep", "60"]}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let said = daemon.docker(&["exec", "same", "/probe", "json"]).expect(0);
    let exec: Value = serde_json::from_str(&said.out).expect("JSON");
    for key in
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "NoNewPrivs", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Umask"]
    {
        assert_eq!(exec["status"][key], run["status"][key], "{key}");
    }
    for key in ["limits", "oom_score_adj", "cwd"] {
        assert_eq!(exec[key], run[key], "{key}");
    }
    let fds: Vec<&String> = exec["fds"].as_object().expect("fds").keys().collect();
    assert_eq!(fds, ["0", "1", "2"]);
    daemon.remove(&id);
}

#[test]
fn no_descriptor_is_inherited() {
    let daemon = Daemon::with_probe();
    for config in [json!({}), json!({"Tty": true}), json!({"OpenStdin": true}), json!({"User": "alice"})] {
        let report = probe(&daemon, config.clone());
        let fds: Vec<&String> = report["fds"].as_object().expect("fds").keys().collect();
        assert_eq!(fds, ["0", "1", "2"], "{config}: {}", report["fds"]);
    }
}

#[test]
fn the_environment_is_built_from_nothing() {
    let daemon = Daemon::with_probe();
    let report = probe(&daemon, json!({"Hostname": "boat"}));
    assert_eq!(report["env"], json!({"PATH": "/bin", "HOSTNAME": "boat", "HOME": "/root"}));
    let report = probe(&daemon, json!({"Hostname": "boat", "Tty": true}));
    assert_eq!(report["env"]["TERM"], "xterm");
}

#[test]
fn groups_are_exactly_the_users() {
    let daemon = Daemon::with_probe();
    assert_eq!(probe(&daemon, json!({}))["status"]["Groups"], "0");
    let status = probe(&daemon, json!({"User": "alice"}))["status"].clone();
    assert_eq!(
        (&status["Uid"], &status["Gid"], &status["Groups"]),
        (&json!("1000 1000 1000 1000"), &json!("1000 1000 1000 1000"), &json!("1000 2000"))
    );
    assert_eq!(probe(&daemon, json!({"User": "5:6"}))["status"]["Groups"], "6");
    assert_eq!(probe(&daemon, json!({"User": "5:6", "HostConfig": {"GroupAdd": ["7", "users"]}}))["status"]["Groups"], "6 7 1000");
}

#[test]
fn signals_session_umask_and_oom_score_are_reset() {
    let daemon = Daemon::with_probe();
    let report = probe(&daemon, json!({}));
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        // Rust's own runtime ignores SIGPIPE (13) and catches SIGSEGV and SIGBUS. 32 and 33 are the C library's: whoever was
        // started by its posix_spawn has them ignored, and through it they cannot be reset.
        let mask = u64::from_str_radix(report["status"][set].as_str().expect("a mask"), 16).expect("hexadecimal") & !0x1_8000_0000;
        let allowed = match set {
            "SigIgn" => 0x1000,
            "SigCgt" => 0x440,
            _ => 0,
        };
        assert_eq!(mask, allowed, "{set}");
    }
    assert_eq!(report["status"]["Umask"], "0022");
    assert_eq!(report["oom_score_adj"], "0");
    assert_eq!(report["status"]["NSpid"].as_str().map(|pids| pids.ends_with('1')), Some(true));
}

#[test]
fn mounts_are_dockers() {
    let daemon = Daemon::with_probe();
    let report = probe(&daemon, json!({}));
    assert_eq!(mount(&report, "/")["type"], "overlay");
    let proc = mount(&report, "/proc");
    assert_eq!(proc["type"], "proc");
    has(&proc["options"], &["rw", "nosuid", "nodev", "noexec"]);
    let dev = mount(&report, "/dev");
    assert_eq!(dev["type"], "tmpfs");
    has(&dev["options"], &["nosuid"]);
    has(&dev["super"], &["size=65536k", "mode=755"]);
    let pts = mount(&report, "/dev/pts");
    assert_eq!(pts["type"], "devpts");
    has(&pts["options"], &["nosuid", "noexec"]);
    has(&pts["super"], &["gid=5", "mode=620", "ptmxmode=666"]);
    let sys = mount(&report, "/sys");
    assert_eq!(sys["type"], "sysfs");
    has(&sys["options"], &["ro", "nosuid", "nodev", "noexec"]);
    let shm = mount(&report, "/dev/shm");
    has(&shm["options"], &["nosuid", "nodev", "noexec"]);
    has(&shm["super"], &["size=65536k"]);
    assert_eq!(mount(&report, "/dev/mqueue")["type"], "mqueue");
    for path in ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"] {
        if std::path::Path::new(path).exists() {
            has(&mount(&report, path)["options"], &["ro", "nosuid", "nodev", "noexec"]);
        }
    }
    for m in report["mounts"].as_array().expect("mounts") {
        let target = m["target"].as_str().expect("a target");
        assert!(!m["propagation"].to_string().contains("shared"), "{target} is shared with the host");
        assert!(!m["root"].as_str().unwrap_or_default().contains("old"), "{m}");
    }
    for path in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        mount(&report, path);
    }
}

#[test]
fn masked_paths_are_empty() {
    let daemon = Daemon::with_busybox();
    for path in ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/interrupts", "/proc/sched_debug"] {
        if std::path::Path::new(path).exists() {
            let (_, out) = shell(&daemon, &format!("head -c 10 {path} | wc -c"));
            assert_eq!(out.trim(), "0", "{path}");
        }
    }
    for path in ["/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware", "/sys/devices/virtual/powercap"] {
        if std::path::Path::new(path).exists() {
            let (_, out) = shell(&daemon, &format!("ls -A {path} | wc -l; touch {path}/x 2>/dev/null && echo writable"));
            assert_eq!(out.trim(), "0", "{path}");
        }
    }
}

#[test]
fn host_wide_settings_cannot_be_written() {
    let daemon = Daemon::with_busybox();
    let paths = "/proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /sys/kernel/uevent_helper /proc/sys/vm/drop_caches /sys/fs/cgroup/memory/release_agent /proc/irq/default_smp_affinity";
    let (_, out) = shell(&daemon, &format!("for p in {paths}; do [ -e $p ] && (: >>$p) 2>/dev/null && echo $p; done; true"));
    assert_eq!(out, "", "these can be opened for writing");
    let (_, out) = shell(
        &daemon,
        "find /sys /proc/sys -xdev -type f -writable -perm -200 2>/dev/null | while read f; do (: >>$f) 2>/dev/null && echo $f; done | head",
    );
    assert_eq!(out, "");
}

#[test]
fn devices_are_the_few_and_others_are_denied() {
    let daemon = Daemon::with_probe();
    let report = probe(&daemon, json!({}));
    let mut devices: Vec<&str> = report["devices"].as_array().expect("devices").iter().filter_map(Value::as_str).collect();
    devices.sort_unstable();
    // /dev/core is a link to /proc/kcore, where the kernel has that.
    devices.retain(|name| *name != "core");
    let expected = ["fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"];
    assert_eq!(devices, expected);
    assert!(probe(&daemon, json!({"Tty": true}))["devices"].as_array().expect("devices").contains(&json!("console")));
    let (code, out) = shell_probe(&daemon, "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem");
    assert_ne!(code, 0, "{out}");
    assert!(out.contains("Operation not permitted"), "{out}");
    let (code, out) = shell_probe(&daemon, "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk");
    assert!(code != 0 && out.contains("Operation not permitted"), "{out}");
    let (code, out) =
        shell_probe(&daemon, "head -c 1 /dev/zero | wc -c; echo x >/dev/null; head -c 1 /dev/urandom | wc -c; echo >/dev/full");
    assert!(code != 0 && out.starts_with("1\n1\n"), "{out}");
}

fn shell_probe(daemon: &Daemon, script: &str) -> (i64, String) {
    let (code, out, err) = daemon.run_to_end(json!({"Image": "probe", "Cmd": ["sh", "-c", script]}));
    (code, out + &err)
}

#[test]
fn namespaces_are_its_own() {
    let daemon = Daemon::with_busybox();
    let (_, out) = shell(&daemon, "for n in mnt pid net ipc uts; do readlink /proc/self/ns/$n; done");
    for (line, name) in out.lines().zip(["mnt", "pid", "net", "ipc", "uts"]) {
        let host = std::fs::read_link(format!("/proc/{}/ns/{name}", daemon.pid())).expect("the daemon runs");
        assert!(line.starts_with(name) && line != host.to_str().expect("ASCII"), "{line}");
    }
    let (code, out) = shell(&daemon, "unshare -U true 2>&1 || unshare -m true");
    assert_ne!(code, 0, "namespaces can be made inside: {out}");
    let (code, _) = shell(&daemon, "mount -t tmpfs none /tmp");
    assert_ne!(code, 0);
    let (code, _) = shell(&daemon, "hostname other");
    assert_ne!(code, 0);
}

#[test]
fn workdir_through_descriptors_leads_nowhere() {
    let daemon = Daemon::with_busybox();
    let id = daemon.run("box", &["sleep", "60"]);
    for fd in 3..32 {
        let dir = format!("/proc/self/fd/{fd}");
        let answer = daemon.post_json("/containers/create?name=leak", &json!({"Image": "busybox", "WorkingDir": dir, "Cmd": ["sh", "-c", "pwd; ls -id . / ; ls ../../../../../"], "HostConfig": {"NetworkMode": "none"}}));
        if answer.status == 201 {
            let started = daemon.post("/containers/leak/start");
            if started.status == 204 {
                daemon.wait("leak");
                let (out, _) = daemon.logs("leak");
                assert!(!out.contains("work") && !out.contains("boot"), "the host is seen through {dir}: {out}");
            }
            daemon.remove("leak");
        }
        let said = daemon.docker(&["exec", "-w", &dir, "box", "sh", "-c", "pwd; ls ../../../../../"]);
        assert!(said.code != 0 || !said.out.contains("boot"), "{said:?}");
    }
    daemon.remove(&id);
}

/// Imports busybox with these entries in place of its own /dev, /proc and so on, and runs `true` in it.
fn with_trap(canary: &str, trap: impl Fn(Tar) -> Tar) -> (Daemon, i64, String) {
    let daemon = Daemon::new();
    let canary = daemon.world.path(canary);
    std::fs::create_dir(&canary).expect("the world can be written");
    image::import(&daemon, "trap", &trap(busybox_root()).finish());
    let answer = daemon.post_json("/containers/create?name=trap", &json!({"Image": "trap", "Cmd": ["sh", "-c", "ls -ld /dev/null /proc/1 /sys/kernel >/dev/null && echo fine"], "HostConfig": {"NetworkMode": "none"}})).expect(201);
    drop(answer);
    let start = daemon.post("/containers/trap/start");
    let code = if start.status == 204 { daemon.wait("trap") } else { -1 };
    let out = if start.status == 204 { daemon.logs("trap").0 } else { start.text() };
    let found: Vec<_> = std::fs::read_dir(&canary).expect("the canary").flatten().map(|e| e.path()).collect();
    assert!(found.is_empty(), "written outside: {found:?}");
    daemon.remove("trap");
    (daemon, code, out)
}

#[test]
fn symlinked_dev_proc_and_sys_in_an_image_are_no_way_out() {
    for dir in ["dev", "proc", "sys"] {
        // The engine's own directory covers the image's symlink: the container runs and sees real ones.
        let (_daemon, code, out) = with_trap("canary", |root| root.symlink(dir, "/tmp"));
        assert_eq!((code, out.as_str()), (0, "fine\n"), "/{dir} as a symlink");
    }
}

#[test]
fn symlinked_files_of_etc_and_below_dev_are_no_way_out() {
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        let (_daemon, code, out) = with_trap("canary", |root| root.symlink(name, "/../../../../../../../tmp/coracle-etc-canary"));
        assert_eq!((code, out.as_str()), (0, "fine\n"), "{name} as a symlink");
        assert!(!std::path::Path::new("/tmp/coracle-etc-canary").exists());
    }
    for name in ["dev/pts", "dev/shm", "dev/mqueue", "dev/null", "dev/console", "dev/ptmx"] {
        let (_daemon, code, out) = with_trap("canary", |root| root.dir("dev", 0o755).symlink(name, "/etc/passwd"));
        assert_eq!((code, out.as_str()), (0, "fine\n"), "{name} as a symlink");
    }
}

#[test]
fn passwd_may_be_a_fifo_a_device_or_a_link_to_the_host() {
    let daemon = Daemon::new();
    let bare = || {
        Tar::new()
            .dir("bin", 0o755)
            .file("bin/busybox", 0o755, &std::fs::read(crate::common::find_program("busybox").expect("busybox")).expect("read"))
            .dir("etc", 0o755)
    };
    let run = |name: &str, tar: Vec<u8>, user: &str| {
        image::import(&daemon, name, &tar);
        let id = daemon
            .create("", json!({"Image": name, "User": user, "Cmd": ["/bin/busybox", "awk", "/^Uid/{print $2}", "/proc/self/status"]}));
        let started = daemon.post(&format!("/containers/{id}/start"));
        let result = (started.status == 204).then(|| (daemon.wait(&id), daemon.logs(&id).0));
        daemon.remove(&id);
        result
    };
    for (name, tar) in [
        ("fifo", bare().node("etc/passwd", EntryType::Fifo, 0, 0).finish()),
        ("device", bare().node("etc/passwd", EntryType::Char, 1, 5).finish()),
        ("linked", bare().symlink("etc/passwd", "/proc/1/environ").finish()),
        ("outside", bare().symlink("etc/passwd", "../../../../../../etc/passwd").finish()),
    ] {
        assert_eq!(run(name, tar.clone(), "root2"), None, "{name}");
        let number = run(name, tar, "1234:5678");
        assert!(number.is_none() || number.as_ref().is_some_and(|(code, out)| *code == 0 && out == "1234\n"), "{name}: {number:?}");
        daemon.get("/_ping").expect(200);
    }
    let many = format!("{}last:x:77:77::/:/bin/sh\n", "u:x:1:1::/:/bin/sh\n".repeat(1000));
    let tar = bare().file("etc/passwd", 0o644, many.as_bytes()).finish();
    assert_eq!(run("long", tar, "last"), Some((0, "77\n".to_owned())));
}

#[test]
fn user_numbers_are_read_strictly() {
    let daemon = Daemon::with_busybox();
    for user in ["-1", "4294967296", "0x0", "1000x", "4294967295", "2147483648", "+0", " 0", ":", "99999999999999999999"] {
        let answer = daemon.post_json(
            "/containers/create",
            &json!({"Image": "busybox", "User": user, "Cmd": ["id", "-u"], "HostConfig": {"NetworkMode": "none"}}),
        );
        if answer.status == 201 {
            let id = answer.json()["Id"].as_str().expect("an id").to_owned();
            let start = daemon.post(&format!("/containers/{id}/start"));
            if start.status == 204 {
                daemon.wait(&id);
                let out = daemon.logs(&id).0;
                assert!(user == ":" || out.trim() != "0", "user {user:?} runs as root");
            }
            daemon.remove(&id);
        }
    }
}

#[test]
fn the_daemons_binary_cannot_be_reached() {
    let daemon = Daemon::new();
    image::import(&daemon, "self", &with_probe(busybox_root()).file("script", 0o755, b"#!/proc/self/exe\n").finish());
    let before = std::fs::read(env!("CARGO_BIN_EXE_coracle")).expect("our binary");
    let id = daemon.create("self", json!({"Image": "self", "Cmd": ["/script"]}));
    daemon.post(&format!("/containers/{id}/start"));
    daemon.remove(&id);
    // A container that opens every exe it can see for writing, while programs are executed into it.
    let id = daemon.create(
        "spy",
        json!({"Image": "self", "Cmd": ["sh", "-c", "while :; do for e in /proc/[0-9]*/exe; do (echo x >>$e) 2>/dev/null; done; done"]}),
    );
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    for _ in 0..30 {
        daemon.docker(&["exec", "spy", "true"]).expect(0);
    }
    daemon.remove(&id);
    let after = std::fs::read(env!("CARGO_BIN_EXE_coracle")).expect("our binary");
    assert!(before == after, "the daemon's binary was changed");
}

#[test]
fn no_socket_is_abstract() {
    let daemon = Daemon::with_busybox();
    let id =
        daemon.create("", json!({"Image": "busybox", "Cmd": ["sh", "-c", "cat /proc/net/unix"], "HostConfig": {"NetworkMode": "host"}}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    daemon.wait(&id);
    let out = daemon.logs(&id).0;
    assert!(!out.contains(" @"), "{out}");
}

#[test]
fn other_users_of_the_host_reach_nothing() {
    let daemon = Daemon::with_busybox();
    let id = daemon.run("up", &["sh", "-c", "cp /bin/busybox /tmp/su; chmod 4755 /tmp/su; sleep 60"]);
    let dir = daemon.container_dir(&id);
    eventually("the file", Duration::from_secs(10), || dir.join("upper/tmp/su").exists().then_some(()));
    let status = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "ls"])
        .arg(dir.join("upper/tmp"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .expect("setpriv (util-linux)");
    assert!(!status.success(), "uid 65534 can list a container's files");
    daemon.remove(&id);
}

#[test]
fn system_calls_outside_the_profile_are_refused() {
    let daemon = Daemon::with_busybox();
    // busybox can ask for these few by itself; the filter's tables are unit-tested number by number.
    for (script, what) in [
        ("swapoff -a", "swapoff"),
        ("pivot_root / /tmp", "pivot_root"),
        ("insmod /bin/sh", "init_module"),
        ("reboot -f", "reboot"),
        ("chroot /tmp /nosuch", ""),
    ] {
        let (code, out) = shell(&daemon, script);
        assert!(code != 0 && (what.is_empty() || !out.is_empty()), "{script}: {code} {out}");
    }
}

#[test]
fn hostile_strings_do_not_reach_the_files_of_etc() {
    let daemon = Daemon::with_busybox();
    for config in [
        json!({"HostConfig": {"ExtraHosts": ["a:1.2.3.4\n6.6.6.6 evil"]}}),
        json!({"HostConfig": {"Dns": ["1.1.1.1\nnameserver 6.6.6.6"]}}),
        json!({"HostConfig": {"DnsSearch": ["a\nnameserver 6.6.6.6"]}}),
        json!({"HostConfig": {"DnsOptions": ["a\nnameserver 6.6.6.6"]}}),
        json!({"Hostname": "a\nb"}),
        json!({"Domainname": "a\nb"}),
    ] {
        let mut body = config.clone();
        body["Image"] = json!("busybox");
        body["HostConfig"]["NetworkMode"] = json!("none");
        let answer = daemon.post_json("/containers/create", &body);
        assert_eq!(answer.status, 400, "{config}: {}", answer.text());
    }
}

#[test]
fn limits_bite() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("hog", json!({"Image": "busybox", "Cmd": ["sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"], "HostConfig": {"Memory": 20_000_000, "MemorySwap": 20_000_000}}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let code = daemon.wait(&id);
    let state = daemon.inspect(&id)["State"].clone();
    assert_eq!((code, &state["OOMKilled"]), (137, &json!(true)), "{state}");
    let (code, out, err) = daemon.run_to_end(
        json!({"Image": "busybox", "Cmd": ["sh", "-c", "for i in $(seq 50); do sleep 5 & done; wait"], "HostConfig": {"PidsLimit": 10}}),
    );
    assert!(code != 0 || err.contains("fork") || out.contains("fork"), "{code} {out} {err}");
}

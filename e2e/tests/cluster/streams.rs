//! Commands in containers, logs, files and ports.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::manifests::{script, web};
use e2e::{SOON, eventually};
use nix::sys::signal::Signal;

use crate::cluster;

#[test]
fn commands_run_in_containers() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("exec")?;
    ns.idle("box")?;
    let echoed = ns.kubectl_with(&["exec", "-i", "box", "--", "cat"], "hello\n")?;
    ensure!(echoed == "hello\n", "{echoed:?}");
    let large = "0123456789abcde\n".repeat(1 << 16);
    let counted = ns.kubectl_with(&["exec", "-i", "box", "--", "wc", "-c"], &large)?;
    ensure!(counted.trim() == large.len().to_string(), "{counted}");
    let echoed = ns.kubectl_with(&["exec", "-i", "box", "--", "cat"], &large)?;
    ensure!(echoed == large, "{} bytes of {} came back", echoed.len(), large.len());
    let refused = ns.refusal(&["exec", "box", "--", "sh", "-c", "echo why >&2; exit 3"], "")?;
    ensure!(refused.contains("why") && refused.contains("exit code 3"), "{refused}");
    let missing = ns.refusal(&["exec", "box", "--", "no-such-program"], "")?;
    ensure!(missing.contains("executable file not found"), "{missing}");
    let missing = ns.refusal(&["exec", "box", "-c", "nothing", "--", "true"], "")?;
    ensure!(missing.contains("container nothing is not valid for pod box"), "{missing}");
    Ok(())
}

#[test]
fn a_terminal_is_a_terminal() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("terminal")?;
    ns.idle("box")?;
    let mut shell = ns.terminal(&["exec", "-it", "box", "--", "sh"])?;
    shell.until("# ", SOON)?;
    shell.write("tty; stty size; exit 5\n")?;
    ensure!(!shell.wait(SOON)?, "its exit code is kubectl's");
    shell.until("/dev/pts/", SOON)?;
    shell.until("exit code 5", SOON)?;
    // Windows are resized while a program runs.
    let mut sized = ns.terminal(&["exec", "-it", "box", "--", "sh"])?;
    sized.until("# ", SOON)?;
    for (columns, rows) in [(123, 45), (80, 24)] {
        sized.resize(columns, rows)?;
        eventually("the new size is known", SOON, || {
            sized.write("stty size\n")?;
            sized.until(&format!("{rows} {columns}"), Duration::from_secs(1))
        })?;
    }
    sized.write("exit\n")?;
    ensure!(sized.wait(SOON)?, "{}", sized.text());
    let without = ns.kubectl(&["exec", "box", "--", "sh", "-c", "test -t 1 || echo none"])?;
    ensure!(without.trim() == "none", "{without}");
    // Ctrl-C ends what runs in the foreground, on that side.
    let loops = "trap 'echo caught; exit 0' INT; echo go; while :; do sleep 0.1; done";
    let mut looping = ns.terminal(&["exec", "-it", "box", "--", "sh", "-c", loops])?;
    looping.until("go", SOON)?;
    looping.write("\u{3}")?;
    looping.until("caught", SOON)?;
    ensure!(looping.wait(SOON)?, "{}", looping.text());
    Ok(())
}

#[test]
fn a_running_process_is_attached_to() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("attach")?;
    let pod = script("reader", "while read line; do echo got $line; done; echo closed")
        .replace("name: main,", "name: main, stdin: true, stdinOnce: true,");
    ns.ready(&pod, "reader")?;
    let mut attached = ns.spawn(&["attach", "-i", "reader"])?;
    // What is written before the stream stands is kept by kubectl.
    attached.write("one\n")?;
    attached.until("got one", SOON)?;
    attached.write("two\n")?;
    attached.until("got two", SOON)?;
    attached.close();
    attached.until("closed", SOON)?;
    ensure!(attached.wait(SOON)?, "{}", attached.text());
    ns.pod("reader", "it has ended", |p| p["status"]["phase"] == "Succeeded")?;

    let run =
        ["run", "once", "--image=localhost/test:1", "--restart=Never", "-i", "--rm", "--quiet"];
    let printed = ns.kubectl_with(&[&run[..], &["--", "cat"]].concat(), "through\n")?;
    ensure!(printed.contains("through"), "{printed}");
    Ok(())
}

#[test]
fn logs_are_read_and_followed() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("logs")?;
    let loops =
        "i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo line $i; sleep 0.2; done; echo end";
    ns.ready(&script("talker", loops), "talker")?;
    let mut followed = ns.spawn(&["logs", "-f", "talker"])?;
    followed.until("line 12\n", SOON)?;
    ns.shell("talker", "touch /tmp/stop")?;
    ensure!(followed.wait(SOON)?, "{}", followed.text());
    followed.until("end", Duration::from_secs(5))?;
    let text = followed.text();
    let lines: Vec<&str> = text.lines().collect();
    let wanted: Vec<String> = (1..lines.len()).map(|i| format!("line {i}")).collect();
    ensure!(lines[..lines.len() - 1] == wanted, "{text}");
    // After its end too.
    let all = ns.kubectl(&["logs", "talker"])?;
    ensure!(all == text, "{all}");
    let last = ns.kubectl(&["logs", "talker", "--tail=1", "--timestamps"])?;
    let (time, line) = last.trim().split_once(' ').context("a time")?;
    ensure!(line == "end" && time.contains('T') && time.ends_with('Z'), "{last}");
    let few = ns.kubectl(&["logs", "talker", "--limit-bytes=4"])?;
    ensure!(few == "line", "{few}");
    let none = ns.kubectl(&["logs", "talker", "--since-time=2100-01-01T00:00:00Z"])?;
    ensure!(none.is_empty(), "{none}");
    let missing = ns.refusal(&["logs", "talker", "--previous"], "")?;
    ensure!(
        missing.contains("previous terminated container \"main\" in pod \"talker\" not found"),
        "{missing}"
    );
    Ok(())
}

#[test]
fn files_are_copied_both_ways() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("copies")?;
    ns.idle("box")?;
    let dir = ns.cluster().settings().dir.join("copies");
    std::fs::create_dir_all(dir.join("folder/inner"))?;
    let large: String = (0..200_000).map(|i| format!("{i}\n")).collect();
    std::fs::write(dir.join("folder/large"), &large)?;
    std::fs::write(dir.join("folder/inner/small"), "and back")?;
    let path = |name: &str| dir.join(name).display().to_string();
    ns.kubectl(&["cp", &path("folder"), "box:/tmp/folder"])?;
    let inner = ns.shell("box", "cat /tmp/folder/inner/small; wc -c < /tmp/folder/large")?;
    ensure!(inner == format!("and back{}\n", large.len()), "{inner}");
    ns.kubectl(&["cp", "box:/tmp/folder", &path("back")])?;
    ensure!(std::fs::read_to_string(dir.join("back/large"))? == large);
    ensure!(std::fs::read_to_string(dir.join("back/inner/small"))? == "and back");
    Ok(())
}

#[test]
fn ports_are_forwarded() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("ports")?;
    ns.apply(&web("web", 1))?;
    ns.rolled_out("deployment/web")?;
    for (target, ports) in [("deployment/web", "18080:8080"), ("service/web", "18081:80")] {
        let mut forward = ns.spawn(&["port-forward", target, ports])?;
        let local = ports.split(':').next().unwrap_or_default();
        forward.until(&format!("Forwarding from 127.0.0.1:{local}"), SOON)?;
        for _ in 0..20 {
            let name = cluster.fetch(&format!("http://127.0.0.1:{local}/hostname"))?;
            ensure!(name.starts_with("web-"), "{name}");
        }
        forward.signal(Signal::SIGINT)?;
        forward.wait(SOON)?;
    }
    let forward = ns.spawn(&["port-forward", "deployment/web", "18082:9"])?;
    forward.until("Forwarding from", SOON)?;
    ensure!(cluster.fetch("http://127.0.0.1:18082/").is_err(), "nobody listens there");
    forward.until("onnection refused", SOON)?;
    Ok(())
}

#[test]
fn a_debugging_container_joins_a_pod() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("debugging")?;
    ns.idle("box")?;
    let debug = [
        "debug",
        "box",
        "--image=localhost/test:1",
        "-c",
        "look",
        "--target=main",
        "--profile=general",
    ];
    ns.kubectl(&[&debug[..], &["--", "sleep", "infinity"]].concat())?;
    eventually("it runs", SOON, || {
        let processes = ns.kubectl(&["exec", "box", "-c", "look", "--", "ps"])?;
        ensure!(processes.matches("sleep infinity").count() == 2, "{processes}");
        Ok(())
    })
}

#[test]
fn streams_go_over_spdy_too() -> anyhow::Result<()> {
    let cluster = cluster()?.by_spdy();
    let ns = cluster.namespace("spdy")?;
    ns.apply(&web("web", 1))?;
    ns.rolled_out("deployment/web")?;
    ns.idle("box")?;
    let told = ns.refusal(&["exec", "box", "-v=9", "--", "sh", "-c", "echo shown; exit 3"], "")?;
    ensure!(told.contains("exit code 3"), "{told}");
    ensure!(told.contains("Upgrade: SPDY/3.1"), "{told}");
    let large = "0123456789abcde\n".repeat(1 << 16);
    let echoed = ns.kubectl_with(&["exec", "-i", "box", "--", "cat"], &large)?;
    ensure!(echoed == large, "{} bytes of {} came back", echoed.len(), large.len());
    let mut shell = ns.terminal(&["exec", "-it", "box", "--", "sh"])?;
    shell.until("# ", SOON)?;
    shell.write("tty; exit\n")?;
    shell.until("/dev/pts/", SOON)?;
    ensure!(shell.wait(SOON)?, "{}", shell.text());
    let forward = ns.spawn(&["port-forward", "deployment/web", "18083:8080"])?;
    forward.until("Forwarding from 127.0.0.1:18083", SOON)?;
    for _ in 0..5 {
        let name = cluster.fetch("http://127.0.0.1:18083/hostname")?;
        ensure!(name.starts_with("web-"), "{name}");
    }
    Ok(())
}

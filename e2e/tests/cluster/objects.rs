//! Objects through kubectl: applied, patched, compared, explained, watched.

use anyhow::{Context, ensure};
use e2e::SOON;
use e2e::manifests::web;
use serde_json::json;

use crate::cluster;

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '1'}\n";

#[test]
fn two_managers_share_an_object_by_server_side_apply() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("managers")?;
    ns.kubectl_with(&["apply", "--server-side", "-f", "-"], MAP)?;
    let other = MAP.replace("'1'", "'2'");
    let arguments = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let refused = ns.refusal(&arguments, &other)?;
    for wanted in
        ["Apply failed with 1 conflict: conflict with \"kubectl\": .data.a", "--force-conflicts"]
    {
        ensure!(refused.contains(wanted), "{refused}");
    }
    let beside = MAP.replace("{a: '1'}", "{b: '2'}");
    ns.kubectl_with(&arguments, &beside)?;
    let found = ns.get(&["configmap", "m", "--show-managed-fields"])?;
    ensure!(found["data"] == json!({"a": "1", "b": "2"}), "{found}");
    let managers = found["metadata"]["managedFields"].as_array().context("managers")?;
    ensure!(
        managers.len() == 2 && managers.iter().all(|m| m["operation"] == "Apply"),
        "{managers:?}"
    );
    ns.kubectl_with(&[&arguments[..], &["--force-conflicts"]].concat(), &other)?;
    // What a manager no longer applies, and nobody else does, goes.
    let found = ns.get(&["configmap", "m"])?;
    ensure!(found["data"] == json!({"a": "2"}), "{found}");
    Ok(())
}

#[test]
fn client_side_apply_merges_three_ways() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("applied")?;
    ns.apply(MAP)?;
    let unchanged = ns.apply(MAP)?;
    ensure!(unchanged.trim() == "configmap/m unchanged", "{unchanged}");
    ns.kubectl(&["patch", "configmap", "m", "-p", r#"{"data":{"live":"1"}}"#])?;
    let configured = ns.apply(&MAP.replace("a: '1'", "b: '1'"))?;
    ensure!(configured.trim() == "configmap/m configured", "{configured}");
    let found = ns.get(&["configmap", "m"])?;
    ensure!(found["data"] == json!({"b": "1", "live": "1"}), "{found}");

    // Lists merge by their keys.
    ns.apply(&web("web", 0))?;
    ns.kubectl(&["set", "env", "deployment/web", "KEPT=1"])?;
    ns.apply(&web("web", 0).replace("image: localhost/test:1", "image: localhost/test:2"))?;
    let found = ns.get(&["deployment", "web"])?;
    let container = &found["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["env"][0]["name"] == "KEPT", "{container}");
    ensure!(container["image"] == "localhost/test:2", "{container}");
    let pruned = ns.kubectl_with(&["delete", "-f", "-"], &web("web", 0))?;
    ensure!(pruned.contains("deployment.apps \"web\" deleted"), "{pruned}");
    ensure!(pruned.contains("service \"web\" deleted"), "{pruned}");
    Ok(())
}

#[test]
fn objects_are_patched_in_each_way() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("patched")?;
    ns.apply(MAP)?;
    for (kind, patch) in [
        ("strategic", r#"{"data":{"b":"1"}}"#),
        ("merge", r#"{"data":{"b":"2","a":null}}"#),
        (
            "json",
            r#"[{"op":"test","path":"/data/b","value":"2"},{"op":"replace","path":"/data/b","value":"3"}]"#,
        ),
    ] {
        ns.kubectl(&["patch", "configmap", "m", "--type", kind, "-p", patch])?;
    }
    let found = ns.get(&["configmap", "m"])?;
    ensure!(found["data"] == json!({"b": "3"}), "{}", found["data"]);
    let refused = ns.refusal(
        &[
            "patch",
            "configmap",
            "m",
            "--type=json",
            "-p",
            r#"[{"op":"remove","path":"/data/none"}]"#,
        ],
        "",
    )?;
    ensure!(
        refused.contains("the server rejected our request") || refused.contains("is invalid"),
        "{refused}"
    );
    ns.kubectl(&["label", "configmap", "m", "x=y"])?;
    ns.kubectl(&["annotate", "configmap", "m", "x=y"])?;
    let refused = ns.refusal(&["label", "configmap", "m", "x=z"], "")?;
    ensure!(refused.contains("already has a value (y), and --overwrite is false"), "{refused}");
    let by_label = ns.kubectl(&["get", "configmap", "-l", "x in (y,z),!w", "-o", "name"])?;
    ensure!(by_label.trim() == "configmap/m", "{by_label}");
    let by_field =
        ns.kubectl(&["get", "configmap", "--field-selector=metadata.name!=m", "-o", "name"])?;
    ensure!(!by_field.contains("configmap/m"), "{by_field}");
    ns.kubectl(&["label", "configmap", "m", "x-"])?;
    let found = ns.get(&["configmap", "m"])?;
    ensure!(found["metadata"]["labels"].is_null(), "{found}");

    // A write on an old version is refused.
    let mut old = found;
    ns.kubectl(&["annotate", "configmap", "m", "new=er"])?;
    old["data"]["b"] = json!("4");
    let refused = ns.refusal(&["replace", "-f", "-"], &old.to_string())?;
    ensure!(
        refused.contains(
            "the object has been modified; please apply your changes to the latest version"
        ),
        "{refused}"
    );
    // An editor that only says what it was given.
    let mut edit = ns.cluster().command(&["-n", ns.name(), "edit", "configmap", "m"]);
    edit.env("KUBE_EDITOR", "sed -i s/new:.er/new:\\ newest/");
    let edited = e2e::run(edit, "")?.text()?;
    ensure!(edited.contains("configmap/m edited"), "{edited}");
    let found = ns.get(&["configmap", "m"])?;
    ensure!(found["metadata"]["annotations"]["new"] == "newest", "{found}");
    Ok(())
}

#[test]
fn changes_are_shown_before_they_are_made() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("shown")?;
    let dry = ns.kubectl(&["create", "configmap", "dry", "--dry-run=server"])?;
    ensure!(dry.contains("configmap/dry created (server dry run)"), "{dry}");
    let refused = ns.refusal(&["get", "configmap", "dry"], "")?;
    ensure!(refused.contains("configmaps \"dry\" not found"), "{refused}");
    ns.apply(MAP)?;
    ns.kubectl_with(&["diff", "-f", "-"], MAP)?;
    // kubectl ends with 1 when there is a difference.
    let mut diff = ns.cluster().command(&["-n", ns.name(), "diff", "-f", "-"]);
    diff.env("KUBECTL_EXTERNAL_DIFF", "diff -u -N");
    let output = e2e::run(diff, &MAP.replace("'1'", "'9'"))?;
    ensure!(!output.success && output.stdout.contains("+  a: \"9\""), "{output:?}");
    let server = ns.cluster().command(&[
        "-n",
        ns.name(),
        "diff",
        "--server-side",
        "--force-conflicts",
        "-f",
        "-",
    ]);
    let output = e2e::run(server, &MAP.replace("'1'", "'9'"))?;
    ensure!(!output.success && output.stdout.contains("+  a: \"9\""), "{output:?}");
    Ok(())
}

#[test]
fn kinds_and_fields_are_explained() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let explained = cluster.kubectl(&["explain", "pod.spec.containers.image"])?;
    ensure!(explained.contains("FIELD: image <string>"), "{explained}");
    let explained = cluster.kubectl(&["explain", "deployment.spec.strategy", "--recursive"])?;
    ensure!(explained.contains("maxUnavailable\t<IntOrString>"), "{explained}");
    let resources = cluster.kubectl(&["api-resources", "--no-headers"])?;
    for (name, short) in [("pods", "po"), ("deployments", "deploy"), ("configmaps", "cm")] {
        let line = resources.lines().find(|l| l.starts_with(name)).context(name)?;
        ensure!(line.split_whitespace().nth(1) == Some(short), "{line}");
    }
    let versions = cluster.kubectl(&["api-versions"])?;
    ensure!(versions.lines().any(|l| l == "apps/v1"), "{versions}");
    let version = cluster.kubectl(&["version"])?;
    ensure!(version.contains("Server Version: v1.35"), "{version}");
    let info = cluster.kubectl(&["cluster-info"])?;
    ensure!(info.contains("is running at"), "{info}");
    Ok(())
}

#[test]
fn output_has_the_form_that_was_asked_for() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("forms")?;
    ns.kubectl(&["create", "configmap", "b", "--from-literal=k=2"])?;
    ns.kubectl(&["create", "configmap", "a", "--from-literal=k=10"])?;
    let selector = "--field-selector=metadata.name!=kube-root-ca.crt";
    let path = ns.kubectl(&[
        "get",
        "cm",
        selector,
        "--sort-by=.metadata.name",
        "-o",
        "jsonpath={.items[*].data.k}",
    ])?;
    ensure!(path == "10 2", "{path}");
    let columns =
        ns.kubectl(&["get", "cm", "a", "-o", "custom-columns=N:.metadata.name,K:.data.k"])?;
    ensure!(
        columns.lines().nth(1).is_some_and(|l| l.split_whitespace().eq(["a", "10"])),
        "{columns}"
    );
    let yaml = ns.kubectl(&["get", "cm", "a", "-o", "yaml"])?;
    ensure!(yaml.contains("kind: ConfigMap\n") && yaml.contains("  k: \"10\"\n"), "{yaml}");
    let table = ns.kubectl(&["get", "cm", "a"])?;
    ensure!(
        table.lines().next().is_some_and(|l| l.split_whitespace().eq(["NAME", "DATA", "AGE"])),
        "{table}"
    );
    let in_chunks = ns.kubectl(&["get", "cm", selector, "--chunk-size=1", "-o", "name"])?;
    ensure!(in_chunks.lines().eq(["configmap/a", "configmap/b"]), "{in_chunks}");
    Ok(())
}

#[test]
fn changes_are_watched_and_waited_for() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("watched")?;
    let watch = ns.spawn(&["get", "configmaps", "--watch", "--output-watch-events"])?;
    watch.until("kube-root-ca.crt", SOON)?;
    ns.apply(MAP)?;
    ns.kubectl(&["label", "configmap", "m", "x=y"])?;
    let mut waiting = ns.spawn(&["wait", "--for=delete", "configmap/m", "--timeout=60s"])?;
    let label = ["wait", "--for=jsonpath={.metadata.labels.x}=y", "configmap/m", "--timeout=20s"];
    let met = ns.kubectl(&label)?;
    ensure!(met.contains("configmap/m condition met"), "{met}");
    ns.kubectl(&["delete", "configmap", "m"])?;
    ensure!(waiting.wait(SOON)?, "{}", waiting.text());
    watch.until("DELETED", SOON)?;
    let text = watch.text();
    let events: Vec<&str> = text
        .lines()
        .filter(|l| l.split_whitespace().nth(1) == Some("m"))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    ensure!(events == ["ADDED", "MODIFIED", "DELETED"], "{text}");
    let slow = ns.refusal(&["wait", "--for=create", "configmap/never", "--timeout=1s"], "")?;
    ensure!(slow.contains("timed out waiting for the condition"), "{slow}");
    Ok(())
}

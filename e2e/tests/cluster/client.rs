//! Other clients than the kubectl of this version.

use anyhow::ensure;
use e2e::manifests::{script, web};

use crate::cluster;

#[test]
fn an_older_kubectl_does_as_well() -> anyhow::Result<()> {
    let old = cluster()?.by_old_kubectl();
    let version = old.kubectl(&["version"])?;
    ensure!(version.contains("Client Version: v1.34"), "{version}");
    let ns = old.namespace("older")?;
    ns.apply(&web("web", 1))?;
    ns.rolled_out("deployment/web")?;
    ns.idle("box")?;
    ensure!(ns.shell("box", "echo hello")?.trim() == "hello");
    ensure!(old.kubectl(&["get", "nodes"])?.matches(" Ready ").count() == 2);
    let log = ns.kubectl(&["logs", "deployment/web"])?;
    ensure!(log.contains("listening on port 8080"), "{log}");
    ns.kubectl_with(&["apply", "--server-side", "-f", "-"], &script("applied", "true"))?;
    ns.pod("applied", "it has ended", |p| p["status"]["phase"] == "Succeeded")?;
    let explained = ns.kubectl(&["explain", "pod.spec"])?;
    ensure!(explained.contains("containers\t<[]Container> -required-"), "{explained}");
    ns.kubectl(&["delete", "pod", "box", "--timeout=60s"])?;
    Ok(())
}

#[test]
fn helm_installs_upgrades_and_rolls_back() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("chart")?;
    let (helm, dir) = (cluster.settings().kubectl.with_file_name("helm"), &cluster.settings().dir);
    let chart = dir.join("chart");
    std::fs::create_dir_all(chart.join("templates"))?;
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: chart\nversion: 1.0.0\n")?;
    std::fs::write(chart.join("values.yaml"), "word: first\n")?;
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}'}\n\
               data: {word: '{{ .Values.word }}'}\n";
    std::fs::write(chart.join("templates/all.yaml"), format!("{map}---\n{}", web("web", 1)))?;
    let run = |arguments: &[&str]| {
        let mut command = cluster.inside(&helm);
        command.arg("--kubeconfig").arg(dir.join("etc/admin.conf")).args(["-n", ns.name()]);
        for (name, folder) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            command.env(name, dir.join("helm").join(folder));
        }
        command.args(arguments);
        e2e::run(command, "")?.text()
    };
    let word = || ns.kubectl(&["get", "configmap", "r", "-o", "jsonpath={.data.word}"]);
    let path = chart.display().to_string();
    run(&["install", "r", &path, "--wait", "--timeout=90s"])?;
    ensure!(word()? == "first");
    run(&["upgrade", "r", &path, "--set", "word=second", "--wait", "--timeout=90s"])?;
    ensure!(word()? == "second");
    run(&["rollback", "r", "1", "--wait", "--timeout=90s"])?;
    ensure!(word()? == "first");
    let history = run(&["history", "r"])?;
    ensure!(history.contains("Rollback to 1"), "{history}");
    run(&["uninstall", "r", "--wait", "--timeout=90s"])?;
    let left = ns.kubectl(&["get", "deployments,services,secrets", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn objects_come_as_json_yaml_and_protobuf() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("encodings")?;
    ns.kubectl(&["create", "serviceaccount", "reader"])?;
    ns.kubectl(&[
        "create",
        "rolebinding",
        "reader",
        "--clusterrole=view",
        &format!("--serviceaccount={}:reader", ns.name()),
    ])?;
    let token = ns.kubectl(&["create", "token", "reader"])?;
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let path = format!("/api/v1/namespaces/{}/configmaps/kube-root-ca.crt", ns.name());
    for (media, start) in [
        ("application/json", "{\"kind\":\"ConfigMap\""),
        ("application/yaml", "apiVersion: v1\n"),
        ("application/vnd.kubernetes.protobuf", "k8s\0"),
    ] {
        let accept = format!("Accept: {media}");
        let answer = e2e::eventually("the binding works", e2e::SOON, || {
            let answer = cluster.curl(&path, &["-H", &bearer, "-H", &accept])?;
            ensure!(answer.code == "200", "{} {}", answer.code, answer.body);
            Ok(answer)
        })?;
        ensure!(answer.body.starts_with(start), "{media}: {:?}", answer.body.get(..40));
    }
    let refused = cluster.curl(&path, &["-H", &bearer, "-H", "Accept: text/html"])?;
    ensure!(refused.code == "406", "{} {}", refused.code, refused.body);
    Ok(())
}

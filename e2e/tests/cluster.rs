//! One cluster of two nodes, and what people do with it.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::{Cluster, eventually, idle, web};

const SOON: Duration = Duration::from_secs(60);

fn cluster() -> anyhow::Result<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let made =
        CLUSTER.get_or_init(|| Cluster::start(&["--nodes", "2"]).map_err(|e| format!("{e:#}")));
    made.as_ref().map_err(|e| anyhow::anyhow!("{e}"))
}

#[test]
fn a_deployment_is_rolled_out_and_answers_by_name() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("rollout")?;
    ns.kubectl_with(&["apply", "-f", "-"], &web("web", 3))?;
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let wide = ns.kubectl(&["get", "pods", "-o", "wide"])?;
    ensure!(wide.contains("NOMINATED NODE") && wide.matches("Running").count() == 3, "{wide}");
    let described = ns.kubectl(&["describe", "deployment", "web"])?;
    ensure!(described.contains("Scaled up replica set web-"), "{described}");

    ns.kubectl_with(&["apply", "-f", "-"], &idle("client"))?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    let ask = "for i in $(seq 30); do timeout 3 wget -q -O - http://web/hostname; done";
    let names: BTreeSet<String> = ns.shell("client", ask)?.lines().map(str::to_owned).collect();
    ensure!(names.len() == 3, "all replicas answer by name: {names:?}");
    let service = ns.get(&["service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
    let answer =
        ns.shell("client", &format!("timeout 3 wget -q -O - http://{address}/hostname"))?;
    ensure!(names.contains(answer.trim()), "{answer}");
    let full = ns.shell("client", "nslookup web.rollout.svc.cluster.local")?;
    ensure!(full.contains(&address), "{full}");

    ns.kubectl(&["scale", "deployment/web", "--replicas=1"])?;
    eventually("one replica is left", SOON, || {
        let pods = ns.get(&["pods", "-l", "app=web"])?;
        ensure!(pods["items"].as_array().map(Vec::len) == Some(1), "{}", pods["items"]);
        Ok(())
    })?;
    ns.kubectl(&["set", "env", "deployment/web", "A=B"])?;
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    ns.kubectl(&["rollout", "undo", "deployment/web"])?;
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let env = ns.get(&["deployment", "web"])?;
    ensure!(env["spec"]["template"]["spec"]["containers"][0]["env"].is_null(), "{env}");
    Ok(())
}

#[test]
fn a_rolling_update_loses_no_request() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("lossless")?;
    ns.kubectl_with(&["apply", "-f", "-"], &web("web", 2))?;
    ns.kubectl_with(&["apply", "-f", "-"], &idle("client"))?;
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    let ask = "rm -f /tmp/stop; (while [ ! -e /tmp/stop ]; do \
               timeout 3 wget -q -O /dev/null http://web/hostname && echo ok || echo lost; \
               sleep 0.02; done > /tmp/log 2>&1) & true";
    ns.shell("client", &format!("sh -c '{ask}' > /dev/null 2>&1 < /dev/null"))?;
    ns.kubectl(&["rollout", "restart", "deployment/web"])?;
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    let log = ns.shell("client", "touch /tmp/stop; cat /tmp/log")?;
    let (good, lost) = (log.matches("ok").count(), log.matches("lost").count());
    ensure!(good > 20 && lost == 0, "{good} answered, {lost} lost");
    Ok(())
}

#[test]
fn commands_run_in_containers() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("streams")?;
    ns.kubectl_with(&["apply", "-f", "-"], &web("web", 1))?;
    ns.kubectl_with(&["apply", "-f", "-"], &idle("box"))?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"])?;
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let echoed = ns.kubectl_with(&["exec", "-i", "box", "--", "cat"], "hello\n")?;
    ensure!(echoed == "hello\n", "{echoed:?}");
    let refused = ns.refusal(&["exec", "box", "--", "sh", "-c", "exit 3"], "")?;
    ensure!(refused.contains("exit code 3"), "{refused}");
    let log = ns.kubectl(&["logs", "deployment/web"])?;
    ensure!(log.contains("listening on port 8080"), "{log}");

    let dir = std::env::temp_dir().join(format!("e2e-cp-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("there"), "and back")?;
    let (there, back) =
        (dir.join("there").display().to_string(), dir.join("back").display().to_string());
    ns.kubectl(&["cp", &there, "box:/tmp/file"])?;
    ns.kubectl(&["cp", "box:/tmp/file", &back])?;
    ensure!(std::fs::read_to_string(&back)? == "and back");
    std::fs::remove_dir_all(&dir)?;

    let forward = ns.spawn(&["port-forward", "deployment/web", "18080:8080"])?;
    let name = eventually("the port is forwarded", SOON, || {
        let mut curl = cluster()?.inside("curl".as_ref());
        let output = curl.args(["-sf", "-m", "2", "http://127.0.0.1:18080/hostname"]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })?;
    ensure!(name.starts_with("web-"), "{name}");
    drop(forward);
    Ok(())
}

#[test]
fn objects_are_applied_patched_and_explained() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("objects")?;
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '1'}\n";
    ns.kubectl_with(&["apply", "--server-side", "-f", "-"], map)?;
    let other = map.replace("'1'", "'2'");
    let arguments = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let refused = ns.refusal(&arguments, &other)?;
    ensure!(refused.contains("conflict with \"kubectl\""), "{refused}");
    ns.kubectl_with(&[&arguments[..], &["--force-conflicts"]].concat(), &other)?;
    for (kind, patch) in [
        ("strategic", r#"{"data":{"b":"1"}}"#),
        ("merge", r#"{"data":{"b":"2"}}"#),
        ("json", r#"[{"op":"replace","path":"/data/b","value":"3"}]"#),
    ] {
        ns.kubectl(&["patch", "configmap", "m", "--type", kind, "-p", patch])?;
    }
    let found = ns.get(&["configmap", "m"])?;
    ensure!(found["data"] == serde_json::json!({"a": "2", "b": "3"}), "{}", found["data"]);
    ns.kubectl(&["label", "configmap", "m", "x=y"])?;
    ns.kubectl(&["annotate", "configmap", "m", "x=y"])?;
    let by_label = ns.kubectl(&["get", "configmap", "-l", "x=y", "-o", "name"])?;
    ensure!(by_label.trim() == "configmap/m", "{by_label}");
    let explained = ns.kubectl(&["explain", "pod.spec.containers.image"])?;
    ensure!(explained.contains("image <string>"), "{explained}");
    let dry = ns.kubectl(&["create", "configmap", "dry", "--dry-run=server"])?;
    ensure!(dry.contains("created (server dry run)"), "{dry}");
    ensure!(ns.refusal(&["get", "configmap", "dry"], "")?.contains("not found"));
    // Exit code 1 says that there is a difference.
    let differs = ns.refusal(&["diff", "-f", "-"], &map.replace("'1'", "'9'"));
    ensure!(differs.is_ok(), "{differs:?}");
    let allowed = ns.kubectl(&["auth", "can-i", "create", "pods"])?;
    ensure!(allowed.trim() == "yes", "{allowed}");
    Ok(())
}

#[test]
fn bad_input_is_refused_with_reasons() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("refusals")?;
    for (input, wanted) in [
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: [1]\n", "cannot unmarshal"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndta: {}\n",
            "unknown field \"dta\"",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: M_}\n",
            "a lowercase RFC 1123 subdomain",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: m}\nspec: {containers: []}\n",
            "spec.containers: Required value",
        ),
    ] {
        let refused = ns.refusal(&["create", "-f", "-"], input)?;
        ensure!(refused.contains(wanted), "{wanted:?} is not in {refused}");
    }
    let long =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {}}}\n", "a".repeat(254));
    let refused = ns.refusal(&["create", "-f", "-"], &long)?;
    ensure!(refused.contains("must be no more than 253"), "{refused}");
    let forged = ns.refusal(&["--kubeconfig=/dev/null", "--token=forged", "get", "pods"], "");
    ensure!(forged.is_ok(), "{forged:?}");
    Ok(())
}

#[test]
fn volumes_and_environment_reach_containers() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("volumes")?;
    ns.kubectl(&["create", "configmap", "conf", "--from-literal=key=value"])?;
    ns.kubectl(&["create", "secret", "generic", "hush", "--from-literal=word=quiet"])?;
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {who: me}}
spec:
  initContainers:
  - {name: first, image: 'localhost/test:1', command: [sh, -c, 'echo done > /shared/first'], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: localhost/test:1
    command: [sleep, infinity]
    env:
    - {name: KEY, valueFrom: {configMapKeyRef: {name: conf, key: key}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: all, mountPath: /all}
  volumes:
  - {name: shared, emptyDir: {}}
  - name: all
    projected:
      sources:
      - configMap: {name: conf}
      - secret: {name: hush}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
  terminationGracePeriodSeconds: 0
"#;
    ns.kubectl_with(&["apply", "-f", "-"], pod)?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"])?;
    let script = "cat /shared/first /all/key /all/word /all/labels; echo; echo $KEY $NODE; \
                  cat /var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let text = ns.shell("box", script)?;
    for wanted in ["done", "value", "quiet", "who=\"me\"", "value node", "volumes"] {
        ensure!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    ns.kubectl(&["patch", "configmap", "conf", "-p", r#"{"data":{"key":"changed"}}"#])?;
    eventually("the change reaches the volume", Duration::from_secs(120), || {
        let text = ns.shell("box", "cat /all/key")?;
        ensure!(text == "changed", "{text}");
        Ok(())
    })
}

#[test]
fn pods_of_both_nodes_reach_each_other() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("nodes")?;
    let set = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: server, image: 'localhost/test:1', command: [testserver]}]
"#;
    ns.kubectl_with(&["apply", "-f", "-"], set)?;
    ns.kubectl(&["rollout", "status", "daemonset/each", "--timeout=60s"])?;
    let pods = ns.get(&["pods"])?;
    let items = pods["items"].as_array().context("pods")?;
    let nodes: BTreeSet<&str> =
        items.iter().filter_map(|p| p["spec"]["nodeName"].as_str()).collect();
    ensure!(nodes.len() == 2, "one on each node: {nodes:?}");
    for from in items {
        for to in items {
            let name = from["metadata"]["name"].as_str().context("a name")?;
            let (ip, wanted) = (to["status"]["podIP"].as_str(), to["metadata"]["name"].as_str());
            let ask = format!(
                "timeout 3 wget -q -O - http://{}:8080/hostname",
                ip.context("an address")?
            );
            let answer = eventually("pods reach each other", SOON, || ns.shell(name, &ask))?;
            ensure!(Some(answer.trim()) == wanted, "{answer}");
        }
    }
    Ok(())
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("doomed")?;
    ns.kubectl_with(&["apply", "-f", "-"], &web("web", 1))?;
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "namespace", "doomed", "--timeout=90s"])?;
    ensure!(cluster.refusal(&["get", "namespace", "doomed"], "")?.contains("not found"));
    Ok(())
}

#[test]
fn an_older_kubectl_does_as_well() -> anyhow::Result<()> {
    let old = cluster()?.by_old_kubectl()?;
    let ns = old.namespace("older")?;
    ns.kubectl_with(&["apply", "-f", "-"], &idle("box"))?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"])?;
    ensure!(ns.shell("box", "echo hello")?.trim() == "hello");
    ensure!(old.kubectl(&["get", "nodes"])?.matches(" Ready ").count() == 2);
    ns.kubectl(&["delete", "pod", "box"])?;
    Ok(())
}

#[test]
fn rights_end_where_they_should() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("rights")?;
    ns.kubectl(&["create", "serviceaccount", "reader"])?;
    ns.kubectl(&["create", "role", "reads", "--verb=get,list", "--resource=configmaps"])?;
    ns.kubectl(&[
        "create",
        "rolebinding",
        "reads",
        "--role=reads",
        "--serviceaccount=rights:reader",
    ])?;
    let who = "--as=system:serviceaccount:rights:reader";
    eventually("the binding works", SOON, || ns.kubectl(&["get", "configmaps", who]).map(drop))?;
    let refused = ns.refusal(&["get", "secrets", who], "")?;
    let wanted = "cannot list resource \"secrets\" in API group \"\" in the namespace \"rights\"";
    ensure!(refused.contains(wanted), "{refused}");
    let token = ns.kubectl(&["create", "token", "reader"])?;
    ensure!(token.split('.').count() == 3, "{token}");
    Ok(())
}

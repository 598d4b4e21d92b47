//! Volumes and environment of containers.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::manifests::{claim, user, volume};
use e2e::{SOON, eventually};

use crate::cluster;

#[test]
fn volumes_and_environment_reach_containers() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("volumes")?;
    ns.kubectl(&["create", "configmap", "conf", "--from-literal=key=value"])?;
    ns.kubectl(&["create", "secret", "generic", "hush", "--from-literal=word=quiet"])?;
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {who: me}, annotations: {note: kept}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/test:1
    command: [sleep, infinity]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    envFrom: [{configMapRef: {name: conf}, prefix: FROM_}]
    env:
    - {name: KEY, valueFrom: {configMapKeyRef: {name: conf, key: key}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: hush, key: word}}}
    - {name: NONE, valueFrom: {secretKeyRef: {name: hush, key: none, optional: true}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: BOTH, value: '$(KEY)-$(WORD)-$$(KEY)'}
    volumeMounts:
    - {name: all, mountPath: /all}
    - {name: conf, mountPath: /conf, readOnly: true}
    - {name: conf, mountPath: /one, subPath: key}
    - {name: hush, mountPath: /hush}
    - {name: memory, mountPath: /memory}
    - {name: down, mountPath: /down}
  volumes:
  - {name: conf, configMap: {name: conf, items: [{key: key, path: deep/key, mode: 256}, {key: key, path: key}]}}
  - {name: hush, secret: {secretName: hush}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: down, downwardAPI: {items: [{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}}
  - name: all
    projected:
      sources:
      - configMap: {name: conf}
      - secret: {name: hush}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
      - serviceAccountToken: {path: token, audience: somebody}
"#;
    ns.ready(pod, "box")?;
    let shell = |script: &str| ns.shell("box", script);
    for (script, wanted) in [
        ("cat /all/key", "value"),
        ("cat /all/word", "quiet"),
        ("cat /all/labels", "who=\"me\""),
        ("cat /down/note", "kept"),
        ("cat /conf/deep/key /one /hush/word", "valuevaluequiet"),
        ("stat -Lc %a /conf/deep/key", "400\n"),
        ("grep -c ' /memory tmpfs ' /proc/mounts", "1\n"),
        ("echo $KEY $WORD $NONE $LIMIT $FROM_key", "value quiet 64 value\n"),
        ("echo $BOTH", "value-quiet-$(KEY)\n"),
        ("touch /conf/new 2>&1 || true", "touch: /conf/new: Read-only file system\n"),
        ("grep -o '[.]' /all/token | wc -l", "2\n"),
    ] {
        let text = shell(script)?;
        ensure!(text == wanted, "{script}: {text:?}");
    }
    let account = shell("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace")?;
    ensure!(account == ns.name(), "{account}");
    ensure!(shell("echo $NODE")?.starts_with("node"));

    ns.kubectl(&["patch", "configmap", "conf", "-p", r#"{"data":{"key":"changed"}}"#])?;
    ns.kubectl(&["annotate", "--overwrite", "pod", "box", "note=new"])?;
    eventually("the changes reach the volumes", Duration::from_secs(120), || {
        let text = shell("cat /all/key /conf/key /down/note")?;
        ensure!(text == "changedchangednew", "{text}");
        Ok(())
    })?;
    // As upstream: a subPath is not updated.
    ensure!(shell("cat /one")? == "value");
    Ok(())
}

#[test]
fn containers_of_a_pod_share_a_volume_and_its_group() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("shared")?;
    let pod = r"
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000, runAsNonRoot: true, fsGroup: 2000}
  containers:
  - name: one
    image: localhost/test:1
    command: [sh, -c, 'id -u > /shared/id; sleep infinity']
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: other
    image: localhost/test:1
    command: [sleep, infinity]
    securityContext: {readOnlyRootFilesystem: true, runAsUser: 1001}
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes: [{name: shared, emptyDir: {}}]
";
    ns.ready(pod, "two")?;
    let script = "cat /shared/id; id -u; id -G; stat -c %g /shared/id; touch /tmp/x 2>&1 || true";
    let text = ns.kubectl(&["exec", "two", "-c", "other", "--", "sh", "-c", script])?;
    ensure!(text == "1000\n1001\n0 2000\n2000\ntouch: /tmp/x: Read-only file system\n", "{text}");
    Ok(())
}

#[test]
fn a_pod_waits_for_what_it_needs() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("missing")?;
    let pod = |name: &str, rest: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  containers: [{{name: main, image: 'localhost/test:1', \
             command: [sleep, infinity]{rest}\n"
        )
    };
    let volume = ", volumeMounts: [{name: v, mountPath: /v}]}]\n  \
                  volumes: [{name: v, configMap: {name: late}}]";
    ns.apply(&pod("volume", volume))?;
    ns.apply(&pod("env", ", envFrom: [{configMapRef: {name: late}}]}]"))?;
    ns.apply(&pod("image", "}]").replace("localhost/test:1", "localhost/none:1"))?;
    let reason = |name: &str, wanted: &'static [&'static str]| {
        ns.pod(name, &format!("{name} waits"), |p| {
            let reason = &p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            wanted.iter().any(|w| reason == w)
        })
    };
    reason("volume", &["ContainerCreating"])?;
    reason("env", &["CreateContainerConfigError"])?;
    reason("image", &["ErrImagePull", "ImagePullBackOff"])?;
    eventually("the reason is told", SOON, || {
        let events = ns.kubectl(&["describe", "pod", "volume"])?;
        ensure!(
            events.contains("FailedMount") && events.contains("configmap \"late\" not found"),
            "{events}"
        );
        Ok(())
    })?;
    ns.kubectl(&["create", "configmap", "late", "--from-literal=A=B"])?;
    for name in ["volume", "env"] {
        ns.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"])?;
    }
    Ok(())
}

/// A class whose volumes wait for a pod, and a claim of it.
fn waits_for_its_pod(name: &str, provisioner: &str) -> String {
    let class = format!(
        r"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {name}}}
provisioner: {provisioner}
volumeBindingMode: WaitForFirstConsumer
"
    );
    format!("{class}---{}", claim(name, name))
}

fn local_volume(name: &str, node: &str, more: &str) -> String {
    let source = format!(
        r"local: {{path: /tmp}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]
{more}"
    );
    volume(name, &source)
}

#[test]
fn a_pod_decides_where_its_volume_is() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("late")?;
    let nodes = cluster.get(&["nodes"])?;
    let all = nodes["items"].as_array().context("nodes")?;
    let name_of = |node: &serde_json::Value| node["metadata"]["name"].as_str().map(str::to_owned);
    let node = all.last().and_then(name_of).context("a node")?;

    // A volume that is there, of one node.
    let local = format!("{}-local", ns.name());
    let manifest = waits_for_its_pod(&local, "kubernetes.io/no-provisioner");
    ns.apply(&format!("{manifest}---{}", local_volume(&local, &node, "")))?;
    eventually("the claim waits", SOON, || {
        let events = ns.kubectl(&["get", "events"])?;
        ensure!(events.contains("waiting for first consumer"), "{events}");
        Ok(())
    })?;
    ns.ready(&user("first", &local), "first")?;
    let pod = ns.get(&["pod", "first"])?;
    ensure!(pod["spec"]["nodeName"] == node.as_str(), "{pod}");

    // One that a provisioner makes, as which the test acts.
    let made = format!("{}-made", ns.name());
    ns.apply(&waits_for_its_pod(&made, "example.com/made"))?;
    ns.apply(&user("second", &made))?;
    let (chosen, uid) = eventually("a node is chosen", SOON, || {
        let claim = ns.get(&["pvc", &made])?;
        let notes = &claim["metadata"]["annotations"];
        ensure!(notes["volume.kubernetes.io/storage-provisioner"] == "example.com/made", "{claim}");
        let chosen = notes["volume.kubernetes.io/selected-node"].as_str().context("no node")?;
        let uid = claim["metadata"]["uid"].as_str().context("a uid")?;
        Ok((chosen.to_owned(), uid.to_owned()))
    })?;
    let pod = ns.get(&["pod", "second"])?;
    ensure!(pod["spec"]["nodeName"].is_null(), "it waits for its volume: {pod}");
    let reference = format!(
        "  claimRef: {{apiVersion: v1, kind: PersistentVolumeClaim, namespace: {}, name: {made}, \
         uid: {uid}}}\n",
        ns.name()
    );
    ns.apply(&local_volume(&made, &chosen, &reference))?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/second", "--timeout=60s"])?;
    let pod = ns.get(&["pod", "second"])?;
    ensure!(pod["spec"]["nodeName"] == chosen.as_str(), "{pod}");

    // One that is not there at all.
    ns.apply(&user("third", "none"))?;
    eventually("it is told what is missing", SOON, || {
        let pod = ns.get(&["pod", "third"])?;
        let text = pod["status"]["conditions"].to_string();
        ensure!(text.contains(r#"persistentvolumeclaim \"none\" not found"#), "{text}");
        Ok(())
    })?;
    ns.kubectl(&["delete", "pod", "first", "second", "third"])?;
    for name in [local, made] {
        ns.kubectl(&["delete", "pvc", &name])?;
        cluster.kubectl(&["delete", "pv", &name])?;
        cluster.kubectl(&["delete", "storageclass", &name])?;
    }
    Ok(())
}

#[test]
fn a_volume_is_not_mounted_where_it_is_not() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("elsewhere")?;
    let nodes = cluster.get(&["nodes"])?;
    let name_of = |at: usize| nodes["items"][at]["metadata"]["name"].as_str().context("a node");
    let (here, there) = (name_of(0)?, name_of(1)?);
    let name = ns.name();
    let bound = user("lost", name).replace(
        "  terminationGracePeriodSeconds",
        &format!("  nodeName: {there}\n  terminationGracePeriodSeconds"),
    );
    ns.apply(&format!("{}---{}---{bound}", local_volume(name, here, ""), claim(name, name)))?;
    let want = format!(
        "MountVolume.NodeAffinity check failed for volume {name:?} : no matching NodeSelectorTerms"
    );
    eventually("it is told why", SOON, || {
        let events = ns.get(&["events", "--field-selector=reason=FailedMount"])?;
        let all = events["items"].as_array().context("events")?;
        ensure!(all.iter().any(|event| event["message"] == want), "{all:?}");
        Ok(())
    })?;
    ns.kubectl(&["delete", "pod", "lost"])?;
    ns.kubectl(&["delete", "pvc", name])?;
    cluster.kubectl(&["delete", "pv", name])?;
    Ok(())
}

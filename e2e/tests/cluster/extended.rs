//! What people add to a cluster: kinds of their own, rules for what is written, storage, and
//! endpoints outside of it.

use anyhow::{Context, ensure};
use e2e::manifests::{self, claim, user, web};
use e2e::{SOON, eventually};

use crate::cluster;

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.example.com}
spec:
  group: harbour.example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat, shortNames: [bt]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.oars, statusReplicasPath: .status.oars}}
    additionalPrinterColumns: [{name: Oars, type: integer, jsonPath: .spec.oars}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What the boat is to be.
            required: [oars]
            properties:
              oars: {type: integer, minimum: 0}
              colour: {type: string, default: blue}
            x-kubernetes-validations:
            - {rule: self.oars % 2 == 0, message: oars come in pairs}
          status:
            type: object
            properties: {oars: {type: integer}}
"#;

#[test]
fn a_kind_of_ones_own_is_like_any_other() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("kinds")?;
    cluster.kubectl_with(&["apply", "-f", "-"], DEFINITION)?;
    let name = "customresourcedefinition/boats.harbour.example.com";
    cluster.kubectl(&["wait", "--for=condition=Established", name, "--timeout=60s"])?;
    let boat = |oars: &str| {
        format!(
            "apiVersion: harbour.example.com/v1\nkind: Boat\nmetadata: {{name: a}}\n\
             spec: {{oars: {oars}}}\n"
        )
    };
    for (oars, wanted) in [
        ("3", "oars come in pairs"),
        ("-2", "should be greater than or equal to 0"),
        ("many", "must be of type integer"),
        ("2, sail: 1", "unknown field \"spec.sail\""),
    ] {
        let refused = ns.refusal(&["create", "-f", "-"], &boat(oars))?;
        ensure!(refused.contains(wanted), "{oars}: {refused}");
    }
    let made = ns.kubectl_with(&["apply", "--server-side", "-f", "-"], &boat("2"))?;
    ensure!(made.trim() == "boat.harbour.example.com/a serverside-applied", "{made}");
    ns.kubectl(&["scale", "boat/a", "--replicas=4"])?;
    let found = ns.get(&["bt", "a"])?;
    ensure!(found["spec"] == serde_json::json!({"oars": 4, "colour": "blue"}), "{found}");
    let table = ns.kubectl(&["get", "boats", "--no-headers"])?;
    let cells: Vec<&str> = table.split_whitespace().collect();
    ensure!(cells.first() == Some(&"a") && cells.get(1) == Some(&"4"), "{table}");
    let explained = cluster.kubectl(&["explain", "boat.spec"])?;
    ensure!(explained.contains("What the boat is to be."), "{explained}");
    // What is of the kind goes with it.
    cluster.kubectl(&["delete", name])?;
    eventually("the kind is not served any more", SOON, || {
        let refused = ns.refusal(&["get", "boats"], "")?;
        // As kubectl says it by itself, or by what it knew.
        let gone = ["doesn't have a resource type", "could not find the requested resource"];
        ensure!(gone.iter().any(|text| refused.contains(text)), "{refused}");
        Ok(())
    })
}

#[test]
fn policies_say_what_may_be_written() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("policies")?;
    let (policy, namespace) = (format!("{}-short", ns.name()), ns.name());
    let manifest = format!(
        r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {policy}}}
spec:
  matchConstraints:
    resourceRules:
    - {{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}}
  validations:
  - {{expression: "!has(object.data) || object.data.size() < 2", messageExpression: "'too much: ' + string(object.data.size())"}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {policy}}}
spec:
  policyName: {policy}
  validationActions: [Deny]
  matchResources: {{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}}}
"#
    );
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    let create = ["create", "configmap", "m", "--from-literal=a=1", "--from-literal=b=2"];
    eventually("the policy is in force", SOON, || {
        let refused = ns.refusal(&[&create[..], &["--dry-run=server"]].concat(), "")?;
        ensure!(refused.contains("denied request: too much: 2"), "{refused}");
        Ok(())
    })?;
    ns.kubectl(&["create", "configmap", "m", "--from-literal=a=1"])?;
    let refused = ns.refusal(&["patch", "configmap", "m", "-p", r#"{"data":{"b":"2"}}"#], "")?;
    ensure!(refused.contains(&policy), "{refused}");
    for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
        cluster.kubectl(&["delete", kind, &policy])?;
    }
    Ok(())
}

#[test]
fn a_claim_gets_a_volume_and_keeps_it_while_it_is_used() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("claims")?;
    let volume = format!("{}-volume", ns.name());
    let source = format!("hostPath: {{path: /tmp/{volume}, type: DirectoryOrCreate}}");
    let parts = [manifests::volume(&volume, &source), claim("disk", &volume), user("box", "disk")];
    ns.ready(&parts.join("---"), "box")?;
    let phase = |what: &str| -> anyhow::Result<String> {
        let found = ns.get(&[what])?;
        Ok(found["status"]["phase"].as_str().context("a phase")?.to_owned())
    };
    ensure!(phase("pvc/disk")? == "Bound" && phase(&format!("pv/{volume}"))? == "Bound");
    ns.shell("box", "echo kept > /disk/file")?;
    ns.kubectl(&["delete", "pvc", "disk", "--wait=false"])?;
    let claim = ns.get(&["pvc", "disk"])?;
    ensure!(claim["metadata"]["deletionTimestamp"].is_string(), "{claim}");
    ensure!(ns.shell("box", "cat /disk/file; rm /disk/file")? == "kept\n");
    ns.kubectl(&["delete", "pod", "box"])?;
    ns.kubectl(&["wait", "--for=delete", "pvc/disk", "--timeout=60s"])?;
    eventually("the volume is released", SOON, || {
        let phase = phase(&format!("pv/{volume}"))?;
        ensure!(phase == "Released", "{phase}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pv", &volume])?;
    Ok(())
}

#[test]
fn endpoints_made_by_hand_are_mirrored() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("mirrored")?;
    ns.apply(&web("web", 1))?;
    ns.rolled_out("deployment/web")?;
    ns.idle("asker")?;
    let pods = ns.get(&["pods", "-l", "app=web"])?;
    let address = pods["items"][0]["status"]["podIP"].as_str().context("an address")?;
    ns.apply(&format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: outside}}
spec: {{ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Endpoints
metadata: {{name: outside}}
subsets: [{{addresses: [{{ip: {address}}}], ports: [{{port: 8080}}]}}]
"
    ))?;
    eventually("the service answers", SOON, || {
        let name = ns.shell("asker", "timeout 3 wget -q -O - http://outside/hostname")?;
        ensure!(name.starts_with("web-"), "{name}");
        Ok(())
    })?;
    let slices = ns.get(&["endpointslices", "-l", "kubernetes.io/service-name=outside"])?;
    let labels = &slices["items"][0]["metadata"]["labels"];
    let by = &labels["endpointslice.kubernetes.io/managed-by"];
    ensure!(by == "endpointslicemirroring-controller.k8s.io", "{labels}");
    Ok(())
}

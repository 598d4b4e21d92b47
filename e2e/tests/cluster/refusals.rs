//! Bad input is refused, with the reason.

use anyhow::ensure;

use crate::cluster;

/// Manifest, and what kubectl says about it.
const BAD: [(&str, &str); 8] = [
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: [1]\n",
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal array \
         into Go struct field ConfigMap.data of type map[string]string",
    ),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndta: {}\n",
        "strict decoding error: unknown field \"dta\"",
    ),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: M_}\n",
        "The ConfigMap \"M_\" is invalid: metadata.name: Invalid value: \"M_\": a lowercase RFC 1123 subdomain",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: m}\nspec: {containers: []}\n",
        "The Pod \"m\" is invalid: spec.containers: Required value",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: m}\nspec: {containers: [{name: c, image: i, ports: [{containerPort: 0}]}]}\n",
        "spec.containers[0].ports[0].containerPort: Required value",
    ),
    (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: m}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}\n",
        "`selector` does not match template `labels`",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: m}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n",
        "spec.clusterIPs: Invalid value: [\"10.96.0.1\"]: failed to allocate IP 10.96.0.1: provided IP is already allocated",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: m}\nspec: {serviceAccountName: nobody, containers: [{name: c, image: i}]}\n",
        "pods \"m\" is forbidden: error looking up service account NS/nobody: serviceaccount \"nobody\" not found",
    ),
];

#[test]
fn bad_objects_are_refused_with_reasons() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("refusals")?;
    let mut wrong = Vec::new();
    for (input, wanted) in BAD {
        let wanted = wanted.replace("NS", ns.name());
        let refused = ns.refusal(&["create", "-f", "-"], input)?;
        if !refused.contains(&wanted) {
            wrong.push(format!("{wanted:?} is not in {refused}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let broken = ns.refusal(&["create", "-f", "-"], "a: [")?;
    ensure!(broken.contains("error converting YAML to JSON"), "{broken}");
    Ok(())
}

#[test]
fn too_long_and_too_large_is_refused() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("sizes")?;
    let map = |name: &str, size: usize| {
        format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"k":"{}"}}}}"#,
            "x".repeat(size)
        )
    };
    let refused = ns.refusal(&["create", "-f", "-"], &map(&"a".repeat(254), 1))?;
    ensure!(refused.contains("must be no more than 253 characters"), "{}", &refused[..300]);
    let refused = ns.refusal(&["create", "-f", "-"], &map("m", (1 << 20) + 1))?;
    ensure!(refused.contains("Too long: may not be more than 1048576 bytes"), "{refused}");
    let refused = ns.refusal(&["create", "-f", "-"], &map("m", 4 << 20))?;
    ensure!(refused.contains("Request entity too large: limit is 3145728"), "{refused}");
    let long = format!("long={}", "x".repeat(64));
    ns.kubectl(&["create", "configmap", "m"])?;
    let refused = ns.refusal(&["label", "configmap", "m", &long], "")?;
    ensure!(refused.contains("must be no more than 63"), "{refused}");
    Ok(())
}

#[test]
fn what_there_is_already_or_not_at_all() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("presence")?;
    ns.kubectl(&["create", "configmap", "m"])?;
    let wanted = "error: failed to create configmap: configmaps \"m\" already exists";
    let refused = ns.refusal(&["create", "configmap", "m"], "")?;
    ensure!(refused.trim() == wanted, "{refused}");
    let refused = ns.refusal(&["get", "pod", "nobody"], "")?;
    ensure!(
        refused.trim() == "Error from server (NotFound): pods \"nobody\" not found",
        "{refused}"
    );
    let refused = ns.refusal(&["get", "nothing"], "")?;
    ensure!(refused.contains("the server doesn't have a resource type \"nothing\""), "{refused}");
    let nowhere = ns.cluster().refusal(&["create", "configmap", "m", "-n", "nowhere"], "")?;
    ensure!(nowhere.contains("namespaces \"nowhere\" not found"), "{nowhere}");
    let none = ns.kubectl(&["get", "pods"])?;
    ensure!(none.is_empty(), "{none}");
    Ok(())
}

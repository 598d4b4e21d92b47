//! Who may do what.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use e2e::manifests::script;
use e2e::{SOON, eventually};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::cluster;

#[test]
fn rights_end_where_they_should() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("rights")?;
    let account = format!("{}:reader", ns.name());
    ns.kubectl(&["create", "serviceaccount", "reader"])?;
    ns.kubectl(&["create", "role", "reads", "--verb=get,list", "--resource=configmaps"])?;
    let by = ["--role=reads", &format!("--serviceaccount={account}")];
    ns.kubectl(&[&["create", "rolebinding", "reads"][..], &by].concat())?;
    let user = format!("system:serviceaccount:{account}");
    let who = format!("--as={user}");
    eventually("the binding works", SOON, || ns.kubectl(&["get", "configmaps", &who]).map(drop))?;
    for (arguments, wanted) in [
        (
            &["get", "secrets"][..],
            "secrets is forbidden: User \"USER\" cannot list resource \"secrets\" in API group \"\" in the namespace \"NS\"",
        ),
        (
            &["delete", "configmap", "m"][..],
            "configmaps \"m\" is forbidden: User \"USER\" cannot delete resource \"configmaps\" in API group \"\" in the namespace \"NS\"",
        ),
        (
            &["get", "nodes"][..],
            "nodes is forbidden: User \"USER\" cannot list resource \"nodes\" in API group \"\" at the cluster scope",
        ),
    ] {
        let refused = ns.refusal(&[arguments, &[&who]].concat(), "")?;
        let wanted = wanted.replace("USER", &user).replace("NS", ns.name());
        ensure!(refused.contains(&wanted), "{wanted:?} is not in {refused}");
    }
    for (verb, kind, wanted) in
        [("list", "configmaps", true), ("create", "configmaps", false), ("list", "pods", false)]
    {
        let output = e2e::run(
            ns.cluster().command(&["-n", ns.name(), "auth", "can-i", verb, kind, &who]),
            "",
        )?;
        let said = if wanted { "yes" } else { "no" };
        ensure!(
            output.success == wanted && output.stdout.trim() == said,
            "{verb} {kind}: {output:?}"
        );
    }
    let listed = ns.kubectl(&["auth", "can-i", "--list", &who])?;
    ensure!(listed.contains("configmaps") && listed.contains("[get list]"), "{listed}");
    let me = ns.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?;
    ensure!(me == "kubernetes-admin", "{me}");
    // Nobody gives away what he does not have.
    ns.kubectl(&[
        "create",
        "role",
        "binds",
        "--verb=create",
        "--resource=roles.rbac.authorization.k8s.io",
    ])?;
    ns.kubectl(&[
        "create",
        "rolebinding",
        "binds",
        "--role=binds",
        &format!("--serviceaccount={account}"),
    ])?;
    eventually("more is refused", SOON, || {
        let refused =
            ns.refusal(&["create", "role", "more", "--verb=delete", "--resource=pods", &who], "")?;
        ensure!(
            refused.contains("attempting to grant RBAC permissions not currently held"),
            "{refused}"
        );
        Ok(())
    })
}

#[test]
fn tokens_are_good_until_they_are_not() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("tokens")?;
    ns.kubectl(&["create", "serviceaccount", "bearer"])?;
    let token = ns.kubectl(&["create", "token", "bearer"])?.trim().to_owned();
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
    let answer = |token: &str| {
        let bearer = format!("Authorization: Bearer {token}");
        cluster.curl(path, &["-H", &bearer, "-H", "Content-Type: application/json", "-d", review])
    };
    let user = format!("system:serviceaccount:{}:bearer", ns.name());
    let good = answer(&token)?;
    ensure!(good.code == "201" && good.body.contains(&user), "{} {}", good.code, good.body);

    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else {
        anyhow::bail!("{token}")
    };
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload)?)?;
    claims["sub"] = json!("system:serviceaccount:kube-system:generic-garbage-collector");
    let forged = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
    claims["sub"] = json!(user);
    for (claim, ago) in [("exp", 600), ("iat", 4200), ("nbf", 4200)] {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        claims[claim] = json!(now - ago);
    }
    let key = std::fs::read(cluster.settings().dir.join("etc/pki/sa.key"))?;
    let signed = jsonwebtoken::decode_header(&token)?;
    let key = match signed.alg {
        Algorithm::ES256 => EncodingKey::from_ec_pem(&key)?,
        _ => EncodingKey::from_rsa_pem(&key)?,
    };
    let expired = jsonwebtoken::encode(&signed, &claims, &key)?;
    for (what, token) in [
        ("forged", format!("{header}.{forged}.{signature}")),
        ("expired", expired),
        ("no token", "nonsense".to_owned()),
    ] {
        let refused = answer(&token)?;
        let said: Value = serde_json::from_str(&refused.body)?;
        ensure!(refused.code == "401", "{what}: {} {said}", refused.code);
        let wanted = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Unauthorized", "reason": "Unauthorized", "code": 401,
        });
        ensure!(said == wanted, "{what}: {said}");
    }
    // It goes with its account.
    ns.kubectl(&["delete", "serviceaccount", "bearer"])?;
    eventually("it is good for nothing", SOON, || {
        let after = answer(&token)?;
        ensure!(after.code == "401", "{}", after.code);
        Ok(())
    })
}

#[test]
fn a_secret_gets_a_token_and_goes_with_its_account() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("kept-tokens")?;
    ns.kubectl(&["create", "serviceaccount", "robot"])?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "kept", "annotations": {"kubernetes.io/service-account.name": "robot"}},
    });
    ns.apply(&secret.to_string())?;
    let mut token = String::new();
    eventually("the Secret is filled in", SOON, || {
        let data = ns.kubectl(&["get", "secret", "kept", "-o", "jsonpath={.data}"])?;
        let data: Value = serde_json::from_str(&data)?;
        for (field, wanted) in [("namespace", ns.name()), ("ca.crt", "BEGIN CERTIFICATE")] {
            let text = BASE64_STANDARD.decode(data[field].as_str().unwrap_or_default())?;
            ensure!(String::from_utf8(text)?.contains(wanted), "{field}: {data}");
        }
        token =
            String::from_utf8(BASE64_STANDARD.decode(data["token"].as_str().unwrap_or_default())?)?;
        ensure!(!token.is_empty(), "{data}");
        Ok(())
    })?;
    let bearer = format!("Authorization: Bearer {token}");
    let whoami = || {
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let review = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
        cluster.curl(path, &["-H", &bearer, "-H", "Content-Type: application/json", "-d", review])
    };
    let user = format!("system:serviceaccount:{}:robot", ns.name());
    let good = whoami()?;
    ensure!(good.code == "201" && good.body.contains(&user), "{} {}", good.code, good.body);
    ns.kubectl(&["delete", "serviceaccount", "robot"])?;
    ns.kubectl(&["wait", "--for=delete", "secret/kept", "--timeout=30s"])?;
    eventually("its token is good for nothing", SOON, || {
        let after = whoami()?;
        ensure!(after.code == "401", "{}", after.code);
        Ok(())
    })
}

#[test]
fn strangers_see_no_more_than_health_and_version() -> anyhow::Result<()> {
    let cluster = cluster()?;
    for path in ["/healthz", "/livez", "/readyz"] {
        let answer = cluster.curl(path, &[])?;
        ensure!(
            answer.code == "200" && answer.body == "ok",
            "{path}: {} {}",
            answer.code,
            answer.body
        );
    }
    let version = cluster.curl("/version", &[])?;
    ensure!(version.code == "200" && version.body.contains("v1.35"), "{}", version.body);
    for path in ["/api", "/apis", "/openapi/v3", "/metrics", "/api/v1/namespaces", "/nothing"] {
        let answer = cluster.curl(path, &[])?;
        ensure!(answer.code == "403", "{path}: {}", answer.code);
        ensure!(answer.body.contains("User \\\"system:anonymous\\\" cannot"), "{}", answer.body);
    }
    Ok(())
}

#[test]
fn levels_of_pod_security_are_enforced() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("levels")?;
    ns.kubectl(&[
        "label",
        "namespace",
        ns.name(),
        "pod-security.kubernetes.io/enforce=restricted",
    ])?;
    let refused = ns.refusal(&["create", "-f", "-"], &script("loose", "true"))?;
    for wanted in [
        "violates PodSecurity \"restricted:latest\"",
        "allowPrivilegeEscalation != false",
        "runAsNonRoot != true",
    ] {
        ensure!(refused.contains(wanted), "{wanted:?} is not in {refused}");
    }
    let strict = script("strict", "true").replace(
        "name: main,",
        "name: main, securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, runAsUser: 1000, \
         capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}},",
    );
    ns.kubectl_with(&["create", "-f", "-"], &strict)?;
    ns.pod("strict", "it has ended", |p| p["status"]["phase"] == "Succeeded")
        .context("strict")
        .map(drop)
}

#[test]
fn what_components_tell_is_for_those_who_may_know() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("metrics")?;
    let name = ns.name();
    ns.kubectl(&["create", "serviceaccount", "reader"])?;
    let role = ["create", "clusterrole", name, "--verb=get", "--non-resource-url=/metrics"];
    cluster.kubectl(&role)?;
    let account = format!("--serviceaccount={name}:reader");
    let clusterrole = format!("--clusterrole={name}");
    cluster.kubectl(&["create", "clusterrolebinding", name, &clusterrole, &account])?;
    let header = |account: &str| -> anyhow::Result<String> {
        let token = ns.kubectl(&["create", "token", account])?;
        Ok(format!("Authorization: Bearer {}", token.trim()))
    };
    let (reader, other) = (header("reader")?, header("default")?);
    let pki = cluster.settings().dir.join("etc/pki");
    let file = |name: &str| pki.join(name).display().to_string();
    // Of system:masters, or close to it.
    let (cert, key) = (file("apiserver-kubelet-client.crt"), file("apiserver-kubelet-client.key"));
    let scheduler = |path: &str, arguments: &[&str]| -> anyhow::Result<String> {
        let url = format!("https://127.0.0.1:10259{path}");
        Ok(cluster.ask(&url, &[&["-k"], arguments].concat())?.code)
    };
    eventually("the binding works", SOON, || {
        let code = scheduler("/metrics", &["-H", &reader])?;
        ensure!(code == "200", "{code}");
        Ok(())
    })?;
    for (path, arguments, wanted) in [
        ("/healthz", &[][..], "200"),
        ("/metrics", &[], "403"),
        ("/metrics", &["-H", &other], "403"),
        ("/metrics", &["-H", "Authorization: Bearer forged"], "401"),
        ("/metrics", &["--cert", &cert, "--key", &key], "200"),
    ] {
        let code = scheduler(path, arguments)?;
        ensure!(code == wanted, "{path} {arguments:?}: {code}");
    }
    let refused = cluster.ask("https://127.0.0.1:10257/metrics", &["-k"])?;
    let message = "forbidden: User \\\"system:anonymous\\\" cannot get path \\\"/metrics\\\"";
    ensure!(refused.body.contains(message), "{}", refused.body);
    for kind in ["clusterrolebinding", "clusterrole"] {
        cluster.kubectl(&["delete", kind, name])?;
    }
    Ok(())
}

#[test]
fn a_certificate_is_asked_for_approved_and_signed() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("certificates")?;
    let name = ns.name();
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
    let pem = params.serialize_request(&key)?.pem()?;
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
            "expirationSeconds": 3600,
            "request": base64::prelude::BASE64_STANDARD.encode(pem)}});
    cluster.kubectl_with(&["create", "-f", "-"], &request.to_string())?;
    cluster.kubectl(&["certificate", "approve", name])?;
    let certificate = eventually("it is signed", SOON, || {
        let found = cluster.get(&["csr", name])?;
        let text = found["status"]["certificate"].as_str().context("no certificate")?;
        Ok(base64::prelude::BASE64_STANDARD.decode(text)?)
    })?;
    let shown = cluster.kubectl(&["get", "csr", name, "--no-headers"])?;
    ensure!(shown.contains("Approved,Issued"), "{shown}");
    let file = |suffix: &str| cluster.settings().dir.join(format!("{name}.{suffix}"));
    let (cert_file, key_file) = (file("crt"), file("key"));
    std::fs::write(&cert_file, certificate)?;
    std::fs::write(&key_file, key.serialize_pem())?;
    let (cert_file, key_file) = (cert_file.display().to_string(), key_file.display().to_string());
    let path = format!("/api/v1/namespaces/{name}/configmaps");
    let answer = cluster.curl(&path, &["--cert", &cert_file, "--key", &key_file])?;
    ensure!(answer.code == "403" && answer.body.contains("User \\\"jane\\\""), "{}", answer.body);
    cluster.kubectl(&["delete", "csr", name])?;
    Ok(())
}

//! A node that joins with a token, as kubeadm has it, and whose certificates are renewed.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::manifests::web;
use e2e::{Cluster, SOON, Settings, eventually};
use serde_json::{Value, json};

use crate::alone::{ADDRESS, Alone};
use crate::kills::{ETCD, containers, etcd, run_on};

/// The token.
const SECRET: &str = r"
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: abcdef
  token-secret: 0123456789abcdef
  usage-bootstrap-authentication: 'true'
  auth-extra-groups: system:bootstrappers:kubeadm:default-node-token
";

/// The token, and what kubeadm lets nodes with one do, and nodes.
fn rights() -> String {
    let (joining, nodes) = ("system:bootstrappers:kubeadm:default-node-token", "system:nodes");
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    let mut text = SECRET.to_owned();
    for (name, role, group) in [
        ("kubelet-bootstrap", "system:node-bootstrapper", joining),
        ("node-autoapprove-bootstrap", &format!("{requests}:nodeclient"), joining),
        ("node-autoapprove-certificate-rotation", &format!("{requests}:selfnodeclient"), nodes),
    ] {
        text.push_str(&format!(
            r"---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: 'kubeadm:{name}'}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: '{role}'}}
subjects: [{{kind: Group, name: '{group}'}}]
"
        ));
    }
    text
}

/// The files of the node that joins.
struct Joining<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
}

impl<'a> Joining<'a> {
    fn new(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let dir = cluster.settings().dir.join("joining");
        std::fs::create_dir_all(&dir)?;
        let ca = cluster.settings().dir.join("etc/pki/ca.crt");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bootstrap",
            "clusters": [{"name": "kubernetes", "cluster": {
                "server": format!("https://{ADDRESS}:6443"), "certificate-authority": ca,
            }}],
            "contexts": [{"name": "bootstrap", "context": {
                "cluster": "kubernetes", "user": "bootstrap",
            }}],
            "users": [{"name": "bootstrap", "user": {"token": "abcdef.0123456789abcdef"}}],
        });
        std::fs::write(dir.join("bootstrap-kubelet.conf"), config.to_string())?;
        Ok(Self { cluster, dir })
    }

    /// The kubelet's flags, with these fields in its configuration and without a certificate.
    fn flags(&self, fields: &[(&str, Value)]) -> anyhow::Result<Vec<String>> {
        let own = self.cluster.settings().dir.join("kubelet/config.yaml");
        let mut config: Value = serde_json::from_slice(&std::fs::read(own)?)?;
        let all = config.as_object_mut().context("no fields")?;
        all.remove("tlsCertFile");
        all.remove("tlsPrivateKeyFile");
        all.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let at = |name: &str| self.dir.join(name).display().to_string();
        std::fs::write(at("config.yaml"), config.to_string())?;
        Ok(vec![
            format!("--bootstrap-kubeconfig={}", at("bootstrap-kubelet.conf")),
            format!("--kubeconfig={}", at("kubelet.conf")),
            format!("--config={}", at("config.yaml")),
            format!("--cert-dir={}", at("pki")),
        ])
    }

    /// As `kubeadm reset` leaves it.
    fn forget(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.dir.join("kubelet.conf"))?;
        Ok(std::fs::remove_dir_all(self.dir.join("pki"))?)
    }

    /// The files of a kind of certificates.
    fn kept(&self, prefix: &str) -> anyhow::Result<Vec<String>> {
        let names = std::fs::read_dir(self.dir.join("pki"))?
            .map(|entry| Ok(entry?.file_name().to_str().context("a name")?.to_owned()));
        let mut names = names.collect::<anyhow::Result<Vec<String>>>()?;
        names.retain(|name| name.starts_with(prefix));
        names.sort();
        Ok(names)
    }

    /// Who asked for which certificates: names of requests, by signer and user.
    fn requests(&self, signer: &str, user: &str) -> anyhow::Result<Vec<String>> {
        let list = self.cluster.get(&["certificatesigningrequests"])?;
        let items = list["items"].as_array().context("requests")?;
        let of = items.iter().filter(|item| {
            item["spec"]["signerName"] == signer && item["spec"]["username"] == user
        });
        Ok(of.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }
}

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const TOKEN: &str = "system:bootstrap:abcdef";
const NODE: &str = "system:node:node";

#[test]
fn a_node_joins_with_a_token_and_renews_its_certificates() -> anyhow::Result<()> {
    let settings = Settings::own("joins")?;
    let store = etcd(&settings)?;
    let cluster = Cluster::start(&settings, &["--etcd-servers", ETCD])?;
    let mut alone = Alone::take_over(&cluster)?;
    let joining = Joining::new(&cluster)?;
    cluster.kubectl_with(&["apply", "-f", "-"], &rights())?;
    alone.kill("kubelet")?;
    cluster.kubectl(&["delete", "node", "node"])?;

    joins_once(&mut alone, &joining)?;
    renews(&mut alone, &joining)?;
    drop(alone);
    drop(store);
    settings.purge()
}

/// Without rotation; killed while its request waits, it goes on with the same.
fn joins_once(alone: &mut Alone<'_>, joining: &Joining<'_>) -> anyhow::Result<()> {
    let flags = joining.flags(&[("rotateCertificates", false.into())])?;
    alone.kill("kube-controller-manager")?;
    let asked = || -> anyhow::Result<String> {
        let names = joining.requests(CLIENT, TOKEN)?;
        let [name] = &names[..] else { anyhow::bail!("one request: {names:?}") };
        ensure!(name.starts_with("node-csr-"), "{name}");
        Ok(name.clone())
    };
    alone.start_with("kubelet", &flags)?;
    let first = eventually("a certificate is asked for", SOON, asked)?;
    ensure!(joining.kept("")? == ["kubelet-client.key.tmp"], "{:?}", joining.kept("")?);
    alone.kill("kubelet")?;
    alone.start_with("kubelet", &flags)?;
    alone.start_with("kube-controller-manager", &[])?;
    alone.ready()?;
    ensure!(asked()? == first, "it asked again");
    ensure!(joining.kept("kubelet-client.key")?.is_empty(), "the key is in one place");

    let current = joining.dir.join("pki/kubelet-client-current.pem");
    let target = std::fs::read_link(&current)?;
    let mode = std::fs::metadata(&target)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let config: Value = serde_json::from_slice(&std::fs::read(joining.dir.join("kubelet.conf"))?)?;
    let user = &config["users"][0]["user"];
    ensure!(user["client-certificate"] == json!(current), "{config}");

    // It is not asked for another certificate while it has one.
    alone.kill("kubelet")?;
    alone.start_with("kubelet", &flags)?;
    let ns = joining.cluster.namespace("joined")?;
    ns.idle("first")?;
    ensure!(asked()? == first, "it asked again");
    alone.kill("kubelet")?;
    joining.forget()
}

/// With rotation, of certificates that hold for half a minute; the serving certificate waits for
/// somebody's approval.
fn renews(alone: &mut Alone<'_>, joining: &Joining<'_>) -> anyhow::Result<()> {
    let cluster = joining.cluster;
    let flags = joining
        .flags(&[("rotateCertificates", true.into()), ("serverTLSBootstrap", true.into())])?;
    alone.kill("kube-controller-manager")?;
    alone.start_with("kube-controller-manager", &["--cluster-signing-duration=30s".to_owned()])?;
    alone.start_with("kubelet", &flags)?;
    let start = Instant::now();
    // Requests go when their certificates have ended: this one is looked for at once.
    eventually("a certificate is asked for with the token", SOON, || {
        let token = joining.requests(CLIENT, TOKEN)?;
        ensure!(token.len() == 2, "{token:?}");
        Ok(())
    })?;
    let ns = cluster.namespace("renewed")?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    ns.idle("client")?;
    let steady = containers(&ns)?;

    let asked = eventually("a serving certificate is asked for", SOON, || {
        joining.requests(SERVING, NODE)?.pop().context("none")
    })?;
    // Until then its server shows none.
    ns.refusal(&["exec", "client", "--", "true"], "")?;
    cluster.kubectl(&["certificate", "approve", &asked])?;
    let ca = cluster.settings().dir.join("etc/pki/ca.crt").display().to_string();
    eventually("its server shows the certificate", SOON, || {
        let answer =
            cluster.ask(&format!("https://{ADDRESS}:10250/healthz"), &["--cacert", &ca])?;
        ensure!(answer.code == "401", "{}", answer.body);
        Ok(())
    })?;
    ns.kubectl(&["exec", "client", "--", "true"])?;

    // The first certificate, by the token, has ended; those after it were asked for with the one
    // before.
    eventually("certificates are renewed", Duration::from_secs(150), || {
        let own = joining.requests(CLIENT, NODE)?;
        ensure!(!own.is_empty(), "none is asked for with the certificate before");
        let kept = joining.kept("kubelet-client-20")?;
        ensure!(kept.len() > 3, "{kept:?}");
        ensure!(start.elapsed() > Duration::from_secs(40), "the first may still hold");
        Ok(())
    })?;
    alone.ready()?;
    ns.idle("later")?;
    run_on(&ns, &steady)
}

//! The API server and the controllers of tokens in Secrets, which meet on the wire.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use apiserver::{Config, Server};
use component::shutdown::Scope;
use controller_manager::Options;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), text).expect("a file");
}

/// A server's files; returns the PEM of its CA.
fn files(dir: &Path) -> String {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
    let ca = ca.expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    write(dir, "tls.crt", params.signed_by(&key, &ca).expect("a certificate").pem());
    write(dir, "tls.key", key.serialize_pem());
    write(dir, "sa.key", KeyPair::generate().expect("a key").serialize_pem());
    write(dir, "tokens.csv", "admin,admin,1,system:masters\n");
    ca.pem()
}

fn config(dir: &Path) -> Config {
    let path = |name: &str| dir.join(name);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::embedded(any, path("tls.crt"), path("tls.key"), path("store/db"));
    config.token_auth_file = Some(path("tokens.csv"));
    config.authorization_modes = vec!["RBAC".to_owned()];
    config.service_accounts.issuers = vec!["https://issuer.test".to_owned()];
    config.service_accounts.key_files = vec![path("sa.key")];
    config.service_accounts.signing_key_file = Some(path("sa.key"));
    config.disable_admission_plugins = vec!["ServiceAccount".to_owned()];
    config
}

fn kubeconfig(address: SocketAddr, ca: &str) -> Value {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}"),
            "certificate-authority-data": ca}}],
        "users": [{"name": "u", "user": {"token": "admin"}}],
    })
}

/// Tries until it is there.
async fn until<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F) -> T {
    let waiting = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("in time")
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("made");
}

/// What is there when the controller begins. Its only worker takes Secrets in the order of their
/// names, so that what it leaves comes before what it changes.
async fn populate(client: &Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    until(async || maps.get_opt(TRACKING).await.ok().flatten()).await;
    let since = Patch::Merge(json!({"data": {"since": "2020-01-01"}}));
    maps.patch(TRACKING, &PatchParams::default(), &since).await.expect("patched");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let listed = ["mounted", "used", "y-refused", "z-unused"].map(|name| json!({"name": name}));
    create(&accounts, json!({"metadata": {"name": "sa"}, "secrets": listed})).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    for (name, labels) in [
        ("manual", json!({})),
        ("mounted", json!({INVALID_SINCE: "2020-01-01"})),
        ("used", json!({LAST_USED: "2999-12-31", INVALID_SINCE: "2020-01-01"})),
        ("y-refused", json!({INVALID_SINCE: "2020-01-01"})),
        ("z-unused", json!({LAST_USED: "2020-01-01"})),
    ] {
        let about = json!({"kubernetes.io/service-account.name": "sa"});
        let meta = json!({"name": name, "labels": labels, "annotations": about});
        let ty = "kubernetes.io/service-account-token";
        create(&secrets, json!({"metadata": meta, "type": ty})).await;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let volume = json!({"name": "v", "secret": {"secretName": "mounted"}});
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "volumes": [volume]});
    create(&pods, json!({"metadata": {"name": "p"}, "spec": spec})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_tokens_are_refused_and_refused_ones_deleted() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = files(dir.path());
    let shutdown = CancellationToken::new();
    let mut scope = Scope::new(&shutdown);
    let server = Server::build(config(dir.path())).await.expect("a server");
    write(dir.path(), "kubeconfig", kubeconfig(server.address(), &ca).to_string());
    let token = scope.token().clone();
    scope.spawn("apiserver", async move { server.run(token).await.expect("a clean end") });
    let kubeconfig = dir.path().join("kubeconfig");
    let client = client::connect(&kubeconfig, "tests").await.expect("a client");
    populate(&client).await;

    let args = [
        format!("--kubeconfig={}", kubeconfig.display()),
        "--controllers=legacy-service-account-token-cleaner,serviceaccount-token".to_owned(),
        format!("--service-account-private-key-file={}", dir.path().join("sa.key").display()),
        "--legacy-service-account-token-clean-up-period=1ms".to_owned(),
        "--use-service-account-credentials".to_owned(),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ];
    let args = args.map(Into::into);
    let options: Options = component::cli::parse("kube-controller-manager", &args).expect("flags");
    let token = scope.token().clone();
    scope.spawn("manager", async move {
        controller_manager::run(options, token).await.expect("a clean end");
    });

    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let label = async |name: &str| {
        let found = secrets.get_opt(name).await.expect("an answer")?;
        Some(found.metadata.labels?.remove(INVALID_SINCE).unwrap_or_default())
    };
    let marked = until(async || label("z-unused").await.filter(|since| !since.is_empty())).await;
    assert!(marked.as_str() > "2026" && marked.len() == 10, "{marked}");
    // Its first deletion may be refused, as the other controller writes a token to it meanwhile.
    until(async || label("y-refused").await.is_none().then_some(())).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    until(async || {
        let listed = accounts.get("sa").await.expect("an account").secrets.unwrap_or_default();
        let names: Vec<_> = listed.into_iter().filter_map(|one| one.name).collect();
        (names == ["mounted", "used", "z-unused"]).then_some(())
    })
    .await;
    for (name, since) in [("mounted", "2020-01-01"), ("used", "2020-01-01")] {
        assert_eq!(label(name).await.as_deref(), Some(since), "{name}");
    }
    let manual = secrets.get("manual").await.expect("it stays");
    assert_eq!(manual.metadata.labels, None);
    scope.end().await;
}

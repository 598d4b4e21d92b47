//! A node's first client certificate, by a kubeconfig with little rights
//! (`--bootstrap-kubeconfig`; upstream: `kubelet/certificate/bootstrap`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use component::files;
use jiff::Timestamp;
use kube::config::{Cluster, Kubeconfig};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::decide::Wanted;
use super::pair::ends;
use super::request::{self, Purpose};
use super::store::Store;

/// A key whose request is not signed yet.
const TEMPORARY_KEY: &str = "kubelet-client.key.tmp";
/// How long the API server may take to come up, before it is asked all the same.
const SERVER: Duration = Duration::from_secs(60);
/// How long a request waits to be approved.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The user of a kubeconfig's current context has these certificates and this key, PEM; or names
/// the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub data: Option<(String, String)>,
    pub files: Option<(PathBuf, PathBuf)>,
}

/// What a kubeconfig's current context names.
fn current(file: &Kubeconfig) -> anyhow::Result<(&str, &str)> {
    let name = file.current_context.as_deref().context("no current-context")?;
    let context = file.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|context| context.context.as_ref());
    let context = context.with_context(|| format!("context {name:?} is not there"))?;
    Ok((&context.cluster, context.user.as_deref().unwrap_or_default()))
}

fn cluster(file: &Kubeconfig) -> anyhow::Result<&Cluster> {
    let (name, _) = current(file)?;
    let found = file.clusters.iter().find(|cluster| cluster.name == name);
    found
        .and_then(|found| found.cluster.as_ref())
        .with_context(|| format!("cluster {name:?} is not there"))
}

/// How a kubeconfig's user says who he is by certificate.
///
/// # Errors
/// The file is not right.
pub fn user(kubeconfig: &Path) -> anyhow::Result<User> {
    let whence = || format!("unable to load kubeconfig {}", kubeconfig.display());
    let file = Kubeconfig::read_from(kubeconfig).with_context(whence)?;
    let (_, name) = current(&file).with_context(whence)?;
    let found = file.auth_infos.iter().find(|user| user.name == name);
    let Some(user) = found.and_then(|found| found.auth_info.as_ref()) else {
        return Ok(User::default());
    };
    // Keys are hidden from whoever reads the type, but not from its text.
    let fields = serde_json::to_value(user).with_context(whence)?;
    let decoded = |field: &str| decode(&fields, field).with_context(whence);
    let data = match (decoded("client-certificate-data")?, decoded("client-key-data")?) {
        (Some(certificates), Some(key)) => Some((certificates, key)),
        _ => None,
    };
    let files = user.client_certificate.as_ref().zip(user.client_key.as_ref());
    Ok(User { data, files: files.map(|(certificate, key)| (certificate.into(), key.into())) })
}

fn decode(fields: &Value, field: &str) -> anyhow::Result<Option<String>> {
    use base64::Engine;
    let Some(text) = fields[field].as_str().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).context(field.to_owned())?;
    String::from_utf8(bytes).map(Some).context(field.to_owned())
}

/// Whether the kubeconfig is there, with a client certificate that holds; why not.
fn is_good(kubeconfig: &Path, now: Timestamp) -> anyhow::Result<()> {
    let user = user(kubeconfig)?;
    let read =
        |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let certificates = match (user.data, user.files) {
        (Some((certificates, _)), _) => certificates,
        (None, Some((certificate, key))) => {
            read(&key)?;
            read(&certificate)?
        }
        (None, None) => bail!("it has no client certificate"),
    };
    let until = ends(&certificates)?;
    match now > until {
        true => Err(anyhow!("its client certificate has expired: {until}")),
        false => Ok(()),
    }
}

/// Whether a first certificate is to be asked for; says why in the log.
///
/// # Errors
/// It cannot be said whether the kubeconfig is there.
pub fn is_needed(kubeconfig: &Path, now: Timestamp) -> anyhow::Result<bool> {
    let whence = || format!("error reading existing kubeconfig {}", kubeconfig.display());
    if !kubeconfig.try_exists().with_context(whence)? {
        return Ok(true);
    }
    match is_good(kubeconfig, now) {
        Ok(()) => Ok(false),
        Err(error) => {
            let (path, why) = (kubeconfig.display(), client::brief(&error));
            tracing::warn!(kubeconfig = %path, why, "a first certificate is asked for");
            Ok(true)
        }
    }
}

/// Writes the kubeconfig with the bootstrap one's cluster and the certificate in use, which need
/// not be there yet.
///
/// # Errors
/// The bootstrap kubeconfig is not right, or the other cannot be written.
pub fn write_kubeconfig(bootstrap: &Path, kubeconfig: &Path, pair: &Path) -> anyhow::Result<()> {
    let whence = || format!("unable to load bootstrap kubeconfig {}", bootstrap.display());
    let file = Kubeconfig::read_from(bootstrap).with_context(whence)?;
    let mut cluster =
        serde_json::to_value(cluster(&file).with_context(whence)?).with_context(whence)?;
    if let Some(fields) = cluster.as_object_mut() {
        // A path wins over data, as there.
        let by_path = fields.get("certificate-authority").is_some_and(|path| path != "");
        let kept = |name: &str| match name {
            "certificate-authority-data" => !by_path,
            "server"
            | "insecure-skip-tls-verify"
            | "certificate-authority"
            | "tls-server-name"
            | "proxy-url" => true,
            _ => false,
        };
        fields.retain(|name, value| kept(name) && !value.is_null());
    }
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "users": [{"name": "default-auth", "user": {
            "client-certificate": pair,
            "client-key": pair,
        }}],
        "contexts": [{"name": "default-context", "context": {
            "cluster": "default-cluster",
            "namespace": "default",
            "user": "default-auth",
        }}],
        "current-context": "default-context",
        "preferences": {},
    });
    // JSON is YAML; pretty, so that people can read it.
    let text = serde_json::to_string_pretty(&config)? + "\n";
    let whence = || format!("kubeconfig {}", kubeconfig.display());
    if let Some(folder) = kubeconfig.parent() {
        std::fs::create_dir_all(folder).with_context(whence)?;
    }
    files::write(kubeconfig, text.as_bytes(), 0o600).with_context(whence)
}

/// The key to ask with: that of the pair in use, whose certificate may have expired, else one that
/// is kept until its request is signed.
fn key(store: &Store, directory: &Path) -> anyhow::Result<KeyPair> {
    if let Ok(Some(pair)) = store.current()
        && let Ok(key) = KeyPair::from_pem(&pair.key)
    {
        return Ok(key);
    }
    let path = directory.join(TEMPORARY_KEY);
    let whence = || path.display().to_string();
    if path.try_exists().with_context(whence)? {
        let text = std::fs::read_to_string(&path).with_context(whence)?;
        if let Ok(key) = KeyPair::from_pem(&text) {
            return Ok(key);
        }
        tracing::warn!(path = %path.display(), "not a key: another one is made");
    }
    let key = KeyPair::generate().context("unable to generate a new private key")?;
    std::fs::create_dir_all(directory).with_context(whence)?;
    files::write(&path, key.serialize_pem().as_bytes(), 0o600).with_context(whence)?;
    Ok(key)
}

/// Gets a first certificate and writes the kubeconfig, if that is needed. Whatever it is killed at,
/// the next one goes on with the same key and request.
///
/// # Errors
/// No certificate is given.
pub async fn run(
    node: &str,
    kubeconfig: &Path,
    bootstrap: &Path,
    directory: &Path,
) -> anyhow::Result<()> {
    if !is_needed(kubeconfig, Timestamp::now())? {
        return Ok(());
    }
    let client = client::connect(bootstrap, "kubelet").await.context("bootstrap kubeconfig")?;
    let store = Store::open(directory, super::client::PREFIX, None)?;
    let key = key(&store, directory)?;
    let token = tokio_util::sync::CancellationToken::new();
    if tokio::time::timeout(SERVER, client::retry::healthy(&client, &token)).await.is_err() {
        tracing::warn!("timed out waiting to connect to apiserver");
    }
    let wanted = Wanted::client(node);
    let name = request::name(&wanted, &key);
    let object = request::object(Purpose::Client, &wanted, &key, Some(name))?;
    let created = request::create(&client, &object, &key, Timestamp::now()).await?;
    tracing::info!(name = created.metadata.name, "waiting for a client certificate");
    let certificates = request::issued(&client, &created, PATIENCE).await?;
    store.update(&certificates, &key.serialize_pem(), Timestamp::now())?;
    write_kubeconfig(bootstrap, kubeconfig, &store.current_path())?;
    // Only now: a kubelet that is killed before asks with the same key.
    let temporary = directory.join(TEMPORARY_KEY);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %temporary.display(), %error, "not removed");
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::Authority;
    use super::*;

    const BOOTSTRAP: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "other"}, {"name": "k", "cluster": {
            "server": "https://192.0.2.1:6443", "certificate-authority": "ca.crt",
            "certificate-authority-data": "eA==", "tls-server-name": "kubernetes"}}],
        "users": [{"name": "u", "user": {"token": "abcdef.0123456789abcdef"}}]}"#;

    #[test]
    fn a_kubeconfig_is_written_and_good_when_its_certificate_is() -> anyhow::Result<()> {
        let (dir, ca) = (tempfile::tempdir()?, Authority::new());
        let path = |name: &str| dir.path().join(name);
        let (bootstrap, kubeconfig) = (path("bootstrap.conf"), path("etc/kubelet.conf"));
        let now = Timestamp::UNIX_EPOCH;
        let hour = jiff::SignedDuration::from_hours(1);
        assert!(is_needed(&kubeconfig, now)?);
        std::fs::write(&bootstrap, BOOTSTRAP)?;
        let store = Store::open(&path("pki"), super::super::client::PREFIX, None)?;
        write_kubeconfig(&bootstrap, &kubeconfig, &store.current_path())?;
        let text = std::fs::read_to_string(&kubeconfig)?;
        let written: Value = serde_json::from_str(&text)?;
        assert_eq!(
            written["clusters"][0]["cluster"],
            json!({"server": "https://192.0.2.1:6443", "tls-server-name": "kubernetes",
                "certificate-authority": path("ca.crt")})
        );
        assert_eq!(user(&kubeconfig)?.files, Some((store.current_path(), store.current_path())));
        // It points to a certificate that is yet to come.
        assert!(is_needed(&kubeconfig, now)?);
        let (certificates, key) = ca.pair("a", now, now + hour);
        store.update(&certificates, &key, now)?;
        assert!(!is_needed(&kubeconfig, now + hour)?);
        assert!(is_needed(&kubeconfig, now + hour + hour)?);
        // A token is no certificate, and a file that is none is made anew.
        assert!(is_needed(&bootstrap, now)?);
        std::fs::write(&kubeconfig, "{")?;
        assert!(is_needed(&kubeconfig, now)?);
        Ok(())
    }

    #[test]
    fn data_wins_over_files() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("kubelet.conf");
        let mut config: Value = serde_json::from_str(BOOTSTRAP)?;
        config["users"][0]["user"] = json!({"client-certificate-data": "YQ==",
            "client-key-data": "Yg==", "client-certificate": "/a", "client-key": "/b"});
        std::fs::write(&path, config.to_string())?;
        let found = user(&path)?;
        assert_eq!(found.data, Some(("a".to_owned(), "b".to_owned())));
        assert_eq!(found.files, Some(("/a".into(), "/b".into())));
        Ok(())
    }

    #[test]
    fn a_key_is_kept_until_its_certificate_is_there() -> anyhow::Result<()> {
        let (dir, ca) = (tempfile::tempdir()?, Authority::new());
        let pki = dir.path().join("pki");
        let store = Store::open(&pki, super::super::client::PREFIX, None)?;
        let first = key(&store, &pki)?.serialize_pem();
        assert_eq!(key(&store, &pki)?.serialize_pem(), first);
        std::fs::write(pki.join(TEMPORARY_KEY), "")?;
        let second = key(&store, &pki)?.serialize_pem();
        assert_ne!(first, second);
        // An expired certificate's is good enough.
        let now = Timestamp::UNIX_EPOCH;
        let (certificates, own) = ca.pair("a", now, now);
        store.update(&certificates, &own, now)?;
        assert_eq!(key(&store, &pki)?.serialize_pem(), own);
        Ok(())
    }
}

//! Files of one volume that would take each other's place.

use apimachinery::field::quote;

use super::super::check::At;

/// A file of a volume, and what it comes from, where the volume has several sources.
struct File {
    path: String,
    source: String,
}

impl File {
    fn new(path: &str, source: &str) -> Self {
        Self { path: path.to_owned(), source: source.to_owned() }
    }

    fn shown(&self) -> String {
        match self.source.as_str() {
            "" => quote(&self.path),
            source => format!("{} ({source})", quote(&self.path)),
        }
    }

    /// Whether one is the other, or would lie below it.
    fn collides(&self, other: &Self) -> bool {
        let below = |a: &str, b: &str| {
            a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        !self.path.is_empty()
            && !other.path.is_empty()
            && (below(&self.path, &other.path) || below(&other.path, &self.path))
    }
}

/// Warns of paths in the volumes of a pod.
pub(super) fn warn(warnings: &mut Vec<String>, volumes: &At<'_>) {
    for volume in volumes.items() {
        let name = volume.at("name").str();
        for (source, kind, named) in [
            ("configMap", "ConfigMap", "name"),
            ("secret", "Secret", "secretName"),
            ("downwardAPI", "DownwardAPI", ""),
        ] {
            let source = volume.at(source);
            let files = items(&source, "");
            collisions(warnings, name, &described(kind, &source, named), files);
        }
        let mut files = Vec::new();
        for source in volume.down(&["projected", "sources"]).items() {
            if source.map().is_none_or(|map| map.values().all(|v| v.is_null())) {
                warnings
                    .push(format!("volume {} (Projected) has no sources provided", quote(name)));
            }
            files.extend(projected(&source));
        }
        collisions(warnings, name, "Projected", files);
    }
}

fn described(kind: &str, source: &At<'_>, named: &str) -> String {
    match named {
        "" => kind.to_owned(),
        field => format!("{kind} {}", quote(source.at(field).str())),
    }
}

fn items(source: &At<'_>, described: &str) -> Vec<File> {
    source.at("items").items().map(|i| File::new(i.at("path").str(), described)).collect()
}

/// Files of one source of a projected volume, as far as it says which there are.
fn projected(source: &At<'_>) -> Vec<File> {
    for (field, kind, named) in [
        ("configMap", "ConfigMap", "name"),
        ("secret", "Secret", "name"),
        ("downwardAPI", "DownwardAPI", ""),
    ] {
        let one = source.at(field);
        if one.at("items").is_set() {
            return items(&one, &described(kind, &one, named));
        }
    }
    let token = source.at("serviceAccountToken");
    if token.is_set() {
        return vec![File::new(token.at("path").str(), "ServiceAccountToken")];
    }
    let bundle = source.at("clusterTrustBundle");
    if bundle.is_set() {
        let named = if bundle.at("name").is_set() { "name" } else { "signerName" };
        let described = described("ClusterTrustBundle", &bundle, named);
        return vec![File::new(bundle.at("path").str(), &described)];
    }
    let certificate = source.at("podCertificate");
    [
        ("certificateChainPath", "PodCertificate chain"),
        ("keyPath", "PodCertificate key"),
        ("credentialBundlePath", "PodCertificate credential bundle"),
    ]
    .into_iter()
    .filter(|(field, _)| !certificate.at(field).is_empty())
    .map(|(field, described)| File::new(certificate.at(field).str(), described))
    .collect()
}

fn collisions(warnings: &mut Vec<String>, volume: &str, described: &str, files: Vec<File>) {
    let mut seen: Vec<File> = Vec::with_capacity(files.len());
    for mut file in files {
        file.path.truncate(file.path.trim_end_matches('/').len());
        for other in seen.iter().filter(|other| file.collides(other)) {
            warnings.push(format!(
                "volume {} ({described}): overlapping paths: {} with {}",
                quote(volume),
                file.shown(),
                other.shown()
            ));
        }
        seen.push(file);
    }
}

//! Container images without a registry: OCI archives put together from files of this machine,
//! for `ctr images import`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What an image is made of.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Full name with tag: `localhost/pause:3.10.1`.
    pub name: String,
    pub files: Vec<File>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    /// `uid:gid`; empty for root.
    pub user: String,
}

/// One file of an image.
#[derive(Clone, Debug)]
pub struct File {
    /// Path in the image, without the leading `/`.
    pub path: String,
    pub content: Content,
    /// Permission bits, set-user-id bit included.
    pub mode: u32,
}

#[derive(Clone, Debug)]
pub enum Content {
    /// Copied from this machine.
    Copy(PathBuf),
    Text(String),
    Link(String),
    Folder,
}

impl File {
    /// A program, copied.
    pub fn program(path: &str, from: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), content: Content::Copy(from.into()), mode: 0o755 }
    }

    pub fn text(path: &str, text: &str) -> Self {
        Self { path: path.into(), content: Content::Text(text.into()), mode: 0o644 }
    }

    pub fn link(path: &str, to: &str) -> Self {
        Self { path: path.into(), content: Content::Link(to.into()), mode: 0o777 }
    }

    pub fn folder(path: &str, mode: u32) -> Self {
        Self { path: path.into(), content: Content::Folder, mode }
    }
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes the image as an OCI archive. The same input gives the same bytes.
///
/// # Errors
/// Names the file that cannot be read or written.
pub fn write_archive(image: &Image, to: &Path) -> anyhow::Result<()> {
    let layer = layer(&image.files)?;
    let config = serde_json::to_vec(&config(image, &layer))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    }))?;
    let mut entry = descriptor(MANIFEST, &manifest);
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] = json!({
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    let mut blobs = BTreeMap::new();
    for blob in [layer, config, manifest] {
        blobs.insert(format!("blobs/sha256/{}", digest(&blob)), blob);
    }
    blobs.insert("index.json".to_owned(), serde_json::to_vec(&index)?);
    blobs.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());

    let fresh = to.with_extension("new");
    let write = || -> anyhow::Result<()> {
        let mut archive = tar::Builder::new(fs::File::create(&fresh)?);
        for (path, data) in &blobs {
            append(&mut archive, path, 0o644, tar::EntryType::Regular, data)?;
        }
        archive.into_inner()?.flush()?;
        Ok(fs::rename(&fresh, to)?)
    };
    write().with_context(|| to.display().to_string())
}

fn config(image: &Image, layer: &[u8]) -> Value {
    let mut run = json!({"Env": image.env});
    for (name, value) in [("Entrypoint", &image.entrypoint), ("Cmd", &image.command)] {
        if !value.is_empty() {
            run[name] = json!(value);
        }
    }
    if !image.user.is_empty() {
        run["User"] = json!(image.user);
    }
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(layer))]},
    })
}

fn layer(files: &[File]) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let whence = || file.path.clone();
        match &file.content {
            Content::Copy(from) => {
                let data = fs::read(from).with_context(|| from.display().to_string())?;
                append(&mut archive, &file.path, file.mode, tar::EntryType::Regular, &data)
            }
            Content::Text(text) => {
                let data = text.as_bytes();
                append(&mut archive, &file.path, file.mode, tar::EntryType::Regular, data)
            }
            Content::Folder => {
                append(&mut archive, &file.path, file.mode, tar::EntryType::Directory, &[])
            }
            Content::Link(to) => {
                let mut header = header(file.mode, tar::EntryType::Symlink, 0);
                archive.append_link(&mut header, &file.path, to).map_err(Into::into)
            }
        }
        .with_context(whence)?;
    }
    Ok(archive.into_inner()?)
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    kind: tar::EntryType,
    data: &[u8],
) -> anyhow::Result<()> {
    let mut header = header(mode, kind, data.len() as u64);
    Ok(archive.append_data(&mut header, path, data)?)
}

fn header(mode: u32, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

fn descriptor(media_type: &str, data: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": format!("sha256:{}", digest(data)),
        "size": data.len(),
    })
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_reproducible_and_names_its_image() -> anyhow::Result<()> {
        let dir = std::env::temp_dir().join(format!("images-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let image = Image {
            name: "localhost/x:1".into(),
            files: vec![File::folder("tmp", 0o1777), File::text("etc/motd", "hello\n")],
            command: vec!["/bin/true".into()],
            ..Image::default()
        };
        let (a, b) = (dir.join("a.tar"), dir.join("b.tar"));
        write_archive(&image, &a)?;
        write_archive(&image, &b)?;
        assert_eq!(fs::read(&a)?, fs::read(&b)?);
        let mut archive = tar::Archive::new(fs::File::open(&a)?);
        let mut names = Vec::new();
        for entry in archive.entries()? {
            names.push(entry?.path()?.display().to_string());
        }
        assert!(names.contains(&"index.json".to_owned()), "{names:?}");
        assert_eq!(names.iter().filter(|n| n.starts_with("blobs/sha256/")).count(), 3);
        fs::remove_dir_all(&dir)?;
        Ok(())
    }
}

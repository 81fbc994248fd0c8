//! An image as an OCI layout in a tar archive: what `ctr images import`, `podman load` and `skopeo` take.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::layer::{self, Layer};

/// An image to be written.
#[derive(Debug)]
pub(crate) struct Image {
    /// Name with its registry and tag.
    pub(crate) reference: String,
    /// From below.
    pub(crate) layers: Vec<Layer>,
    /// What runs when nothing else is asked for.
    pub(crate) entrypoint: Vec<String>,
    /// User and group it runs as.
    pub(crate) user: String,
}

/// Everything is as old as Unix: two builds of the same thing are the same image.
const CREATED: &str = "1970-01-01T00:00:00Z";

impl Image {
    /// Writes it to a file; gives the digest of its manifest.
    pub(crate) fn write(&self, path: &Path) -> Result<String> {
        let mut blobs: Vec<(String, Vec<u8>)> = Vec::new();
        let mut descriptors = Vec::new();
        for layer in &self.layers {
            let archive = layer.archive()?;
            descriptors.push(describe("application/vnd.oci.image.layer.v1.tar", &archive));
            blobs.push((digest(&archive), archive));
        }
        let diffs: Vec<_> = blobs.iter().map(|(digest, _)| format!("sha256:{digest}")).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": architecture()?,
            "os": "linux",
            "created": CREATED,
            "config": {
                "User": self.user,
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": diffs},
            "history": diffs.iter().map(|_| json!({"created": CREATED, "created_by": "cargo xtask images"})).collect::<Vec<_>>(),
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": descriptors,
        }))?;
        let mut listed = describe("application/vnd.oci.image.manifest.v1+json", &manifest);
        // The first is containerd's, the second the specification's.
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        listed["annotations"] =
            json!({"io.containerd.image.name": self.reference, "org.opencontainers.image.ref.name": tag});
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [listed],
        }))?;
        let name = digest(&manifest);
        blobs.push((digest(&config), config));
        blobs.push((name.clone(), manifest));
        blobs.sort();
        blobs.dedup();

        let mut archive = Builder::new(Vec::new());
        let mut add = |name: &str, bytes: &[u8]| {
            layer::append(&mut archive, &mut Header::new_gnu(), EntryType::Regular, name, bytes, 0o644)
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", &index)?;
        for (digest, bytes) in &blobs {
            add(&format!("blobs/sha256/{digest}"), bytes)?;
        }
        layer::write(path, &archive.into_inner()?)?;
        Ok(format!("sha256:{name}"))
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()})
}

/// This machine's, in the words of the specification.
fn architecture() -> Result<&'static str> {
    Ok(match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no images are made for {other}"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn everything_that_an_image_refers_to_is_in_its_archive_under_its_own_digest() {
        let mut layer = Layer::default();
        layer.file("/hello", "hello", 0o755);
        let image = Image {
            reference: "registry.test/hello:1".into(),
            layers: vec![layer.clone(), layer],
            entrypoint: vec!["/hello".into()],
            user: "0:0".into(),
        };
        let path = std::env::temp_dir().join(format!("loam-layout-{}.tar", std::process::id()));
        let named = image.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), contents);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let found = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(super::digest(found), digest);
            assert_eq!(descriptor["size"].as_u64(), Some(found.len() as u64));
            found.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], named.as_str());
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "registry.test/hello:1");
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        for (index, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
            blob(layer);
            assert_eq!(config["rootfs"]["diff_ids"][index], layer["digest"]);
        }
        assert_eq!(config["config"]["Entrypoint"][0], "/hello");
    }
}

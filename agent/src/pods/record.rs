//! What the agent changed in a pod's network namespace, on disk: so that a successor or `cleanup` can take it back.
//!
//! The successor may be of the version before or after: a field may be added that has a default, and none is taken away or
//! given another meaning. A record that cannot be read would let go of a captured pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use loam_ebpf_common::layout::MAX_PODS;
use serde::{Deserialize, Serialize};

use super::spec::PodSpec;
use crate::netns::sysctl::Before;

/// Directory of the records inside the run directory.
const DIRECTORY: &str = "pods";

/// Most records that are read: those of all pods, and as many that are leaving.
const MAX_RECORDS: usize = 2 * MAX_PODS as usize;

/// Largest record that is read.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// One network namespace that is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The pod.
    pub spec: PodSpec,
    /// Its number on this node.
    pub index: u32,
    /// The cookie of its network namespace, which also names the record.
    pub cookie: u64,
    /// What the switches were before.
    pub before: Before,
    /// The pod is not enrolled any more; its rules wait for the last marked socket.
    pub leaving: bool,
}

/// The directory of the records.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// The records below a run directory.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let dir = run_dir.join(DIRECTORY);
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// The records below a run directory, if there are any.
    pub fn find(run_dir: &Path) -> Option<Self> {
        let dir = run_dir.join(DIRECTORY);
        dir.is_dir().then_some(Self(dir))
    }

    /// Every record that can be read, and the files of those that cannot.
    pub fn all(&self) -> io::Result<(Vec<Record>, Vec<PathBuf>)> {
        let (mut records, mut broken) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.0)?.take(MAX_RECORDS) {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Some(record) if path == self.path(record.cookie) => records.push(record),
                _ => broken.push(path),
            }
        }
        Ok((records, broken))
    }

    /// The record of the namespace with this cookie.
    pub fn get(&self, cookie: u64) -> Option<Record> {
        read(&self.path(cookie))
    }

    /// Writes a record: it is there before what it records is done.
    pub fn put(&self, record: &Record) -> io::Result<()> {
        let path = self.path(record.cookie);
        let text = serde_json::to_vec_pretty(record)?;
        write_atomically(&path, &text)
    }

    /// Removes a record: what it recorded is taken back, or its namespace is gone.
    pub fn remove(&self, cookie: u64) -> io::Result<()> {
        match fs::remove_file(self.path(cookie)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the directory and what is left in it.
    pub fn remove_all(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }

    fn path(&self, cookie: u64) -> PathBuf {
        self.0.join(format!("{cookie}.json"))
    }
}

fn read(path: &Path) -> Option<Record> {
    if fs::metadata(path).ok()?.len() > MAX_RECORD_BYTES {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a file so that a reader sees the former content or the new one and nothing else.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    fs::write(&aside, content)?;
    fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cookie: u64) -> Record {
        let spec = PodSpec {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            service_account: "default".into(),
            addresses: vec!["10.0.0.7".parse().unwrap()],
            netns: "/run/netns/web".into(),
            dns: true,
            resolv_conf: Some("/etc/resolv.conf".into()),
            resolv: Some("nameserver 10.0.0.10\n".into()),
            starting: true,
            probes: vec![8080],
        };
        Record { spec, index: 3, cookie, before: Before::default(), leaving: false }
    }

    #[test]
    fn a_record_of_an_older_or_newer_version_is_read() {
        // Before names were captured, and before ports that are probed were kept.
        let oldest = r#"{"spec": {"uid": "u", "namespace": "shop", "name": "web", "service_account": "default",
            "addresses": ["10.0.0.7"], "netns": "/run/netns/web"}, "index": 3, "cookie": 1,
            "before": [["ipv4/tcp_fwmark_accept", "0"]], "leaving": false}"#;
        let newer = oldest
            .replace("\"index\"", "\"waypoint\": {\"a\": [1]}, \"index\"")
            .replace("\"uid\"", "\"x\": null, \"uid\"");
        for text in [oldest, &newer] {
            let read: Record = serde_json::from_str(text).unwrap();
            let spec = PodSpec {
                dns: false,
                resolv_conf: None,
                resolv: None,
                starting: false,
                probes: vec![],
                ..record(1).spec
            };
            assert_eq!((read.spec, read.index, read.cookie, read.leaving), (spec, 3, 1, false));
            assert_ne!(read.before, Before::default());
        }
    }

    #[test]
    fn a_record_is_on_disk_what_the_version_before_reads() {
        let written: serde_json::Value = serde_json::to_value(record(1)).unwrap();
        let expected = serde_json::json!({
            "spec": {
                "uid": "u", "namespace": "shop", "name": "web", "service_account": "default",
                "addresses": ["10.0.0.7"], "netns": "/run/netns/web", "dns": true, "resolv_conf": "/etc/resolv.conf",
                "resolv": "nameserver 10.0.0.10\n", "starting": true, "probes": [8080],
            },
            "index": 3, "cookie": 1, "before": [], "leaving": false,
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&written[name], value, "{name}");
        }
    }

    #[test]
    fn records_are_read_back_and_broken_ones_named() {
        let dir = std::env::temp_dir().join(format!("loam-records-{}", std::process::id()));
        let records = Records::open(&dir).unwrap();
        records.put(&record(1)).unwrap();
        records.put(&record(2)).unwrap();
        records.remove(1).unwrap();
        records.remove(1).unwrap();
        fs::write(dir.join("pods/3.json"), "{").unwrap();
        // A record under another's name would be taken back in the wrong namespace.
        fs::copy(dir.join("pods/2.json"), dir.join("pods/4.json")).unwrap();
        let (all, mut broken) = records.all().unwrap();
        broken.sort();
        assert_eq!(all, [record(2)]);
        assert_eq!(broken, [dir.join("pods/3.json"), dir.join("pods/4.json")]);
        fs::remove_dir_all(&dir).unwrap();
    }
}

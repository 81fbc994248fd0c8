//! A layer of an image: a tar archive that is the same, byte for byte, whenever the same files go in.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// Files of a layer by their path in the image, without the leading slash.
#[derive(Debug, Default, Clone)]
pub(crate) struct Layer {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    what: What,
    mode: u32,
}

#[derive(Debug, Clone)]
enum What {
    Directory,
    File(Vec<u8>),
    /// Another name of the file at this path.
    Link(String),
}

impl Layer {
    /// Adds a directory and those above it.
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.parents(path);
        self.entries.insert(clean(path), Entry { what: What::Directory, mode });
    }

    /// Adds a file and the directories above it.
    pub(crate) fn file(&mut self, path: &str, contents: impl Into<Vec<u8>>, mode: u32) {
        self.parents(path);
        self.entries.insert(clean(path), Entry { what: What::File(contents.into()), mode });
    }

    /// Adds another name for what is at `target`, and the directories above it.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entries.insert(clean(path), Entry { what: What::Link(target.to_owned()), mode: 0o777 });
    }

    /// Adds a program of this machine.
    pub(crate) fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        let contents = std::fs::read(source).with_context(|| format!("read {}", source.display()))?;
        self.file(path, contents, 0o755);
        Ok(())
    }

    /// Its files and directories, sorted by path: the contents of a file or none for a directory, and its mode.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, Option<&[u8]>, u32)> {
        self.entries.iter().filter_map(|(path, entry)| match &entry.what {
            What::Directory => Some((path.as_str(), None, entry.mode)),
            What::File(contents) => Some((path.as_str(), Some(contents.as_slice()), entry.mode)),
            What::Link(_) => None,
        })
    }

    fn parents(&mut self, path: &str) {
        let path = clean(path);
        for (end, _) in path.match_indices('/') {
            let directory = Entry { what: What::Directory, mode: 0o755 };
            self.entries.entry(path[..end].to_owned()).or_insert(directory);
        }
    }

    /// The archive: sorted by path, owned by root, and as old as Unix.
    pub(crate) fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = Header::new_gnu();
            match &entry.what {
                What::Directory => {
                    append(&mut archive, &mut header, EntryType::Directory, &format!("{path}/"), &[], entry.mode)?;
                }
                What::File(contents) => {
                    append(&mut archive, &mut header, EntryType::Regular, path, contents, entry.mode)?;
                }
                What::Link(target) => {
                    header.set_link_name(target).with_context(|| format!("link {path} to {target}"))?;
                    append(&mut archive, &mut header, EntryType::Symlink, path, &[], entry.mode)?;
                }
            }
        }
        archive.into_inner().context("finish a layer")
    }
}

/// Adds one entry to an archive, without anything that differs between two machines or two days.
pub(super) fn append<W: std::io::Write>(
    archive: &mut Builder<W>,
    header: &mut Header,
    kind: EntryType,
    name: &str,
    contents: &[u8],
    mode: u32,
) -> Result<()> {
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(header, name, contents).with_context(|| format!("add {name} to an archive"))
}

fn clean(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

/// Writes the whole of an archive to a file, all or nothing.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut file = std::fs::File::create(&partial).with_context(|| format!("make {}", partial.display()))?;
    file.write_all(bytes)?;
    std::fs::rename(&partial, path).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_the_same_bytes_in_whichever_order_its_files_came() {
        let (mut one, mut other) = (Layer::default(), Layer::default());
        one.file("/etc/passwd", "root", 0o644);
        one.directory("/tmp", 0o1777);
        other.directory("tmp", 0o1777);
        other.file("etc/passwd", "root", 0o644);
        assert_eq!(one.archive().unwrap(), other.archive().unwrap());
        other.file("etc/passwd", "root", 0o600);
        assert_ne!(one.archive().unwrap(), other.archive().unwrap());
    }

    #[test]
    fn a_link_leads_to_where_it_was_told() {
        let mut layer = Layer::default();
        layer.link("/usr/bin/server", "/usr/bin/program");
        let bytes = layer.archive().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let link = archive.entries().unwrap().last().unwrap().unwrap();
        assert_eq!(link.header().entry_type(), EntryType::Symlink);
        assert_eq!(link.path().unwrap(), Path::new("usr/bin/server"));
        assert_eq!(link.link_name().unwrap().unwrap(), Path::new("/usr/bin/program"));
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut layer = Layer::default();
        layer.file("/usr/lib/x", "", 0o644);
        layer.file("/usr/bin/y", "", 0o755);
        let bytes = layer.archive().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["usr/", "usr/bin/", "usr/bin/y", "usr/lib/", "usr/lib/x"]);
    }
}

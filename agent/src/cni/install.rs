//! Puts the plugin on the node and keeps it last in the chain, whatever the node's CNI writes there.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use loam_cni::NAME;
use serde_json::Value;
use tokio::sync::watch;

use super::chain::{self, ChainError, Edit, Files, SAVED};

/// How often the directory is looked at: pods that are made meanwhile are captured after they began instead of before.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Largest configuration that is read, and most files.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_FILES: usize = 256;

/// Appended to the name of a file while it is written.
const ASIDE: &str = ".loam-new";

/// Who may read a configuration that has no former version to say so. It may hold credentials.
const PRIVATE: u32 = 0o600;

/// Why the plugin is not in the chain.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is nothing to join.
    #[error("{0}: {1}")]
    Chain(PathBuf, #[source] ChainError),
    /// A file or directory.
    #[error("{what} {path}: {why}{hint}", hint = hint(why))]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
}

/// What helps against it, where that is known.
fn hint(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            "; say where the node's directories are: node.cni.binDir and node.cni.confDir of the chart, --cni-bin-dir and \
             --cni-conf-dir of the agent"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; let the agent write there, or do without the plugin (node.cni.enabled=false): pods are then captured some \
             moments after they started"
        }
        _ => "",
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |why| InstallError::Path { what, path, why }
}

/// Where the plugin goes.
#[derive(Debug, Clone)]
pub struct Place {
    /// Directory of the node's CNI plugins.
    pub bin_dir: PathBuf,
    /// Directory of the node's network configurations.
    pub conf_dir: PathBuf,
}

impl Place {
    /// Copies the program to the node. A call that is running keeps the former one.
    pub fn copy(&self, program: &Path) -> Result<(), InstallError> {
        let to = self.bin_dir.join(NAME);
        let aside = self.bin_dir.join(format!("{NAME}{ASIDE}"));
        let content = fs::read(program).map_err(failed("read the plugin", program))?;
        if fs::read(&to).is_ok_and(|former| former == content) && is_executable(&to) {
            return Ok(());
        }
        fs::write(&aside, content).map_err(failed("write", &aside))?;
        fs::set_permissions(&aside, Permissions::from_mode(0o755)).map_err(failed("make executable", &aside))?;
        fs::rename(&aside, &to).map_err(failed("replace", &to))
    }

    /// Makes the plugin the last of the chain. Says whether anything had to be changed.
    pub fn join(&self, entry: &Value) -> Result<bool, InstallError> {
        let edits =
            chain::join(&self.files()?, entry).map_err(|why| InstallError::Chain(self.conf_dir.clone(), why))?;
        let changed = !edits.is_empty();
        edits.into_iter().try_for_each(|edit| self.apply(edit))?;
        Ok(changed)
    }

    /// Installs the program and keeps it last in the chain for as long as this runs. What is wrong is told whenever that
    /// changes.
    pub async fn keep(self, program: &Path, entry: &Value, told: watch::Sender<Option<String>>) {
        let mut copied = false;
        loop {
            let done = match copied {
                true => Ok(()),
                false => self.copy(program),
            };
            copied = done.is_ok();
            match done.and_then(|()| self.join(entry)) {
                Ok(joined) => {
                    if joined {
                        tracing::info!(directory = %self.conf_dir.display(), "joined the node's CNI chain");
                    }
                    told.send_if_modified(|problem| problem.take().is_some());
                }
                Err(error) => {
                    let text = error.to_string();
                    if told.borrow().as_ref() != Some(&text) {
                        tracing::warn!(error = text, "cannot join the node's CNI chain; trying again");
                        told.send_replace(Some(text));
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Takes the plugin out of the chain, then its program away, in this order: a chain that names a program that is not
    /// there makes no pods.
    pub fn leave(&self) -> Result<(), InstallError> {
        chain::leave(&self.files()?).into_iter().try_for_each(|edit| self.apply(edit))?;
        let program = self.bin_dir.join(NAME);
        match fs::remove_file(&program) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &program)(error)),
            _ => Ok(()),
        }
    }

    fn files(&self) -> Result<Files, InstallError> {
        let unlisted = |why| failed("list", &self.conf_dir)(why);
        let mut files = Files::new();
        for entry in fs::read_dir(&self.conf_dir).map_err(unlisted)?.take(MAX_FILES) {
            let entry = entry.map_err(|why| failed("list", &self.conf_dir)(why))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            if !chain::is_configuration(&name) && !name.ends_with(SAVED) || !path.is_file() {
                continue;
            }
            match fs::metadata(&path) {
                Ok(metadata) if metadata.len() <= MAX_FILE_BYTES => {}
                // Too large for one, or gone meanwhile.
                _ => continue,
            }
            files.insert(name, fs::read(&path).map_err(failed("read", &path))?);
        }
        Ok(files)
    }

    fn apply(&self, edit: Edit) -> Result<(), InstallError> {
        let path = |name: &str| self.conf_dir.join(name);
        match edit {
            Edit::Write(name, content) => {
                let (aside, path) = (path(&format!("{name}{ASIDE}")), path(&name));
                let former = fs::metadata(&path).map(|metadata| metadata.permissions());
                fs::write(&aside, content).map_err(failed("write", &aside))?;
                let permissions = former.unwrap_or_else(|_| Permissions::from_mode(PRIVATE));
                fs::set_permissions(&aside, permissions).map_err(failed("protect", &aside))?;
                fs::rename(&aside, &path).map_err(failed("replace", &path))
            }
            Edit::Rename(from, to) => fs::rename(path(&from), path(&to)).map_err(failed("rename", &path(&from))),
            Edit::Remove(name) => fs::remove_file(path(&name)).map_err(failed("remove", &path(&name))),
        }
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"k8s","plugins":[{"type":"bridge"}]}"#;

    struct Node(Place);

    impl Node {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("loam-install-{name}-{}", std::process::id()));
            let place = Place { bin_dir: dir.join("bin"), conf_dir: dir.join("net.d") };
            for dir in [&place.bin_dir, &place.conf_dir] {
                fs::create_dir_all(dir).unwrap();
            }
            Self(place)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = [&self.0.bin_dir, &self.0.conf_dir]
                .into_iter()
                .flat_map(|dir| fs::read_dir(dir).unwrap())
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.bin_dir.parent().expect("it is below the test's directory"));
        }
    }

    #[test]
    fn the_plugin_is_installed_whole_kept_last_and_taken_away_again() {
        let node = Node::new("whole");
        let place = &node.0;
        let conf = place.conf_dir.join("10-a.conflist");
        fs::write(&conf, LIST).unwrap();
        fs::set_permissions(&conf, Permissions::from_mode(0o640)).unwrap();
        let program = place.conf_dir.with_file_name("program");
        fs::write(&program, "binary").unwrap();
        let entry = serde_json::json!({"type": "loam-cni"});
        place.copy(&program).unwrap();
        assert!(place.join(&entry).unwrap());
        assert!(!place.join(&entry).unwrap(), "nothing is left to change");
        assert_eq!(node.names(), ["10-a.conflist", "loam-cni"]);
        assert!(is_executable(&place.bin_dir.join("loam-cni")));
        assert_eq!(fs::metadata(&conf).unwrap().permissions().mode() & 0o777, 0o640);
        // The node's CNI is updated.
        fs::write(&conf, LIST).unwrap();
        assert!(place.join(&entry).unwrap());
        place.leave().unwrap();
        place.leave().unwrap();
        assert_eq!(node.names(), ["10-a.conflist"]);
        let left: Value = serde_json::from_slice(&fs::read(&conf).unwrap()).unwrap();
        assert_eq!(left, serde_json::from_str::<Value>(LIST).unwrap());
    }

    #[test]
    fn a_directory_that_is_not_there_or_cannot_be_written_is_told_with_what_helps() {
        let node = Node::new("elsewhere");
        let place = Place { conf_dir: node.0.conf_dir.join("none"), ..node.0.clone() };
        let error = place.join(&serde_json::json!({"type": "loam-cni"})).unwrap_err().to_string();
        assert!(error.contains("net.d/none") && error.contains("node.cni.confDir"), "{error}");
        let why = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let error = failed("write", Path::new("/etc/cni/net.d/10-a.conflist"))(why).to_string();
        assert!(error.contains("10-a.conflist") && error.contains("node.cni.enabled=false"), "{error}");
    }

    #[test]
    fn a_node_without_a_network_yet_is_named() {
        let node = Node::new("none");
        let error = node.0.join(&serde_json::json!({"type": "loam-cni"})).unwrap_err();
        assert!(error.to_string().contains("no network configuration"), "{error}");
    }
}

//! Secrets in the data directory: never readable by others, never half written, never overwritten.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Largest file that is read: a wrong path must not fill the memory.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Bits of a mode that let others than the owner in.
const OTHERS: u32 = 0o077;
/// Bits of a mode that let others than the owner change something.
const OTHERS_WRITE: u32 = 0o022;

/// A file of the data directory cannot be used. The text says which, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum FileError {
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("data directory {}: is not a directory; give another --data-dir", .0.display())]
    NotADirectory(PathBuf),
    #[error("data directory {}: others may write to it (mode {mode:04o}); run: chmod go-w {0}", path.display())]
    OpenDirectory { path: PathBuf, mode: u32 },
    #[error("{}: others may read it (mode {mode:04o}); run: chmod 600 {0}; if they did, replace it", path.display())]
    OpenSecret { path: PathBuf, mode: u32 },
    #[error("{}: is not a plain file of at most 1 MiB", .0.display())]
    NotAFile(PathBuf),
}

impl FileError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// Makes the data directory if it is missing, and refuses one that others could plant files in. Others may enter it:
/// the root certificate in it is for everybody.
pub fn check_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).or_else(|e| match path.exists() {
        true => Ok(()),
        false => Err(FileError::io("make data directory", path)(e)),
    })?;
    let meta = fs::metadata(path).map_err(FileError::io("look at data directory", path))?;
    if !meta.is_dir() {
        return Err(FileError::NotADirectory(path.to_owned()));
    }
    // A sticky directory such as /tmp keeps others from replacing files, but not from being first.
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(FileError::OpenDirectory { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

/// Reads a file; `None` when there is none.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    match File::open(path) {
        Ok(file) => read_open(file, path).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::io("open", path)(e)),
    }
}

/// Reads a file that only its owner may read; `None` when there is none.
pub fn read_secret(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::io("open", path)(e)),
    };
    let mode = file.metadata().map_err(FileError::io("look at", path))?.mode();
    if mode & OTHERS != 0 {
        return Err(FileError::OpenSecret { path: path.to_owned(), mode: mode & 0o7777 });
    }
    read_open(file, path).map(Some)
}

fn read_open(file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let meta = file.metadata().map_err(FileError::io("look at", path))?;
    if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    // Reserved at once, so that growing leaves no unwiped copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1));
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    Ok(bytes)
}

/// Makes a file that only its owner may read, whole or not at all. False when there is one already: of two processes
/// that start together one wins, and the other shall read what it wrote.
pub fn create_secret(path: &Path, bytes: &[u8]) -> Result<bool, FileError> {
    let temporary = write_beside(path, bytes, 0o600)?;
    let linked = fs::hard_link(&temporary, path);
    let removed = fs::remove_file(&temporary);
    match linked {
        Ok(()) => {
            removed.map_err(FileError::io("remove", &temporary))?;
            sync_directory(path)?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(FileError::io("create", path)(e)),
    }
}

/// Writes a file that everybody may read, replacing what was there at once.
pub fn publish(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = write_beside(path, bytes, 0o644)?;
    fs::rename(&temporary, path).map_err(FileError::io("replace", path))?;
    sync_directory(path)
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{:016x}.tmp", std::process::id(), rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // Whatever the umask takes away.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        FileError::io("write", &temporary)(e)
    })?;
    Ok(temporary)
}

fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|d| d.sync_all()).map_err(FileError::io("sync", directory))
}

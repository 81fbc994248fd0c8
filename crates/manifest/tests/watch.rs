//! A directory on disk, edited the ways people and programs edit files.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use loam_manifest::{Change, Manifests, State, Update};

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("loam-manifest-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n---\n")
}

async fn open(dir: &Path) -> (State, Manifests) {
    Manifests::open(dir).await.unwrap()
}

/// The next update, in words; far less than the wait is needed.
async fn next(manifests: &mut Manifests) -> (Vec<String>, Update) {
    let update = tokio::time::timeout(Duration::from_secs(10), manifests.next()).await.unwrap().unwrap();
    let words = update.changes.iter().map(|change| match change {
        Change::Applied(object) => format!("+{}", object.key().name),
        Change::Deleted(key) => format!("-{}", key.name),
    });
    (words.collect(), update)
}

#[tokio::test]
async fn each_way_of_editing_is_seen_within_a_moment() {
    let dir = Dir::new();
    dir.write("a.yaml", &pod("a"));
    let (state, mut manifests) = open(&dir.0).await;
    assert_eq!(state.objects.len(), 1);
    assert_eq!(state.problems, []);

    let started = Instant::now();
    dir.write("b.yaml", &pod("b"));
    assert_eq!(next(&mut manifests).await.0, ["+b"]);
    assert!(started.elapsed() < Duration::from_secs(1), "took {:?}", started.elapsed());

    // Rename onto it, as editors and programs that care do.
    dir.write(".b.yaml.tmp", &format!("{}{}", pod("b"), pod("c")));
    fs::rename(dir.0.join(".b.yaml.tmp"), dir.0.join("b.yaml")).unwrap();
    assert_eq!(next(&mut manifests).await.0, ["+c"]);

    // Move away and write anew, as editors that keep a backup do.
    fs::rename(dir.0.join("b.yaml"), dir.0.join("b.yaml~")).unwrap();
    dir.write("b.yaml", &pod("b"));
    assert_eq!(next(&mut manifests).await.0, ["-c"]);

    fs::remove_file(dir.0.join("b.yaml")).unwrap();
    assert_eq!(next(&mut manifests).await.0, ["-b"]);
}

#[tokio::test]
async fn a_file_under_way_is_not_read_before_it_is_closed() {
    let dir = Dir::new();
    dir.write("m.yaml", &format!("{}{}", pod("a"), pod("b")));
    let (_, mut manifests) = open(&dir.0).await;
    let mut file = fs::File::create(dir.0.join("m.yaml")).unwrap();
    file.write_all(pod("a").as_bytes()).unwrap();
    file.flush().unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), manifests.next()).await;
    assert!(early.is_err(), "half a file was read: {early:?}");
    file.write_all(pod("c").as_bytes()).unwrap();
    drop(file);
    assert_eq!(next(&mut manifests).await.0, ["+c", "-b"]);
}

#[tokio::test]
async fn a_volume_of_a_config_map_is_swapped_as_a_whole() {
    let dir = Dir::new();
    for (version, pods) in [("..1", ["a", "b"]), ("..2", ["a", "c"])] {
        fs::create_dir(dir.0.join(version)).unwrap();
        dir.write(&format!("{version}/m.yaml"), &pods.map(pod).concat());
    }
    symlink("..1", dir.0.join("..data")).unwrap();
    symlink("..data/m.yaml", dir.0.join("m.yaml")).unwrap();
    let (state, mut manifests) = open(&dir.0).await;
    assert_eq!(state.objects.len(), 2);
    symlink("..2", dir.0.join("..data_tmp")).unwrap();
    fs::rename(dir.0.join("..data_tmp"), dir.0.join("..data")).unwrap();
    assert_eq!(next(&mut manifests).await.0, ["+c", "-b"]);
}

#[tokio::test]
async fn a_directory_that_vanishes_takes_nothing_with_it() {
    let dir = Dir::new();
    let inner = dir.0.join("in");
    fs::create_dir(&inner).unwrap();
    dir.write("in/m.yaml", &pod("a"));
    let (_, mut manifests) = open(&inner).await;
    fs::rename(&inner, dir.0.join("away")).unwrap();
    let (changes, update) = next(&mut manifests).await;
    assert_eq!(changes, [""; 0]);
    let problems = update.problems.unwrap();
    assert!(problems[0].to_string().contains("the 1 objects last read stay in force"), "{problems:?}");

    fs::create_dir(&inner).unwrap();
    dir.write("in/m.yaml", &format!("{}{}", pod("a"), pod("b")));
    let (changes, update) = next(&mut manifests).await;
    let (changes, update) = if changes.is_empty() { next(&mut manifests).await } else { (changes, update) };
    assert_eq!(changes, ["+b"]);
    assert!(update.problems.is_none_or(|p| p.is_empty()));

    // The watch is on the directory that has the name now.
    dir.write("in/c.yaml", &pod("c"));
    assert_eq!(next(&mut manifests).await.0, ["+c"]);
}

#[tokio::test]
async fn problems_come_and_go_with_what_causes_them() {
    let dir = Dir::new();
    dir.write("m.yaml", "kind: [");
    fs::create_dir(dir.0.join("sub")).unwrap();
    symlink("nowhere", dir.0.join("link.yaml")).unwrap();
    let (state, mut manifests) = open(&dir.0).await;
    let problems: Vec<_> = state.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert_eq!(problems[0], "sub: subdirectories are not read");
    assert!(problems[1].starts_with("link.yaml: cannot be read"), "{problems:?}");
    assert!(problems[2].starts_with("m.yaml:"), "{problems:?}");
    dir.write("m.yaml", &pod("a"));
    fs::remove_file(dir.0.join("link.yaml")).unwrap();
    fs::remove_dir(dir.0.join("sub")).unwrap();
    let (mut changes, mut update) = next(&mut manifests).await;
    while !update.problems.as_ref().is_some_and(Vec::is_empty) {
        let more = next(&mut manifests).await;
        changes.extend(more.0);
        update = more.1;
    }
    assert_eq!(changes, ["+a"]);
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_said_so() {
    let error = Manifests::open("/nonexistent/manifests").await.unwrap_err();
    assert_eq!(error.to_string(), "read the directory of manifests /nonexistent/manifests");
}

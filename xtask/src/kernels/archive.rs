//! Packages of distributions, fetched by an apt with directories of its own: this machine's lists, sources and
//! installed packages play no part, and every package is checked with its distribution's keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::Unavailable;

/// Who makes packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Debian,
    Ubuntu,
}

impl Origin {
    /// As its archives name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Debian => "Debian",
            Self::Ubuntu => "Ubuntu",
        }
    }

    /// The argument that names an archive.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }

    /// The parts of its archive that have kernels, and the keys of other distributions.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &["bullseye", "bookworm", "trixie", "trixie-backports"],
            Self::Ubuntu => &["jammy", "jammy-updates", "noble-updates"],
        }
    }

    /// The package with its keys, and where that has them.
    fn keyring(self) -> (&'static str, &'static str) {
        match self {
            Self::Debian => ("debian-archive-keyring", "usr/share/keyrings/debian-archive-keyring.gpg"),
            Self::Ubuntu => ("ubuntu-keyring", "usr/share/keyrings/ubuntu-archive-keyring.gpg"),
        }
    }

    /// The archive that this machine's own apt knows. One of nothing but security updates has no kernels of old.
    pub(super) fn of_machine(self) -> Option<String> {
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"])
            .output()
            .ok()?;
        uri(&String::from_utf8_lossy(&output.stdout), self.name())
    }
}

/// The first archive of `origin` in lines of origins and addresses.
fn uri(lines: &str, origin: &str) -> Option<String> {
    let mut pairs = lines.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, uri)| *name == origin && !uri.contains("security")).map(|(_, uri)| uri.to_owned())
}

/// An apt of our own.
#[derive(Debug)]
pub(super) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// One whose directories are below `dir`.
    pub(super) fn at(dir: &Path) -> Result<Self> {
        for part in ["etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d", "etc/trusted.gpg.d"] {
            fs::create_dir_all(dir.join(part))?;
        }
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let dir = dir.canonicalize()?;
        // An archive of old has nobody who would renew its signature.
        let settings = format!(
            "Dir \"{}/\";\nDir::State \"state\";\nDir::Cache \"cache\";\nDir::Etc \"etc\";\n\
             Dir::State::status \"/dev/null\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\nAcquire::Check-Valid-Until \"false\";\n",
            dir.display()
        );
        fs::write(dir.join("apt.conf"), settings)?;
        Ok(Self { dir })
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C").current_dir(&self.dir);
        let output = command.output().with_context(|| format!("start {program}"))?;
        if !output.status.success() {
            bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Fetches the lists of the archives at these addresses.
    pub(super) fn update(&self, uris: &[(Origin, String)]) -> Result<()> {
        ensure!(
            !uris.is_empty(),
            Unavailable(
                "This machine's apt knows no archive of Debian or Ubuntu: name one with --debian or --ubuntu".into()
            )
        );
        let mut sources = String::new();
        let mut later = Vec::new();
        for (origin, uri) in uris {
            let keys = Path::new("/").join(origin.keyring().1);
            match keys.exists() {
                true => sources.push_str(&lines(*origin, uri, &keys)),
                false => later.push((*origin, uri)),
            }
        }
        self.fetch_lists(&sources)?;
        if later.is_empty() {
            return Ok(());
        }
        // Distributions have each other's keys.
        for (origin, uri) in later {
            let (package, file) = origin.keyring();
            let to = self.dir.join("keys");
            self.extract(&[package.to_owned()], &to)
                .with_context(|| format!("find the keys of {}; apt-get install {package}", origin.name()))?;
            sources.push_str(&lines(origin, uri, &to.join(file)));
        }
        self.fetch_lists(&sources)
    }

    fn fetch_lists(&self, sources: &str) -> Result<()> {
        fs::write(self.dir.join("etc/sources.list"), sources)?;
        self.run("apt-get", &["update", "-qq"]).map(drop)
    }

    /// The names of packages that begin like this.
    pub(super) fn names(&self, start: &str) -> Result<Vec<String>> {
        Ok(self.run("apt-cache", &["pkgnames", start])?.lines().map(str::to_owned).collect())
    }

    /// A package of a kernel with those that hold parts of the same kernel.
    pub(super) fn parts(&self, package: &str, release: &str) -> Result<Vec<String>> {
        let depends = self.run("apt-cache", &["depends", "--important", package])?;
        Ok(parts(&depends, package, release))
    }

    /// Fetches packages, and puts what is in them below `to`.
    pub(super) fn extract(&self, packages: &[String], to: &Path) -> Result<()> {
        let fetched = self.dir.join("fetched");
        fs::create_dir_all(&fetched)?;
        fs::create_dir_all(to)?;
        let named: Vec<&str> = packages.iter().map(String::as_str).collect();
        let script = "cd \"$1\" && shift && exec apt-get download -qq \"$@\"";
        let dir = fetched.to_str().context("the directory for packages is not text")?;
        self.run("sh", &[&["-c", script, "sh", dir][..], &named[..]].concat())?;
        for entry in fs::read_dir(&fetched)? {
            let file = entry?.path();
            let (file_name, target) = (file.to_str().context("a package's name is no text")?, to.to_str());
            self.run("dpkg-deb", &["--extract", file_name, target.context("a directory's name is no text")?])?;
            fs::remove_file(&file)?;
        }
        Ok(())
    }
}

fn lines(origin: Origin, uri: &str, keys: &Path) -> String {
    let line = |suite: &&str| format!("deb [signed-by={}] {uri} {suite} main\n", keys.display());
    origin.suites().iter().map(line).collect()
}

/// The package itself and what it depends on of the same release, as `apt-cache depends` has it.
fn parts(depends: &str, package: &str, release: &str) -> Vec<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let of_release = names.filter(|name| name.starts_with("linux-") && name.ends_with(release));
    std::iter::once(package).chain(of_release).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_fetched_with_what_holds_the_rest_of_it() {
        let depends = "linux-image-5.15.0-204-generic\n  Depends: kmod\n  Depends: linux-base\n  \
                       Depends: linux-modules-5.15.0-204-generic\n |Recommends: grub-pc\n";
        let expected = ["linux-image-5.15.0-204-generic", "linux-modules-5.15.0-204-generic"];
        assert_eq!(parts(depends, expected[0], "5.15.0-204-generic"), expected);
    }

    #[test]
    fn an_archive_of_security_updates_is_passed_over() {
        let lines =
            "Debian http://mirror.test/debian-security/\nOther http://other.test/\nDebian http://mirror.test/debian/\n";
        assert_eq!(uri(lines, "Debian").as_deref(), Some("http://mirror.test/debian/"));
        assert_eq!(uri(lines, "Ubuntu"), None);
    }
}

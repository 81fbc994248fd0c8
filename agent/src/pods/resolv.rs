//! How a pod resolves names, as its resolv.conf says.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use loam_node::Resolv;
use loam_node::message::{MAX_NAME_BYTES, MAX_NAMESERVERS, MAX_NDOTS, MAX_SEARCH};
use rustix::fs::OFlags;

use super::spec::RESOLV_CONF_ANNOTATION;

/// As much of a file as is read: a search list takes at most 2,048 characters.
const MAX_BYTES: u64 = 64 << 10;

/// What a resolver takes that is told nothing.
const DEFAULT_NDOTS: u32 = 1;

/// A resolv.conf that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}, which the annotation {RESOLV_CONF_ANNOTATION} names: {source}")]
pub struct ResolvError {
    path: PathBuf,
    source: io::Error,
}

/// Reads the file at a path.
pub fn read(path: &Path) -> Result<Resolv, ResolvError> {
    let failed = |source| ResolvError { path: path.into(), source };
    // Whatever else the path leads to, opening it does not wait.
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(failed)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Reads what a resolver would: the last search list and options count, the first servers, and what is not understood is
/// passed over.
pub fn parse(text: &str) -> Resolv {
    let (mut servers, mut search, mut ndots) = (Vec::new(), Vec::new(), DEFAULT_NDOTS);
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
            Some("search") => search = words.filter(|word| is_domain(word)).map(str::to_owned).collect(),
            Some("domain") => search = words.take(1).filter(|word| is_domain(word)).map(str::to_owned).collect(),
            Some("options") => {
                let mut values = words.filter_map(|word| word.strip_prefix("ndots:")?.parse::<u32>().ok());
                ndots = values.next_back().unwrap_or(ndots).min(MAX_NDOTS);
            }
            Some(_) | None => {}
        }
    }
    servers.truncate(MAX_NAMESERVERS);
    search.truncate(MAX_SEARCH);
    Resolv::new(servers, search, ndots)
}

fn is_domain(word: &str) -> bool {
    // A lone dot searches the root, which adds nothing to a name.
    word != "." && word.len() <= MAX_NAME_BYTES && !word.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, servers: &[&str], search: &[&str], ndots: u32) {
        let read = parse(text);
        assert_eq!(read.check(), Ok(()), "{text:?}");
        let found: Vec<String> = read.servers().map(|ip| ip.to_string()).collect();
        assert_eq!((found, read.search, read.ndots), (owned(servers), owned(search), ndots), "{text:?}");
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn what_the_kubelet_writes_is_read() {
        let text = "search shop.svc.cluster.local svc.cluster.local cluster.local\n\
                    nameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5\n";
        let search = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        check(text, &["10.96.0.10", "fd00::10"], &search, 5);
    }

    #[test]
    fn an_empty_file_has_the_defaults() {
        check("", &[], &[], 1);
        check("# nothing\n; at all\n\n", &[], &[], 1);
    }

    #[test]
    fn the_last_search_list_and_the_first_three_servers_count() {
        check("domain a\nsearch b c\n", &[], &["b", "c"], 1);
        check("search b c\ndomain a\n", &[], &["a"], 1);
        let four = "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        check(four, &["10.0.0.1", "10.0.0.2", "10.0.0.3"], &[], 1);
    }

    #[test]
    fn garbage_is_passed_over_and_nothing_grows_beyond_its_bound() {
        check("nameserver\nnameserver x\nnameserver fe80::1%eth0\nnameserver 10.0.0.1 # ours\n", &["10.0.0.1"], &[], 1);
        check("options ndots:x ndots:99 rotate\n", &[], &[], 15);
        check("options ndots:2\noptions timeout:1\n", &[], &[], 2);
        check("search . a\u{1} b\nnonsense\n\u{0}\u{ff}", &[], &["b"], 1);
        let many = format!("search {}", "a ".repeat(100));
        check(&many, &[], &["a"; MAX_SEARCH], 1);
        check(&format!("search {} b", "a".repeat(MAX_NAME_BYTES + 1)), &[], &["b"], 1);
    }

    #[test]
    fn what_is_no_file_is_said_and_not_waited_for() {
        let text = |path: &str| read(Path::new(path)).unwrap_err().to_string();
        let expected = "cannot read /dev/null, which the annotation loam.dev/resolv-conf names: it is not a file";
        assert_eq!(text("/dev/null"), expected);
        assert!(text("/nowhere").contains("No such file"));
    }
}

use super::*;

/// A GET over HTTP/1.1 with these headers.
pub(in crate::http) fn target(uri: &str, headers: &[(&str, &str)]) -> Result<Target, Malformed> {
    read(&Method::GET, uri, Version::HTTP_11, headers)
}

fn read(method: &Method, uri: &str, version: Version, headers: &[(&str, &str)]) -> Result<Target, Malformed> {
    let uri = uri.parse().unwrap();
    let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    // `extend` of pairs appends, as lines of a request do.
    let mut map = HeaderMap::new();
    headers.for_each(|(name, value): (header::HeaderName, header::HeaderValue)| {
        map.append(name, value);
    });
    let head = Head { method, uri: &uri, version, headers: &map, extended_connect: false };
    Target::of(&head, Scheme::Http, &PathRules::default())
}

fn path(path: &str) -> Result<String, Malformed> {
    canonical_path(path, &PathRules::default()).map(Cow::into_owned)
}

#[test]
fn every_spelling_of_a_path_has_one_form() {
    for (written, canonical) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/", "/a/"),
        ("//a", "/a"),
        ("/a//b///", "/a/b/"),
        ("/./a", "/a"),
        ("/a/.", "/a/"),
        ("/a/./b", "/a/b"),
        ("/../a", "/a"),
        ("/a/..", "/"),
        ("/a/../b", "/b"),
        ("/a/b/../../..", "/"),
        ("/a/..//b", "/b"),
        ("/%2e%2e/a", "/a"),
        ("/a/%2E/b", "/a/b"),
        ("/.a/..b/...", "/.a/..b/..."),
        ("/%61dmin", "/admin"),
        ("/%7Euser", "/~user"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/café", "/caf%C3%A9"),
        ("/a%20b", "/a%20b"),
        ("/%25%32%66", "/%252f"),
        ("/%252e%252e", "/%252e%252e"),
        ("/a|b{c}\"", "/a%7Cb%7Bc%7D%22"),
        ("/a;x=1/b", "/a;x=1/b"),
        ("/A", "/A"),
        ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
        ("/%0a", "/%0A"),
    ] {
        assert_eq!(path(written).as_deref(), Ok(canonical), "{written}");
        assert_eq!(path(canonical).as_deref(), Ok(canonical), "{canonical} again");
    }
}

#[test]
fn a_path_that_servers_read_in_several_ways_is_refused() {
    for (written, why) in [
        ("", Malformed::NotAbsolute),
        ("a", Malformed::NotAbsolute),
        ("/%", Malformed::Escape),
        ("/%2", Malformed::Escape),
        ("/%zz", Malformed::Escape),
        ("/%00", Malformed::Nul),
        ("/a\0", Malformed::Nul),
        ("/a b", Malformed::Character),
        ("/a\r\n", Malformed::Character),
        ("/a\x7f", Malformed::Character),
        ("/a#b", Malformed::Fragment),
        ("/a%2fb", Malformed::SlashLike),
        ("/a%5Cb", Malformed::SlashLike),
        ("/a\\b", Malformed::SlashLike),
        ("/%c0%af", Malformed::Overlong),
        ("/%C1%81", Malformed::Overlong),
        ("/%e0%80%af", Malformed::Overlong),
        ("/%f0%80%80%af", Malformed::Overlong),
        ("/a/..;/b", Malformed::DotParameter),
        ("/a/%2e%2e;x=1/b", Malformed::DotParameter),
        ("/.;/b", Malformed::DotParameter),
    ] {
        assert_eq!(path(written), Err(why), "{written:?}");
    }
}

#[test]
fn settings_say_what_becomes_of_slashes() {
    let keep = PathRules { merge_slashes: false, slash_like: SlashLike::Keep };
    let slash = PathRules { merge_slashes: true, slash_like: SlashLike::Slash };
    for (written, kept, slashed) in [
        ("/a//b", "/a//b", "/a/b"),
        ("/a/..//b", "//b", "/b"),
        ("/a%2fb\\c", "/a%2Fb%5Cc", "/a/b/c"),
        ("/a/..%2f..%2fb", "/a/..%2F..%2Fb", "/b"),
    ] {
        assert_eq!(canonical_path(written, &keep).as_deref(), Ok(kept), "{written}");
        assert_eq!(canonical_path(written, &slash).as_deref(), Ok(slashed), "{written}");
    }
}

#[test]
fn mutations_of_a_path_end_in_its_form_or_in_a_refusal() {
    // Each letter in its encodings, and between segments everything that means nothing.
    let letters = |c: char| [c.to_string(), format!("%{:02x}", c as u32), format!("%{:02X}", c as u32)];
    let nothings = ["/", "//", "/./", "/x/../", "/%2e/", "/%78/%2E%2e/", "/.//"];
    let mut seed = 1u64;
    let mut below = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % n
    };
    for _ in 0..10_000 {
        let mut written = nothings[below(nothings.len())].to_owned();
        "admin".chars().for_each(|c| written += &letters(c)[below(3)]);
        written += nothings[below(nothings.len())];
        "users".chars().for_each(|c| written += &letters(c)[below(3)]);
        assert_eq!(path(&written).as_deref(), Ok("/admin/users"), "{written}");
    }
}

#[test]
fn hosts_compare_without_case_final_dot_and_port() {
    for (written, host, port) in [
        ("secret.com", "secret.com", None),
        ("SeCrEt.com", "secret.com", None),
        ("secret.com.", "secret.com", None),
        ("secret.com:80", "secret.com", Some(80)),
        ("Secret.com.:8080", "secret.com", Some(8080)),
        ("10.0.0.1:80", "10.0.0.1", Some(80)),
        ("[FD00::1]:80", "[fd00::1]", Some(80)),
        ("[::1]", "[::1]", None),
        ("a_b", "a_b", None),
    ] {
        let target = target("/", &[("host", written)]).unwrap();
        assert_eq!((target.host(), target.port()), (host, port), "{written}");
    }
}

#[test]
fn a_host_that_is_none_is_refused() {
    for written in [
        "a b",
        "a,b",
        "user@a",
        "a:",
        "a:0",
        "a:99999",
        "a:080",
        ":80",
        "[::1",
        "::1",
        "[fe80::1%eth0]",
        "[::ffff:1.2.3.4]",
        "1.2.3",
        "16909060",
        "0x7f.1",
        "0x7f",
        "1.2.3.4.5",
        "*.example.org",
        "a..b",
        "a/b",
        &"a.".repeat(150),
    ] {
        assert_eq!(target("/", &[("host", written)]), Err(Malformed::Host), "{written}");
    }
    assert_eq!(target("/", &[]), Err(Malformed::NoHost));
    assert_eq!(target("/", &[("host", "")]), Err(Malformed::NoHost));
    assert_eq!(target("/", &[("host", "a"), ("host", "a")]), Err(Malformed::SeveralHosts));
}

#[test]
fn target_and_host_header_say_the_same() {
    for (uri, host, outcome) in [
        ("http://a/x", "a", Ok("http://a/x")),
        ("http://a/x", "A.", Ok("http://a/x")),
        ("http://a:80/x", "a", Ok("http://a:80/x")),
        ("http://a/x", "b", Err(Malformed::HostsDiffer)),
        ("http://a/x", "a:8080", Err(Malformed::HostsDiffer)),
        ("HTTPS://a/x", "a:443", Ok("https://a/x")),
        ("ftp://a/x", "a", Err(Malformed::Scheme)),
    ] {
        assert_eq!(target(uri, &[("host", host)]).map(|t| t.to_string()), outcome.map(str::to_owned), "{uri} {host}");
    }
    assert_eq!(target("http://a?q", &[("host", "a")]).unwrap().to_string(), "http://a/?q");
}

#[test]
fn an_asterisk_is_for_options_and_connect_for_nobody() {
    let with_host = &[("host", "a")][..];
    assert_eq!(read(&Method::OPTIONS, "*", Version::HTTP_11, with_host).unwrap().path(), "*");
    assert_eq!(read(&Method::GET, "*", Version::HTTP_11, with_host), Err(Malformed::NotAbsolute));
    let connect = read(&Method::CONNECT, "a:80", Version::HTTP_11, &[("host", "a:80")]);
    assert_eq!(connect.map_err(Malformed::status), Err(StatusCode::METHOD_NOT_ALLOWED));
    let long = format!("/{}", "a".repeat(MAX_TARGET_BYTES));
    assert_eq!(target(&long, with_host).map_err(Malformed::status), Err(StatusCode::URI_TOO_LONG));
}

#[test]
fn a_message_whose_end_two_parsers_could_see_differently_is_refused() {
    let framing = |headers: &[(&str, &str)], version| {
        let headers = [&[("host", "a")], headers].concat();
        read(&Method::POST, "/", version, &headers).err()
    };
    let te = "transfer-encoding";
    let cl = "content-length";
    let (coding, length) = (Some(Malformed::TransferEncoding), Some(Malformed::ContentLength));
    for (headers, outcome) in [
        (&[(te, "chunked")][..], None),
        (&[(te, "Chunked")], None),
        (&[(cl, "0")], None),
        (&[(cl, "18446744073709551615")], None),
        (&[(cl, "18446744073709551616")], length),
        (&[(cl, "5"), (te, "chunked")], length),
        (&[(cl, "5"), (cl, "5")], length),
        (&[(cl, "5"), (cl, "6")], length),
        (&[(cl, "1, 1")], length),
        (&[(cl, "+5")], length),
        (&[(cl, "0x5")], length),
        (&[(cl, "5e0")], length),
        (&[(cl, "-1")], length),
        (&[(cl, "")], length),
        (&[(te, "xchunked")], coding),
        (&[(te, "chunked, identity")], coding),
        (&[(te, "identity, chunked")], coding),
        (&[(te, "identity")], coding),
        (&[(te, "chunked"), (te, "chunked")], coding),
    ] {
        assert_eq!(framing(headers, Version::HTTP_11), outcome, "{headers:?}");
    }
    assert_eq!(framing(&[(te, "chunked")], Version::HTTP_10), coding);
}

#[test]
fn parameters_are_read_decoded_and_the_first_counts() {
    let target = target("/?a=1&a=2&b=x%20y+z&c&d=%zz&%65=5&f=1=2&", &[("host", "a")]).unwrap();
    for (name, value) in [
        ("a", Some("1")),
        ("b", Some("x y z")),
        ("c", Some("")),
        ("d", Some("%zz")),
        ("e", Some("5")),
        ("f", Some("1=2")),
    ] {
        assert_eq!(target.parameter(name).as_deref(), value, "{name}");
    }
    assert_eq!(target.parameter("A"), None);
    assert_eq!(target.parameter("x"), None);
}

#[test]
fn a_changed_target_keeps_what_is_not_changed() {
    let target = target("/a/b?q=1", &[("host", "web:8080")]).unwrap();
    for (host, path, outcome) in [
        (None, None, Some("http://web:8080/a/b?q=1")),
        (Some("API.example.org"), None, Some("http://api.example.org/a/b?q=1")),
        (None, Some("/x"), Some("http://web:8080/x?q=1")),
        (Some("api:81"), Some("/x/../y"), Some("http://api:81/y?q=1")),
        (Some("no host"), None, None),
        (None, Some("x"), None),
        (None, Some("/%"), None),
    ] {
        let changed = target.changed(host, path).map(|t| t.to_string());
        assert_eq!(changed.as_deref(), outcome, "{host:?} {path:?}");
    }
    assert_eq!(target.origin().to_string(), "/a/b?q=1");
    assert_eq!(target.absolute().to_string(), "http://web:8080/a/b?q=1");
}

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::ca::scratch::Scratch;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn signed(tokens: &Tokens, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let tag = hmac::sign(&tokens.key, signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(tag))
}

#[test]
fn a_token_proves_its_node_until_it_expires() {
    let scratch = Scratch::new();
    let (tokens, now) = (Tokens::open(scratch.path()).unwrap(), SystemTime::now());
    let token = tokens.issue("node-1.example", DAY, now).unwrap();
    assert_eq!(tokens.verify(&token, now).unwrap(), "node-1.example");
    assert_eq!(tokens.verify(&token, now + DAY - Duration::from_secs(2)).unwrap(), "node-1.example");
    assert_eq!(tokens.verify(&token, now + DAY), Err(TokenError::Expired));
    assert!(tokens.issue("node", Duration::MAX, now).is_ok());
}

#[test]
fn the_key_is_kept_in_the_data_directory_for_its_owner_only() {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    let token = Tokens::open(scratch.path()).unwrap().issue("node", DAY, now).unwrap();
    assert_eq!(Tokens::open(scratch.path()).unwrap().verify(&token, now).unwrap(), "node");
    let path = scratch.file("token-key");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Tokens::open(scratch.path()).unwrap_err().to_string();
    assert!(error.contains("others may read it"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for broken in ["", "abc", &"g".repeat(64), &"é".repeat(32)] {
        fs::write(&path, broken).unwrap();
        let error = Tokens::open(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("token-key: is not a key"), "{error}");
    }
}

#[test]
fn a_token_of_another_key_is_refused() {
    let (ours, theirs, now) = (Scratch::new(), Scratch::new(), SystemTime::now());
    let token = Tokens::open(theirs.path()).unwrap().issue("node", DAY, now).unwrap();
    assert_eq!(Tokens::open(ours.path()).unwrap().verify(&token, now), Err(TokenError::BadSignature));
}

#[test]
fn a_token_with_any_byte_changed_is_refused() {
    let scratch = Scratch::new();
    let (tokens, now) = (Tokens::open(scratch.path()).unwrap(), SystemTime::now());
    let token = tokens.issue("node", DAY, now).unwrap();
    for at in 0..token.len() {
        for with in [b'A', b'B', b'.', b'=', 0x7f] {
            let mut bytes = token.clone().into_bytes();
            if bytes[at] == with {
                continue;
            }
            bytes[at] = with;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(tokens.verify(&changed, now).is_err(), "byte {at} as {with}");
        }
        assert!(tokens.verify(&token[..at], now).is_err(), "cut at {at}");
    }
}

#[test]
fn only_our_own_kind_of_token_counts_even_with_the_right_signature() {
    let scratch = Scratch::new();
    let (tokens, now) = (Tokens::open(scratch.path()).unwrap(), SystemTime::now());
    let good = r#"{"iss":"loam","aud":["istio-ca"],"sub":"node:n","iat":0,"exp":99999999999}"#;
    assert_eq!(tokens.verify(&signed(&tokens, HEADER, good), now).unwrap(), "n");
    for (header, claims, error) in [
        (r#"{"alg":"none"}"#, good.to_owned(), TokenError::Malformed),
        (r#"{"typ":"JWT","alg":"HS256"}"#, good.to_owned(), TokenError::Malformed),
        (HEADER, good.replace("istio-ca", "vault"), TokenError::WrongAudience),
        (HEADER, good.replace(r#"["istio-ca"]"#, "[]"), TokenError::WrongAudience),
        (HEADER, good.replace("loam", "kubernetes"), TokenError::WrongAudience),
        (HEADER, good.replace("99999999999", "1"), TokenError::Expired),
        (HEADER, good.replace("99999999999", "-1"), TokenError::Malformed),
        (HEADER, good.replace("node:n", "pod:n"), TokenError::Malformed),
        (HEADER, "{}".into(), TokenError::Malformed),
        (HEADER, String::new(), TokenError::Malformed),
    ] {
        assert_eq!(tokens.verify(&signed(&tokens, header, &claims), now), Err(error), "{header} {claims}");
    }
    for text in ["", ".", "..", "a.b.c", &"a".repeat(MAX_TOKEN_BYTES + 1), "é.é.é"] {
        assert!(tokens.verify(text, now).is_err(), "{text}");
    }
}

#[test]
fn a_node_must_have_a_name() {
    let scratch = Scratch::new();
    let tokens = Tokens::open(scratch.path()).unwrap();
    for node in ["", "a b", "a/b", "node:\n"] {
        assert!(tokens.issue(node, DAY, SystemTime::now()).is_err(), "{node:?}");
    }
}

#[test]
fn callers_are_known_by_their_bearer_token() {
    let scratch = Scratch::new();
    let (tokens, now) = (Tokens::open(scratch.path()).unwrap(), SystemTime::now());
    let token = tokens.issue("node-1", DAY, now).unwrap();
    let call = |header: Option<String>| {
        let mut metadata = MetadataMap::new();
        if let Some(header) = header {
            metadata.insert("authorization", header.parse().unwrap());
        }
        tokens.caller(&metadata, now).map(|caller| caller.node)
    };
    assert_eq!(call(Some(format!("Bearer {token}"))), Ok("node-1".into()));
    assert_eq!(call(None), Err(TokenError::Missing));
    assert_eq!(call(Some(format!("Basic {token}"))), Err(TokenError::Missing));
    assert_eq!(call(Some("Bearer x".into())), Err(TokenError::Malformed));
}

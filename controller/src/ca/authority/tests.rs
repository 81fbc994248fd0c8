use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use loam_tls::cert::leaf;
use loam_tls::key::Key;
use x509_parser::extensions::GeneralName;

use super::*;
use crate::ca::csr::proven_key;
use crate::ca::scratch::Scratch;

fn web() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn open(scratch: &Scratch) -> Result<Authority, AuthorityError> {
    Authority::open(scratch.path(), domain(), SystemTime::now())
}

/// A CA file as a user would bring it.
struct Given {
    scratch: Scratch,
    now: SystemTime,
}

impl Given {
    fn new() -> Self {
        let scratch = Scratch::new();
        files::check_directory(scratch.path()).unwrap();
        Self { scratch, now: SystemTime::now() }
    }

    fn params(&self, name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = (self.now - Duration::from_secs(60)).into();
        params.not_after = (self.now + 2 * MAX_TTL).into();
        params
    }

    fn load(&self, chain: &[&str], key: &KeyPair) -> Result<Authority, AuthorityError> {
        let (cert_file, key_file) = (self.scratch.file("given.pem"), self.scratch.file("given-key.pem"));
        fs::write(&cert_file, chain.concat()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        Authority::load(&cert_file, &key_file, domain(), self.now)
    }
}

#[test]
fn the_first_start_makes_a_root_and_later_ones_keep_it() {
    let scratch = Scratch::new();
    let first = open(&scratch).unwrap().roots_pem();
    assert_eq!(open(&scratch).unwrap().roots_pem(), first);
    assert_eq!(fs::read_to_string(scratch.file(ROOT_FILE)).unwrap(), first);
    assert_eq!(mode(&scratch.file(KEY_FILE)), 0o600);
    assert_eq!(mode(&scratch.file(ROOT_FILE)), 0o644);
    assert_eq!(mode(scratch.path()) & 0o022, 0);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3, "something is left over");

    let der = &certificates_in_pem(first.as_bytes()).unwrap()[0];
    let (_, cert) = X509Certificate::from_der(der).unwrap();
    assert!(cert.is_ca() && cert.key_usage().unwrap().unwrap().value.key_cert_sign());
    let life = cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
    assert_eq!(u64::try_from(life).unwrap(), (ROOT_LIFE + BACKDATE).as_secs());
}

#[test]
fn controllers_that_start_together_end_up_with_one_root() {
    let scratch = Scratch::new();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&scratch).unwrap().roots_pem())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_root_certificate_that_was_lost_is_made_again_for_those_who_trust_it() {
    let scratch = Scratch::new();
    let before = open(&scratch).unwrap();
    let signed = before.sign(&web(), &KeyPair::generate().unwrap(), None, SystemTime::now()).unwrap();
    fs::remove_file(scratch.file(CERT_FILE)).unwrap();
    let again = open(&scratch).unwrap();
    let trust = Trust::new(domain(), []);
    trust.replace_roots(again.roots.clone(), SystemTime::now()).unwrap();
    verify_chain(&trust, &signed.chain[0], &[], Purpose::Client, UnixTime::now()).unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named_with_a_way_out() {
    let spoil = |what: &dyn Fn(&Scratch)| {
        let scratch = Scratch::new();
        open(&scratch).unwrap();
        what(&scratch);
        open(&scratch).unwrap_err().to_string()
    };
    let error = spoil(&|s| fs::remove_file(s.file(KEY_FILE)).unwrap());
    assert!(error.contains("ca-key.pem: the key of") && error.contains("is missing; bring it back"), "{error}");
    let error = spoil(&|s| fs::write(s.file(KEY_FILE), "-----BEGIN PRIVATE KEY-----\n").unwrap());
    assert!(error.contains("ca-key.pem: is not a private key"), "{error}");
    let error = spoil(&|s| fs::write(s.file(KEY_FILE), [0xff; 100]).unwrap());
    assert!(error.contains("ca-key.pem: is not a private key"), "{error}");
    let error = spoil(&|s| fs::write(s.file(CERT_FILE), "").unwrap());
    assert!(error.contains("ca-cert.pem: has no certificate"), "{error}");
    let error = spoil(&|s| {
        let other = KeyPair::generate().unwrap();
        fs::write(s.file(KEY_FILE), other.serialize_pem()).unwrap();
    });
    assert!(error.contains("ca-cert.pem: its first certificate is not for the key in"), "{error}");
    let error = spoil(&|s| fs::set_permissions(s.file(KEY_FILE), fs::Permissions::from_mode(0o640)).unwrap());
    assert!(error.contains("others may read it (mode 0640); run: chmod 600"), "{error}");
    let error = spoil(&|s| fs::set_permissions(s.path(), fs::Permissions::from_mode(0o777)).unwrap());
    assert!(error.contains("others may write to it (mode 0777); run: chmod go-w"), "{error}");
    let error = spoil(&|s| {
        fs::remove_dir_all(s.path()).unwrap();
        fs::write(s.path(), "").unwrap();
    });
    assert!(error.contains("is not a directory"), "{error}");
}

#[test]
fn an_expired_root_is_not_used() {
    let scratch = Scratch::new();
    open(&scratch).unwrap();
    for now in [SystemTime::now() + ROOT_LIFE + Duration::from_secs(1), SystemTime::UNIX_EPOCH] {
        let error = Authority::open(scratch.path(), domain(), now).unwrap_err().to_string();
        assert!(error.contains("ca-cert.pem: certificate 0 is valid only from"), "{error}");
    }
}

#[test]
fn a_certificate_says_who_and_nothing_more() {
    let scratch = Scratch::new();
    let (authority, now) = (scratch.authority(), SystemTime::now());
    let key = KeyPair::generate().unwrap();
    let signed = authority.sign(&web(), &key, None, now).unwrap();
    let facts = leaf(&signed.chain[0]).unwrap();
    assert_eq!((&facts.identity, &facts.serial), (&web(), &signed.serial));
    assert!(facts.server_auth && facts.client_auth);
    let since = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(since(now) - since(facts.not_before), BACKDATE.as_secs());
    assert_eq!(since(facts.not_after) - since(now), MAX_TTL.as_secs());

    let (_, cert) = X509Certificate::from_der(&signed.chain[0]).unwrap();
    assert!(!cert.is_ca() && cert.subject().iter().count() == 0);
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert!(cert.subject_alternative_name().unwrap().unwrap().critical);
    let again = authority.sign(&web(), &key, None, now).unwrap();
    assert_ne!(signed.serial, again.serial);
}

#[test]
fn a_wish_about_the_life_of_a_certificate_can_only_shorten_it() {
    let scratch = Scratch::new();
    let (authority, now) = (scratch.authority(), SystemTime::now());
    let key = KeyPair::generate().unwrap();
    let life = |authority: &Authority, ttl: Option<Duration>| {
        let signed = authority.sign(&web(), &key, ttl, now).unwrap();
        signed.not_after.duration_since(now).unwrap()
    };
    let hour = Duration::from_secs(3600);
    assert_eq!(life(&authority, Some(hour)), hour);
    assert_eq!(life(&authority, Some(ROOT_LIFE)), MAX_TTL);
    assert_eq!(life(&authority, Some(Duration::MAX)), MAX_TTL);
    let strict = authority.with_max_ttl(Duration::from_secs(20));
    assert_eq!(life(&strict, Some(hour)), Duration::from_secs(20));
}

#[test]
fn nothing_outlives_its_issuer() {
    let given = Given::new();
    let key = KeyPair::generate().unwrap();
    let mut params = given.params("short");
    params.not_after = (given.now + Duration::from_secs(3600)).into();
    let authority = given.load(&[&params.self_signed(&key).unwrap().pem()], &key).unwrap();
    let signed = authority.sign(&web(), &key, None, given.now).unwrap();
    assert!(signed.not_after <= given.now + Duration::from_secs(3600));
}

#[test]
fn a_given_ca_below_others_sends_the_way_to_its_root() {
    let given = Given::new();
    let keys: Vec<_> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
    let root = given.params("root");
    let root_cert = root.self_signed(&keys[0]).unwrap();
    let above = given.params("above");
    let above_cert = above.signed_by(&keys[1], &Issuer::from_params(&root, &keys[0])).unwrap();
    let own_cert = given.params("own").signed_by(&keys[2], &Issuer::from_params(&above, &keys[1])).unwrap();
    let (own, middle, top) = (own_cert.pem(), above_cert.pem(), root_cert.pem());
    let other_root = given.params("other").self_signed(&KeyPair::generate().unwrap()).unwrap().pem();

    let authority = given.load(&[&own, &middle, &top, &other_root], &keys[2]).unwrap();
    let elements = authority.sign(&web(), &keys[0], None, given.now).unwrap().to_elements(&authority);
    assert_eq!(elements.len(), 4);
    let answer = loam_api::ca::IstioCertificateResponse { cert_chain: elements };
    let issued = loam_tls::ca::issued(answer).unwrap();
    assert_eq!((issued.chain.len(), issued.roots.len()), (3, 2));

    let fail = |chain: &[&str]| given.load(chain, &keys[2]).unwrap_err().to_string();
    assert!(fail(&[&own, &middle]).contains("the chain does not end in a root"));
    assert!(fail(&[&own, &top]).contains("certificate 0 is not signed by the one after it"));
    assert!(fail(&[&own, &other_root]).contains("certificate 0 is not signed by the one after it"));
    assert!(fail(&[&own, &middle, &top, &middle]).contains("certificate 2 is not signed by the one after it"));
    assert!(fail(&[&top, &middle, &own]).contains("its first certificate is not for the key"));
}

#[test]
fn a_given_certificate_must_be_able_to_sign() {
    let given = Given::new();
    let key = KeyPair::generate().unwrap();
    let mut leaf = given.params("leaf");
    leaf.is_ca = IsCa::ExplicitNoCa;
    let error = given.load(&[&leaf.self_signed(&key).unwrap().pem()], &key).unwrap_err().to_string();
    assert!(error.contains("certificate 0 is not that of a CA"), "{error}");

    let mut crl_only = given.params("crl");
    crl_only.key_usages = vec![KeyUsagePurpose::CrlSign];
    let error = given.load(&[&crl_only.self_signed(&key).unwrap().pem()], &key).unwrap_err().to_string();
    assert!(error.contains("certificate 0 is not that of a CA"), "{error}");

    // Only the proof shows what the chain permits.
    let (root_key, middle_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = given.params("root");
    let issuer = Issuer::from_params(&root, &root_key);
    let mut middle = given.params("middle");
    middle.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let below = given.params("below").signed_by(&key, &Issuer::from_params(&middle, &middle_key)).unwrap().pem();
    let middle = middle.signed_by(&middle_key, &issuer).unwrap().pem();
    let mut code_only = given.params("code only");
    code_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let code_only = code_only.signed_by(&key, &issuer).unwrap().pem();
    let root = root.self_signed(&root_key).unwrap().pem();
    for chain in [&[below.as_str(), &middle, &root][..], &[&code_only, &root]] {
        let error = given.load(chain, &key).unwrap_err().to_string();
        assert!(error.contains("nobody would accept its certificates"), "{error}");
    }
}

#[test]
fn missing_files_of_a_given_ca_are_named() {
    let scratch = Scratch::new();
    let (cert, key) = (scratch.file("no-cert.pem"), scratch.file("no-key.pem"));
    let error = Authority::load(&cert, &key, domain(), SystemTime::now()).unwrap_err().to_string();
    assert!(error.ends_with("no-key.pem: the file is missing; check the path"), "{error}");
}

#[test]
fn what_is_signed_is_accepted_by_our_own_store() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    let key = Key::generate().unwrap();
    let proven = proven_key(&key.request(&web()).unwrap()).unwrap();
    let signed = authority.sign(&web(), &proven, None, SystemTime::now()).unwrap();
    let answer = loam_api::ca::IstioCertificateResponse { cert_chain: signed.to_elements(&authority) };
    let issued = loam_tls::ca::issued(answer).unwrap();
    let trust = Trust::new(domain(), []);
    let credentials = loam_tls::Credentials::new(&web(), key, issued, &trust, SystemTime::now()).unwrap();
    assert_eq!(credentials.serial(), signed.serial);
}

#[test]
fn server_names_are_dns_names_and_addresses() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    let names = ["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    let signed = authority.sign_server(&names, &KeyPair::generate().unwrap(), SystemTime::now()).unwrap();
    let (_, cert) = X509Certificate::from_der(&signed.chain[0]).unwrap();
    let sans = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(matches!(
        sans[..],
        [GeneralName::DNSName("localhost"), GeneralName::IPAddress(_), GeneralName::IPAddress(_)]
    ));
    let error = authority.sign_server(&["a b".into()], &KeyPair::generate().unwrap(), SystemTime::now()).unwrap_err();
    assert_eq!(error.to_string(), "\"a b\": is neither a DNS name nor an address");
}

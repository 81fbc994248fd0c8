//! Reads one file: bytes in, objects and faults out.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::Spanned;

use crate::document::{Document, Fault, Format, split, without_place};
use crate::istio::Custom;
use crate::located::Located;
use crate::object::{DEFAULT_NAMESPACE, Key, Kind, Object, check_name};
use crate::prune::prune;

/// Largest file read. A list of 10,000 pods as an API server prints them fits.
pub(crate) const MAX_FILE_BYTES: u64 = 10 << 20;

/// Deepest nesting: objects of Kubernetes stay below 20 levels.
const MAX_DEPTH: usize = 64;

/// How often one document may refer back to its anchors, and how much that may unfold to in all: enough for honest
/// repetition of labels, nothing for a document made to explode.
const MAX_ALIASES: usize = 1_000;
const MAX_REPLAYED_EVENTS: usize = 100_000;

/// Most parse events of one document: ten times what a list of 10 MiB of ordinary pods has.
const MAX_EVENTS: usize = 20_000_000;

/// Faults of one file that are worth telling apart.
const MAX_FAULTS: usize = 50;

/// Unknown kinds of one file that are worth telling apart.
const MAX_UNKNOWN_KINDS: usize = 50;

/// What one file says.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) found: Vec<Found>,
    pub(crate) flaws: Vec<Flaw>,
    /// Kinds this crate has no type for: the line of the first, and how many.
    pub(crate) unknown: BTreeMap<String, (u32, usize)>,
    /// Whether a part could not even be named, so that an object missing from `found` may be in it.
    pub(crate) nameless: bool,
}

/// An object as it was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) key: Key,
    pub(crate) line: u32,
    /// Equal for equal text.
    pub(crate) hash: u64,
    /// `None` for a document that was known by its hash and not read again.
    pub(crate) object: Option<Object>,
}

/// Objects that were handed out as they are, by the hash of their document: of a file of thousands, in which one
/// changed, only that one is read.
pub(crate) type Known = HashMap<u64, Key>;

/// A part of a file that is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) line: Option<u32>,
    pub(crate) key: Option<Key>,
    pub(crate) message: String,
}

impl Contents {
    fn found(&mut self, key: Key, line: u32, hash: u64, mut object: Object) {
        object.complete(&key);
        prune(&mut object);
        self.found.push(Found { key, line, hash, object: Some(object) });
    }

    fn flaw(&mut self, line: Option<u32>, key: Option<Key>, message: String) {
        self.nameless |= key.is_none();
        if self.flaws.len() < MAX_FAULTS {
            self.flaws.push(Flaw { line, key, message });
        } else if self.flaws.len() == MAX_FAULTS {
            let message = format!("more than {MAX_FAULTS} faults; the rest is not listed");
            self.flaws.push(Flaw { line, key: None, message });
        }
    }

    fn unknown(&mut self, name: String, line: u32) {
        if self.unknown.contains_key(&name) || self.unknown.len() < MAX_UNKNOWN_KINDS {
            self.unknown.entry(name).or_insert((line, 0)).1 += 1;
        }
    }
}

/// Reads a whole file.
pub(crate) fn read(format: Format, bytes: &[u8], known: &Known) -> Contents {
    let mut contents = Contents::default();
    if bytes.len() as u64 > MAX_FILE_BYTES {
        contents.flaw(None, None, format!("is larger than {} MiB and is not read", MAX_FILE_BYTES >> 20));
        return contents;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            contents.flaw(u32::try_from(line).ok(), None, "is not UTF-8 text".to_owned());
            return contents;
        }
    };
    let (documents, fault) = split(format, text);
    for document in documents {
        let hash = hash_of(document.text);
        match known.get(&hash) {
            Some(key) => {
                let line = first_line(format, document);
                contents.found.push(Found { key: key.clone(), line, hash, object: None });
            }
            None => read_document(&mut contents, format, document, hash),
        }
    }
    if let Some((line, message)) = fault {
        contents.flaw(Some(line), None, message);
    }
    contents
}

/// The part of a document that says what it is.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<HeadMetadata>,
}

#[derive(Deserialize)]
struct HeadMetadata {
    name: Option<String>,
    namespace: Option<String>,
}

fn read_document(contents: &mut Contents, format: Format, document: Document<'_>, hash: u64) {
    if read_at_once(contents, format, document, hash).is_some() {
        return;
    }
    let head: Head = match decode(format, document) {
        Ok(head) => head,
        Err((line, message)) => return contents.flaw(Some(line), None, message),
    };
    if is_list(&head) {
        return read_list(contents, format, document);
    }
    let line = first_line(format, document);
    match identify(&head) {
        Identified::Ours(key) => match decode_kind(key.kind, format, document) {
            Ok(object) => contents.found(key, line, hash, object),
            Err((line, message)) => contents.flaw(Some(line), Some(key), message),
        },
        Identified::Unknown(name) => contents.unknown(name, line),
        Identified::Wrong(message) => contents.flaw(Some(line), None, message),
    }
}

/// Reads a document whose kind stands where it usually does, in one pass instead of two. `None` for anything that is
/// not plainly right: the long way then finds out what it is.
fn read_at_once(contents: &mut Contents, format: Format, document: Document<'_>, hash: u64) -> Option<()> {
    if format != Format::Yaml {
        return None;
    }
    let value = |key: &str| document.text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    let (api_version, kind) = (value("apiVersion")?, value("kind")?);
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind && k.api_versions().contains(&api_version))?;
    let object = decode_kind(kind, format, document).ok()?;
    let metadata = object.metadata();
    let head = Head {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.as_str().to_owned()),
        metadata: Some(HeadMetadata { name: metadata.name.clone(), namespace: metadata.namespace.clone() }),
    };
    let Identified::Ours(key) = identify(&head) else { return None };
    contents.found(key, first_line(format, document), hash, object);
    Some(())
}

/// What `kubectl get -o yaml` prints: many objects in one.
fn is_list(head: &Head) -> bool {
    let core = head.api_version.as_deref() == Some("v1");
    let kind = head.kind.as_deref().unwrap_or_default();
    let typed = |k: &Kind| {
        head.api_version.as_deref().is_some_and(|v| k.api_versions().contains(&v))
            && kind.strip_suffix("List") == Some(k.as_str())
    };
    (core && kind == "List") || Kind::ALL.iter().any(typed)
}

#[derive(Deserialize)]
struct YamlList {
    #[serde(default)]
    items: Vec<Spanned<serde_json::Value>>,
}

#[derive(Deserialize)]
struct JsonList {
    #[serde(default)]
    items: Vec<serde_json::Value>,
}

fn read_list(contents: &mut Contents, format: Format, document: Document<'_>) {
    let items = match format {
        Format::Yaml => decode::<YamlList>(format, document).map(|list| {
            let line = |item: &Spanned<_>| file_line(document, item.referenced.line());
            list.items.into_iter().map(|item| (line(&item), item.value)).collect::<Vec<_>>()
        }),
        Format::Json => decode::<JsonList>(format, document)
            .map(|list| list.items.into_iter().map(|item| (document.line, item)).collect()),
    };
    let items = match items {
        Ok(items) => items,
        Err((line, message)) => return contents.flaw(Some(line), None, message),
    };
    for (line, value) in items {
        let head = match Head::deserialize(&value) {
            Ok(head) => head,
            Err(e) => {
                contents.flaw(Some(line), None, format!("item of a list: {}", without_place(&e)));
                continue;
            }
        };
        match identify(&head) {
            Identified::Ours(key) => {
                let hash = hash_of(&value.to_string());
                match from_value(key.kind, value) {
                    Ok(object) => contents.found(key, line, hash, object),
                    Err(e) => contents.flaw(Some(line), Some(key), e),
                }
            }
            Identified::Unknown(name) => contents.unknown(name, line),
            Identified::Wrong(message) => contents.flaw(Some(line), None, message),
        }
    }
}

enum Identified {
    Ours(Key),
    Unknown(String),
    Wrong(String),
}

fn identify(head: &Head) -> Identified {
    let Some(kind) = head.kind.as_deref().filter(|k| !k.is_empty()) else {
        return Identified::Wrong("has no kind".to_owned());
    };
    let Some(api_version) = head.api_version.as_deref().filter(|v| !v.is_empty()) else {
        return Identified::Wrong(format!("{} has no apiVersion", brief(kind)));
    };
    let group = |version: &str| version.split_once('/').map(|(group, _)| group.to_owned());
    let same = |k: &&Kind| k.as_str() == kind && k.api_versions().iter().any(|v| group(v) == group(api_version));
    let Some(kind) = Kind::ALL.iter().find(same).copied() else {
        return Identified::Unknown(format!("{} ({})", brief(kind), brief(api_version)));
    };
    if !kind.api_versions().contains(&api_version) {
        let (ours, theirs) = (kind.api_versions().join(", "), brief(api_version));
        return Identified::Wrong(format!("{kind} is read as apiVersion {ours}, not {theirs}"));
    }
    let metadata = head.metadata.as_ref();
    let Some(name) = metadata.and_then(|m| m.name.as_deref()) else {
        return Identified::Wrong(format!("{kind} has no metadata.name"));
    };
    let namespace = match kind.namespaced() {
        true => metadata.and_then(|m| m.namespace.as_deref()).filter(|n| !n.is_empty()).unwrap_or(DEFAULT_NAMESPACE),
        false => "",
    };
    let key = Key { kind, namespace: namespace.into(), name: name.into() };
    match check_names(&key) {
        Ok(()) => Identified::Ours(key),
        Err(message) => Identified::Wrong(message),
    }
}

fn check_names(key: &Key) -> Result<(), String> {
    check_name(&format!("name of {}", key.kind), &key.name)?;
    if key.kind.namespaced() { check_name("namespace", &key.namespace) } else { Ok(()) }
}

fn brief(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

fn decode_kind(kind: Kind, format: Format, document: Document<'_>) -> Result<Object, Fault> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(decode(format, document)?),
        Kind::Node => Object::Node(decode(format, document)?),
        Kind::ServiceAccount => Object::ServiceAccount(decode(format, document)?),
        Kind::PeerAuthentication => Object::PeerAuthentication(located(decode(format, document)?, document)),
        Kind::AuthorizationPolicy => Object::AuthorizationPolicy(located(decode(format, document)?, document)),
        Kind::Sidecar => Object::Sidecar(decode(format, document)?),
        Kind::NetworkPolicy => Object::NetworkPolicy(decode(format, document)?),
        Kind::Service => Object::Service(decode(format, document)?),
        Kind::ServiceEntry => Object::ServiceEntry(decode(format, document)?),
        Kind::EndpointSlice => Object::EndpointSlice(decode(format, document)?),
        Kind::WorkloadEntry => Object::WorkloadEntry(decode(format, document)?),
        Kind::GatewayClass => Object::GatewayClass(decode(format, document)?),
        Kind::Gateway => Object::Gateway(decode(format, document)?),
        Kind::ReferenceGrant => Object::ReferenceGrant(decode(format, document)?),
        Kind::HttpRoute => Object::HttpRoute(decode(format, document)?),
        Kind::GrpcRoute => Object::GrpcRoute(decode(format, document)?),
        Kind::TlsRoute => Object::TlsRoute(decode(format, document)?),
        Kind::TcpRoute => Object::TcpRoute(decode(format, document)?),
        Kind::BackendTlsPolicy => Object::BackendTlsPolicy(decode(format, document)?),
        Kind::BackendTrafficPolicy => Object::BackendTrafficPolicy(decode(format, document)?),
        Kind::Pod => Object::Pod(decode(format, document)?),
    })
}

fn located(mut object: Box<Custom<Located>>, document: Document<'_>) -> Box<Custom<Located>> {
    object.spec.shift(document.line);
    object
}

fn from_value(kind: Kind, value: serde_json::Value) -> Result<Object, String> {
    let decoded = match kind {
        Kind::Namespace => serde_json::from_value(value).map(Object::Namespace),
        Kind::Node => serde_json::from_value(value).map(Object::Node),
        Kind::ServiceAccount => serde_json::from_value(value).map(Object::ServiceAccount),
        Kind::PeerAuthentication => serde_json::from_value(value).map(Object::PeerAuthentication),
        Kind::AuthorizationPolicy => serde_json::from_value(value).map(Object::AuthorizationPolicy),
        Kind::Sidecar => serde_json::from_value(value).map(Object::Sidecar),
        Kind::NetworkPolicy => serde_json::from_value(value).map(Object::NetworkPolicy),
        Kind::Service => serde_json::from_value(value).map(Object::Service),
        Kind::ServiceEntry => serde_json::from_value(value).map(Object::ServiceEntry),
        Kind::EndpointSlice => serde_json::from_value(value).map(Object::EndpointSlice),
        Kind::WorkloadEntry => serde_json::from_value(value).map(Object::WorkloadEntry),
        Kind::GatewayClass => serde_json::from_value(value).map(Object::GatewayClass),
        Kind::Gateway => serde_json::from_value(value).map(Object::Gateway),
        Kind::ReferenceGrant => serde_json::from_value(value).map(Object::ReferenceGrant),
        Kind::HttpRoute => serde_json::from_value(value).map(Object::HttpRoute),
        Kind::GrpcRoute => serde_json::from_value(value).map(Object::GrpcRoute),
        Kind::TlsRoute => serde_json::from_value(value).map(Object::TlsRoute),
        Kind::TcpRoute => serde_json::from_value(value).map(Object::TcpRoute),
        Kind::BackendTlsPolicy => serde_json::from_value(value).map(Object::BackendTlsPolicy),
        Kind::BackendTrafficPolicy => serde_json::from_value(value).map(Object::BackendTrafficPolicy),
        Kind::Pod => serde_json::from_value(value).map(Object::Pod),
    };
    decoded.map_err(|e| without_place(&e))
}

/// An object as an API server tells it: checked and pruned like one of a file, and without a place. An error says what
/// is wrong with it.
pub fn told(kind: Kind, value: serde_json::Value) -> Result<Object, String> {
    let mut object = from_value(kind, value)?;
    let key = object.key();
    check_names(&key)?;
    object.complete(&key);
    prune(&mut object);
    Ok(object)
}

/// A YAML text within the bounds of a manifest, as a value. An error says what is wrong with it.
pub fn value(text: &str) -> Result<serde_json::Value, String> {
    let document = Document { text, line: 1 };
    decode(Format::Yaml, document).map_err(|(line, message)| format!("line {line}: {message}"))
}

fn decode<T: DeserializeOwned>(format: Format, document: Document<'_>) -> Result<T, Fault> {
    match format {
        Format::Yaml => serde_saphyr::from_str_with_options(document.text, yaml_options()).map_err(|e| {
            let line = e.location().map_or(1, |l| l.line());
            (file_line(document, line), yaml_message(&e))
        }),
        Format::Json => {
            serde_json::from_str(document.text).map_err(|e| (file_line(document, e.line() as u64), without_place(&e)))
        }
    }
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_events: MAX_EVENTS,
            max_nodes: MAX_EVENTS,
            max_total_scalar_bytes: 2 * MAX_FILE_BYTES as usize,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_EVENTS,
            max_replay_stack_depth: 8,
        },
        // Kubernetes reads YAML 1.1, in which a file mode is written 0644.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// The parser's text without its place, which counts from the start of the document.
fn yaml_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.rfind(" at line ").map_or(text.as_str(), |at| &text[..at]);
    text.trim_end_matches([':', ',', ' ']).to_owned()
}

/// A line of a document as a line of its file.
fn file_line(document: Document<'_>, line: u64) -> u32 {
    document.line.saturating_add(u32::try_from(line.saturating_sub(1)).unwrap_or(0))
}

/// The line on which the object itself begins: after the marker, comments and blank lines.
fn first_line(format: Format, document: Document<'_>) -> u32 {
    let blank = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#')
    };
    match format {
        Format::Json => document.line,
        Format::Yaml => file_line(document, 1 + document.text.lines().take_while(|l| blank(l)).count() as u64),
    }
}

/// The marker before a document and the blank lines around it say nothing about the object.
fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let text = text.strip_prefix("---").unwrap_or(text);
    text.trim_start_matches(['\r', '\n']).trim_end().hash(&mut hasher);
    hasher.finish()
}

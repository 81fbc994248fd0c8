//! The kinds of things that a proxy knows: where they are in its answers, by what name they go, and what a table shows.

use serde_json::Value;

use crate::args::What;
use crate::style::{Style, Tone};
use crate::table::{Cell, Table};

/// Most connections that a proxy lists.
const MAX_CONNECTIONS: usize = 1000;

/// Where a proxy is asked for them, and the key of the list in its answer.
pub(super) fn source(what: What) -> (String, &'static str) {
    let of_dump = |key| ("/config_dump".to_owned(), key);
    match what {
        What::Workload => of_dump("workloads"),
        What::Service => of_dump("services"),
        What::Policy => of_dump("policies"),
        What::Cert => of_dump("certificates"),
        What::Connection => (format!("/debug/connections?limit={MAX_CONNECTIONS}"), "connections"),
    }
}

/// Whether an item goes by a name: `NAME`, `NAMESPACE/NAME` or a SPIFFE ID, or its beginning.
pub(super) fn goes_by(what: What, item: &Value, name: &str) -> bool {
    let named = |namespace: &Value, own: &Value| match name.split_once('/') {
        Some((wanted, beginning)) => text(namespace) == wanted && text(own).starts_with(beginning),
        None => text(own).starts_with(name),
    };
    match what {
        What::Workload | What::Policy => named(&item["namespace"], &item["name"]),
        What::Service => named(&item["namespace"], &item["name"]) || named(&item["namespace"], &item["hostname"]),
        What::Cert => {
            let identity = text(&item["identity"]);
            match account(identity) {
                _ if name.starts_with("spiffe://") => identity.starts_with(name),
                Some((namespace, account)) => named(&namespace.into(), &account.into()),
                None => false,
            }
        }
        What::Connection => {
            let end = |end: &Value| named(&end["namespace"], &end["workload"]);
            end(&item["src"]) || end(&item["dst"])
        }
    }
}

/// Namespace and service account of an identity.
fn account(identity: &str) -> Option<(&str, &str)> {
    let (_, path) = identity.strip_prefix("spiffe://")?.split_once("/ns/")?;
    path.split_once("/sa/")
}

/// Items as a table.
pub(super) fn table(what: What, items: &[Value], wide: bool, style: Style) -> String {
    let (usual, more): (&[&str], &[&str]) = match what {
        What::Workload => {
            (&["NAMESPACE", "WORKLOAD", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"], &["IDENTITY", "STATUS", "POLICIES"])
        }
        What::Service => (&["NAMESPACE", "SERVICE", "ADDRESS", "WAYPOINT", "ENDPOINTS"], &["PORTS", "BALANCING"]),
        What::Policy => (&["NAMESPACE", "POLICY", "ACTION", "SCOPE"], &["RULES", "DRY RUN"]),
        What::Cert => (&["IDENTITY", "STATE", "EXPIRES", "SERIAL"], &["FROM", "RENEWAL", "PODS", "LAST ERROR"]),
        What::Connection => (
            &["DIRECTION", "FROM", "TO", "MTLS", "SENT", "RECEIVED", "AGE"],
            &["FROM IDENTITY", "TO IDENTITY", "SERVICE"],
        ),
    };
    let more = if wide { more } else { &[] };
    let mut table = Table::new(usual.iter().chain(more).copied());
    for item in items {
        let mut cells: Vec<Cell> = row(what, item);
        cells.truncate(usual.len() + more.len());
        table.row(cells);
    }
    table.text(style)
}

/// The cells of the widest table.
fn row(what: What, item: &Value) -> Vec<Cell> {
    let cell = |key: &str| Cell::from(text(&item[key]));
    match what {
        What::Workload => vec![
            cell("namespace"),
            cell("name"),
            list(&item["workloadIps"]).into(),
            cell("node"),
            cell_of(&item["waypoint"]["destination"]),
            cell("protocol"),
            identity(item).into(),
            cell("status"),
            list(&item["authorizationPolicies"]).into(),
        ],
        What::Service => vec![
            cell("namespace"),
            cell("name"),
            item["vips"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|vip| address(text(vip)))
                .collect::<Vec<_>>()
                .join(",")
                .into(),
            cell_of(&item["waypoint"]["destination"]),
            endpoints(&item["endpoints"]),
            ports(&item["ports"]).into(),
            cell("loadBalancer"),
        ],
        What::Policy => vec![
            cell("namespace"),
            cell("name"),
            cell("action"),
            cell("scope"),
            shown(&item["rules"]).into(),
            if item["dryRun"] == true { "yes" } else { "no" }.into(),
        ],
        What::Cert => {
            let state = text(&item["state"]);
            let tone = match state {
                "Available" => Tone::Good,
                "Initializing" => Tone::Doubtful,
                _ => Tone::Bad,
            };
            vec![
                cell("identity"),
                Cell::toned(state, tone),
                cell_of(&item["certChain"][0]["expirationTime"]),
                cell_of(&item["certChain"][0]["serialNumber"]),
                cell_of(&item["certChain"][0]["validFrom"]),
                field(item, "renewal_time", "renewalTime").into(),
                shown(&item["users"]).into(),
                field(item, "last_error", "lastError").into(),
            ]
        }
        What::Connection => {
            let tunnelled = item["hboneAddr"].is_string();
            vec![
                cell("direction"),
                end(&item["src"]).into(),
                end(&item["dst"]).into(),
                Cell::toned(if tunnelled { "yes" } else { "no" }, if tunnelled { Tone::Good } else { Tone::Doubtful }),
                shown(&item["bytesSent"]).into(),
                shown(&item["bytesReceived"]).into(),
                age(item["ageMs"].as_u64().unwrap_or(0)).into(),
                cell_of(&item["src"]["identity"]),
                cell_of(&item["dst"]["identity"]),
                cell("service"),
            ]
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn cell_of(value: &Value) -> Cell {
    text(value).into()
}

/// A number or a text as it is.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn field(item: &Value, name: &str, other: &str) -> String {
    shown(item.get(name).or_else(|| item.get(other)).unwrap_or(&Value::Null))
}

fn list(value: &Value) -> String {
    value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(",")
}

/// An address without the name of its network.
fn address(vip: &str) -> &str {
    vip.split_once('/').map_or(vip, |(_, address)| address)
}

fn identity(workload: &Value) -> String {
    let part = |key: &str| text(&workload[key]);
    format!("spiffe://{}/ns/{}/sa/{}", part("trustDomain"), part("namespace"), part("serviceAccount"))
}

/// How many endpoints are healthy, of how many.
fn endpoints(value: &Value) -> Cell {
    let all = value.as_object();
    let count = all.map_or(0, serde_json::Map::len);
    let healthy = all.into_iter().flatten().filter(|(_, endpoint)| endpoint["status"] == "Healthy").count();
    let tone = match (healthy, count) {
        (0, 1..) => Tone::Bad,
        _ if healthy < count => Tone::Doubtful,
        _ => Tone::Plain,
    };
    Cell::toned(format!("{healthy}/{count}"), tone)
}

fn ports(value: &Value) -> String {
    let port = |(port, target): (&String, &Value)| format!("{port}:{}", shown(target));
    value.as_object().into_iter().flatten().map(port).collect::<Vec<_>>().join(",")
}

/// One end of a connection: its workload if that is known, else its address.
fn end(value: &Value) -> String {
    let (namespace, workload, addr) = (text(&value["namespace"]), text(&value["workload"]), text(&value["addr"]));
    match workload {
        "" => addr.to_owned(),
        workload => format!("{namespace}/{workload} ({addr})"),
    }
}

/// A time as people say it.
fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_may_have_a_namespace_and_need_not_be_whole() {
        let workload = json!({"namespace": "shop", "name": "web-6f9"});
        for (name, goes) in
            [("web", true), ("web-6f9", true), ("shop/web", true), ("shop/", true), ("bank/web", false), ("api", false)]
        {
            assert_eq!(goes_by(What::Workload, &workload, name), goes, "{name}");
        }
        let cert = json!({"identity": "spiffe://cluster.local/ns/shop/sa/web"});
        for (name, goes) in
            [("web", true), ("shop/web", true), ("spiffe://cluster.local/ns/shop", true), ("api", false)]
        {
            assert_eq!(goes_by(What::Cert, &cert, name), goes, "{name}");
        }
        let connection = json!({"src": {"namespace": "shop", "workload": "web-1"}, "dst": {"addr": "10.0.0.1:80"}});
        assert!(goes_by(What::Connection, &connection, "shop/web") && !goes_by(What::Connection, &connection, "api"));
    }

    #[test]
    fn ages_are_short() {
        let ages = [0, 119_999, 120_000, 7_200_000, 172_800_000].map(age);
        assert_eq!(ages, ["0s", "119s", "2m", "2h", "2d"]);
    }

    #[test]
    fn what_is_missing_is_shown_as_a_dash() {
        for what in [What::Workload, What::Service, What::Policy, What::Cert, What::Connection] {
            let text = table(what, &[json!({})], true, Style::plain());
            let [heading, row] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
            assert!(!heading.is_empty() && row.contains('-'), "{text}");
        }
    }
}

//! Routes and rules of a pod: marked packets go to the loopback interface.
//!
//! For each family: a table in which everything is local, a rule that sends marked packets there, and the rule for the
//! local table after it. The local rule must come later, because packets to the pod's own address would else carry the
//! interface of that address, and a call of the pod to itself could not be told from the ztunnel's own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use loam_ebpf_common::mark;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::NetnsError;

/// The table in which everything is local.
const TABLE: u32 = 101;
/// The kernel's local table.
const LOCAL_TABLE: u32 = 255;
/// Where the rule for marked packets stands.
const MARKED_PRIORITY: u32 = 1;
/// Where the rule for the local table stands.
const LOCAL_PRIORITY: u32 = 10;
/// Where the kernel puts the rule for the local table.
const KERNEL_PRIORITY: u32 = 0;
/// The loopback interface, the first of every namespace.
const LOOPBACK: u32 = 1;

/// Runs something with a connection to the routing of the namespace that the calling thread is in.
pub(super) fn with<T>(work: impl AsyncFnOnce(Net) -> Result<T, NetnsError>) -> Result<T, NetnsError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| NetnsError::Io("start a runtime", error))?;
    runtime.block_on(async {
        // Strict checking lets the kernel dump one table instead of all.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .map_err(|error| NetnsError::Io("open a netlink socket", error))?;
        let connection = tokio::spawn(connection);
        let result = work(Net { handle }).await;
        connection.abort();
        result
    })
}

/// Routes and rules of one namespace.
pub(super) struct Net {
    handle: Handle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// Those that the namespace has.
    fn present() -> impl Iterator<Item = Family> {
        let v6_off =
            fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").map_or(true, |off| off.trim() == "1");
        [Family::V4, Family::V6].into_iter().filter(move |family| *family == Family::V4 || !v6_off)
    }

    fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    fn version(self) -> IpVersion {
        match self {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        }
    }

    fn number(self) -> AddressFamily {
        match self {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        }
    }

    /// The pod's first address of this family: what its connections come from.
    fn source(self, addresses: &[IpAddr]) -> Option<IpAddr> {
        addresses.iter().copied().find(|address| address.is_ipv4() == (self == Family::V4))
    }
}

/// What one family has.
struct Found {
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
}

impl Found {
    fn has_route(&self, source: Option<IpAddr>) -> bool {
        self.routes.iter().any(|route| is_our_route(route) && source.is_none_or(|ip| route_source(route) == Some(ip)))
    }

    fn has_marked_rule(&self) -> bool {
        self.rules.iter().any(|rule| priority(rule) == MARKED_PRIORITY && is_marked(rule))
    }

    fn has_local_rule(&self, at: u32) -> bool {
        self.rules.iter().any(|rule| priority(rule) == at && is_local(rule))
    }

    /// Rules that take packets to the pod's own address away before the rule for marked ones.
    fn early_local_rules(&self) -> impl Iterator<Item = &RuleMessage> {
        self.rules.iter().filter(|rule| priority(rule) <= MARKED_PRIORITY && is_local(rule))
    }

    fn problems(&self, family: Family, source: Option<IpAddr>) -> Vec<String> {
        let name = family.name();
        let mut problems = Vec::new();
        let mut expect = |good: bool, text: String| {
            if !good {
                problems.push(text);
            }
        };
        expect(self.has_route(source), format!("{name}: the route in table {TABLE} is missing"));
        expect(self.has_marked_rule(), format!("{name}: the rule for marked packets is missing"));
        expect(self.has_local_rule(LOCAL_PRIORITY), format!("{name}: the rule for the local table is missing"));
        expect(
            self.early_local_rules().next().is_none(),
            format!("{name}: a rule for the local table stands before the one for marked packets"),
        );
        problems
    }
}

impl Net {
    /// Makes routes and rules be there; says what was missing.
    pub(super) async fn prepare(&self, addresses: &[IpAddr]) -> Result<Vec<String>, NetnsError> {
        let mut changed = Vec::new();
        for family in Family::present() {
            let found = self.find(family).await?;
            let source = family.source(addresses);
            let problems = found.problems(family, source);
            if problems.is_empty() {
                continue;
            }
            changed.extend(problems);
            if !found.has_route(source) {
                self.add_route(family, source).await?;
            }
            // At no moment is there no rule for the local table, nor an unmarked packet that takes another way.
            if !found.has_local_rule(LOCAL_PRIORITY) {
                self.add_rule(family, LOCAL_PRIORITY, LOCAL_TABLE, None).await?;
            }
            if !found.has_marked_rule() {
                self.add_rule(family, MARKED_PRIORITY, TABLE, Some((mark::ROUTED, mark::MASK))).await?;
            }
            for rule in found.early_local_rules() {
                self.remove_rule(rule.clone()).await?;
            }
        }
        Ok(changed)
    }

    /// What differs from what [`Self::prepare`] makes.
    pub(super) async fn check(&self, addresses: &[IpAddr]) -> Result<Vec<String>, NetnsError> {
        let mut problems = Vec::new();
        for family in Family::present() {
            problems.extend(self.find(family).await?.problems(family, family.source(addresses)));
        }
        Ok(problems)
    }

    /// Brings back what a namespace begins with.
    pub(super) async fn undo(&self) -> Result<(), NetnsError> {
        for family in Family::present() {
            let found = self.find(family).await?;
            let ours = |rule: &&RuleMessage| match priority(rule) {
                MARKED_PRIORITY => is_marked(rule),
                LOCAL_PRIORITY => is_local(rule),
                _ => false,
            };
            if found.has_local_rule(LOCAL_PRIORITY) && !found.has_local_rule(KERNEL_PRIORITY) {
                self.add_rule(family, KERNEL_PRIORITY, LOCAL_TABLE, None).await?;
            }
            for rule in found.rules.iter().filter(ours) {
                self.remove_rule(rule.clone()).await?;
            }
            for route in found.routes.iter().filter(|route| is_our_route(route)) {
                let removed = self.handle.route().del(route.clone()).execute().await;
                ignore(removed, libc::ESRCH).map_err(|e| NetnsError::Netlink("remove a route", e))?;
            }
        }
        Ok(())
    }

    async fn find(&self, family: Family) -> Result<Found, NetnsError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family.number();
        request.header.table = TABLE as u8;
        let routes: Vec<_> = match self.handle.route().get(request).execute().try_collect().await {
            // There is no table until it has a route.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => Vec::new(),
            routes => routes.map_err(|e| NetnsError::Netlink("list routes", e))?,
        };
        let rules = self.handle.rule().get(family.version()).execute().try_collect().await;
        let rules = rules.map_err(|e| NetnsError::Netlink("list rules", e))?;
        Ok(Found { routes, rules })
    }

    async fn add_route(&self, family: Family, source: Option<IpAddr>) -> Result<(), NetnsError> {
        let route = match family {
            Family::V4 => {
                let mut route = RouteMessageBuilder::<Ipv4Addr>::new().scope(RouteScope::Host);
                if let Some(IpAddr::V4(source)) = source {
                    route = route.pref_source(source);
                }
                route.table_id(TABLE).kind(RouteType::Local).output_interface(LOOPBACK).build()
            }
            Family::V6 => {
                let mut route = RouteMessageBuilder::<Ipv6Addr>::new();
                if let Some(IpAddr::V6(source)) = source {
                    route = route.pref_source(source);
                }
                route.table_id(TABLE).kind(RouteType::Local).output_interface(LOOPBACK).build()
            }
        };
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(|error| match (&error, source) {
            // The one thing about this route that a kernel may not like.
            (rtnetlink::Error::NetlinkError(message), Some(source)) if message.raw_code() == -libc::EINVAL => {
                NetnsError::NoSuchAddress(source)
            }
            _ => NetnsError::Netlink("add the route for marked packets", error),
        })
    }

    async fn add_rule(
        &self,
        family: Family,
        priority: u32,
        table: u32,
        mark: Option<(u32, u32)>,
    ) -> Result<(), NetnsError> {
        let mut request = self.handle.rule().add();
        let message = request.message_mut();
        message.header.family = family.number();
        message.header.action = RuleAction::ToTable;
        message.header.table = table as u8;
        message.attributes.push(RuleAttribute::Priority(priority));
        if let Some((value, mask)) = mark {
            message.attributes.push(RuleAttribute::FwMark(value));
            message.attributes.push(RuleAttribute::FwMask(mask));
        }
        let added = request.execute().await;
        ignore(added, libc::EEXIST).map_err(|e| NetnsError::Netlink("add a rule", e))
    }

    async fn remove_rule(&self, rule: RuleMessage) -> Result<(), NetnsError> {
        let removed = self.handle.rule().del(rule).execute().await;
        ignore(removed, libc::ENOENT).map_err(|e| NetnsError::Netlink("remove a rule", e))
    }
}

/// Somebody else may have done it between our look and our change.
fn ignore(result: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -errno => Ok(()),
        result => result,
    }
}

fn priority(rule: &RuleMessage) -> u32 {
    let priority = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    };
    // The kernel leaves 0 out.
    rule.attributes.iter().find_map(priority).unwrap_or(0)
}

fn table(rule: &RuleMessage) -> u32 {
    let table = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    };
    rule.attributes.iter().find_map(table).unwrap_or(rule.header.table.into())
}

/// A rule that sends everything to the local table.
fn is_local(rule: &RuleMessage) -> bool {
    let selects = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::FwMark(_)
                | RuleAttribute::Source(_)
                | RuleAttribute::Destination(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
        )
    };
    rule.header.action == RuleAction::ToTable && table(rule) == LOCAL_TABLE && !rule.attributes.iter().any(selects)
}

/// Our rule for marked packets.
fn is_marked(rule: &RuleMessage) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    rule.header.action == RuleAction::ToTable
        && table(rule) == TABLE
        && has(&RuleAttribute::FwMark(mark::ROUTED))
        && has(&RuleAttribute::FwMask(mark::MASK))
}

/// Everything is local, on the loopback interface.
fn is_our_route(route: &RouteMessage) -> bool {
    let table = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    };
    route.attributes.iter().find_map(table).unwrap_or(route.header.table.into()) == TABLE
        && route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && route.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}

fn route_source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(priority: u32, table: u8, attributes: Vec<RuleAttribute>) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.action = RuleAction::ToTable;
        rule.header.table = table;
        rule.attributes = attributes;
        rule.attributes.push(RuleAttribute::Priority(priority));
        rule
    }

    fn marked(value: u32, mask: u32) -> Vec<RuleAttribute> {
        vec![RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)]
    }

    fn route(source: &str) -> RouteMessage {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new().pref_source(source.parse().unwrap());
        builder.table_id(TABLE).kind(RouteType::Local).output_interface(LOOPBACK).build()
    }

    fn problems(rules: Vec<RuleMessage>, routes: Vec<RouteMessage>) -> Vec<String> {
        Found { routes, rules }.problems(Family::V4, Some("10.0.0.7".parse().unwrap()))
    }

    #[test]
    fn a_prepared_namespace_has_no_problem() {
        let rules = vec![rule(1, 101, marked(0x6d00, 0xff00)), rule(10, 255, vec![]), rule(32766, 254, vec![])];
        assert_eq!(problems(rules, vec![route("10.0.0.7")]), Vec::<String>::new());
    }

    #[test]
    fn a_fresh_namespace_lacks_everything() {
        let rules = vec![rule(0, 255, vec![]), rule(32766, 254, vec![])];
        assert_eq!(problems(rules, vec![]).len(), 4);
    }

    #[test]
    fn a_local_rule_that_came_back_to_the_front_is_a_problem() {
        let rules = vec![rule(0, 255, vec![]), rule(1, 101, marked(0x6d00, 0xff00)), rule(10, 255, vec![])];
        let expected = "IPv4: a rule for the local table stands before the one for marked packets";
        assert_eq!(problems(rules, vec![route("10.0.0.7")]), [expected]);
    }

    #[test]
    fn a_rule_with_another_mark_is_not_ours() {
        let rules = vec![rule(1, 101, marked(0x6d00, 0xf000)), rule(10, 255, vec![])];
        assert_eq!(problems(rules, vec![route("10.0.0.7")]), ["IPv4: the rule for marked packets is missing"]);
    }

    #[test]
    fn a_route_from_an_address_that_the_pod_lost_is_a_problem() {
        let rules = vec![rule(1, 101, marked(0x6d00, 0xff00)), rule(10, 255, vec![])];
        assert_eq!(problems(rules, vec![route("10.0.0.8")]), ["IPv4: the route in table 101 is missing"]);
    }

    #[test]
    fn a_local_rule_for_one_interface_is_somebody_elses() {
        assert!(!is_local(&rule(0, 255, vec![RuleAttribute::Iifname("eth0".into())])));
    }
}

//! The tools that make load, and what they say.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use loam_tests::report::{Lookups, Paced};
use loam_tests::{Pod, Process};
use serde::Deserialize;

use super::stage::{BULK, NAME_SERVER, Variant, WEB};

/// How much longer than its load a tool may take to begin and end.
const SLACK: Duration = Duration::from_secs(15);

/// Bytes that arrived.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Transfer {
    pub(crate) gigabytes: f64,
    pub(crate) gbps: f64,
}

/// Requests that were answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Requests {
    pub(crate) count: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Requests that failed in whatever way.
    pub(crate) failures: u64,
}

/// Starts as many streams of bytes as asked for, from the client, or `back` to it.
pub(crate) fn start_bulk(variant: &Variant, streams: u32, back: bool, time: Duration) -> Result<Process> {
    let (server, port) = (variant.server.v4().to_string(), BULK.to_string());
    let (streams, time) = (streams.to_string(), whole_seconds(time));
    let mut argv = vec!["iperf3", "--json", "--client", &server, "--port", &port, "--parallel", &streams];
    argv.extend(["--time", &time, "--congestion", "reno"]);
    argv.extend(back.then_some("--reverse"));
    variant.client.spawn("iperf3", &argv)
}

/// Waits for the end of [`start_bulk`].
pub(crate) fn finish_bulk(process: &Process, time: Duration) -> Result<Transfer> {
    // It also says why it failed in its JSON.
    parse_iperf3(&finish(process, time)?.stdout)
}

/// As many requests as can be had over `connections` connections; with `close`, each over a connection of its own.
pub(crate) fn requests(variant: &Variant, connections: u32, close: bool, time: Duration) -> Result<Requests> {
    let (url, connections) = (format!("http://{}/", variant.server.at(WEB)), connections.to_string());
    let time_text = format!("{}s", whole_seconds(time));
    let mut argv = vec!["wrk", "--threads", "1", "--connections", &connections, "--duration", &time_text, "--latency"];
    if close {
        argv.extend(["--header", "Connection: close"]);
    }
    argv.push(&url);
    let process = variant.client.spawn("wrk", &argv)?;
    parse_wrk(&finish(&process, time)?.success()?)
}

/// Requests over one connection at a steady pace.
pub(crate) fn paced(client: &Pod, server: &Pod, per_second: u32, time: Duration) -> Result<Paced> {
    let (to, rate) = (server.at(WEB).to_string(), per_second.to_string());
    let seconds = time.as_secs_f64().to_string();
    let process = client.tool(&["paced", &to, "--per-second", &rate, "--seconds", &seconds])?;
    let paced: Paced = finish(&process, time)?.report()?;
    match &paced.error {
        Some(error) => bail!("after {} answers: {error}", paced.answered),
        None => Ok(paced),
    }
}

/// As many questions for the variant's service as are answered.
pub(crate) fn lookups(variant: &Variant, parallel: usize, time: Duration) -> Result<Lookups> {
    let (name, parallel, seconds) = (variant.service(), parallel.to_string(), time.as_secs_f64().to_string());
    let arguments = ["lookups", NAME_SERVER, "--name", &name, "--parallel", &parallel, "--seconds", &seconds];
    let lookups: Lookups = finish(&variant.client.tool(&arguments)?, time)?.report()?;
    ensure!(lookups.answered > 0, "no question for {name} was answered: {:?}", lookups.failures);
    Ok(lookups)
}

/// Both tools know whole seconds only.
fn whole_seconds(time: Duration) -> String {
    time.as_secs().max(1).to_string()
}

fn finish(process: &Process, time: Duration) -> Result<loam_tests::Output> {
    let output = process.output(time + SLACK);
    if output.is_err() {
        // It may hang for ever, and the next sample shall have the machine for itself.
        process.kill()?;
    }
    output
}

#[derive(Deserialize)]
struct Iperf3 {
    error: Option<String>,
    end: End,
}

#[derive(Deserialize)]
struct End {
    sum_received: Option<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    bytes: f64,
    bits_per_second: f64,
}

fn parse_iperf3(text: &str) -> Result<Transfer> {
    let said: Iperf3 = serde_json::from_str(text).with_context(|| format!("iperf3 said {text:?}"))?;
    if let Some(error) = said.error {
        bail!("iperf3: {error}");
    }
    let sum = said.end.sum_received.context("iperf3 says nothing about what arrived")?;
    Ok(Transfer { gigabytes: sum.bytes / 1e9, gbps: sum.bits_per_second / 1e9 })
}

fn parse_wrk(text: &str) -> Result<Requests> {
    let parse = || {
        let after = |key: &str| text.lines().find_map(|l| l.trim().strip_prefix(key)).map(str::trim);
        let count = text.lines().find_map(|l| l.trim().split_once(" requests in ")).map(|(count, _)| count)?;
        let sockets = after("Socket errors:").unwrap_or_default();
        let sockets = sockets.split(',').filter_map(|part| part.split_whitespace().last()?.parse::<u64>().ok());
        let statuses = after("Non-2xx or 3xx responses:").map_or(Some(0), |n| n.parse::<u64>().ok())?;
        Some(Requests {
            count: count.parse().ok()?,
            per_second: after("Requests/sec:")?.parse().ok()?,
            p50_ms: milliseconds(after("50%")?)?,
            p99_ms: milliseconds(after("99%")?)?,
            failures: sockets.sum::<u64>() + statuses,
        })
    };
    parse().with_context(|| format!("wrk said {text:?}"))
}

/// A time with its unit.
fn milliseconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let factor = match &text[unit..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iperf3_received_is_read() {
        let text = r#"{"start": {}, "intervals": [], "end": {"streams": [],
            "sum_sent": {"start": 0, "end": 1.002146, "bytes": 2236088399, "bits_per_second": 17850399602.453136},
            "sum_received": {"start": 0, "end": 1.003015, "seconds": 1.003015, "bytes": 2236088320,
                             "bits_per_second": 17834934233.28664, "sender": true},
            "sender_tcp_congestion": "reno"}}"#;
        let transfer = parse_iperf3(text).unwrap();
        assert_eq!(transfer, Transfer { gigabytes: 2.23608832, gbps: 17.83493423328664 });
    }

    #[test]
    fn the_reason_of_iperf3_is_told() {
        let text =
            r#"{"start": {}, "intervals": [], "end": {}, "error": "unable to connect to server: Connection refused"}"#;
        let error = parse_iperf3(text).unwrap_err().to_string();
        assert_eq!(error, "iperf3: unable to connect to server: Connection refused");
    }

    const WRK: &str = "Running 1s test @ http://127.0.0.1:8099/\n  1 threads and 2 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     1.96ms    2.57ms  26.34ms   89.09%\n    \
        Req/Sec     1.35k   143.06     1.59k    80.00%\n  Latency Distribution\n     50%  890.00us\n     75%    2.64ms\n     \
        90%    4.60ms\n     99%   13.49ms\n  1344 requests in 1.00s, 448.88KB read\n";
    const END: &str = "Requests/sec:   1337.75\nTransfer/sec:    446.79KB\n";

    #[test]
    fn what_wrk_counted_is_read() {
        let requests = parse_wrk(&format!("{WRK}{END}")).unwrap();
        let expected = Requests { count: 1344.0, per_second: 1337.75, p50_ms: 0.89, p99_ms: 13.49, failures: 0 };
        assert_eq!(requests, expected);
    }

    #[test]
    fn the_failures_of_wrk_are_summed() {
        let text = format!(
            "{WRK}  Socket errors: connect 1, read 20, write 3, timeout 4\n  Non-2xx or 3xx responses: 1514\n{END}"
        );
        assert_eq!(parse_wrk(&text).unwrap().failures, 1542);
        assert!(parse_wrk("unable to connect to 127.0.0.1:8099 Connection refused\n").is_err());
    }

    #[test]
    fn every_unit_of_wrk_is_known() {
        assert_eq!(milliseconds("2.00s"), Some(2000.0));
        assert_eq!(milliseconds("1.50m"), Some(90_000.0));
        assert_eq!(milliseconds("5"), None);
    }
}

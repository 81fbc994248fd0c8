//! The client: requests to one URL, and what came back in lines that the suite reads.

mod call;
mod connect;
mod reply;
mod target;

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{HeaderName, HeaderValue, Method};

use call::Calls;
use target::{Scheme, Target};

/// How long all requests together may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Requests at a time.
const AT_ONCE: usize = 20;
/// Most requests of one run.
const MAX_COUNT: u32 = 100_000;

/// What to send, and how often. The names of the flags are the suite's.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// As SCHEME://HOST[:PORT][/PATH]; the schemes are http, https, grpc, tcp and ws
    url: Target,
    /// Method of a request of HTTP
    #[arg(long, default_value = "GET")]
    method: Method,
    /// A header as NAME:VALUE, or the host to ask for as Host:NAME; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// How many requests
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_COUNT)))]
    count: u32,
    /// What to say in gRPC, TCP and WebSocket
    #[arg(long, default_value = "HelloWorld")]
    msg: String,
    /// Speak HTTP/2 with prior knowledge, or in TLS nothing else
    #[arg(long)]
    http2: bool,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not NAME:VALUE"))?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is no name of a header"))?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| format!("{value:?} is no value of a header"))?;
    Ok((name, value))
}

/// Sends all requests; gives what is to be printed, an empty line between two answers. One failure fails all.
pub async fn run(flags: &Flags) -> Result<String> {
    let work = tokio::time::timeout(LIMIT, all(flags));
    work.await.with_context(|| format!("{}: no answer within {LIMIT:?}", flags.url))?
}

async fn all(flags: &Flags) -> Result<String> {
    let (calls, link) = Calls::prepare(flags).await?;
    let ask = |index| {
        let calls = &calls;
        async move {
            let reply = calls.ask(index).await.with_context(|| format!("request {index} to {}", flags.url))?;
            anyhow::Ok(reply.lines(index, &flags.url))
        }
    };
    let work = futures_util::stream::iter((0..flags.count).map(ask)).buffered(AT_ONCE).try_collect::<Vec<_>>();
    let answers = match link {
        Some(link) => call::beside(link, work).await?,
        None => work.await?,
    };
    Ok(answers.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_all_that_comes_after_the_first_colon() {
        let read = |text: &str| header(text).map(|(name, value)| format!("{name}={}", value.to_str().unwrap()));
        assert_eq!(read("X-Header-Add:one,two").as_deref(), Ok("x-header-add=one,two"));
        assert_eq!(read("Host: echo-v1:8080").as_deref(), Ok("host=echo-v1:8080"));
        assert_eq!(read("x:").as_deref(), Ok("x="));
        for text in ["x", ":y", "x y:z", "x:a\nb"] {
            assert!(read(text).is_err(), "{text:?} was taken");
        }
    }
}

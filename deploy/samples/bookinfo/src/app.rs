//! Flags, and which part to run.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::call::Backend;
use crate::details::Details;
use crate::productpage::Productpage;
use crate::ratings::Ratings;
use crate::reviews::{Reviews, Version};
use crate::serve::{self, Site};
use crate::traffic;

/// A bookshop in four services, to see a mesh at work.
#[derive(Debug, Parser)]
#[command(name = "loam-bookinfo", version)]
pub struct Flags {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The page that people look at; asks details and reviews.
    Productpage {
        #[command(flatten)]
        place: Place,
        /// Address of the service details.
        #[arg(long, env = "DETAILS_ADDRESS", default_value = "details:9080")]
        details: Backend,
        /// Address of the service reviews.
        #[arg(long, env = "REVIEWS_ADDRESS", default_value = "reviews:9080")]
        reviews: Backend,
    },
    /// Facts about a book.
    Details {
        #[command(flatten)]
        place: Place,
    },
    /// What readers say; versions 2 and 3 ask ratings.
    Reviews {
        #[command(flatten)]
        place: Place,
        /// v1 has no stars, v2 black ones, v3 red ones.
        #[arg(long = "version", env = "SERVICE_VERSION", value_enum, default_value_t = Version::V1)]
        version: Version,
        /// Address of the service ratings.
        #[arg(long, env = "RATINGS_ADDRESS", default_value = "ratings:9080")]
        ratings: Backend,
    },
    /// How many stars readers give.
    Ratings {
        #[command(flatten)]
        place: Place,
    },
    /// Requests a URL at a steady rate and sums up the answers.
    Traffic(traffic::Flags),
}

#[derive(Debug, Args)]
struct Place {
    /// Where to listen; [::] takes IPv4 too.
    #[arg(long, env = "LISTEN_ADDRESS", default_value = "[::]:9080")]
    listen: SocketAddr,
    /// Name of this pod, shown in every answer; the host's name when left out.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
}

/// Runs the part that `flags` name.
pub async fn run(flags: Flags) -> ExitCode {
    let result = match flags.part {
        Part::Productpage { place, details, reviews } => {
            serve(&place, |pod| Productpage { pod, details, reviews }).await
        }
        Part::Details { place } => serve(&place, |pod| Details { pod }).await,
        Part::Reviews { place, version, ratings } => serve(&place, |pod| Reviews { pod, version, ratings }).await,
        Part::Ratings { place } => serve(&place, |pod| Ratings { pod }).await,
        Part::Traffic(flags) => traffic::run(flags).await,
    };
    result.unwrap_or_else(|error| {
        say(&format!("loam-bookinfo: {error:#}"));
        ExitCode::FAILURE
    })
}

async fn serve<S: Site>(place: &Place, site: impl FnOnce(Arc<str>) -> S) -> Result<ExitCode> {
    let pod = match &place.pod_name {
        Some(name) => name.as_str().into(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().into(),
    };
    let listener = serve::bind(place.listen).await.with_context(|| format!("listen on {}", place.listen))?;
    say(&format!("{} listens on {}", S::NAME, listener.local_addr()?));
    serve::run(listener, site(pod), serve::end()?).await;
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr(), "{text}");
}

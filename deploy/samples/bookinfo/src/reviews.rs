//! What readers say about a book. Three versions differ in their stars.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::call::Backend;
use crate::ratings::Stars;
use crate::serve::{Answer, Site, book_id};

/// How long ratings may take: less than the page waits for us, so that the page still shows what readers say.
const RATINGS_TIMEOUT: Duration = Duration::from_secs(1);

/// A version of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Version {
    /// Without stars.
    V1,
    /// With black stars.
    V2,
    /// With red stars.
    V3,
}

impl Version {
    fn color(self) -> Option<&'static str> {
        match self {
            Version::V1 => None,
            Version::V2 => Some("black"),
            Version::V3 => Some("red"),
        }
    }
}

/// The service reviews.
#[derive(Debug)]
pub struct Reviews {
    /// Name of this pod.
    pub pod: Arc<str>,
    /// What it shows.
    pub version: Version,
    /// Whom it asks for stars.
    pub ratings: Backend,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of reviews say it")]
pub struct Opinions {
    pub id: String,
    /// Which pod answered.
    pub podname: String,
    pub clustername: String,
    pub reviews: Vec<Review>,
    /// Who asked, as this pod saw it.
    pub client: String,
}

/// One reader's opinion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of reviews say it")]
pub struct Review {
    pub reviewer: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<Rating>,
}

/// Stars, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "the fields of ratings say it")]
pub enum Rating {
    Given { stars: u8, color: String },
    Missing { error: String },
}

const TEXTS: [(&str, &str); 2] = [
    ("Reviewer1", "Two pairs of twins, one town, and nobody asks the obvious question. I laughed on the train."),
    ("Reviewer2", "Short, quick and silly in the best way. Read it aloud with friends, and swap the parts."),
];

impl Site for Reviews {
    const NAME: &'static str = "reviews";

    fn pod(&self) -> &str {
        &self.pod
    }

    async fn get(&self, path: &str, client: SocketAddr) -> Option<Answer> {
        let id = book_id(path, "reviews")?;
        let stars = match self.version.color() {
            None => None,
            Some(color) => {
                let stars = self.ratings.get_json::<Stars>(&format!("/ratings/{id}"), RATINGS_TIMEOUT).await;
                Some(stars.map(|stars| (stars, color)))
            }
        };
        let rating = |reviewer: &str| match stars.as_ref()? {
            Ok((stars, color)) => {
                Some(Rating::Given { stars: *stars.ratings.get(reviewer)?, color: (*color).to_owned() })
            }
            Err(error) => Some(Rating::Missing { error: format!("ratings at {}: {error}", self.ratings) }),
        };
        let review = |(reviewer, text): (&str, &str)| Review {
            reviewer: reviewer.into(),
            text: text.into(),
            rating: rating(reviewer),
        };
        Some(Answer::json(&Opinions {
            id: id.to_string(),
            podname: self.pod.to_string(),
            clustername: "null".into(),
            reviews: TEXTS.map(review).into(),
            client: client.to_string(),
        }))
    }
}

//! How many stars readers give.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::serve::{Answer, Site, book_id};

/// The service ratings.
#[derive(Debug)]
pub struct Ratings {
    /// Name of this pod.
    pub pod: Arc<str>,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of ratings say it")]
pub struct Stars {
    pub id: u32,
    /// Reader to stars, from 1 to 5.
    pub ratings: BTreeMap<String, u8>,
    /// Which pod answered.
    pub podname: String,
    /// Who asked, as this pod saw it.
    pub client: String,
}

impl Site for Ratings {
    const NAME: &'static str = "ratings";

    fn pod(&self) -> &str {
        &self.pod
    }

    async fn get(&self, path: &str, client: SocketAddr) -> Option<Answer> {
        Some(Answer::json(&Stars {
            id: book_id(path, "ratings")?,
            ratings: [("Reviewer1".to_owned(), 5), ("Reviewer2".to_owned(), 4)].into(),
            podname: self.pod.to_string(),
            client: client.to_string(),
        }))
    }
}

//! Facts about a book.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::serve::{Answer, Site, book_id};

/// The service details.
#[derive(Debug)]
pub struct Details {
    /// Name of this pod.
    pub pod: Arc<str>,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of a book say it")]
pub struct Book {
    pub id: u32,
    pub author: String,
    pub year: u16,
    #[serde(rename = "type")]
    pub binding: String,
    pub pages: u16,
    pub publisher: String,
    pub language: String,
    #[serde(rename = "ISBN-10")]
    pub isbn_10: String,
    #[serde(rename = "ISBN-13")]
    pub isbn_13: String,
    /// Which pod answered.
    pub podname: String,
    /// Who asked, as this pod saw it.
    pub client: String,
}

impl Site for Details {
    const NAME: &'static str = "details";

    fn pod(&self) -> &str {
        &self.pod
    }

    async fn get(&self, path: &str, client: SocketAddr) -> Option<Answer> {
        Some(Answer::json(&Book {
            id: book_id(path, "details")?,
            author: "William Shakespeare".into(),
            year: 1623,
            binding: "paperback".into(),
            pages: 128,
            publisher: "Loam Press".into(),
            language: "English".into(),
            isbn_10: "0000000000".into(),
            isbn_13: "9780000000002".into(),
            podname: self.pod.to_string(),
            client: client.to_string(),
        }))
    }
}

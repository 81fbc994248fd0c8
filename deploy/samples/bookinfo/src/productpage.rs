//! The page that people look at, and the same as JSON.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use crate::call::{Backend, CallError};
use crate::details::Book;
use crate::page::{self, Page};
use crate::reviews::Opinions;
use crate::serve::{Answer, Site};

/// How long a service may take. A page with a hole is better than no page.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(2);

/// The only book of the shop.
const BOOK: u32 = 0;

/// The service productpage.
#[derive(Debug)]
pub struct Productpage {
    /// Name of this pod.
    pub pod: Arc<str>,
    /// Whom it asks for facts.
    pub details: Backend,
    /// Whom it asks for opinions.
    pub reviews: Backend,
}

impl Productpage {
    async fn book(&self) -> Result<Book, CallError> {
        self.details.get_json(&format!("/details/{BOOK}"), BACKEND_TIMEOUT).await
    }

    async fn opinions(&self) -> Result<Opinions, CallError> {
        self.reviews.get_json(&format!("/reviews/{BOOK}"), BACKEND_TIMEOUT).await
    }

    async fn page(&self, client: SocketAddr) -> Answer {
        let (book, opinions) = tokio::join!(self.book(), self.opinions());
        let reviewed_by = opinions.as_ref().ok().map(|opinions| opinions.podname.clone());
        let page = Page {
            pod: &self.pod,
            client,
            book: book.as_ref(),
            details: &self.details,
            opinions: opinions.as_ref(),
            reviews: &self.reviews,
        };
        Answer { reviewed_by, ..Answer::html(page.to_string()) }
    }
}

impl Site for Productpage {
    const NAME: &'static str = "productpage";

    fn pod(&self) -> &str {
        &self.pod
    }

    async fn get(&self, path: &str, client: SocketAddr) -> Option<Answer> {
        match path {
            "/" | "/productpage" => Some(self.page(client).await),
            "/api/v1/products" => Some(Answer::json(&json!([{ "id": BOOK, "title": page::TITLE }]))),
            "/api/v1/products/0" => Some(self.book().await.map_or_else(unavailable, |book| Answer::json(&book))),
            "/api/v1/products/0/reviews" => Some(self.opinions().await.map_or_else(unavailable, |opinions| Answer {
                reviewed_by: Some(opinions.podname.clone()),
                ..Answer::json(&opinions)
            })),
            _ => None,
        }
    }
}

fn unavailable(error: CallError) -> Answer {
    Answer { status: StatusCode::SERVICE_UNAVAILABLE, ..Answer::json(&json!({ "error": error.to_string() })) }
}

#[cfg(test)]
mod tests;

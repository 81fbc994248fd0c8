use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::details::Details;
use crate::ratings::Ratings;
use crate::reviews::{Rating, Reviews, Version};
use crate::serve;

/// The services that run; they end with this value.
#[derive(Default)]
struct Shop(JoinSet<()>);

impl Shop {
    async fn run<S: Site>(&mut self, site: S) -> Backend {
        let listener = serve::bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        self.0.spawn(serve::run(listener, site, std::future::pending()));
        format!("127.0.0.1:{port}").parse().unwrap()
    }

    async fn page(&mut self, details: Backend, reviews: Backend) -> Backend {
        self.run(Productpage { pod: "productpage-1".into(), details, reviews }).await
    }

    async fn whole(&mut self, version: Version) -> Backend {
        let ratings = self.run(Ratings { pod: "ratings-1".into() }).await;
        let reviews = self.run(Reviews { pod: "reviews-1".into(), version, ratings }).await;
        let details = self.run(Details { pod: "details-1".into() }).await;
        self.page(details, reviews).await
    }
}

/// Where nobody listens.
async fn nowhere() -> Backend {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string().parse().unwrap()
}

async fn text(backend: &Backend, path: &str) -> (u16, String) {
    let reply = backend.get(path, Duration::from_secs(10)).await.unwrap();
    (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).unwrap())
}

#[tokio::test]
async fn the_page_shows_book_reviews_and_who_answered() {
    let mut shop = Shop::default();
    let page = shop.whole(Version::V2).await;
    let reply = page.get("/productpage", Duration::from_secs(10)).await.unwrap();
    assert_eq!(reply.headers["x-served-by"], "productpage-1");
    assert_eq!(reply.headers["x-reviewed-by"], "reviews-1");
    let (status, html) = text(&page, "/productpage").await;
    assert_eq!(status, 200);
    for part in ["William Shakespeare", "details-1", "reviews-1", "productpage-1", "Reviewer2", "127.0.0.1:"] {
        assert!(html.contains(part), "{part} is missing in {html}");
    }
    assert!(!html.contains("class=\"error\""), "{html}");
}

#[tokio::test]
async fn the_versions_differ_in_their_stars() {
    for (version, stars) in
        [(Version::V1, None), (Version::V2, Some("class=\"stars black\"")), (Version::V3, Some("class=\"stars red\""))]
    {
        let mut shop = Shop::default();
        let page = shop.whole(version).await;
        let (_, html) = text(&page, "/productpage").await;
        match stars {
            None => assert!(!html.contains("class=\"stars"), "{html}"),
            Some(stars) => assert_eq!(html.matches(stars).count(), 2, "{html}"),
        }
    }
}

#[tokio::test]
async fn a_service_that_is_down_leaves_a_hole_and_the_rest_of_the_page() {
    let mut shop = Shop::default();
    let details = shop.run(Details { pod: "details-1".into() }).await;
    let page = shop.page(details, nowhere().await).await;
    let (status, html) = text(&page, "/productpage").await;
    assert_eq!(status, 200);
    assert!(html.contains("Reviews are not available") && html.contains("William Shakespeare"), "{html}");
    let page = shop.page(nowhere().await, nowhere().await).await;
    assert!(text(&page, "/productpage").await.1.contains("Book details are not available"));
    assert_eq!(text(&page, "/api/v1/products/0").await.0, 503);
}

#[tokio::test]
async fn reviews_without_ratings_still_have_their_texts() {
    let mut shop = Shop::default();
    let ratings = nowhere().await;
    let reviews = shop.run(Reviews { pod: "reviews-1".into(), version: Version::V3, ratings }).await;
    let opinions: Opinions = reviews.get_json("/reviews/0", Duration::from_secs(10)).await.unwrap();
    assert_eq!(opinions.reviews.len(), 2);
    assert!(matches!(opinions.reviews[0].rating, Some(Rating::Missing { .. })), "{opinions:?}");
    let page = shop.page(nowhere().await, reviews).await;
    let (_, html) = text(&page, "/productpage").await;
    assert!(html.contains("No stars") && html.contains("Reviewer1"), "{html}");
}

#[tokio::test]
async fn json_follows_the_contract_of_the_sample() {
    let mut shop = Shop::default();
    let ratings = shop.run(Ratings { pod: "ratings-1".into() }).await;
    let (_, body) = text(&ratings, "/ratings/0").await;
    let stars: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(stars["id"], 0);
    assert_eq!(stars["ratings"], json!({ "Reviewer1": 5, "Reviewer2": 4 }));
    let reviews = shop.run(Reviews { pod: "reviews-1".into(), version: Version::V2, ratings: ratings.clone() }).await;
    let opinions: serde_json::Value = serde_json::from_str(&text(&reviews, "/reviews/0").await.1).unwrap();
    assert_eq!(opinions["id"], "0");
    assert_eq!(opinions["podname"], "reviews-1");
    assert_eq!(opinions["reviews"][0]["rating"], json!({ "stars": 5, "color": "black" }));
    let details = shop.run(Details { pod: "details-1".into() }).await;
    let book: serde_json::Value = serde_json::from_str(&text(&details, "/details/0").await.1).unwrap();
    assert_eq!(book["id"], 0);
    assert!(book["ISBN-10"].is_string() && book["type"].is_string());
    assert_eq!(text(&ratings, "/health").await, (200, "{\"status\":\"ratings is healthy\"}".into()));
    assert_eq!(text(&ratings, "/ratings/x").await.0, 404);
    assert_eq!(text(&ratings, "/").await.0, 404);
}

#[test]
fn what_a_service_says_cannot_become_markup() {
    let hostile = "<script>alert(1)</script>\"'&";
    let opinions = Opinions {
        id: "0".into(),
        podname: hostile.into(),
        clustername: String::new(),
        reviews: Vec::new(),
        client: hostile.into(),
    };
    let (details, reviews): (Backend, Backend) = ("details:1".parse().unwrap(), "reviews:1".parse().unwrap());
    let html = Page {
        pod: hostile,
        client: "127.0.0.1:1".parse().unwrap(),
        book: Err(&CallError::Body(hostile.into())),
        details: &details,
        opinions: Ok(&opinions),
        reviews: &reviews,
    }
    .to_string();
    assert!(!html.contains("<script>"), "{html}");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"), "{html}");
}

//! The page itself: one document without any other file.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use crate::call::{Backend, CallError};
use crate::details::Book;
use crate::reviews::{Opinions, Rating, Review};

/// The book.
pub const TITLE: &str = "The Comedy of Errors";

/// What the page shows.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are those of productpage")]
pub struct Page<'a> {
    pub pod: &'a str,
    pub client: SocketAddr,
    pub book: Result<&'a Book, &'a CallError>,
    pub details: &'a Backend,
    pub opinions: Result<&'a Opinions, &'a CallError>,
    pub reviews: &'a Backend,
}

impl Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{TITLE} - Bookinfo</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <header><a class=\"brand\" href=\"/productpage\">Bookinfo</a>\
             <a class=\"button\" href=\"/productpage\">Refresh</a></header>\n\
             <main>\n<section class=\"hero\"><div class=\"cover\" aria-hidden=\"true\">The<br>Comedy<br>of<br>Errors</div>\
             <div><h1>{TITLE}</h1><p>Two masters and two servants are looked for, and four are found. A day of wrong \
             dinners, wrong chains and wrong husbands follows, until everyone stands in one street at last.</p></div>\
             </section>\n"
        )?;
        self.path(f)?;
        f.write_str("<div class=\"columns\">\n")?;
        self.facts(f)?;
        self.readers(f)?;
        f.write_str("</div>\n</main>\n</body>\n</html>\n")
    }
}

impl Page<'_> {
    /// Who asked whom, with the addresses as each saw them.
    fn path(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<section class=\"card path\"><h2>How this page came about</h2><ol>\
             <li><b>productpage</b> in pod <code>{}</code> was asked from <code>{}</code></li>",
            Escaped(self.pod),
            self.client
        )?;
        let mut step = |name: &str, backend: &Backend, answer: Result<(&str, &str), &CallError>| match answer {
            Ok((pod, client)) => write!(
                f,
                "<li><b>{name}</b> in pod <code>{}</code> was asked from <code>{}</code></li>",
                Escaped(pod),
                Escaped(client)
            ),
            Err(_) => {
                write!(f, "<li class=\"bad\"><b>{name}</b> at <code>{}</code> gave no answer</li>", Escaped(backend))
            }
        };
        step("details", self.details, self.book.map(|book| (&*book.podname, &*book.client)))?;
        step("reviews", self.reviews, self.opinions.map(|opinions| (&*opinions.podname, &*opinions.client)))?;
        f.write_str("</ol></section>\n")
    }

    fn facts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<section class=\"card\"><h2>Book details</h2>")?;
        match self.book {
            Ok(book) => {
                let rows: [(&str, &dyn Display); 8] = [
                    ("Author", &book.author),
                    ("Year", &book.year),
                    ("Binding", &book.binding),
                    ("Pages", &book.pages),
                    ("Publisher", &book.publisher),
                    ("Language", &book.language),
                    ("ISBN-10", &book.isbn_10),
                    ("ISBN-13", &book.isbn_13),
                ];
                f.write_str("<dl>")?;
                for (name, value) in rows {
                    write!(f, "<dt>{name}</dt><dd>{}</dd>", Escaped(value))?;
                }
                f.write_str("</dl>")?;
            }
            Err(error) => failure(f, "Book details are not available", self.details, error)?,
        }
        f.write_str("</section>\n")
    }

    fn readers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<section class=\"card\"><h2>Reviews</h2>")?;
        match self.opinions {
            Ok(opinions) => {
                opinions.reviews.iter().try_for_each(|review| opinion(f, review))?;
                write!(f, "<p class=\"by\">Served by <code>{}</code></p>", Escaped(&opinions.podname))?;
            }
            Err(error) => failure(f, "Reviews are not available", self.reviews, error)?,
        }
        f.write_str("</section>\n")
    }
}

/// Most stars anyone gives.
const MAX_STARS: u8 = 5;

fn opinion(f: &mut fmt::Formatter<'_>, review: &Review) -> fmt::Result {
    let (text, reviewer) = (Escaped(&review.text), Escaped(&review.reviewer));
    write!(f, "<blockquote><p>{text}</p><footer>{reviewer}</footer>")?;
    match &review.rating {
        None => {}
        Some(Rating::Given { stars, color }) => {
            let color = if color == "red" { "red" } else { "black" };
            write!(f, "<p class=\"stars {color}\" aria-label=\"{stars} of {MAX_STARS} stars\">")?;
            for i in 0..MAX_STARS {
                f.write_str(if i < *stars { "\u{2605}" } else { "\u{2606}" })?;
            }
            f.write_str("</p>")?;
        }
        Some(Rating::Missing { error }) => {
            write!(f, "<p class=\"error\"><b>No stars</b><br>{}</p>", Escaped(error))?;
        }
    }
    f.write_str("</blockquote>")
}

fn failure(f: &mut fmt::Formatter<'_>, what: &str, backend: &Backend, error: &CallError) -> fmt::Result {
    write!(f, "<p class=\"error\"><b>{what}</b><br>{}: {}</p>", Escaped(backend), Escaped(error))
}

/// Text in a document, whatever it contains.
struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#f6f4ef;--card:#fff;--ink:#26221b;--soft:#6d6658;--line:#e4dfd3;--accent:#7a4a21;--bad:#b3261e;--badbg:#fdecea}
@media(prefers-color-scheme:dark){:root{--bg:#1b1916;--card:#25221e;--ink:#efeae0;--soft:#a79f90;--line:#3a352e;--accent:#d9a066;--bad:#ff8a80;--badbg:#3a1f1d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
header{display:flex;justify-content:space-between;align-items:center;padding:.9rem max(1rem,calc(50vw - 30rem));border-bottom:1px solid var(--line);background:var(--card)}
.brand{font:700 1.25rem Georgia,serif;color:var(--accent);text-decoration:none}
.button{padding:.35rem .9rem;border-radius:.5rem;background:var(--accent);color:var(--card);text-decoration:none;font-weight:600}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 3rem;display:grid;gap:1.25rem}
.hero{display:flex;gap:1.5rem;align-items:center}
.hero h1{font:700 clamp(1.7rem,4vw,2.5rem)/1.15 Georgia,serif;margin:0 0 .5rem}
.hero p{margin:0;color:var(--soft);max-width:38rem}
.cover{flex:none;width:7.5rem;height:10.5rem;padding:.9rem .7rem;border-radius:.3rem .6rem .6rem .3rem;border-left:.4rem solid #4d2c11;background:linear-gradient(150deg,#a8672f,#6d3d17);color:#fbe9d2;font:700 1rem/1.35 Georgia,serif;box-shadow:0 .5rem 1.2rem #0003}
.columns{display:grid;gap:1.25rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));align-items:start}
.card{background:var(--card);border:1px solid var(--line);border-radius:.8rem;padding:1.1rem 1.3rem}
.card h2{margin:0 0 .7rem;font-size:1.05rem}
dl{display:grid;grid-template-columns:auto 1fr;gap:.25rem 1.2rem;margin:0}
dt{color:var(--soft)}dd{margin:0}
blockquote{margin:0 0 1rem;padding:0 0 .2rem .9rem;border-left:3px solid var(--line)}
blockquote p{margin:0}blockquote footer{color:var(--soft);font-size:.9rem}
.stars{font-size:1.4rem;letter-spacing:.1em;line-height:1.2}.stars.black{color:var(--ink)}.stars.red{color:#d5281b}
.path ol{margin:0;padding-left:1.2rem}.path li.bad{color:var(--bad)}
code{font-size:.88em;background:var(--bg);border-radius:.3rem;padding:.08em .35em;overflow-wrap:anywhere}
.by{color:var(--soft);margin:0;font-size:.9rem}
.error{margin:.3rem 0 0;padding:.6rem .8rem;border-radius:.5rem;background:var(--badbg);color:var(--bad);overflow-wrap:anywhere}
";

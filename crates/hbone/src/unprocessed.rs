//! What a server of HTTP/2 says of requests that it has not begun with.

use std::error::Error;

use h2::Reason;

/// Whether `error`, or what is beneath it, says that the peer has not begun with the request: it was refused, or stands
/// behind the last one of a connection that the peer ends in good order (RFC 9113 8.7).
pub fn is_unprocessed(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    let Some(error) = causes.find_map(|error| error.downcast_ref::<h2::Error>()) else { return false };
    // A GOAWAY with an error also ends requests that the peer has begun with.
    error.is_remote()
        && match error.reason() {
            Some(Reason::REFUSED_STREAM) => error.is_reset(),
            Some(Reason::NO_ERROR) => error.is_go_away(),
            _ => false,
        }
}

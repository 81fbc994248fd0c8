//! The head of a request as it is sent on.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Version as HttpVersion};
use loam_core::http::target::Target;
use loam_core::outbound::Plan;
use loam_core::service::AppProtocol;

use crate::body::RequestBody;
use crate::connect::Place;
use crate::upstream::{Hop, Version};

/// The head of a request, without what is about one connection.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The method.
    pub method: Method,
    /// The headers.
    pub headers: HeaderMap,
    /// The version in which it came.
    pub downstream: HttpVersion,
    /// Whether it makes sense in HTTP/2 only: it is gRPC.
    pub http2: bool,
    /// The protocol that it asks to switch to.
    pub upgrade: Option<HeaderValue>,
}

impl Draft {
    /// The endpoint of `plan`, and what is spoken with it.
    pub fn hop(&self, plan: &Plan, declared: AppProtocol) -> Hop {
        let version = match declared {
            _ if self.upgrade.is_some() => Version::Http1,
            _ if self.http2 => Version::Http2,
            AppProtocol::Http2 | AppProtocol::Grpc => Version::Http2,
            AppProtocol::Http11 => Version::Http1,
            // Nothing is known of the server but that this client speaks to it.
            AppProtocol::Unknown | AppProtocol::Tcp | AppProtocol::Tls => match self.downstream {
                HttpVersion::HTTP_2 => Version::Http2,
                _ => Version::Http1,
            },
        };
        Hop { place: Place::of(plan), version }
    }

    /// The request for `target`, as `version` has it.
    pub fn request(&self, target: &Target, version: Version, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        let mut headers = self.headers.clone();
        match version {
            Version::Http1 => {
                *request.uri_mut() = target.origin();
                // What was canonical text stays a header.
                if let Ok(host) = HeaderValue::from_str(target.authority().as_str()) {
                    headers.insert(header::HOST, host);
                }
                // RFC 9110 10.1.4: `te` is about the connection, and says so.
                if headers.contains_key(header::TE) {
                    headers.append(header::CONNECTION, HeaderValue::from_static("te"));
                }
                if let Some(protocol) = &self.upgrade {
                    headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
                    headers.insert(header::UPGRADE, protocol.clone());
                }
            }
            Version::Http2 => {
                *request.uri_mut() = target.absolute();
                *request.version_mut() = HttpVersion::HTTP_2;
                headers.remove(header::HOST);
            }
        }
        *request.headers_mut() = headers;
        request
    }
}

//! For which host a request is, if it says so in one voice (RFC 9112, 3.2; RFC 9113, 8.3.1).

use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Version};

/// Why a request names no host that everybody on its way would read alike. All of them are bad requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHost {
    #[error("the header 'Host' is missing, which HTTP/1.1 demands")]
    Missing,
    #[error("there is more than one header 'Host'")]
    Several,
    #[error("the host is not of the form 'name' or 'name:port'")]
    Invalid,
    #[error("the header 'Host' and ':authority' name different hosts")]
    Differs,
}

/// The host that a request is for, `None` if it names none, which only HTTP/1.0 and HTTP/2 may do. That of
/// the target (absolute form, `:authority`) counts before the header's. In HTTP/1.1 the header is then to be
/// ignored; in HTTP/2 the two must be the same.
pub(crate) fn requested_host<B>(request: &Request<B>) -> Result<Option<Authority>, BadHost> {
    let mut headers = request.headers().get_all(HOST).iter();
    let header = headers.next();
    if headers.next().is_some() {
        return Err(BadHost::Several);
    }
    if header.is_none() && request.version() == Version::HTTP_11 {
        return Err(BadHost::Missing);
    }
    let header = header.map(read).transpose()?;
    let Some(target) = request.uri().authority().cloned() else {
        return Ok(header);
    };
    // Nobody logs in to a host here, and readers differ in what they take for the name in `a@b`.
    if target.as_str().contains('@') {
        return Err(BadHost::Invalid);
    }
    // The port that goes without saying.
    let default = if request.uri().scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    if request.version() == Version::HTTP_2
        && header.is_some_and(|header| !same(&header, &target, default))
    {
        return Err(BadHost::Differs);
    }
    Ok(Some(target))
}

fn read(value: &HeaderValue) -> Result<Authority, BadHost> {
    let authority = Authority::try_from(value.as_bytes()).map_err(|_| BadHost::Invalid)?;
    if authority.as_str().contains('@') { Err(BadHost::Invalid) } else { Ok(authority) }
}

/// Whether both name the same.
fn same(a: &Authority, b: &Authority, default: u16) -> bool {
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    a.host().eq_ignore_ascii_case(b.host()) && port(a) == port(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(version: Version, uri: &str, hosts: &[&str]) -> Result<Option<String>, BadHost> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let request = request.body(()).expect("request");
        requested_host(&request).map(|host| host.map(|host| host.to_string()))
    }

    #[test]
    fn one_host_is_read() {
        for name in ["localhost", "localhost:3002", "[::1]:3002", "80-iabc.x", "my_server:3000"] {
            assert_eq!(host(Version::HTTP_11, "/", &[name]), Ok(Some(name.to_owned())));
        }
        assert_eq!(host(Version::HTTP_10, "/", &[]), Ok(None));
        assert_eq!(host(Version::HTTP_2, "http://a.b/", &[]), Ok(Some("a.b".to_owned())));
    }

    #[test]
    fn the_target_counts_before_the_header() {
        let read = host(Version::HTTP_11, "http://a.b:1/", &["c.d"]);
        assert_eq!(read, Ok(Some("a.b:1".to_owned())));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (version, uri, hosts, expected) in [
            (Version::HTTP_11, "/", vec![], BadHost::Missing),
            (Version::HTTP_11, "http://a.b/", vec![], BadHost::Missing),
            (Version::HTTP_11, "/", vec!["a.b", "a.b"], BadHost::Several),
            (Version::HTTP_10, "/", vec!["a.b", "c.d"], BadHost::Several),
            (Version::HTTP_2, "http://a.b/", vec!["a.b", "a.b"], BadHost::Several),
            (Version::HTTP_11, "/", vec![""], BadHost::Invalid),
            (Version::HTTP_11, "/", vec!["a.b, c.d"], BadHost::Invalid),
            (Version::HTTP_11, "/", vec!["a.b/c"], BadHost::Invalid),
            (Version::HTTP_11, "/", vec!["u@a.b"], BadHost::Invalid),
            (Version::HTTP_11, "http://u@a.b/", vec!["a.b"], BadHost::Invalid),
            (Version::HTTP_2, "http://a.b/", vec!["c.d"], BadHost::Differs),
            (Version::HTTP_2, "http://a.b/", vec!["a.b:81"], BadHost::Differs),
            (Version::HTTP_2, "https://a.b/", vec!["a.b:80"], BadHost::Differs),
        ] {
            assert_eq!(host(version, uri, &hosts), Err(expected), "{uri} {hosts:?}");
        }
        for same in ["A.b", "a.b:80"] {
            assert!(host(Version::HTTP_2, "http://a.b/", &[same]).is_ok(), "{same}");
        }
        assert!(host(Version::HTTP_2, "https://a.b/", &["a.b:443"]).is_ok());
    }
}

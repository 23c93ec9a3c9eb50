//! Paths of the daemon that are the server's own: never reachable through the proxy, however they are
//! written (control-plane 5.5 (3), executor 6.7).

use percent_encoding::percent_decode_str;
use sandyard_contract::daemon::TUNNEL_PATH;

/// The contract's routes of the control plane.
const RESERVED: [&str; 7] =
    ["init", "freeze", "unfreeze", "fsfreeze", "fsthaw", "collapse", "upgrade"];

/// The path if it is reserved: decoded, and without empty, `.` and `..` segments.
pub(super) fn reserved(path: &str) -> Option<String> {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let own = TUNNEL_PATH.split('/').nth(1);
    let is_reserved = match segments.as_slice() {
        [only] => RESERVED.contains(only) || own == Some(*only),
        [first, ..] => own == Some(*first),
        [] => false,
    };
    is_reserved.then(|| format!("/{}", segments.join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_way_of_writing_a_reserved_path_is_seen() {
        for path in [
            "/init",
            "/init/",
            "//init",
            "/./init",
            "/files/../init",
            "/files/%2e%2e/init",
            "/%69nit",
            "/files%2F..%2Finit",
            "/../init",
            "/init/.",
            "init",
        ] {
            assert_eq!(reserved(path).as_deref(), Some("/init"), "{path}");
        }
        assert_eq!(reserved("/x/..//sandyard/%74unnel/80").as_deref(), Some("/sandyard/tunnel/80"));
        assert!(reserved("/sandyard").is_some());
    }

    /// control-plane 5.5 (3)
    #[test]
    fn the_contracts_paths_are_reserved() {
        for path in
            ["/init", "/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"]
        {
            assert_eq!(reserved(path).as_deref(), Some(path));
        }
    }

    #[test]
    fn what_only_looks_like_it_passes() {
        for path in [
            "/",
            "/health",
            "/files",
            "/initial",
            "/init/x",
            "/files/init",
            "/process.Process/Start",
            // Decoded once, as the daemon does: this is no route of it.
            "/%2569nit",
            "/sandyardx/tunnel",
        ] {
            assert_eq!(reserved(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_detour_hides_it(
            before in proptest::collection::vec("[a-z]{1,5}", 0..4),
            dots in "(/\\.|/)*",
        ) {
            let back = "/..".repeat(before.len());
            let path = format!("/{}{back}{dots}/fsfreeze{dots}", before.join("/"));
            prop_assert_eq!(reserved(&path), Some("/fsfreeze".to_owned()));
        }
    }
}

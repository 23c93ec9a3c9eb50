//! What a create may ask for that is not built: refused by name, and only if the value asks for
//! something. Older clients always send the defaults.

use http::StatusCode;
use sandyard_contract::rest::{CreateBody, NetworkBody};

use super::create::Version;
use super::error::ApiError;

/// Asserted literally by clients (control-plane 3.3).
const PRIVATE_NEEDS_SECURE: &str = "You cannot create a sandbox without public access unless you enable secure \
     envd access via 'secure' flag.";

/// The name servers that a sandbox has anyway (control-plane 3.1).
const DEFAULT_DNS: &str = "8.8.8.8";

/// # Errors
/// 400 where the request contradicts itself, before 501 where it asks for what is not built.
pub(super) fn refuse_what_is_not_built(
    version: Version,
    body: &CreateBody,
    secure: bool,
) -> Result<(), ApiError> {
    let pauses = body.auto_pause == Some(true);
    let drops_memory = body.auto_pause_memory == Some(false);
    let resumes = body.auto_resume.as_ref().is_some_and(|a| a.enabled);
    if drops_memory && !pauses {
        let rule = "false says how to pause, and needs 'autoPause': true";
        return Err(ApiError::validation("autoPauseMemory", rule));
    }
    if drops_memory && resumes {
        let rule = "false cannot go with 'autoResume.enabled': true, which needs the memory";
        return Err(ApiError::validation("autoPauseMemory", rule));
    }
    let private = body.network.as_ref().is_some_and(|n| n.allow_public_traffic == Some(false));
    if private && version == Version::V1 && !secure {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, PRIVATE_NEEDS_SECURE));
    }

    let has_tokens = |tokens: &serde_json::Map<_, _>| !tokens.is_empty();
    let iam = body.iam.as_ref().and_then(|iam| iam.tokens.as_ref());
    let asked = [
        ("allow_internet_access", body.allow_internet_access == Some(false)),
        ("iam.tokens", iam.is_some_and(has_tokens)),
        ("volumeMounts", body.volume_mounts.as_ref().is_some_and(|v| !v.is_empty())),
    ];
    let asked_member = asked.into_iter().find(|(_, asks)| *asks);
    let member = asked_member
        .map(|(member, _)| member)
        .or_else(|| body.network.as_ref().and_then(network_member));
    match member {
        Some(member) => Err(ApiError::not_built(&format!("what the member '{member}' asks for"))),
        None => Ok(()),
    }
}

/// The first member of the network that asks for anything.
fn network_member(network: &NetworkBody) -> Option<&'static str> {
    let any = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let dns = |list: &Vec<String>| !list.is_empty() && *list != [DEFAULT_DNS];
    let members = [
        ("network.allowOut", any(&network.allow_out)),
        ("network.denyOut", any(&network.deny_out)),
        ("network.dnsServers", network.dns_servers.as_ref().is_some_and(dns)),
        ("network.egressProxy", network.egress_proxy.is_some()),
        ("network.httpsPorts", network.https_ports.as_ref().is_some_and(|p| !p.is_empty())),
        (
            "network.rules",
            network.rules.as_ref().is_some_and(|rules| rules.values().any(|rule| !rule.is_empty())),
        ),
    ];
    let asked = members.into_iter().find(|(_, asks)| *asks);
    asked.map(|(member, _)| member)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(version: Version, members: Value) -> Result<(), ApiError> {
        let mut body = json!({"templateID": "base"});
        let all = body.as_object_mut().expect("object");
        all.append(members.clone().as_object_mut().expect("object"));
        let body: CreateBody = serde_json::from_value(body).expect("well-formed");
        refuse_what_is_not_built(version, &body, false)
    }

    #[test]
    fn what_asks_for_nothing_passes() {
        for members in [
            json!({"autoPause": false, "autoPauseMemory": true, "autoResume": {"enabled": false}}),
            json!({"autoPause": null, "autoPauseMemory": null, "autoResume": null}),
            json!({"allow_internet_access": true, "mcp": null, "iam": {}, "volumeMounts": []}),
            json!({"mcp": {}, "iam": {"tokens": {}}, "volumeMounts": null, "network": null}),
            json!({"network": {}}),
            json!({"autoPause": true, "autoPauseMemory": false}),
            json!({"autoPause": true, "autoResume": {"enabled": true}}),
            // The SDK starts the gateway itself.
            json!({"mcp": {"a": {}}}),
            json!({"network": {
                "allowPublicTraffic": true, "allowOut": [], "denyOut": null, "egressProxy": null,
                "dnsServers": ["8.8.8.8"], "httpsPorts": [], "maskRequestHost": null, "rules": {},
            }}),
            json!({"network": {"allowPublicTraffic": null, "maskRequestHost": "a:${PORT}"}}),
            json!({"somethingNew": {"a": 1}}),
        ] {
            assert_eq!(check(Version::V1, members.clone()), Ok(()), "{members}");
        }
    }

    #[test]
    fn what_asks_for_something_is_named() {
        for (member, members) in [
            ("allow_internet_access", json!({"allow_internet_access": false})),
            ("iam.tokens", json!({"iam": {"tokens": {"t": {}}}})),
            ("volumeMounts", json!({"volumeMounts": [{"name": "v", "path": "/v"}]})),
            ("network.denyOut", json!({"network": {"denyOut": ["0.0.0.0/0"]}})),
            ("network.httpsPorts", json!({"network": {"httpsPorts": [1]}})),
            ("network.rules", json!({"network": {"rules": {"a.b": [{}]}}})),
        ] {
            let refused = check(Version::V2, members).expect_err(member);
            assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
            assert!(refused.message().contains(&format!("'{member}'")));
        }
    }

    #[test]
    fn contradictions_are_bad_requests() {
        for members in [
            json!({"autoPauseMemory": false}),
            json!({"autoPause": true, "autoPauseMemory": false, "autoResume": {"enabled": true}}),
        ] {
            let refused = check(Version::V2, members).expect_err("contradiction");
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        }
        let private = json!({"network": {"allowPublicTraffic": false}});
        let refused = check(Version::V1, private).expect_err("contradiction");
        assert_eq!(refused.message(), PRIVATE_NEEDS_SECURE);
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    }
}

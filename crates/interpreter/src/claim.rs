//! What the sandbox's daemon tells: who the sandbox is, as soon as that is known.
//!
//! The daemon starts this program and holds the other end of its standard input. There it writes one line of JSON when
//! the sandbox is claimed, and again to every interpreter that it starts after that. Nobody else can write there, and
//! nobody else can read it: it holds the sandbox's access token.

use std::collections::BTreeMap;

use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::sync::watch;

/// What the daemon tells.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonClaim {
    /// All global variables.
    pub variables: BTreeMap<String, String>,
    /// What a request has to show, if it shows anything.
    access_token: String,
    /// Whether code is run only for those who show the token: in secured sandboxes.
    token_demanded: bool,
}

impl DaemonClaim {
    /// That of an interpreter that belongs to nobody: no variables, and no token is demanded.
    pub fn open() -> Self {
        Self { variables: BTreeMap::new(), access_token: String::new(), token_demanded: false }
    }

    /// Whether code may be run for somebody who shows these tokens, compared in a time that tells nothing about ours. One
    /// that is shown must be right, demanded or not.
    pub fn accepts<'a>(&self, tokens: impl Iterator<Item = &'a [u8]>) -> bool {
        let mut shown = false;
        for token in tokens {
            shown = true;
            if !bool::from(self.access_token.as_bytes().ct_eq(token)) {
                return false;
            }
        }
        shown || !self.token_demanded
    }
}

/// Reads claims until the daemon has gone.
///
/// # Errors
/// If what comes is none.
pub async fn read(
    input: impl AsyncRead + Unpin,
    claim: &watch::Sender<Option<DaemonClaim>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(input).lines();
    while let Some(line) = lines.next_line().await? {
        claim.send_replace(Some(serde_json::from_str(&line)?));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_line_counts() -> anyhow::Result<()> {
        let (sender, receiver) = watch::channel(None);
        let lines = b"{\"variables\":{},\"accessToken\":\"a\",\"tokenDemanded\":true}\n\
            {\"variables\":{\"X\":\"1\"},\"accessToken\":\"b\",\"tokenDemanded\":true}\n";
        read(&lines[..], &sender).await?;
        let claim = receiver.borrow();
        let claim = claim.as_ref().expect("there is one");
        assert_eq!(claim.variables["X"], "1");
        for (tokens, accepted) in [
            (vec![&b"b"[..]], true),
            (vec![b"a"], false),
            (vec![b""], false),
            (vec![b"b", b"a"], false),
            (vec![], false),
        ] {
            assert_eq!(claim.accepts(tokens.iter().copied()), accepted, "{tokens:?}");
        }
        let open = DaemonClaim { token_demanded: false, ..claim.clone() };
        assert!(open.accepts(std::iter::empty()) && !open.accepts([&b"a"[..]].into_iter()));
        assert!(read(&b"nonsense\n"[..], &sender).await.is_err());
        Ok(())
    }
}

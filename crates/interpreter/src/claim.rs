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
}

impl DaemonClaim {
    /// Whether a token is the sandbox's, in a time that tells nothing about it.
    pub fn accepts(&self, token: &[u8]) -> bool {
        self.access_token.as_bytes().ct_eq(token).into()
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
        let lines = b"{\"variables\":{},\"accessToken\":\"a\"}\n{\"variables\":{\"X\":\"1\"},\"accessToken\":\"b\"}\n";
        read(&lines[..], &sender).await?;
        let claim = receiver.borrow();
        let claim = claim.as_ref().expect("there is one");
        assert_eq!(claim.variables["X"], "1");
        assert!(claim.accepts(b"b") && !claim.accepts(b"a") && !claim.accepts(b""));
        assert!(read(&b"nonsense\n"[..], &sender).await.is_err());
        Ok(())
    }
}

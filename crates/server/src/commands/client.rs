//! A caller of the running server's own API, for the commands that look into it.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::config::Config;
use crate::data_dir::DataDir;

/// The API of the server that runs on a data folder.
pub struct ApiClient {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    key: String,
}

impl ApiClient {
    /// Finds the running server.
    ///
    /// # Errors
    /// If none runs, or the folder cannot be read.
    pub fn find(config: &Config) -> anyhow::Result<Self> {
        let data = DataDir::open(&config.data_dir)?;
        let running = data.running()?.with_context(|| {
            format!("no server runs on the data folder {}", data.path().display())
        })?;
        let key = match &config.api_key {
            Some(key) => key.reveal().to_owned(),
            None => data.first_api_key()?,
        };
        let http = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { http, base: running.api_url, key })
    }

    /// Sends a request without a body; returns status, next page's token and body.
    ///
    /// # Errors
    /// If the server does not answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
    ) -> anyhow::Result<(StatusCode, Option<String>, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("x-api-key", &self.key)
            .body(Full::default())?;
        let answer = self.http.request(request).await;
        let answer = answer.with_context(|| format!("the server at {} is gone", self.base))?;
        let next = answer.headers().get("x-next-token");
        let next = next.and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()).map(str::to_owned);
        let status = answer.status();
        Ok((status, next, answer.into_body().collect().await?.to_bytes()))
    }

    /// Like [`Self::send`], with every status but success as an error.
    ///
    /// # Errors
    /// The server's message.
    pub async fn expect(
        &self,
        method: Method,
        path: &str,
    ) -> anyhow::Result<(Option<String>, Bytes)> {
        let (status, next, body) = self.send(method, path).await?;
        if !status.is_success() {
            bail!("the server answered {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok((next, body))
    }
}
